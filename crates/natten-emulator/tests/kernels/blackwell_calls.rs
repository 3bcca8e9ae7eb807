//! First calls on a Blackwell device: a kernel that no chip has run is held to the SIMT kernels once, and passed by if it fails.

use natten_core::Element;
use natten_core::{Backend, ElementType, ForwardCall, Inputs, Output, Problem, Tensor, bf16, f16, reference};
use natten_cuda::registry::{Operation, kernels_of};
use natten_cuda::{Cuda, CudaError, RejectionReason, TrialFailure};
use natten_emulator::{Completion, Emulated, Options};
use natten_tests::Spec;
use natten_tests::compare::each_within;

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
        let roundoff = if E::TYPE == ElementType::Bf16 { 2f64.powi(-8) } else { 2f64.powi(-11) };
        each_within("out", &self.out, &self.exact, |exact| roundoff * (exact.abs() + 4.0)).is_ok()
    }
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
    let ran = cuda.device().take_counters();
    let any = |family: &str| ran.keys().any(|entry| entry.contains(family));
    let (on_blackwell, on_ampere, on_cuda_cores) = (any("sm100"), any("sm80"), any("simt"));
    Ok(Ran { out: cuda.download(&out)?, exact, on_blackwell, on_ampere, on_cuda_cores })
}

/// What is said against the family afterwards: how one of its kernels failed.
fn failure(cuda: &Cuda<Emulated>) -> Option<TrialFailure> {
    let (problem, inputs) = (call(64).problem(ElementType::Bf16), call(64).draw(5).rounded::<bf16>());
    let there = inputs.try_map(|_, tensor| cuda.upload(&tensor.view())).unwrap();
    let mut out = cuda.allocate::<bf16>(&problem.out_shape()).unwrap();
    let output = Output { out: out.view_mut(), lse: None };
    let decision = cuda.explain(&problem, &there.map(|tensor| tensor.view()), &output).unwrap();
    let of_kernel = decision.rejections.0.iter().find(|rejection| rejection.kernel == KERNEL)?;
    match of_kernel.reason {
        RejectionReason::NotTrusted { kernel, how } if kernel.contains("sm100_bf16_d64") => Some(how),
        _ => None,
    }
}

/// A device whose kernels have an instruction exchanged for another wherever it stands.
fn broken(instruction: &str, by: &str) -> Cuda<Emulated> {
    let cuda = blackwell(1, Completion::Latest);
    for kernel in kernels_of("sm100", Operation::Forward) {
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
        let cuda = broken(instruction, by);
        let first = run::<bf16>(&cuda, &call(64)).unwrap();
        assert!(first.is_right() && first.on_ampere && first.on_cuda_cores, "{instruction}");
        let second = run::<bf16>(&cuda, &call(64)).unwrap();
        assert!(second.is_right() && second.on_ampere && !second.on_blackwell && !second.on_cuda_cores);
        assert_eq!(failure(&cuda), Some(TrialFailure::Differs));
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
        let cuda = broken(instruction, "");
        let first = run::<bf16>(&cuda, &call(64)).unwrap();
        assert!(first.is_right() && first.on_ampere, "{instruction}");
        assert_eq!(failure(&cuda), Some(TrialFailure::Fault));
    }
}

/// Who trusts the kernels gets what they compute, and no trial.
#[test]
fn trust_can_be_given() {
    let cuda = blackwell(1, Completion::Latest).trusting_untried_kernels();
    let first = run::<bf16>(&cuda, &call(64)).unwrap();
    assert!(first.is_right() && first.on_blackwell && !first.on_cuda_cores);
    let cuda = broken("ex2.approx.ftz.f32", "rcp.approx.ftz.f32").trusting_untried_kernels();
    let wrong = run::<bf16>(&cuda, &call(64)).unwrap();
    assert!(wrong.on_blackwell && !wrong.is_right());
}

/// Other devices hold no trials.
#[test]
fn a_tried_family_is_trusted() {
    let cuda = Cuda::new(Emulated::new(9, 0));
    assert!(!run::<bf16>(&cuda, &call(64)).unwrap().on_cuda_cores);
}
