//! What calls on a B200 run, and why others do not run on this family.

use natten_core::{ElementType, Inputs, Layout, Params, Problem};

use crate::capability::ComputeCapability;
use crate::device::Properties;
use crate::explain::{Decision, explain};
use crate::family::{Pass, Query, Request};
use crate::registry::{Facts, Operation, kernels_of};
use crate::rejection::RejectionReason;
use crate::trust::{FailedTrial, TrialFailure};
use crate::views::Views;

fn device(major: u32, minor: u32) -> Properties {
    Properties {
        name: "a GPU".to_owned(),
        compute_capability: ComputeCapability { major, minor },
        multiprocessors: 148,
        shared_bytes_per_block: 227 << 10,
        memory_bytes: 180 << 30,
    }
}

fn image(head_dim: usize, head_dim_v: usize) -> Problem {
    let layout = |length| Layout::contiguous(&[1, 256, 256, 8, length]).unwrap();
    let inputs = Inputs::new(layout(head_dim), layout(head_dim), layout(head_dim_v));
    Problem::new(&Params::new([48, 48]).to_dyn(), &inputs, ElementType::Bf16).unwrap()
}

fn decide(pass: Pass<'_>, properties: &Properties, failed: Option<FailedTrial>) -> Vec<Decision> {
    let views = Views::dense(pass.problem().unwrap()).with_dense_backward();
    let request = Request::default();
    explain(&Query::new(pass, &views, properties, &request).after_trials(failed)).unwrap()
}

/// What is against the kernel for rows of 128 elements or less.
fn reason(decision: &Decision) -> RejectionReason {
    let longest = "natten_forward_sm100_bf16_d128";
    decision.rejections.0.iter().find(|rejection| rejection.kernel == longest).unwrap().reason
}

#[test]
fn a_b200_runs_forwards_on_it_and_backwards_elsewhere() {
    let problem = image(128, 128);
    let forward = &decide(Pass::Forward(&problem), &device(10, 0), None)[0];
    assert_eq!(forward.kernel, "natten_forward_sm100_bf16_d128");
    let backward = decide(Pass::Backward(&problem), &device(10, 0), None);
    assert!(backward.iter().all(|decision| decision.kernel.contains("sm80")), "{backward:?}");
}

#[test]
fn what_it_cannot_do_goes_to_others_with_the_reason() {
    let problem = image(128, 128);
    let only = ComputeCapability { major: 10, minor: 0 };
    for (major, minor) in [(8, 0), (9, 0), (10, 3), (12, 0)] {
        let properties = device(major, minor);
        let decision = &decide(Pass::Forward(&problem), &properties, None)[0];
        let found = properties.compute_capability;
        assert_eq!(reason(decision), RejectionReason::OnlyOn { only, found });
    }
    let long = &decide(Pass::Forward(&image(256, 256)), &device(10, 0), None)[0];
    assert!(long.kernel.contains("sm80"));
    assert!(matches!(reason(long), RejectionReason::HeadDim { found: 256, .. }));
    // Long values are taken in parts.
    let values = &decide(Pass::Forward(&image(128, 256)), &device(10, 0), None)[0];
    assert!(values.kernel.contains("sm100"), "{}", values.kernel);
}

#[test]
fn after_a_failed_trial_the_ampere_family_is_taken() {
    let problem = image(128, 128);
    let before = &decide(Pass::Forward(&problem), &device(10, 0), None)[0];
    let failed = FailedTrial { kernel: before.kernel, how: TrialFailure::Differs };
    let after = &decide(Pass::Forward(&problem), &device(10, 0), Some(failed))[0];
    assert!(before.kernel.contains("sm100") && after.kernel.contains("sm80"), "{}", after.kernel);
    let because = RejectionReason::NotTrusted { kernel: before.kernel, how: TrialFailure::Differs };
    assert_eq!(reason(after), because);
    let text = because.to_string();
    assert!(text.contains("gave other results than the SIMT kernels when it was first used"), "{text}");
}

/// Every kernel has boxes of 128 queries, which fill the lanes of tensor memory.
#[test]
fn warpgroups_have_a_query_a_thread() {
    for kernel in kernels_of("sm100", Operation::Forward) {
        let tile = kernel.tile().unwrap();
        assert_eq!(tile.queries + 128, kernel.threads as usize, "{}", kernel.entry);
    }
}
