//! Forward passes on tensor cores or on CUDA cores: which, with which tiles, and why.
//!
//! A kernel on tiles computes whole boxes of scores, so its cost is the pairs it issues; a walking kernel computes the
//! pairs in the windows only, at a fraction of the rate. Both numbers are exact, the rates are estimates.

use natten_core::Problem;
use natten_core::plan::{KeyStart, TileCounts, Tiling, rank_tilings};
use natten_core::window::Axis;

use crate::device::Properties;
use crate::error::CudaError;
use crate::params::{Divisor, TilePlan, to_i32};
use crate::registry::{Kernel, Operation, kernels};
use crate::select::{LayoutSummary, Rejection, RejectionReason, Rejections, reason_against, select};

/// A kernel for a forward pass.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Boxes of queries and keys, for a kernel on tiles.
    pub tiling: Option<Tiling>,
    /// What the tiling costs, for one batch item and head.
    pub counts: Option<TileCounts>,
    /// Why the other kernels on tiles were not taken.
    pub rejections: Rejections,
}

/// What a caller asks of the choice: nothing, by default. For benchmarks and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Only the forward kernel of this name.
    pub entry: Option<&'static str>,
    /// These boxes, for a kernel on tiles of their size.
    pub tiling: Option<Tiling>,
}

/// Scores computed per score in the windows up to which tensor cores win, in percent, head_dim counted as padded. An
/// estimate: a walking kernel gets some 6 TFLOP/s out of an A100, a kernel on tiles some 150.
const WASTE_LIMIT_PERCENT: u64 = 1600;

/// The kernel for the forward pass of a problem.
///
/// # Errors
/// The reason against each kernel.
pub fn choose(
    problem: &Problem,
    layout: LayoutSummary,
    properties: &Properties,
    request: &Request,
) -> Result<Choice, Rejections> {
    let capability = properties.compute_capability;
    let head_dim = problem.head_dim().max(problem.head_dim_v());
    let mut rejections = Vec::new();
    let mut best: Option<(f64, &'static Kernel, Tiling, TileCounts)> = None;
    let on_tiles =
        || kernels().filter(|kernel| kernel.operation == Operation::Forward && kernel.tile.is_some());
    let shortest = on_tiles().map(|kernel| kernel.max_head_dim).filter(|&max| max >= head_dim).min();
    let too_long = |kernel: &Kernel| shortest.is_some_and(|shortest| kernel.max_head_dim > shortest);
    for kernel in on_tiles().filter(|kernel| request.entry == Some(kernel.entry) || !too_long(kernel)) {
        let reject = |reason| Rejection { kernel: kernel.entry, reason };
        if request.entry.is_some_and(|entry| entry != kernel.entry) {
            rejections.push(reject(RejectionReason::NotAskedFor));
            continue;
        }
        if let Some(reason) = reason_against(kernel, problem.element_type(), head_dim, layout, capability) {
            rejections.push(reject(reason));
            continue;
        }
        let (needed, limit) = (kernel.shared_bytes as usize, properties.shared_bytes_per_block);
        if needed > limit {
            rejections.push(reject(RejectionReason::SharedMemory { needed, limit }));
            continue;
        }
        let Some((tiling, counts)) = best_tiling(problem, kernel, request.tiling) else {
            rejections.push(reject(RejectionReason::NotAskedFor));
            continue;
        };
        let useful = counts.scores.max(1) * (problem.head_dim() + problem.head_dim_v()) as u64;
        let percent = counts.issued * 2 * kernel.max_head_dim as u64 * 100 / useful;
        if percent > WASTE_LIMIT_PERCENT && request.entry.is_none() {
            rejections.push(reject(RejectionReason::WastedScores { percent, limit: WASTE_LIMIT_PERCENT }));
            continue;
        }
        let time = relative_time(problem, kernel, &counts, properties);
        match best {
            Some((other, faster, ..)) if other <= time => {
                rejections.push(reject(RejectionReason::Slower { than: faster.entry }));
            }
            _ => {
                if let Some((_, slower, ..)) = best {
                    let reason = RejectionReason::Slower { than: kernel.entry };
                    rejections.push(Rejection { kernel: slower.entry, reason });
                }
                best = Some((time, kernel, tiling, counts));
            }
        }
    }
    if let Some((_, kernel, tiling, counts)) = best {
        let rejections = Rejections(rejections);
        return Ok(Choice { kernel, tiling: Some(tiling), counts: Some(counts), rejections });
    }
    match select(problem, Operation::Forward, layout, capability) {
        Ok(kernel) if request.entry.is_some_and(|entry| entry != kernel.entry) => {
            rejections.push(Rejection { kernel: kernel.entry, reason: RejectionReason::NotAskedFor });
            Err(Rejections(rejections))
        }
        Ok(kernel) => Ok(Choice { kernel, tiling: None, counts: None, rejections: Rejections(rejections) }),
        Err(Rejections(others)) => {
            rejections.extend(others);
            Err(Rejections(rejections))
        }
    }
}

/// The boxes that issue fewest pairs. A problem of single tokens has no box without waste; it gets a flat one. Nothing if
/// boxes are asked for that are not of the kernel's size.
fn best_tiling(problem: &Problem, kernel: &Kernel, asked: Option<Tiling>) -> Option<(Tiling, TileCounts)> {
    let tile = kernel.tile?;
    if let Some(tiling) = asked {
        let size = |sides: [usize; 3], of: usize| {
            sides.iter().all(|side| side.is_power_of_two()) && sides.iter().product::<usize>() == of
        };
        let fits = size(tiling.query_tile, tile.queries) && size(tiling.key_tile, tile.keys);
        return fits.then(|| (tiling, TileCounts::of(problem, &tiling)));
    }
    let ranked = rank_tilings(problem, tile.queries, tile.keys, KeyStart::Dynamic);
    ranked.into_iter().next().or_else(|| {
        let tiling = Tiling {
            query_tile: [1, 1, tile.queries],
            key_tile: [1, 1, tile.keys],
            key_start: KeyStart::Dynamic,
        };
        Some((tiling, TileCounts::of(problem, &tiling)))
    })
}

/// Time in units of one row block of 16 queries against one tile of keys, on the busiest multiprocessor.
fn relative_time(problem: &Problem, kernel: &Kernel, counts: &TileCounts, properties: &Properties) -> f64 {
    /// Thread blocks that a multiprocessor runs at once.
    const RESIDENT: f64 = 2.0;
    /// Tiles of 64 queries read every key from shared memory twice as often.
    const SMALL_TILE_COST: f64 = 1.2;
    let rows = kernel.items as f64;
    let blocks = counts.query_tiles as f64 * (problem.batch() * problem.heads()) as f64;
    let slots = f64::from(properties.multiprocessors.max(1)) * RESIDENT;
    let waves = if blocks > 4.0 * slots { blocks / slots } else { (blocks / slots).ceil() };
    let row_cost = if kernel.items < 128 { SMALL_TILE_COST } else { 1.0 };
    // One tile's worth of time for starting and storing.
    waves * (counts.mean() + 1.0) * rows / 16.0 * row_cost
}

/// The kernel's form of a tiling, and its thread blocks.
pub(crate) fn plan(
    problem: &Problem,
    axes: &[Axis; 3],
    tiling: &Tiling,
) -> Result<(TilePlan, u32), CudaError> {
    let mut plan = TilePlan {
        heads: Divisor::new("the number of heads", problem.heads())?,
        query_log2: tiling.query_tile.map(|side| side.ilog2() as i32),
        key_log2: tiling.key_tile.map(|side| side.ilog2() as i32),
        ..TilePlan::default()
    };
    let mut total = (problem.batch() * problem.heads()) as u128;
    for (a, axis) in axes.iter().enumerate() {
        let boxes = axis.query_extent.div_ceil(axis.dilation).div_ceil(tiling.query_tile[a]);
        plan.tiles[a] = Divisor::new("the tiles of an axis", axis.dilation * boxes)?;
        total *= u128::from(plan.tiles[a].value);
    }
    let blocks = to_i32("the number of thread blocks", usize::try_from(total).unwrap_or(usize::MAX))?;
    Ok((plan, blocks as u32))
}
