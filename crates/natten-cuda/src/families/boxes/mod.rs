//! What the families share whose kernels have boxes of the caller's own layout copied, Hopper's and Blackwell's: which boxes there
//! are and which are cheapest, tensor maps, parameters, launches. What differs is how many queries a warpgroup has, and what tiles
//! cost. The forward is here, the backward in a folder.

mod along;
pub(in crate::families) mod backward;
mod cost;
mod launch;
pub(in crate::families) mod order;
mod params;
mod tiles;

use natten_core::window::Axis;
use natten_core::{PackedSequence, Problem};

use crate::family::{Bid, Query};
use crate::parts;
use crate::registry::{Facts, Kernel};
use crate::rejection::RejectionReason;
pub(in crate::families) use cost::{LeaveOut, Rates, RatesOf};
pub(in crate::families) use launch::{Shares, geometry, lay_out, row_view};
#[cfg(test)]
pub(in crate::families) use params::ForwardParamsSm90;
use tiles::{Work, cut_of, of_tiling, ranked};

/// The `most` best bids of a kernel for a forward pass, best first.
pub(in crate::families) fn bids(
    (kernel, rates): (&'static Kernel, RatesOf),
    query: &Query<'_>,
    problem: &Problem,
    most: usize,
) -> Result<Vec<Bid>, RejectionReason> {
    // As if all sequences of a packed batch were one: each gets boxes of its own when the bid is laid out.
    let mut bids = bids_on((kernel, rates), query, problem, problem.axes(), most)?;
    for bid in &mut bids {
        bid.microseconds *= parts::count(kernel, problem);
    }
    Ok(bids)
}

/// What a forward's bid computes for each pair that is wanted: rows of tiles that hold no token, too.
pub(in crate::families) fn issued_over_useful(
    bid: &Bid,
    query: &Query<'_>,
    rates: RatesOf,
) -> Vec<(&'static Kernel, f64)> {
    let Some((tiling, problem)) = bid.tiling.zip(query.pass.problem()) else { return Vec::new() };
    let leave_out = rates(bid.kernel).leave_out;
    let worked = |sequence: PackedSequence| {
        let work = work(query, problem, &sequence.axes, rates);
        cut_of(bid.kernel, &work, &tiling, bid.side).worked(leave_out)
    };
    let tile = tiling.query_tile.iter().product::<usize>() * keys_of(bid.kernel);
    let heads = (problem.batch() * problem.heads()) as f64;
    let issued = problem.sequences().map(worked).sum::<f64>() * tile as f64 * heads;
    vec![(bid.kernel, parts::count(bid.kernel, problem) * issued / problem.scores() as f64)]
}

/// The bids of a kernel on one mask of the problem, at least one.
fn bids_on(
    (kernel, rates): (&'static Kernel, RatesOf),
    query: &Query<'_>,
    problem: &Problem,
    axes: &[Axis; 3],
    most: usize,
) -> Result<Vec<Bid>, RejectionReason> {
    let work = work(query, problem, axes, rates);
    match &query.request.tiling {
        None => Ok(ranked(kernel, &work, most)),
        Some(tiling) => {
            let asked = of_tiling(kernel, &work, tiling);
            asked.map(|bid| vec![bid]).ok_or(RejectionReason::NotAskedFor)
        }
    }
}

fn work<'a>(query: &Query<'_>, problem: &Problem, axes: &'a [Axis; 3], rates: RatesOf) -> Work<'a> {
    Work {
        axes,
        additional_keys: problem.additional_keys(),
        heads: problem.batch() * problem.heads(),
        multiprocessors: query.properties.multiprocessors,
        rates,
    }
}

/// Warpgroups that have queries; one more copies.
pub(in crate::families) fn warpgroups(kernel: &Kernel) -> usize {
    kernel.threads as usize / 128 - 1
}

/// Keys of a tile.
fn keys_of(kernel: &Kernel) -> usize {
    kernel.tile().map_or(1, |tile| tile.keys)
}

/// Queries of one of them.
fn box_queries(kernel: &Kernel) -> usize {
    kernel.tile().map_or(1, |tile| tile.queries / warpgroups(kernel))
}
