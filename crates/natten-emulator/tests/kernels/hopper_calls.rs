//! Calls on a Hopper device: what is chosen, compiled and launched.

use natten_core::plan::{KeyStart, Tiling};
use natten_core::{
    Backend, Element, ElementType, ForwardCall, Inputs, Layout, Output, Params, Problem, Tensor, bf16,
    reference,
};
use natten_cuda::registry::Operation;
use natten_cuda::{Cuda, CudaTensor, CudaView, Decision, Device, LayoutSummary, Request};
use natten_emulator::{Completion, Counters, Emulated, Options};
use natten_tests::compare::each_within;
use natten_tests::{Arrangement, OnDevice, Place, Placed, Spec, Subject};

use crate::case::{self, Case, Operands};

/// A Hopper GPU of one multiprocessor.
fn hopper(seed: u64, completion: Completion) -> Cuda<Emulated> {
    let device = Emulated::new(9, 0);
    device.set_options(Options { seed, completion, ..Options::default() });
    Cuda::new(device)
}

/// A tensor and a view of it with other strides, in elements, and another first element.
fn view<'a>(
    cuda: &Cuda<Emulated>,
    tensor: &'a CudaTensor<bf16, Emulated>,
    shape: &[usize],
    strides: &[isize],
    first: usize,
) -> CudaView<'a, bf16> {
    // SAFETY: the callers' views stay within their tensors, which outlive them.
    #[allow(unsafe_code)]
    unsafe {
        cuda.view_of_raw(tensor.address() + first as u64 * 2, Layout::strided(shape, strides).unwrap())
    }
}

/// A window large enough for this family to be chosen, its keys stored from the last to the first.
#[test]
fn reversed_axes_go_to_another_family() {
    let case = Case::new([1, 1, 400], Params::new([1, 1, 300])).dims(128, 128).heads(1, 1);
    let mut operands = Operands::<bf16>::draw(&case);
    let problem = operands.problem(&case.params);
    let cuda = hopper(1, Completion::Latest);
    let kernel = cuda.kernel(&problem, Operation::Forward, LayoutSummary { is_aligned: true }).unwrap();
    assert!(kernel.entry.starts_with("natten_forward_sm90_bf16_d128"), "{}", kernel.entry);

    let query = cuda.upload(&operands.query.view()).unwrap();
    let keys = cuda.upload(&operands.key.view()).unwrap();
    let value = cuda.upload(&operands.value.view()).unwrap();
    let reversed = view(&cuda, &keys, &[1, 1, 1, 400, 1, 128], &[0, 0, 0, -128, 0, 1], 399 * 128);
    let inputs = Inputs::new(query.view(), reversed, value.view());
    let mut out = cuda.allocate::<bf16>(&problem.out_shape()).unwrap();
    let mut lse = cuda.allocate::<f32>(&problem.lse_shape()).unwrap();
    cuda.device().take_counters();
    cuda.forward(
        ForwardCall::new(&problem, inputs, Output { out: out.view_mut(), lse: Some(lse.view_mut()) })
            .unwrap(),
    )
    .unwrap();
    let ran: Vec<&str> = cuda.device().take_counters().into_keys().collect();
    assert!(ran.iter().all(|entry| !entry.contains("sm90")), "{ran:?}");
    let rows: Vec<bf16> = operands.key.as_slice().rchunks(128).flatten().copied().collect();
    operands.key.as_mut_slice().copy_from_slice(&rows);
    let found = (cuda.download(&out).unwrap(), cuda.download(&lse).unwrap());
    compare(&operands, &problem, &found).unwrap();

    // Asked for by name, the family says why it cannot.
    let asked = cuda.clone().with_request(Request { entry: Some(kernel.entry), ..Request::default() });
    let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
    let refused = asked.forward(ForwardCall::new(&problem, inputs, output).unwrap()).unwrap_err().to_string();
    assert!(
        refused.contains("cannot map a tensor: the copy engine takes no stride of -128 elements"),
        "{refused}"
    );
}

/// An output stored from its last token to its first: all of it is written.
#[test]
fn reversed_outputs_are_written() {
    let spec = Spec::na(&[400], &[300]).dims(128, 128);
    let problem = spec.problem(natten_core::ElementType::Bf16);
    let inputs = spec.draw(3).rounded::<bf16>();
    let subject = OnDevice::guarded("hopper", Emulated::new(9, 0));
    let place = Place::aligned(Arrangement::Reversed);
    let mut out = Placed::<bf16>::poisoned(&problem.out_shape(), place, true);
    let output = Output { out: out.view_mut(), lse: None };
    subject.device().take_counters();
    subject.forward(&problem, &inputs.map(Tensor::view), output).unwrap();
    let ran: Vec<&str> = subject.device().take_counters().into_keys().collect();
    assert!(ran.len() == 1 && ran[0].contains("sm90"), "{ran:?}");
    let found = out.written("a reversed output");
    let expected = subject.attend(&problem, &inputs).unwrap().out;
    each_within("out", &found, &expected, |exact| 0.02 + 0.01 * exact.abs()).unwrap();
}

/// Sequences whose queries and keys are as many altogether: causal from the start and from the end they have the same totals, and
/// each its own launch, in either order.
#[test]
fn alignments_of_packed_sequences_are_kept_apart() {
    alignments_are_kept_apart::<f32>();
    alignments_are_kept_apart::<bf16>();
}

fn alignments_are_kept_apart<E: Element>() {
    let from_start = Spec::packed(&[30, 50], &[50, 30], true).dims(64, 64);
    let from_end = Spec::packed(&[30, 50], &[50, 30], true).from_end().dims(64, 64);
    let subject = OnDevice::guarded("hopper", Emulated::new(9, 0));
    for spec in [&from_start, &from_end, &from_start] {
        let problem = spec.problem(E::TYPE);
        let inputs = spec.draw(5).rounded::<E>();
        let expected = reference::forward(&problem, &inputs.map(Tensor::view)).out;
        let found = subject.attend(&problem, &inputs).unwrap().out;
        each_within("out", &found, &expected, |exact| 0.02 + 0.01 * exact.abs()).unwrap();
    }
}

/// A forward's two products of 64 elements are of the pairs that its decision speaks of.
fn assert_pairs(counters: &Counters, decision: &Decision, problem: &Problem) {
    let pairs = counters.mma_flops as f64 / (2.0 * 2.0 * 64.0);
    let planned = decision.issued_over_useful * problem.scores() as f64;
    assert!((pairs - planned).abs() < 0.5, "{pairs} pairs, {planned} planned: {decision:?}");
}

/// A tile is multiplied by the warpgroups that see something of it, once: whatever its box, and however scores lie, but where references
/// have to move.
#[test]
fn products_of_a_forward_are_those_planned() {
    let entry = "natten_forward_sm90_bf16_d64_q192";
    let small = Params::new([3, 7, 7]);
    let strided = Params::new([1, 9, 9]).stride([1, 4, 4]).dilation([1, 2, 1]);
    let boxes = [None, Some([1, 7, 18]), Some([2, 3, 20]), Some([1, 1, 1]), Some([4, 4, 8])];
    for (tokens, params) in
        [([4, 16, 24], small), ([1, 32, 33], strided), ([2, 20, 24], Params::new([2, 20, 24]))]
    {
        let case = Case::new(tokens, params).dims(64, 64);
        let operands = Operands::<bf16>::draw(&case);
        let problem = operands.problem(&case.params);
        for key_tile in boxes {
            let tiling = key_tile.map(|key_tile| Tiling {
                query_tile: [1, 24, 8],
                key_tile,
                key_start: KeyStart::Dynamic,
            });
            let request = Request { entry: Some(entry), tiling, ..Request::default() };
            let cuda = hopper(2, Completion::Random).with_request(request);
            let device = case::OnDevice::upload(&cuda, &operands);
            let mut out = cuda.allocate::<bf16>(&problem.out_shape()).unwrap();
            let output = Output { out: out.view_mut(), lse: None };
            let decision = cuda.explain(&problem, &device.inputs(), &output).unwrap();
            assert!(tiling.is_none_or(|asked| decision.tiling == Some(asked)), "{decision:?}");
            cuda.device().take_counters();
            cuda.forward(ForwardCall::new(&problem, device.inputs(), output).unwrap()).unwrap();
            assert_pairs(&cuda.device().take_counters()[entry], &decision, &problem);
        }
    }
}

/// A call of the backend launches once for each length of residues, nothing else; nobody asks for the log-sum-exp.
#[test]
fn each_length_of_residues_is_a_launch_of_one_call() {
    let case = Case::new([1, 11, 25], Params::new([1, 2, 2]).dilation([1, 4, 9])).dims(64, 64);
    let operands = Operands::<bf16>::draw(&case);
    let problem = operands.problem(&case.params);
    let entry = "natten_forward_sm90_bf16_d64";
    let cuda =
        hopper(1, Completion::Random).with_request(Request { entry: Some(entry), ..Request::default() });
    let device = case::OnDevice::upload(&cuda, &operands);
    let mut out = cuda.allocate::<bf16>(&problem.out_shape()).unwrap();
    let output = Output { out: out.view_mut(), lse: None };
    let decision = cuda.explain(&problem, &device.inputs(), &output).unwrap();
    cuda.device().take_counters();
    cuda.forward(ForwardCall::new(&problem, device.inputs(), output).unwrap()).unwrap();
    let counters = cuda.device().take_counters();
    assert_eq!(counters.keys().copied().collect::<Vec<_>>(), [entry]);
    assert_eq!(counters[entry].ctas, 4);
    assert_pairs(&counters[entry], &decision, &problem);
    let lse = reference::forward(&problem, &operands.inputs()).lse.cast::<f32>();
    compare(&operands, &problem, &(cuda.download(&out).unwrap(), lse)).unwrap();
}

/// What warming up compiles is what a call runs: nothing is left to compile while a graph is captured.
#[test]
fn warming_up_compiles_the_kernel_that_runs() {
    let large = Case::new([1, 1, 400], Params::new([1, 1, 300])).dims(128, 128).heads(1, 1);
    let small = Case::new([1, 1, 64], Params::new([1, 1, 3])).dims(32, 32).heads(1, 1);
    for case in [large, small] {
        let cuda = hopper(1, Completion::Latest);
        let operands = Operands::<bf16>::draw(&case);
        let problem = operands.problem(&case.params);
        let layout = LayoutSummary { is_aligned: true };
        cuda.warm_up(&problem, layout, false).unwrap();
        let kernel = cuda.kernel(&problem, Operation::Forward, layout).unwrap();
        let loaded =
            cuda.device().functions().get_or_load(kernel.entry, || panic!("{} is not loaded", kernel.entry));
        assert!(loaded.is_ok());
        let mut out = cuda.allocate::<bf16>(&problem.out_shape()).unwrap();
        let device = case::OnDevice::upload(&cuda, &operands);
        cuda.forward(
            ForwardCall::new(&problem, device.inputs(), Output { out: out.view_mut(), lse: None }).unwrap(),
        )
        .unwrap();
        let ran: Vec<&str> = cuda.device().take_counters().into_keys().collect();
        assert_eq!(ran, [kernel.entry]);
    }
}

/// Weights are rounded to the element type before they meet the values, whose size is at most 2, and the result once
/// more. Scores and sums are f32.
fn compare<E: Element>(
    operands: &Operands<E>,
    problem: &Problem,
    (out, lse): &(Tensor<E>, Tensor<f32>),
) -> Result<(), String> {
    let expected = reference::forward(problem, &operands.inputs());
    let roundoff = if E::TYPE == ElementType::Bf16 { 2f64.powi(-8) } else { 2f64.powi(-11) };
    each_within("out", out, &expected.out, |exact| roundoff * (exact.abs() + 2.0) * 1.02 + 1e-5)?;
    each_within("lse", lse, &expected.lse, |exact| 1e-5 * exact.abs().max(4.0))
}
