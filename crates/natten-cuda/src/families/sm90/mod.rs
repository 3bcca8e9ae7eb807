//! Warpgroup products and the copy engine of Hopper: calls on 16-bit rows that lie well.
//!
//! A call is one launch, but for dilations that do not divide their axis (classes.rs), packed sequences, and values that are
//! taken in parts (parts.rs).

mod cost;
#[cfg(test)]
mod tests;

use natten_core::Problem;
use natten_core::plan::KeyStart;

use crate::cost::{LAUNCH, traffic};
use crate::families::boxes::{self, backward};
use crate::family::{Bid, Family, Offer, Pass, Query, Refused};
use crate::parts;
use crate::registry::Kernel;
use crate::rejection::RejectionReason;
pub(in crate::families) use cost::rates;

/// The family.
pub(crate) struct Sm90;

/// Its backward: a box of 64 rows for each of two warpgroups.
pub(in crate::families) const BACKWARD: backward::Design =
    backward::Design { family: "sm90", boxes: 2, rates: cost::backward_rates, multiprocessors: 132 };

/// Scores that boxes of 64 queries compute per score in the windows, in percent, above which a call runs on CUDA cores if
/// these are said to end sooner at [`WALKED`]. Their times as measured since are longer, by which tensor cores would win more
/// often; but they round weights to the element type, so a call that has always walked gives other bits on them, and the
/// limit stays.
const WASTE_LIMIT_PERCENT: u64 = 1300;

/// Useful floating-point operations a microsecond of one multiprocessor on CUDA cores.
const WALKED: f64 = 11e6 / 132.0;

impl Family for Sm90 {
    fn name(&self) -> &'static str {
        "sm90"
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
        let problem = match query.pass {
            Pass::Forward(problem) => problem,
            Pass::Backward(problem) => return backward::bids(&BACKWARD, kernel, query, problem),
            Pass::Merge(_) | Pass::MergeBackward(_) => return Ok(Vec::new()),
        };
        let bids = boxes::bids((kernel, rates), query, problem, most)?;
        // What is asked for runs; who asks for several ways wants to time them.
        let is_open = query.asked().is_none() && query.request.tiling.is_none() && most == 1;
        match bids.first().filter(|_| is_open).and_then(|bid| wasted(bid, query, problem)) {
            Some(percent) => Err(RejectionReason::WastedScores { percent, limit: WASTE_LIMIT_PERCENT }),
            None => Ok(bids),
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
        if let Pass::Backward(problem) = query.pass {
            return backward::issued_over_useful(&BACKWARD, bid, query, problem);
        }
        boxes::issued_over_useful(bid, query, rates)
    }
}

/// The percentage that goes beyond the limit, where CUDA cores are said to end sooner than a bid.
fn wasted(bid: &Bid, query: &Query<'_>, problem: &Problem) -> Option<u64> {
    let walked =
        LAUNCH + problem.useful_flops() / (WALKED * f64::from(query.properties.multiprocessors.max(1)));
    let least = traffic(&query.pass);
    if bid.microseconds.max(least) <= walked.max(least) {
        return None;
    }
    let keys = if bid.kernel.max_head_dim > 128 { 32 } else { 64 };
    let (_, counts) = query.tables(problem).best(64, keys, KeyStart::Dynamic)?;
    let useful = counts.scores.max(1) as f64 * (problem.head_dim() + problem.head_dim_v()) as f64;
    let issued = counts.issued as f64 * parts::count(bid.kernel, problem);
    let percent = (issued * 2.0 * f64::from(bid.kernel.max_head_dim) / useful * 100.0) as u64;
    (percent > WASTE_LIMIT_PERCENT).then_some(percent)
}
