//! Products in tensor memory and the copy engine of data-center Blackwell: calls on 16-bit rows that lie well.
//!
//! Boxes, maps and launches are those of Hopper's kernels (boxes/), with 128 queries a warpgroup in a forward, and 128 rows an item in
//! a backward. Rows longer than 128 are for other families. No chip has run the kernels yet: calls on a device pass them by unless
//! they have been held to the SIMT family's there (trust.rs).

mod cost;
#[cfg(test)]
mod tests;

use crate::families::boxes::{self, backward};
use crate::family::{Bid, Family, Offer, Pass, Query, Refused};
use crate::registry::Kernel;
use crate::rejection::RejectionReason;
use cost::rates;

/// The family.
pub(crate) struct Sm100;

/// Its backward: one box of rows, a row for each lane of tensor memory.
const BACKWARD: backward::Design =
    backward::Design { family: "sm100", boxes: 1, rates: cost::backward_rates, multiprocessors: 148 };

impl Family for Sm100 {
    fn name(&self) -> &'static str {
        "sm100"
    }

    fn is_untried(&self) -> bool {
        true
    }

    fn reason_against(&self, _kernel: &'static Kernel, query: &Query<'_>) -> Option<RejectionReason> {
        let axes = query.pass.problem()?.axes();
        axes.iter().any(|axis| axis.key_extent == 0).then_some(RejectionReason::NoKeys)
    }

    fn bids(
        &self,
        kernel: &'static Kernel,
        query: &Query<'_>,
        most: usize,
    ) -> Result<Vec<Bid>, RejectionReason> {
        match query.pass {
            Pass::Forward(problem) => boxes::bids((kernel, rates), query, problem, most),
            Pass::Backward(problem) => backward::bids(&BACKWARD, kernel, query, problem),
            Pass::Merge(_) | Pass::MergeBackward(_) => Ok(Vec::new()),
        }
    }

    fn lay_out(&self, bid: &Bid, query: &Query<'_>) -> Result<Offer, Refused> {
        match query.pass {
            Pass::Backward(problem) => backward::lay_out(&BACKWARD, bid, query, problem),
            _ => boxes::lay_out(bid, query, rates),
        }
    }

    #[cfg(test)]
    fn parameter_bytes(&self, operation: crate::registry::Operation) -> usize {
        match operation {
            crate::registry::Operation::Forward => size_of::<boxes::ForwardParamsSm90>(),
            _ => size_of::<backward::BackwardParamsSm90>(),
        }
    }

    fn issued_over_useful(&self, bid: &Bid, query: &Query<'_>) -> Vec<(&'static Kernel, f64)> {
        match query.pass {
            Pass::Backward(problem) => backward::issued_over_useful(&BACKWARD, bid, query, problem),
            _ => boxes::issued_over_useful(bid, query, cost::rates),
        }
    }
}
