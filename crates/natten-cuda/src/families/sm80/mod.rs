//! Tiles of scores on the tensor cores of Ampere and later: calls on 16-bit rows that lie well.
//!
//! A kernel on tiles computes whole boxes of scores, so its cost is the pairs it issues: exact counts, and rates that were
//! fitted to measured times.

mod backward;
mod cost;
mod launch;
#[cfg(test)]
mod tests;
mod tiles;

use crate::family::{Bid, Family, Offer, Pass, Query, Refused};
use crate::parts;
use crate::registry::Kernel;
use crate::rejection::RejectionReason;

/// The family.
pub(crate) struct Sm80;

/// Forward kernels keep, in 16 bits, how far a query's window starts after that of the tile's first query, which is less than the
/// tile's side plus the stride; and likewise for the ends.
const MAX_STRIDE: usize = 1 << 15;

/// Scores computed per score in the windows up to which calls run on tensor cores, in percent, head_dim counted as padded.
/// An estimate from instruction counts at head_dim 64, older than the rates in cost.rs: a walking kernel needs 3.4 clocks of
/// a multiprocessor for a score, a kernel on tiles some 0.25, twice what its multiplications take. By these rates tensor cores
/// win at up to twice as much waste; but they round weights to the element type, which walking kernels do not, so a call that
/// has always walked gives other bits on them, and the limit stays.
const WASTE_LIMIT_PERCENT: u64 = 1300;

impl Family for Sm80 {
    fn name(&self) -> &'static str {
        "sm80"
    }

    fn reason_against(&self, _kernel: &'static Kernel, query: &Query<'_>) -> Option<RejectionReason> {
        let Pass::Forward(problem) = query.pass else { return None };
        let axes = problem.axes();
        let found = axes.iter().map(|axis| axis.stride).max().unwrap_or(1);
        (found > MAX_STRIDE).then_some(RejectionReason::Stride { max: MAX_STRIDE, found })
    }

    fn bids(
        &self,
        kernel: &'static Kernel,
        query: &Query<'_>,
        most: usize,
    ) -> Result<Vec<Bid>, RejectionReason> {
        let problem = match query.pass {
            Pass::Forward(problem) => problem,
            Pass::Backward(problem) => return backward::bids(kernel, query, problem, most),
            Pass::Merge(_) | Pass::MergeBackward(_) => return Ok(Vec::new()),
        };
        let ranked = tiles::best(kernel, query, problem, most);
        let Some((_, counts)) = ranked.first() else { return Err(RejectionReason::NotAskedFor) };
        let useful = counts.scores.max(1) as f64 * (problem.head_dim() + problem.head_dim_v()) as f64;
        let parts = parts::count(kernel, problem);
        let issued = parts * counts.issued as f64 * 2.0 * f64::from(kernel.max_head_dim);
        let (percent, limit) = ((issued / useful * 100.0) as u64, WASTE_LIMIT_PERCENT);
        // What is asked for by name runs; who asks for several ways wants to time them.
        if percent > limit && query.asked().is_none() && most == 1 {
            return Err(RejectionReason::WastedScores { percent, limit });
        }
        let bid = |(tiling, counts)| {
            let microseconds = parts * cost::predict(kernel, problem, &counts, query.properties);
            Bid { kernel, tiling: Some(tiling), side: 0, microseconds }
        };
        Ok(ranked.into_iter().map(bid).collect())
    }

    fn lay_out(&self, bid: &Bid, query: &Query<'_>) -> Result<Offer, Refused> {
        match query.pass {
            Pass::Backward(problem) => backward::lay_out(bid, query, problem),
            _ => launch::lay_out(bid, query),
        }
    }

    #[cfg(test)]
    fn parameter_bytes(&self, operation: crate::registry::Operation) -> usize {
        match operation {
            crate::registry::Operation::Forward => size_of::<crate::params::TileForwardParams>(),
            _ => size_of::<backward::params::BackwardTileParams>(),
        }
    }

    fn issued_over_useful(&self, bid: &Bid, query: &Query<'_>) -> Vec<(&'static Kernel, f64)> {
        if let Pass::Backward(problem) = query.pass {
            return backward::issued_over_useful(bid, query, problem);
        }
        let counts = bid.tiling.zip(query.pass.problem());
        let counts = counts.map(|(tiling, problem)| query.tables(problem).counts(&tiling));
        let parts = query.pass.problem().map_or(1.0, |problem| parts::count(bid.kernel, problem));
        counts.map(|counts| (bid.kernel, parts * counts.issued_over_useful())).into_iter().collect()
    }
}
