//! What tiles and work items cost, in microseconds of one multiprocessor of an H100: for this family, and for the others
//! that it competes with. Fitted to the times in docs/performance.md, section 6.

use natten_core::Problem;

use super::classes::Class;
use super::{Boxes, Kernel};
use crate::device::Properties;
use crate::tiles::Choice;

/// Starting a kernel.
const LAUNCH: f64 = 4.0;
/// Bytes that memory moves in a microsecond.
const BYTES: f64 = 2.8e6;
/// Below so many waves of items the last one counts whole.
const FEW_WAVES: f64 = 6.0;

/// Rates of a Hopper kernel.
struct Rates {
    /// A tile that needs no mask.
    full: f64,
    /// A masked one.
    masked: f64,
    /// What an item costs besides its tiles: its queries, the first scores, the last product, the result.
    item: f64,
}

/// Tiles of 128 queries. head_dim 64: items and masked tiles from the windows of a few tokens (L0 to L4, C3), the mask's
/// price from Hunyuan. 128: long block-sparse windows and the 64x64 images. 32: the mask's price is measured, the rest set
/// so that the 64x64 images come out as they were seen, up to a fifth faster on mma. 256: an estimate. Three warpgroups
/// took 1.3 times as long as two for 1.5 times the queries (L4, the only time on record).
fn rates(kernel: &Kernel) -> Rates {
    let (full, mask, item) = match kernel.head_dim {
        32 => (0.9, 0.43, 3.0),
        64 => (1.1, 0.25, 3.9),
        128 => (1.7, 0.07, 3.0),
        _ => (1.8, 0.07, 4.0),
    };
    let wider = if kernel.warpgroups == 3 { 1.35 } else { 1.0 };
    Rates { full: full * wider, masked: full * wider * (1.0 + mask), item }
}

/// The predicted time of a kernel of this family on its boxes, for as many heads of as many batch items. Each class of
/// residues is a launch of its own, whose last wave ends before the next begins.
pub(super) fn predict(
    kernel: &Kernel,
    boxes: &Boxes,
    classes: &[Class],
    heads: usize,
    multiprocessors: u32,
) -> f64 {
    let Rates { full, masked, item } = rates(kernel);
    let tiles = full * boxes.full_tiles as f64 + masked * (boxes.key_tiles - boxes.full_tiles) as f64;
    let mean = item + tiles / boxes.query_tiles.max(1) as f64;
    let (sides, slots) = (boxes.query_tile(kernel.warpgroups), f64::from(multiprocessors.max(1)));
    let items = |class: &Class| class.tiles(&sides).iter().map(|&tiles| tiles as f64).product::<f64>();
    classes.iter().map(|class| LAUNCH + waves(items(class) * heads as f64, slots) * mean).sum()
}

/// The predicted time of what the other families chose: mma tiles, two thread blocks a multiprocessor, or windows walked
/// by CUDA cores.
pub(super) fn predict_other(problem: &Problem, choice: &Choice, properties: &Properties) -> f64 {
    /// A masked tile against a full one.
    const MASK: f64 = 0.18;
    /// Tiles of 64 queries read every key from shared memory twice as often.
    const SMALL_TILE: f64 = 1.15;
    /// An item of 64 queries of head_dim 64: longer ones have more to read and write.
    const ITEM: f64 = 1.1;
    /// Thread blocks that a multiprocessor runs at once.
    const RESIDENT: f64 = 2.0;
    /// Useful floating-point operations a microsecond of one multiprocessor on CUDA cores.
    const WALKED: f64 = 11e6 / 132.0;
    let multiprocessors = f64::from(properties.multiprocessors.max(1));
    let (Some(counts), Some(tile)) = (&choice.counts, choice.kernel.tile) else {
        return LAUNCH + problem.useful_flops() / (WALKED * multiprocessors);
    };
    // 64 queries against 64 keys without masks: head_dim 64 and 128 measured, 256 an estimate, 32 see above.
    let square = match choice.kernel.max_head_dim {
        0..=32 => 0.36,
        33..=64 => 0.55,
        65..=128 => 0.67,
        _ => 1.4,
    };
    let small = if tile.queries < 128 { SMALL_TILE } else { 1.0 };
    let full = square * small * (tile.queries * tile.keys) as f64 / 4096.0;
    let tiles = counts.full_tiles as f64 + (counts.key_tiles - counts.full_tiles) as f64 * (1.0 + MASK);
    let rows = tile.queries as f64 / 64.0 * choice.kernel.max_head_dim.max(64) as f64 / 64.0;
    let mean = ITEM * rows + full * tiles / counts.query_tiles.max(1) as f64;
    let items = counts.query_tiles as f64 * (problem.batch() * problem.heads()) as f64;
    LAUNCH + waves(items, multiprocessors * RESIDENT) * mean * RESIDENT
}

/// The least time that reading and writing every tensor once takes.
pub(super) fn traffic(problem: &Problem) -> f64 {
    let rows = |tokens: usize, heads: usize| (problem.batch() * tokens * heads) as f64;
    let both = (problem.head_dim() + problem.head_dim_v()) as f64;
    let keys = problem.key_tokens() + problem.additional_keys();
    let elements = both * (rows(problem.query_tokens(), problem.heads()) + rows(keys, problem.heads_kv()));
    LAUNCH + elements * problem.element_type().size_bytes() as f64 / BYTES
}

/// Rounds of items that as many slots take.
fn waves(items: f64, slots: f64) -> f64 {
    let waves = items / slots;
    if waves < FEW_WAVES { waves.ceil() } else { waves }
}
