//! Calls on a Hopper device: what is chosen, compiled and launched.

use natten_core::plan::{KeyStart, Tiling};
use natten_core::{
    Backend, Element, ElementType, ForwardCall, Inputs, Layout, Output, Params, Problem, Saved, Tensor, bf16,
    reference,
};
use natten_cuda::registry::Operation;
use natten_cuda::{Cuda, CudaTensor, CudaView, Decision, Device, LayoutSummary, Request};
use natten_emulator::{Completion, Counters, Emulated, Options};
use natten_tests::compare::each_within;
use natten_tests::kernels::shipped;
use natten_tests::{Arrangement, OnDevice, Place, Placed, Spec, Subject, Watched};

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

/// A Hopper GPU of so many multiprocessors that is asked for the backward of a bucket of head_dim.
fn backward_subject(head_dim: usize, multiprocessors: u32) -> OnDevice<Watched<Emulated>> {
    let entry = format!("natten_backward_query_sm90_bf16_d{head_dim}");
    let kernel = shipped().iter().find(|kernel| kernel.entry == entry).expect("a shipped kernel");
    let device = Emulated::new(9, 0);
    let completion = if multiprocessors == 1 { Completion::Latest } else { Completion::Random };
    device.set_options(Options { seed: 3, completion, ..Options::default() });
    OnDevice::guarded("hopper", Watched::new(device).of_multiprocessors(multiprocessors)).asking_for(kernel)
}

/// All gradients of a problem, and the kernels that ran; close to the reference's.
fn differentiated(subject: &OnDevice<Watched<Emulated>>, spec: &Spec) -> (Vec<Tensor<bf16>>, Vec<String>) {
    let problem = spec.problem(natten_core::ElementType::Bf16);
    let case = spec.draw(5);
    let inputs = case.rounded::<bf16>();
    let reference::Forward { out, lse } = reference::forward(&problem, &inputs.map(Tensor::view));
    let (out, lse): (Tensor<bf16>, Tensor<f32>) = (out.cast(), lse.cast());
    let d_out: Tensor<bf16> = case.d_out.cast();
    let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None };
    subject.device().take_launches();
    let found = subject.differentiate(&problem, &inputs, &saved).expect("served");
    let ran = subject.device().take_launches().into_keys().map(str::to_owned).collect();
    let of_reference = Saved { out: out.view(), lse: lse.view(), d_out: d_out.view(), d_lse: None };
    let expected = reference::backward(&problem, &inputs.map(Tensor::view), &of_reference);
    let found: Vec<_> = [found.query, found.key, found.value]
        .into_iter()
        .chain(found.additional.into_iter().flatten())
        .collect();
    let lists = expected.additional.into_iter().flatten();
    for (found, expected) in
        found.iter().zip([expected.query, expected.key, expected.value].into_iter().chain(lists))
    {
        let largest = expected.as_slice().iter().fold(0f64, |most, x| most.max(x.abs()));
        each_within("a gradient", found, &expected, |exact| 0.01 * (exact.abs() + largest)).unwrap();
    }
    (found, ran)
}

/// Passes of few row tiles share their column tiles out, along an axis or by the heads that share keys, and so does the pass
/// over additional keys. Sums of the parts are the same bits on devices of any size.
#[test]
fn split_passes_add_up() {
    let mut window = Spec::na(&[1, 40, 40], &[1, 9, 9]).dims(32, 32).heads(2, 1).additional(70);
    window.batch = 2;
    for (head_dim, spec) in [
        (64, Spec::attention(64, 3000, false).dims(64, 64)),
        (128, Spec::na(&[96], &[90]).heads(24, 1).dims(128, 128)),
        (32, window),
        (256, Spec::attention(1500, 100, false).dims(256, 192)),
    ] {
        let (one, ran) = differentiated(&backward_subject(head_dim, 1), &spec);
        assert!(ran.iter().any(|entry| entry.contains("sum_partials")), "{ran:?}: {spec:?}");
        assert!(!ran.iter().any(|entry| entry.contains("simt")), "{ran:?}: {spec:?}");
        let (three, _) = differentiated(&backward_subject(head_dim, 3), &spec);
        for (one, three) in one.iter().zip(&three) {
            assert_eq!(one.as_slice(), three.as_slice(), "{spec:?}");
        }
    }
}

/// The products that a backward issues are those that its plan counts: tiles that a warpgroup leaves out are not among them.
#[test]
fn products_of_a_backward_are_those_planned() {
    let small = Params::new([3, 7, 7]);
    let strided = Params::new([1, 9, 9]).stride([1, 4, 4]).dilation([1, 2, 1]);
    for (tokens, params) in [([4, 16, 16], small), ([1, 32, 32], strided)] {
        let case = Case::new(tokens, params).dims(64, 64);
        let operands = Operands::<bf16>::draw(&case);
        let problem = operands.problem(&case.params);
        let entry = Some("natten_backward_query_sm90_bf16_d64");
        let cuda = hopper(1, Completion::Random).with_request(Request { entry, ..Request::default() });
        let device = case::OnDevice::upload(&cuda, &operands);
        let decisions = cuda.explain_backward(&problem, &device.inputs()).unwrap();
        let reference::Forward { out, lse } = reference::forward(&problem, &operands.inputs());
        let (out, lse): (Tensor<bf16>, Tensor<f32>) = (out.cast(), lse.cast());
        cuda.device().take_counters();
        case::backward(&cuda, &problem, &operands, &device, (&out, &lse, false)).unwrap();
        let counters = cuda.device().take_counters();
        assert_eq!(decisions.len(), 2);
        for (decision, products) in decisions.iter().zip([3.0, 4.0]) {
            let pairs = counters[decision.kernel].mma_flops as f64 / (products * 2.0 * 64.0);
            let planned = decision.issued_over_useful * problem.scores() as f64;
            assert!((pairs - planned).abs() < 0.5, "{pairs} pairs, {planned} planned: {decision:?}");
        }
    }
}

/// Of a packed batch, sequences without queries or without keys go to CUDA cores alone.
#[test]
fn empty_sequences_leave_the_others_on_tensor_cores() {
    let spec = Spec::packed(&[70, 0, 40, 65], &[70, 5, 0, 90], false).heads(4, 2).dims(64, 40);
    let (_, ran) = differentiated(&backward_subject(64, 2), &spec);
    for part in ["backward_query_sm90", "backward_key_sm90", "backward_query_simt", "backward_key_simt"] {
        assert!(ran.iter().any(|entry| entry.contains(part)), "{part}: {ran:?}");
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
