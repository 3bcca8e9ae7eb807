//! The backward of the families whose kernels have boxes copied: a pass over queries, which gives their gradient, and a pass over
//! keys, which gives those of keys and values. Both recompute the weights, either is bounded by what its rows meet, and sums that
//! ctas share are partial sums, added up in order: results repeat bit for bit.
//!
//! Row statistics come from the rows family first. Additional keys have a pass of their own, last, which every query is in.

mod cost;
mod launch;
mod params;
mod pass;
mod splits;
mod tiles;

use natten_core::Problem;
use natten_core::plan::{KeyStart, Tiling};
use natten_core::window::Axis;

use crate::family::{Bid, Offer, Query, Refused, best_fit, too_many_tokens};
use crate::registry::{Facts, Kernel, Operation};
use crate::rejection::RejectionReason;
pub(in crate::families) use cost::Rates;
use launch::list_axes;
#[cfg(test)]
pub(in crate::families) use params::BackwardParamsSm90;
pub(in crate::families) use pass::Rows;
use pass::Work;
use tiles::Cut;

/// What differs between families.
pub(in crate::families) struct Design {
    /// The family.
    pub family: &'static str,
    /// Boxes that stand side by side in an item's 128 rows. Of what none of its rows meets, a box computes nothing.
    pub boxes: usize,
    /// Rates of a pass over such rows, for a bucket of head_dim.
    pub rates: fn(u32, Rows) -> Rates,
    /// Multiprocessors of the device that they are for: how often a pass is split goes by them.
    pub multiprocessors: u32,
}

/// The way to run a backward on the kernel of the pass over queries, and on that over keys which belongs to it.
pub(in crate::families) fn bids(
    design: &Design,
    kernel: &'static Kernel,
    query: &Query<'_>,
    problem: &Problem,
) -> Result<Vec<Bid>, RejectionReason> {
    of_keys(design, query)?;
    let axes = problem.axes();
    if let Some(reason) = too_many_tokens(problem) {
        return Err(reason);
    }
    if axes.iter().any(|axis| axis.query_extent == 0) {
        return Err(RejectionReason::NoQueries);
    }
    let [of_queries, of_keys] =
        [Rows::Queries, Rows::Keys].map(|rows| cut((design, kernel), query, problem, axes, rows));
    let (Some(of_queries), Some(of_keys)) = (of_queries, of_keys) else {
        return Err(RejectionReason::NoKeys);
    };
    let of_list =
        list_axes(problem).and_then(|axes| cut((design, kernel), query, problem, &axes, Rows::Keys));
    let additional = of_list.map_or(0.0, |cut| cut.microseconds);
    let tiling = Tiling {
        query_tile: of_queries.row_tile(),
        key_tile: of_queries.column_box,
        key_start: KeyStart::Dynamic,
    };
    let microseconds =
        cost::statistics(problem) + of_queries.microseconds + of_keys.microseconds + additional;
    Ok(vec![Bid { kernel, tiling: Some(tiling), side: of_queries.side, microseconds }])
}

/// Everything for a bid.
pub(in crate::families) fn lay_out(
    design: &Design,
    bid: &Bid,
    query: &Query<'_>,
    problem: &Problem,
) -> Result<Offer, Refused> {
    launch::lay_out(design, bid, query, problem)
}

/// Pairs that each pass computes for each one that is wanted.
pub(in crate::families) fn issued_over_useful(
    design: &Design,
    bid: &Bid,
    query: &Query<'_>,
    problem: &Problem,
) -> Vec<(&'static Kernel, f64)> {
    let heads = problem.batch() as f64 * problem.heads() as f64;
    let of = |kernel: &'static Kernel, rows| {
        let cut = cut((design, bid.kernel), query, problem, problem.axes(), rows)?;
        Some((kernel, cut.issued() * heads / problem.scores().max(1) as f64))
    };
    let of_keys = of_keys(design, query).ok().and_then(|kernel| of(kernel, Rows::Keys));
    of(bid.kernel, Rows::Queries).into_iter().chain(of_keys).collect()
}

/// The kernel of the pass over keys.
fn of_keys(design: &Design, query: &Query<'_>) -> Result<&'static Kernel, RejectionReason> {
    best_fit(design.family, Operation::BackwardKey, query)
}

/// How a pass over one mask of the problem is cut.
fn cut(
    (design, kernel): (&Design, &Kernel),
    query: &Query<'_>,
    problem: &Problem,
    axes: &[Axis; 3],
    rows: Rows,
) -> Option<Cut> {
    let (heads, sharing) = match rows {
        Rows::Queries => (problem.heads(), 1),
        Rows::Keys => (problem.heads_kv(), problem.heads_per_kv()),
    };
    tiles::best(&Work {
        design,
        axes,
        rows,
        head_dim: kernel.max_head_dim,
        columns: kernel.tile().map_or(0, |tile| tile.queries.min(tile.keys)),
        heads: problem.batch().saturating_mul(heads),
        sharing,
        additional: problem.additional_keys(),
        multiprocessors: query.properties.multiprocessors,
    })
}
