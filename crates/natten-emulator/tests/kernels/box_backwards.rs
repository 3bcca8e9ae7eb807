//! Backward passes of the families whose kernels have boxes copied, on emulated devices: what is split, planned and left to others.

use natten_core::{Params, Saved, Tensor, bf16, reference};
use natten_cuda::{ComputeCapability, Cuda, Request};
use natten_emulator::{Completion, Emulated, Options};
use natten_tests::compare::each_within;
use natten_tests::kernels::shipped;
use natten_tests::{OnDevice, Spec, Subject, Watched};

use crate::case::{self, Case, Operands};

/// The families, as their kernels' names have them.
const FAMILIES: [&str; 2] = ["sm90", "sm100"];

/// A device of so many multiprocessors that is asked for a family's backward of a bucket of head_dim.
fn subject(family: &str, head_dim: usize, multiprocessors: u32) -> OnDevice<Watched<Emulated>> {
    let entry = format!("natten_backward_query_{family}_bf16_d{head_dim}");
    let kernel = shipped().iter().find(|kernel| kernel.entry == entry).expect("a shipped kernel");
    let ComputeCapability { major, minor } = kernel.capability;
    let device = Emulated::new(major, minor);
    let completion = if multiprocessors == 1 { Completion::Latest } else { Completion::Random };
    device.set_options(Options { seed: 3, completion, ..Options::default() });
    OnDevice::guarded(family, Watched::new(device).of_multiprocessors(multiprocessors)).asking_for(kernel)
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
    let along_keys = Spec::attention(64, 3000, false).dims(64, 64);
    let by_heads = Spec::na(&[96], &[90]).heads(24, 1).dims(128, 128);
    for (family, head_dim, spec) in [
        ("sm90", 64, along_keys.clone()),
        ("sm90", 128, by_heads.clone()),
        ("sm90", 32, window.clone()),
        ("sm90", 256, Spec::attention(1500, 100, false).dims(256, 192)),
        ("sm100", 64, along_keys),
        ("sm100", 128, by_heads),
        ("sm100", 32, window),
    ] {
        let (one, ran) = differentiated(&subject(family, head_dim, 1), &spec);
        assert!(ran.iter().any(|entry| entry.contains("sum_partials")), "{ran:?}: {spec:?}");
        assert!(!ran.iter().any(|entry| entry.contains("simt")), "{ran:?}: {spec:?}");
        let (three, _) = differentiated(&subject(family, head_dim, 3), &spec);
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
    let masks = [([4, 16, 16], small), ([1, 32, 32], strided)];
    for (family, (tokens, params)) in FAMILIES.into_iter().flat_map(|family| masks.map(|mask| (family, mask)))
    {
        let case = Case::new(tokens, params).dims(64, 64);
        let operands = Operands::<bf16>::draw(&case);
        let problem = operands.problem(&case.params);
        let of_family = format!("natten_backward_query_{family}_bf16_d64");
        let kernel = shipped().iter().find(|kernel| kernel.entry == of_family).expect("a shipped kernel");
        let device = Emulated::new(kernel.capability.major, kernel.capability.minor);
        device.set_options(Options { seed: 1, completion: Completion::Random, ..Options::default() });
        let request = Request { entry: Some(kernel.entry), ..Request::default() };
        let cuda = Cuda::new(device).trusting_untried_kernels().with_request(request);
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
    for family in FAMILIES {
        let (_, ran) = differentiated(&subject(family, 64, 2), &spec);
        for part in
            [family, "simt"].map(|family| ["query", "key"].map(|of| format!("backward_{of}_{family}")))
        {
            assert!(
                part.iter().all(|part| ran.iter().any(|entry| entry.contains(part))),
                "{part:?}: {ran:?}"
            );
        }
    }
}
