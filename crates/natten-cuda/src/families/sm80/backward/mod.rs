//! The backward on the tensor cores of Ampere and later: a pass over queries, which gives their gradient, and a pass over keys,
//! which gives those of keys and values. Both recompute the weights, either is bounded by what its rows meet, and no sum is
//! shared between ctas: results repeat bit for bit.
//!
//! Row statistics come from the rows family first. Additional keys' own gradients are another pass over keys, last: every query
//! meets them all, so they are few keys with long sums. Where a pass has few boxes of keys, several ctas share the queries of one,
//! and their partial sums are added in order.

mod cost;
mod launch;
pub(crate) mod params;
#[cfg(test)]
mod tests;
mod tiles;

use natten_core::Problem;
use natten_core::plan::{TileCounts, Tiling};
use natten_core::window::Axis;

use super::tiles::best as best_of_queries;
use crate::cost::LAUNCH;
use crate::family::{Bid, Offer, Query, Refused, best_fit, too_many_tokens};
use crate::registry::{Facts, Kernel, Operation};
use crate::rejection::RejectionReason;
use tiles::{Counts, Cut};

/// The ways to run a backward on a kernel of the pass over queries, with the best one of that over keys.
pub(super) fn bids(
    kernel: &'static Kernel,
    query: &Query<'_>,
    problem: &Problem,
    most: usize,
) -> Result<Vec<Bid>, RejectionReason> {
    if let Some(reason) = too_many_tokens(problem) {
        return Err(reason);
    }
    let mut rest = LAUNCH + time_of_keys(&of_keys(query, problem.axes())?, query, problem);
    if problem.additional_keys() > 0 {
        rest += time_of_keys(&of_keys(query, &additional_axes(problem))?, query, problem);
    }
    let bid = |(tiling, counts): (Tiling, TileCounts)| {
        let counts = Counts { rows: counts.query_tiles, columns: counts.key_tiles, full: counts.full_tiles };
        let heads = problem.batch() * problem.heads();
        let own = cost::predict(kernel, &counts, (heads, 1), 1.0, query.properties);
        Bid { kernel, tiling: Some(tiling), side: 0, microseconds: own + rest }
    };
    let bids: Vec<Bid> = best_of_queries(kernel, query, problem, most).into_iter().map(bid).collect();
    if bids.is_empty() { Err(RejectionReason::NotAskedFor) } else { Ok(bids) }
}

/// Everything for a bid.
pub(super) fn lay_out(bid: &Bid, query: &Query<'_>, problem: &Problem) -> Result<Offer, Refused> {
    launch::lay_out(bid, query, problem)
}

/// Pairs that each pass computes for each one that is wanted.
pub(super) fn issued_over_useful(
    bid: &Bid,
    query: &Query<'_>,
    problem: &Problem,
) -> Vec<(&'static Kernel, f64)> {
    let of_queries = bid.tiling.map(|tiling| query.tables(problem).counts(&tiling).issued_over_useful());
    let of_keys = of_keys(query, problem.axes()).ok().map(|(kernel, cut)| {
        let pairs = kernel.tile().map_or(0.0, |tile| (tile.queries * tile.keys) as f64);
        let heads = problem.batch() as f64 * problem.heads() as f64;
        (kernel, cut.counts.columns as f64 * pairs * heads / problem.scores().max(1) as f64)
    });
    of_queries.map(|ratio| (bid.kernel, ratio)).into_iter().chain(of_keys).collect()
}

/// The kernel of a pass over keys, and how it cuts these axes.
fn of_keys(query: &Query<'_>, axes: &[Axis; 3]) -> Result<(&'static Kernel, Cut), RejectionReason> {
    let kernel = best_fit("sm80", Operation::BackwardKey, query)?;
    let cut = kernel.tile().and_then(|tile| match &query.request.tiling_of_keys {
        Some(asked) => tiles::asked(asked, tile, axes),
        None => tiles::best(tile, axes),
    });
    Ok((kernel, cut.ok_or(RejectionReason::NotAskedFor)?))
}

fn time_of_keys((kernel, cut): &(&'static Kernel, Cut), query: &Query<'_>, problem: &Problem) -> f64 {
    let heads = problem.batch() * problem.heads_kv();
    let sharing = problem.heads_per_kv() as f64;
    let splits = cut.split(heads).count;
    cost::predict(kernel, &cut.counts, (heads, splits), sharing, query.properties)
}

/// The mask of the additional keys: every query sees every one of them.
fn additional_axes(problem: &Problem) -> [Axis; 3] {
    let keys = problem.additional_keys();
    std::array::from_fn(|a| {
        let key_extent = if a == 2 { keys } else { 1 };
        let query_extent = problem.axes()[a].query_extent;
        Axis::attention(query_extent, key_extent)
    })
}
