//! Every way to run a forward pass that the planner offers is one that a call can be asked for: it runs as said, and gives
//! what the reference gives.

use natten_core::{Backend, Element, ForwardCall, Inputs, Output, Params, Problem, Tensor, bf16, reference};
use natten_cuda::{Cuda, CudaTensor};
use natten_emulator::{Emulated, Options};

fn noise<E: Element>(shape: &[usize], seed: usize) -> Tensor<E> {
    let value = |i: usize| ((((i + 977 * seed) as f64) * 0.7312).sin() * 64.0).round() / 64.0;
    Tensor::from_fn(shape, |i| E::from_f64(value(i))).expect("a small shape")
}

fn try_all<const RANK: usize>(
    capability: (u32, u32),
    tokens: [usize; RANK],
    params: Params<RANK>,
    most: usize,
) {
    let shape: Vec<usize> = [2].into_iter().chain(tokens).chain([2, 64]).collect();
    let inputs = Inputs::new(noise::<bf16>(&shape, 1), noise(&shape, 2), noise(&shape, 3));
    let host = Inputs::new(inputs.query.view(), inputs.key.view(), inputs.value.view());
    let layouts = host.map(|view| *view.layout());
    let problem = Problem::new(&params.to_dyn(), &layouts, bf16::TYPE).expect("a valid problem");
    let expected = reference::forward(&problem, &host);

    let cuda = Cuda::new(Emulated::new(capability.0, capability.1));
    cuda.device().set_options(Options { check_races: false, ..Options::default() });
    let upload = |tensor: &Tensor<bf16>| cuda.upload(&tensor.view()).expect("memory");
    let (query, key, value) = (upload(&inputs.query), upload(&inputs.key), upload(&inputs.value));
    let views = Inputs::new(query.view(), key.view(), value.view());
    let mut out: CudaTensor<bf16, _> = cuda.allocate(&problem.out_shape()).expect("memory");
    let mut lse: CudaTensor<f32, _> = cuda.allocate(&problem.lse_shape()).expect("memory");
    let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
    let candidates = cuda.tune(&problem, &views, &output, most).expect("a kernel serves");
    assert_eq!(candidates.len(), most, "{candidates:?}");

    let default = cuda.explain(&problem, &views, &output).expect("a kernel serves");
    assert_eq!(
        (Some(default.kernel), default.tiling),
        (candidates[0].request.entry, candidates[0].request.tiling)
    );
    for candidate in candidates {
        let asked = cuda.clone().with_request(candidate.request);
        let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
        let decision = asked.explain(&problem, &views, &output).expect("what is offered can be had");
        assert_eq!(
            (Some(decision.kernel), decision.tiling, decision.issued_over_useful),
            (candidate.request.entry, candidate.request.tiling, candidate.issued_over_useful)
        );
        asked.device().take_counters();
        asked.forward(ForwardCall::new(&problem, views, output).expect("they fit")).expect("it runs");
        let ran: Vec<&str> = asked.device().take_counters().into_keys().collect();
        assert_eq!(ran, [decision.kernel]);
        let (out, lse) = (cuda.download(&out).expect("it ran"), cuda.download(&lse).expect("it ran"));
        let near = |found: f64, expected: f64, allowed: f64| (found - expected).abs() <= allowed;
        for (found, &expected) in out.as_slice().iter().zip(expected.out.as_slice()) {
            assert!(near(found.to_f64(), expected, 1.6e-2), "{candidate:?}: {found}, expected {expected}");
        }
        for (&found, &expected) in lse.as_slice().iter().zip(expected.lse.as_slice()) {
            assert!(near(f64::from(found), expected, 1e-3), "{candidate:?}: {found}, expected {expected}");
        }
    }
}

#[test]
fn hopper_boxes_run_as_asked() {
    try_all((9, 0), [13, 18], Params::new([7, 9]), 24);
    try_all((9, 0), [3, 9, 10], Params::new([3, 4, 5]).stride([1, 2, 2]).is_causal([true, false, false]), 16);
}

#[test]
fn ampere_boxes_run_as_asked() {
    try_all((8, 0), [13, 18], Params::new([7, 9]), 16);
    try_all((8, 0), [70], Params::new([31]).dilation([2]), 2);
}

#[test]
fn a_backward_names_its_kernels() {
    let cuda = Cuda::new(Emulated::new(8, 0));
    let tensor: CudaTensor<bf16, _> = cuda.allocate(&[1, 8, 8, 2, 64]).expect("memory");
    let views = Inputs::new(tensor.view(), tensor.view(), tensor.view());
    let layouts = views.map(|view| *view.layout());
    let problem = Problem::new(&Params::new([3, 3]).to_dyn(), &layouts, bf16::TYPE).expect("a valid problem");
    let kernels = cuda.explain_backward(&problem, &views).expect("kernels serve");
    let [of_queries, of_keys] = &kernels[..] else { panic!("two passes: {kernels:?}") };
    assert!(of_queries.kernel.starts_with("natten_backward_query"), "{of_queries:?}");
    assert!(of_keys.kernel.starts_with("natten_backward_key"), "{of_keys:?}");
    assert!(of_queries.issued_over_useful >= 1.0 && !of_queries.rejections.0.is_empty());
}
