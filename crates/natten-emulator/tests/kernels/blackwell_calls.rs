//! First calls on a Blackwell device: a kernel that no chip has run is held to the SIMT kernels once, and passed by if it fails.

use natten_core::Element;
use natten_core::{
    Backend, ElementType, ForwardCall, Inputs, Output, Params, Problem, Saved, Tensor, bf16, f16, reference,
};
use natten_cuda::registry::{Operation, kernels_of};
use natten_cuda::{Cuda, CudaError, LayoutSummary, RejectionReason, TrialFailure};
use natten_emulator::{Completion, Emulated, Options};
use natten_tests::Spec;
use natten_tests::compare::each_within;

use crate::case::{self, Case, Operands};

fn blackwell(seed: u64, completion: Completion) -> Cuda<Emulated> {
    let device = Emulated::new(10, 0);
    device.set_options(Options { seed, completion, ..Options::default() });
    Cuda::new(device)
}

/// One of those that are not trusted if one of them fails.
const KERNEL: &str = "natten_forward_sm100_bf16_d128";

/// A call that is worth tensor cores, on few queries.
fn call(head_dim: usize) -> Spec {
    Spec::na(&[12, 10], &[11, 9]).dims(head_dim, head_dim)
}

/// The families that ran a call.
struct Families {
    on_blackwell: bool,
    on_ampere: bool,
    on_cuda_cores: bool,
}

impl Families {
    /// Since they were last counted.
    fn of(cuda: &Cuda<Emulated>) -> Self {
        let ran = cuda.device().take_counters();
        let any = |family: &str| ran.keys().any(|entry| entry.contains(family));
        Families { on_blackwell: any("sm100"), on_ampere: any("sm80"), on_cuda_cores: any("simt") }
    }
}

/// The result of a call, the family that ran it, and whether CUDA cores ran too.
struct Ran<E> {
    out: Tensor<E>,
    exact: Tensor<f64>,
    on_blackwell: bool,
    on_ampere: bool,
    on_cuda_cores: bool,
}

impl<E: Element> Ran<E> {
    fn is_right(&self) -> bool {
        each_within("out", &self.out, &self.exact, |exact| roundoff::<E>() * (exact.abs() + 4.0)).is_ok()
    }
}

fn roundoff<E: Element>() -> f64 {
    if E::TYPE == ElementType::Bf16 { 2f64.powi(-8) } else { 2f64.powi(-11) }
}

fn run<E: Element>(cuda: &Cuda<Emulated>, spec: &Spec) -> Result<Ran<E>, CudaError> {
    let problem: Problem = spec.problem(E::TYPE);
    let inputs = spec.draw(5).rounded::<E>();
    let exact = reference::forward(&problem, &inputs.map(Tensor::view)).out;
    let there = inputs.try_map(|_, tensor| cuda.upload(&tensor.view()))?;
    let mut out = cuda.allocate::<E>(&problem.out_shape())?;
    cuda.device().take_counters();
    let output = Output { out: out.view_mut(), lse: None };
    let views: Inputs<_> = there.map(|tensor| tensor.view());
    cuda.forward(ForwardCall::new(&problem, views, output).expect("a valid call"))?;
    let Families { on_blackwell, on_ampere, on_cuda_cores } = Families::of(cuda);
    Ok(Ran { out: cuda.download(&out)?, exact, on_blackwell, on_ampere, on_cuda_cores })
}

/// Whether the gradients of a call are right, and the families that ran it.
fn differentiate<E: Element>(cuda: &Cuda<Emulated>, head_dim: usize) -> (bool, Families) {
    let case = Case::new([1, 12, 10], Params::new([1, 11, 9])).dims(head_dim, head_dim);
    let operands = Operands::<E>::draw(&case);
    let problem = operands.problem(&case.params);
    let reference::Forward { out, lse } = reference::forward(&problem, &operands.inputs());
    let (out, lse): (Tensor<E>, Tensor<f32>) = (out.cast(), lse.cast());
    let device = case::OnDevice::upload(cuda, &operands);
    cuda.device().take_counters();
    let found = case::backward(cuda, &problem, &operands, &device, (&out, &lse, false)).unwrap();
    let families = Families::of(cuda);
    let saved = Saved { out: out.view(), lse: lse.view(), d_out: operands.d_out.view(), d_lse: None };
    let exact = reference::backward(&problem, &operands.inputs(), &saved);
    let pairs = [(&found.query, &exact.query), (&found.key, &exact.key), (&found.value, &exact.value)];
    let are_right = pairs.into_iter().all(|(found, exact)| {
        let largest = exact.as_slice().iter().fold(0f64, |most, x| most.max(x.abs()));
        each_within("a gradient", found, exact, |exact| 4.0 * roundoff::<E>() * (exact.abs() + largest))
            .is_ok()
    });
    (are_right, families)
}

/// What is said against the family afterwards: how its kernel of an operation failed.
fn failure(cuda: &Cuda<Emulated>, operation: &str) -> Option<TrialFailure> {
    let (problem, inputs) = (call(64).problem(ElementType::Bf16), call(64).draw(5).rounded::<bf16>());
    let there = inputs.try_map(|_, tensor| cuda.upload(&tensor.view())).unwrap();
    let mut out = cuda.allocate::<bf16>(&problem.out_shape()).unwrap();
    let output = Output { out: out.view_mut(), lse: None };
    let decision = cuda.explain(&problem, &there.map(|tensor| tensor.view()), &output).unwrap();
    let of_kernel = decision.rejections.0.iter().find(|rejection| rejection.kernel == KERNEL)?;
    match of_kernel.reason {
        RejectionReason::NotTrusted { kernel, how } => {
            (kernel == format!("natten_{operation}_sm100_bf16_d64")).then_some(how)
        }
        _ => None,
    }
}

/// A device whose kernels of an operation have an instruction exchanged for another wherever it stands.
fn broken(operation: Operation, instruction: &str, by: &str) -> Cuda<Emulated> {
    let cuda = blackwell(1, Completion::Latest);
    for kernel in kernels_of("sm100", operation) {
        let text = kernel.ptx();
        assert!(text.contains(instruction), "{} has no {instruction}", kernel.entry);
        cuda.device().replace(kernel.entry, text.replace(instruction, by));
    }
    cuda
}

#[test]
fn every_bucket_passes_its_trial_once() {
    for completion in [Completion::Latest, Completion::Earliest, Completion::Random] {
        let cuda = blackwell(3, completion);
        for head_dim in [32, 64, 128] {
            for is_first in [true, false] {
                let half = run::<f16>(&cuda, &call(head_dim)).unwrap();
                let brain = run::<bf16>(&cuda, &call(head_dim)).unwrap();
                assert!(half.is_right() && half.on_blackwell && half.on_cuda_cores == is_first);
                assert!(brain.is_right() && brain.on_blackwell && brain.on_cuda_cores == is_first);
            }
        }
    }
}

/// Wrong weights, wrong log-sum-exps.
#[test]
fn what_differs_is_passed_by() {
    for (instruction, by) in
        [("ex2.approx.ftz.f32", "rcp.approx.ftz.f32"), ("lg2.approx.ftz.f32", "rcp.approx.ftz.f32")]
    {
        let cuda = broken(Operation::Forward, instruction, by);
        let first = run::<bf16>(&cuda, &call(64)).unwrap();
        assert!(first.is_right() && first.on_ampere && first.on_cuda_cores, "{instruction}");
        let second = run::<bf16>(&cuda, &call(64)).unwrap();
        assert!(second.is_right() && second.on_ampere && !second.on_blackwell && !second.on_cuda_cores);
        assert_eq!(failure(&cuda, "forward"), Some(TrialFailure::Differs));
        let said: Vec<_> = cuda.kernels().filter_map(|(kernel, reason)| Some((kernel, reason?))).collect();
        let is_told = |kernel: &str| {
            said.iter().any(|(entry, reason)| {
                *entry == kernel && matches!(reason, RejectionReason::NotTrusted { .. })
            })
        };
        assert!(kernels_of("sm100", Operation::Forward).all(|kernel| is_told(kernel.entry)), "{said:?}");
        // The family is, not the kernel alone.
        assert!(!run::<f16>(&cuda, &call(32)).unwrap().on_blackwell);
    }
}

#[test]
fn what_faults_is_passed_by() {
    for instruction in ["tcgen05.wait::ld.sync.aligned;", "tcgen05.fence::after_thread_sync;"] {
        let cuda = broken(Operation::Forward, instruction, "");
        let first = run::<bf16>(&cuda, &call(64)).unwrap();
        assert!(first.is_right() && first.on_ampere, "{instruction}");
        assert_eq!(failure(&cuda, "forward"), Some(TrialFailure::Fault));
    }
}

/// Both passes of a backward stand trial together, apart from the forward; warming up holds it too.
#[test]
fn every_backward_passes_its_trial_once() {
    let completions = [Completion::Latest, Completion::Earliest, Completion::Random];
    for (completion, head_dim) in completions.into_iter().zip([32, 64, 128]) {
        let cuda = blackwell(5, completion);
        assert!(run::<bf16>(&cuda, &call(head_dim)).unwrap().on_blackwell);
        for is_first in [true, false] {
            for (is_right, ran) in
                [differentiate::<f16>(&cuda, head_dim), differentiate::<bf16>(&cuda, head_dim)]
            {
                assert!(is_right && ran.on_blackwell && ran.on_cuda_cores == is_first);
            }
        }
    }
    let cuda = blackwell(6, Completion::Random);
    let problem = call(64).problem(ElementType::Bf16);
    cuda.warm_up(&problem, LayoutSummary { is_aligned: true }, true).unwrap();
    let (is_right, ran) = differentiate::<bf16>(&cuda, 64);
    assert!(is_right && ran.on_blackwell && !ran.on_cuda_cores);
}

/// Wrong gradients of either pass, and faults of either: by the name of the kernel that leads both.
#[test]
fn a_backward_that_fails_is_passed_by() {
    let exponential = ("ex2.approx.ftz.f32", "rcp.approx.ftz.f32", TrialFailure::Differs);
    let wait = ("tcgen05.wait::st.sync.aligned;", "", TrialFailure::Fault);
    for operation in [Operation::BackwardQuery, Operation::BackwardKey] {
        for (instruction, by, how) in [exponential, wait] {
            let cuda = broken(operation, instruction, by);
            let (is_right, ran) = differentiate::<bf16>(&cuda, 64);
            assert!(is_right && ran.on_ampere && ran.on_cuda_cores, "{operation:?} {by}");
            assert_eq!(failure(&cuda, "backward_query"), Some(how));
            let (is_right, ran) = differentiate::<bf16>(&cuda, 64);
            assert!(is_right && ran.on_ampere && !ran.on_blackwell && !ran.on_cuda_cores);
            // The family is, not the kernel alone.
            assert!(!run::<bf16>(&cuda, &call(64)).unwrap().on_blackwell);
            if how == TrialFailure::Differs {
                let (is_right, ran) = differentiate::<bf16>(&cuda.trusting_untried_kernels(), 64);
                assert!(!is_right && ran.on_blackwell && !ran.on_ampere);
            }
        }
    }
}

/// Who trusts the kernels gets what they compute, and no trial.
#[test]
fn trust_can_be_given() {
    let cuda = blackwell(1, Completion::Latest).trusting_untried_kernels();
    let first = run::<bf16>(&cuda, &call(64)).unwrap();
    assert!(first.is_right() && first.on_blackwell && !first.on_cuda_cores);
    let cuda =
        broken(Operation::Forward, "ex2.approx.ftz.f32", "rcp.approx.ftz.f32").trusting_untried_kernels();
    let wrong = run::<bf16>(&cuda, &call(64)).unwrap();
    assert!(wrong.on_blackwell && !wrong.is_right());
}

/// Other devices hold no trials.
#[test]
fn a_tried_family_is_trusted() {
    let cuda = Cuda::new(Emulated::new(9, 0));
    assert!(!run::<bf16>(&cuda, &call(64)).unwrap().on_cuda_cores);
}
