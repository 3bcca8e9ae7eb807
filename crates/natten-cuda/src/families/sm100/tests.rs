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

/// Those for rows of 128 elements or less.
const FORWARD: &str = "natten_forward_sm100_bf16_d128";
const BACKWARD: [&str; 2] = ["natten_backward_query_sm100_bf16_d128", "natten_backward_key_sm100_bf16_d128"];

/// What is against a kernel.
fn reason(decision: &Decision, kernel: &str) -> RejectionReason {
    decision.rejections.0.iter().find(|rejection| rejection.kernel == kernel).unwrap().reason
}

#[test]
fn a_b200_runs_both_passes_on_it() {
    let problem = image(128, 128);
    let forward = &decide(Pass::Forward(&problem), &device(10, 0), None)[0];
    assert_eq!(forward.kernel, FORWARD);
    let backward = decide(Pass::Backward(&problem), &device(10, 0), None);
    assert_eq!(backward.iter().map(|decision| decision.kernel).collect::<Vec<_>>(), BACKWARD);
}

#[test]
fn what_it_cannot_do_goes_to_others_with_the_reason() {
    let problem = image(128, 128);
    let only = ComputeCapability { major: 10, minor: 0 };
    for (major, minor) in [(8, 0), (9, 0), (10, 3), (12, 0)] {
        let properties = device(major, minor);
        let found = properties.compute_capability;
        for (pass, kernel) in [(Pass::Forward(&problem), FORWARD), (Pass::Backward(&problem), BACKWARD[0])] {
            let decision = &decide(pass, &properties, None)[0];
            assert_eq!(reason(decision, kernel), RejectionReason::OnlyOn { only, found });
        }
    }
    let (long, long_values) = (image(256, 256), image(128, 256));
    for (pass, kernel) in [
        (Pass::Forward(&long), FORWARD),
        (Pass::Backward(&long), BACKWARD[0]),
        (Pass::Backward(&long_values), BACKWARD[0]),
    ] {
        let decision = &decide(pass, &device(10, 0), None)[0];
        assert!(decision.kernel.contains("sm80"));
        assert!(matches!(reason(decision, kernel), RejectionReason::HeadDim { found: 256, .. }));
    }
    // A forward takes long values in parts.
    let values = &decide(Pass::Forward(&long_values), &device(10, 0), None)[0];
    assert!(values.kernel.contains("sm100"), "{}", values.kernel);
}

#[test]
fn after_a_failed_trial_the_ampere_family_is_taken() {
    let problem = image(128, 128);
    // Whichever fails, none of the family is trusted any more.
    for failing in [FORWARD, BACKWARD[0]] {
        let failed = Some(FailedTrial { kernel: failing, how: TrialFailure::Differs });
        let because = RejectionReason::NotTrusted { kernel: failing, how: TrialFailure::Differs };
        for (pass, kernel) in [(Pass::Forward(&problem), FORWARD), (Pass::Backward(&problem), BACKWARD[0])] {
            let before = &decide(pass, &device(10, 0), None)[0];
            let after = &decide(pass, &device(10, 0), failed)[0];
            assert!(before.kernel == kernel && after.kernel.contains("sm80"), "{}", after.kernel);
            assert_eq!(reason(after, kernel), because);
        }
        let text = because.to_string();
        assert!(text.contains("gave other results than the SIMT kernels when it was first used"), "{text}");
    }
}

/// Every kernel has boxes of 128 rows, which fill the lanes of tensor memory. Those of a forward have a warpgroup each, the one of a
/// backward two, and what is planned for it are its tiles.
#[test]
fn boxes_fill_tensor_memory() {
    for kernel in kernels_of("sm100", Operation::Forward) {
        let tile = kernel.tile().unwrap();
        assert_eq!(tile.queries + 128, kernel.threads as usize, "{}", kernel.entry);
    }
    for operation in [Operation::BackwardQuery, Operation::BackwardKey] {
        for kernel in kernels_of("sm100", operation) {
            let tile = kernel.tile().unwrap();
            assert_eq!((tile.queries, tile.keys, kernel.threads), (128, 128, 384), "{}", kernel.entry);
        }
    }
}
