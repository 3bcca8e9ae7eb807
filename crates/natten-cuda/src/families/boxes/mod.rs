//! What the families share whose kernels have boxes of the caller's own layout copied, Hopper's and Blackwell's: which boxes there
//! are and which are cheapest, tensor maps, parameters, launches. What differs is how many queries a warpgroup has, and what tiles
//! cost. The forward is here, the backward in a folder.

pub(in crate::families) mod backward;
mod cost;
mod launch;
mod params;
mod tiles;

use natten_core::Problem;
use natten_core::plan::PlanTables;
use natten_core::window::Axis;

use crate::family::{Bid, Query};
use crate::parts;
use crate::registry::{Facts, Kernel};
use crate::rejection::RejectionReason;
pub(in crate::families) use cost::{Rates, RatesOf};
pub(in crate::families) use launch::{Shares, lay_out, row_view};
#[cfg(test)]
pub(in crate::families) use params::ForwardParamsSm90;
use tiles::{Work, of_tiling, ranked};

/// The `most` best bids of a kernel for a forward pass, best first.
pub(in crate::families) fn bids(
    (kernel, rates): (&'static Kernel, RatesOf),
    query: &Query<'_>,
    problem: &Problem,
    most: usize,
) -> Result<Vec<Bid>, RejectionReason> {
    let axes = problem.axes();
    let mut bids = if problem.is_packed() {
        // As if all sequences were one: each gets boxes of its own when the bid is laid out.
        let tables = PlanTables::of_axes(axes, problem.additional_keys());
        bids_on((kernel, rates), query, problem, (axes, &tables), most)?
    } else {
        bids_on((kernel, rates), query, problem, (axes, query.tables(problem)), most)?
    };
    for bid in &mut bids {
        bid.microseconds *= parts::count(kernel, problem);
    }
    Ok(bids)
}

/// What a forward's bid computes for each pair that is wanted.
pub(in crate::families) fn issued_over_useful(bid: &Bid, query: &Query<'_>) -> Vec<(&'static Kernel, f64)> {
    let counts = bid.tiling.zip(query.pass.problem());
    let issued = counts.map(|(tiling, problem)| {
        let of_part = query.tables(problem).counts(&tiling).issued_over_useful();
        (bid.kernel, parts::count(bid.kernel, problem) * of_part)
    });
    issued.into_iter().collect()
}

/// The bids of a kernel on one mask of the problem, at least one.
fn bids_on(
    (kernel, rates): (&'static Kernel, RatesOf),
    query: &Query<'_>,
    problem: &Problem,
    (axes, tables): (&[Axis; 3], &PlanTables),
    most: usize,
) -> Result<Vec<Bid>, RejectionReason> {
    let heads = problem.batch() * problem.heads();
    let multiprocessors = query.properties.multiprocessors;
    let work = Work { axes, tables, heads, multiprocessors, rates };
    match &query.request.tiling {
        None => Ok(ranked(kernel, &work, most)),
        Some(tiling) => {
            let asked = of_tiling(kernel, &work, tiling);
            asked.map(|bid| vec![bid]).ok_or(RejectionReason::NotAskedFor)
        }
    }
}

/// Warpgroups that have queries; one more copies.
pub(in crate::families) fn warpgroups(kernel: &Kernel) -> usize {
    kernel.threads as usize / 128 - 1
}

/// Queries of one of them.
fn box_queries(kernel: &Kernel) -> usize {
    kernel.tile().map_or(1, |tile| tile.queries / warpgroups(kernel))
}
