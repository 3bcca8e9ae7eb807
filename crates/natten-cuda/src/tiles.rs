//! Forward passes on tensor cores or on CUDA cores: which, with which tiles, and why.
//!
//! A kernel on tiles computes whole boxes of scores, so its cost is the pairs it issues; a walking kernel computes the
//! pairs in the windows only, at a fraction of the rate. Both numbers are exact, the rates are estimates.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use natten_core::plan::{TileCounts, Tiling};
use natten_core::window::Axis;
use natten_core::{ElementType, Problem};

use crate::boxes;
pub use crate::boxes::bytes_read;
use crate::device::Properties;
use crate::error::CudaError;
use crate::params::{Divisor, TilePlan, to_i32};
use crate::registry::{Facts, Kernel, Operation, kernels};
use crate::select::{
    ComputeCapability, LayoutSummary, Rejection, RejectionReason, Rejections, reason_against, select,
};

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Request {
    /// Only the forward kernel of this name.
    pub entry: Option<&'static str>,
    /// These boxes, for a kernel on tiles of their size; of a Hopper kernel, all its warpgroups' queries.
    pub tiling: Option<Tiling>,
}

impl Request {
    /// The same on this kernel.
    pub(crate) fn on(self, entry: &'static str) -> Self {
        Request { entry: Some(entry), ..self }
    }
}

/// Scores computed per score in the windows up to which tensor cores win, in percent, head_dim counted as padded. An
/// estimate from instruction counts at head_dim 64: a walking kernel needs 3.4 clocks of a multiprocessor for a score, a
/// kernel on tiles some 0.25, twice what its multiplications take.
const WASTE_LIMIT_PERCENT: u64 = 1300;

/// Kernels keep, in 16 bits, how far a query's window starts after that of the tile's first query, which is less than the
/// tile's side plus the stride; and likewise for the ends.
const MAX_STRIDE: usize = 1 << 15;

/// What a choice depends on.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    axes: [Axis; 3],
    batch: usize,
    heads: usize,
    head_dims: [usize; 2],
    additional_keys: usize,
    element_type: ElementType,
    is_aligned: bool,
    capability: ComputeCapability,
    multiprocessors: u32,
    shared_bytes: usize,
    request: Request,
}

/// Choices made so far: a model calls with the same few problems again and again.
static CHOICES: LazyLock<Mutex<HashMap<Key, Choice>>> = LazyLock::new(Mutex::default);

/// Choices kept; past it all are forgotten.
const KEPT: usize = 256;

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
    if problem.is_packed() {
        return search(problem, layout, properties, request);
    }
    let key = Key {
        axes: *problem.axes(),
        batch: problem.batch(),
        heads: problem.heads(),
        head_dims: [problem.head_dim(), problem.head_dim_v()],
        additional_keys: problem.additional_keys(),
        element_type: problem.element_type(),
        is_aligned: layout.is_aligned,
        capability: properties.compute_capability,
        multiprocessors: properties.multiprocessors,
        shared_bytes: properties.shared_bytes_per_block,
        request: *request,
    };
    // A panic elsewhere leaves the map whole.
    let lock = || CHOICES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(choice) = lock().get(&key) {
        return Ok(choice.clone());
    }
    let choice = search(problem, layout, properties, request)?;
    let mut choices = lock();
    if choices.len() >= KEPT {
        choices.clear();
    }
    choices.insert(key, choice.clone());
    Ok(choice)
}

fn search(
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
        || kernels().filter(|kernel| kernel.operation == Operation::Forward && kernel.tile().is_some());
    let shortest = on_tiles().map(Facts::longest_row).filter(|&max| max >= head_dim).min();
    let too_long = |kernel: &Kernel| shortest.is_some_and(|shortest| kernel.longest_row() > shortest);
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
        let found = problem.axes().iter().map(|axis| axis.stride).max().unwrap_or(1);
        if found > MAX_STRIDE {
            rejections.push(reject(RejectionReason::Stride { max: MAX_STRIDE, found }));
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

/// The boxes that issue fewest pairs, or those asked for; nothing if these are not of the kernel's size.
fn best_tiling(problem: &Problem, kernel: &Kernel, asked: Option<Tiling>) -> Option<(Tiling, TileCounts)> {
    let tile = kernel.tile()?;
    if let Some(tiling) = asked {
        let size = |sides: [usize; 3], of: usize| {
            sides.iter().all(|side| side.is_power_of_two()) && sides.iter().product::<usize>() == of
        };
        let fits = size(tiling.query_tile, tile.queries) && size(tiling.key_tile, tile.keys);
        return fits.then(|| (tiling, TileCounts::of(problem, &tiling)));
    }
    Some(boxes::best(problem, tile))
}

/// Time in units of one row block of 16 queries against one tile of keys, on the busiest multiprocessor.
fn relative_time(problem: &Problem, kernel: &Kernel, counts: &TileCounts, properties: &Properties) -> f64 {
    /// Thread blocks that a multiprocessor runs at once.
    const RESIDENT: f64 = 2.0;
    /// Tiles of 64 queries read every key from shared memory twice as often.
    const SMALL_TILE_COST: f64 = 1.2;
    let rows = kernel.tile().map_or(1, |tile| tile.queries) as f64;
    let blocks = counts.query_tiles as f64 * (problem.batch() * problem.heads()) as f64;
    let slots = f64::from(properties.multiprocessors.max(1)) * RESIDENT;
    let waves = if blocks > 4.0 * slots { blocks / slots } else { (blocks / slots).ceil() };
    let row_cost = if rows < 128.0 { SMALL_TILE_COST } else { 1.0 };
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

#[cfg(test)]
mod tests {
    use super::*;
    use natten_core::plan::KeyStart;
    use natten_core::{Inputs, Layout, Params};

    fn device(multiprocessors: u32, shared_kib: usize) -> Properties {
        Properties {
            name: "a device".to_owned(),
            compute_capability: ComputeCapability { major: 8, minor: 0 },
            multiprocessors,
            shared_bytes_per_block: shared_kib << 10,
            memory_bytes: 1 << 34,
        }
    }

    fn problem<const RANK: usize>(
        tokens: [usize; RANK],
        heads: usize,
        head_dim: usize,
        params: Params<RANK>,
        element_type: ElementType,
    ) -> Problem {
        let shape: Vec<usize> = [1].into_iter().chain(tokens).chain([heads, head_dim]).collect();
        let layout = Layout::contiguous(&shape).unwrap();
        Problem::new(&params.to_dyn(), &Inputs::new(layout, layout, layout), element_type).unwrap()
    }

    fn chosen(problem: &Problem, properties: &Properties) -> Choice {
        choose(problem, LayoutSummary { is_aligned: true }, properties, &Request::default()).unwrap()
    }

    fn reason(choice: &Choice, entry: &str) -> String {
        choice.rejections.0.iter().find(|r| r.kernel == entry).expect(entry).reason.to_string()
    }

    #[test]
    fn large_windows_run_on_large_tiles() {
        let video = problem([30, 48, 80], 24, 128, Params::new([18, 24, 24]), ElementType::Bf16);
        let choice = chosen(&video, &device(108, 163));
        assert_eq!(choice.kernel.entry, "natten_forward_sm80_bf16_d128_q128_k64");
        let tiling = choice.tiling.unwrap();
        assert_eq!(
            (tiling.query_tile.iter().product(), tiling.key_tile.iter().product()),
            (128usize, 64usize)
        );
        assert!(choice.counts.unwrap().issued_over_useful() < 1.6);
        let other = "natten_forward_sm80_bf16_d128_q64_k64";
        assert_eq!(reason(&choice, other), format!("would take longer than {}", choice.kernel.entry));
    }

    #[test]
    fn few_tiles_are_made_smaller() {
        let image = problem([64, 64], 4, 64, Params::new([16, 16]).stride([8, 8]), ElementType::F16);
        assert_eq!(chosen(&image, &device(108, 163)).kernel.entry, "natten_forward_sm80_f16_d64_q64_k64");
    }

    #[test]
    fn tiny_windows_walk() {
        let small = problem([64, 96], 2, 64, Params::new([3, 3]), ElementType::Bf16);
        let choice = chosen(&small, &device(108, 163));
        assert_eq!(choice.kernel.entry, "natten_forward_simt_bf16_d64");
        assert!(
            reason(&choice, "natten_forward_sm80_bf16_d64_q64_k64")
                .contains("% of the scores in the windows")
        );
    }

    #[test]
    fn what_tiles_cannot_do() {
        let params = Params::new([200]);
        let single = problem([400], 1, 64, params, ElementType::F32);
        assert_eq!(chosen(&single, &device(108, 163)).kernel.entry, "natten_forward_simt_f32_d64");
        let half = problem([400], 1, 128, params, ElementType::F16);
        let small = chosen(&half, &device(108, 64));
        assert!(reason(&small, "natten_forward_sm80_f16_d128_q64_k64").starts_with("needs 70400 bytes"));
        let unaligned = LayoutSummary { is_aligned: false };
        let choice = choose(&half, unaligned, &device(108, 163), &Request::default()).unwrap();
        assert!(choice.tiling.is_none() && choice.kernel.entry.ends_with("_unaligned"));
        let wide = problem([70_000], 1, 64, Params::new([50_000]).stride([40_000]), ElementType::F16);
        let choice = chosen(&wide, &device(108, 163));
        assert!(reason(&choice, "natten_forward_sm80_f16_d64_q128_k64").contains("stride up to 32768"));
    }

    #[test]
    fn requests_are_met_or_refused() {
        let half = problem([40, 40], 1, 64, Params::new([3, 3]), ElementType::F16);
        let layout = LayoutSummary { is_aligned: true };
        let entry = Some("natten_forward_sm80_f16_d64_q64_k64");
        let tiling = Tiling { query_tile: [1, 4, 16], key_tile: [1, 2, 32], key_start: KeyStart::Dynamic };
        let request = Request { entry, tiling: Some(tiling) };
        let choice = choose(&half, layout, &device(1, 163), &request).unwrap();
        assert_eq!((Some(choice.kernel.entry), choice.tiling), (entry, Some(tiling)));
        let wrong = Tiling { key_tile: [1, 3, 21], ..tiling };
        let Rejections(reasons) =
            choose(&half, layout, &device(1, 163), &Request { entry, tiling: Some(wrong) }).unwrap_err();
        assert!(reasons.iter().all(|r| r.reason == RejectionReason::NotAskedFor));
    }

    /// A choice that was kept is the one that is made anew, and belongs to its device and request alone.
    #[test]
    fn choices_are_kept_apart() {
        let image = problem([64, 64], 4, 64, Params::new([16, 16]).stride([8, 8]), ElementType::F16);
        let layout = LayoutSummary { is_aligned: true };
        for multiprocessors in [108, 1, 108] {
            let properties = device(multiprocessors, 163);
            let anew = search(&image, layout, &properties, &Request::default()).unwrap();
            let kept = chosen(&image, &properties);
            assert_eq!((kept.kernel.entry, kept.tiling), (anew.kernel.entry, anew.tiling));
        }
        let entry = Some("natten_forward_sm80_f16_d64_q128_k64");
        let asked = choose(&image, layout, &device(108, 163), &Request { entry, tiling: None }).unwrap();
        assert_eq!(Some(asked.kernel.entry), entry);
        assert_ne!(Some(chosen(&image, &device(108, 163)).kernel.entry), entry);
    }
}
