//! Values longer than the rows of any kernel of a family: the forward runs in several launches of one kernel with the same
//! queries and keys, each on a part of the values and of the output.
//!
//! The launches share the softmax in that all of them compute it, with the same bits: each writes the same log-sum-exp. The
//! backward has no parts: a score's gradient needs the whole product of a value and its output's gradient.

use std::ops::Range;

use natten_core::Problem;

use crate::family::{Pass, Query};
use crate::registry::{Facts, Kernel, Operation, kernels_of};

/// Whether a family takes the values of a pass in parts: in a forward, where no kernel takes them at once.
pub(crate) fn are_cut(family: &str, query: &Query<'_>) -> bool {
    let Pass::Forward(problem) = query.pass else { return false };
    problem.head_dim_v() > longest_row(family)
}

/// The longest row that a family's forward kernels take.
fn longest_row(family: &str) -> usize {
    kernels_of(family, Operation::Forward).map(Facts::longest_row).max().unwrap_or(0)
}

/// The part of a row of values that each launch of a forward kernel takes.
pub(crate) fn value_parts(kernel: &Kernel, problem: &Problem) -> impl Iterator<Item = Range<usize>> + use<> {
    let whole = problem.head_dim_v();
    let step = if whole > longest_row(kernel.family) { kernel.longest_row() } else { whole };
    (0..whole).step_by(step.max(1)).map(move |start| start..whole.min(start + step))
}

/// How many there are.
pub(crate) fn count(kernel: &Kernel, problem: &Problem) -> f64 {
    value_parts(kernel, problem).count() as f64
}

#[cfg(test)]
mod tests {
    use natten_core::{ElementType, Inputs, Layout, Params};

    use super::*;
    use crate::capability::ComputeCapability;
    use crate::choose::choose;
    use crate::device::Properties;
    use crate::error::CudaError;
    use crate::explain::{Decision, explain};
    use crate::family::Request;
    use crate::registry::by_name;
    use crate::rejection::{RejectionReason, Rejections};
    use crate::views::Views;

    /// An image in bf16 with rows of these lengths.
    fn image(head_dim: usize, head_dim_v: usize) -> Problem {
        let layout = |length: usize| Layout::contiguous(&[1, 256, 256, 8, length]).unwrap();
        let key = layout(head_dim);
        let inputs = Inputs::new(key, key, layout(head_dim_v));
        Problem::new(&Params::new([48, 48]).to_dyn(), &inputs, ElementType::Bf16).unwrap()
    }

    /// Answers a question on an H100 about dense tensors.
    fn ask<T>(pass: Pass<'_>, answer: impl FnOnce(&Query<'_>) -> T) -> T {
        let problem = pass.problem().unwrap();
        let properties = Properties {
            name: "H100".to_owned(),
            compute_capability: ComputeCapability { major: 9, minor: 0 },
            multiprocessors: 132,
            shared_bytes_per_block: 227 << 10,
            memory_bytes: 80 << 30,
        };
        let views = Views::dense(problem).with_dense_backward();
        answer(&Query::new(pass, &views, &properties, &Request::default()))
    }

    fn decide(problem: &Problem) -> Decision {
        ask(Pass::Forward(problem), explain).unwrap().remove(0)
    }

    fn reason(decision: &Decision, kernel: &str) -> RejectionReason {
        decision.rejections.0.iter().find(|one| one.kernel == kernel).unwrap().reason
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "lists of ranges, some of one")]
    fn parts_cover_a_row() {
        for (kernel, length, wanted) in [
            ("natten_forward_sm80_f16_d64_q64_k64", 256, vec![0..256]),
            ("natten_forward_sm80_f16_d128_q64_k64", 264, vec![0..128, 128..256, 256..264]),
            ("natten_forward_sm90_f16_d256", 512, vec![0..256, 256..512]),
            ("natten_forward_simt_f32_d1024", 1000, vec![0..1000]),
            ("natten_forward_simt_f32_d1024", 1500, vec![0..1024, 1024..1500]),
        ] {
            let kernel = by_name(kernel).unwrap();
            let parts: Vec<_> = value_parts(kernel, &image(32, length)).collect();
            assert_eq!(parts, wanted, "{kernel:?} {length}");
        }
    }

    /// The kernels of every length bid for values in parts, and the least predicted time wins.
    #[test]
    fn parts_cost_their_sum() {
        let [whole, parts] = [128, 384].map(|head_dim_v| decide(&image(32, head_dim_v)));
        assert_eq!(parts.kernel, whole.kernel);
        assert!((parts.microseconds / whole.microseconds - 3.0).abs() < 1e-9, "{parts:?}");
        assert!((parts.issued_over_useful / whole.issued_over_useful - 3.0).abs() < 1e-9, "{parts:?}");
        let other = reason(&parts, "natten_forward_sm90_bf16_d256");
        assert_eq!(other, RejectionReason::Slower { than: parts.kernel });
        let launches = |problem: &Problem| ask(Pass::Forward(problem), choose).unwrap().offer.launches.len();
        assert_eq!([launches(&image(32, 128)), launches(&image(32, 384))], [1, 3]);
    }

    /// No family takes such rows.
    #[test]
    fn rows_beyond_every_kernel_are_refused_with_the_limit() {
        let refused = |pass: Pass<'_>| {
            let Err(CudaError::Unsupported(Rejections(reasons))) = ask(pass, explain) else {
                panic!("{pass:?}")
            };
            let limits = reasons.iter().filter_map(|rejection| match rejection.reason {
                RejectionReason::HeadDim { max, found } => Some((max, found)),
                _ => None,
            });
            limits.max().unwrap()
        };
        let long = image(1032, 64);
        assert_eq!(refused(Pass::Forward(&long)), (1024, 1032));
        assert_eq!(refused(Pass::Backward(&long)), (1024, 1032));
        // Values are taken in parts of any number; their gradients are not.
        let long_values = image(64, 1032);
        assert_eq!(refused(Pass::Backward(&long_values)), (1024, 1032));
        assert!(decide(&long_values).kernel.contains("forward_sm90"));
    }
}
