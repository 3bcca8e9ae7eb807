//! What tiles and work items cost, in microseconds of one multiprocessor of an H100: for this family, and for the others
//! that it competes with. Fitted to the times in docs/performance.md, section 6.

use natten_core::Problem;

use super::classes::Class;
use super::{Boxes, warpgroups};
use crate::device::Properties;
use crate::registry::{Facts, Kernel};
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

/// Tiles of 128 queries, each row fitted to all times of its kernels: 8 problems of head_dim 32, 17 of 64 and of 128, 8 of
/// 256. Predictions come within a sixteenth, a ninth, an eighth and a fifth of them. What is least certain: the item of
/// head_dim 32 rests on one small image; of head_dim 256, a full tile of FLUX took 1.8 and one of a single axis 1.5. Three
/// warpgroups take 1.3 times as long as two for 1.5 times the queries.
fn rates(kernel: &Kernel) -> Rates {
    let (full, mask, item) = match kernel.max_head_dim {
        32 => (0.98, 0.27, 2.2),
        64 => (1.15, 0.28, 2.7),
        128 => (1.7, 0.14, 3.0),
        _ => (1.6, 0.3, 2.5),
    };
    let wider = if warpgroups(kernel) == 3 { 1.3 } else { 1.0 };
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
    let (sides, slots) = (boxes.query_tile(warpgroups(kernel)), f64::from(multiprocessors.max(1)));
    let items = |class: &Class| class.tiles(&sides).iter().map(|&tiles| tiles as f64).product::<f64>();
    classes.iter().map(|class| LAUNCH + waves(items(class) * heads as f64, slots) * mean).sum()
}

/// The predicted time of what the other families chose: mma tiles, two thread blocks a multiprocessor, or windows walked
/// by CUDA cores.
pub(super) fn predict_other(problem: &Problem, choice: &Choice, properties: &Properties) -> f64 {
    /// Tiles of 64 queries read every key from shared memory twice as often.
    const SMALL_TILE: f64 = 1.2;
    /// Thread blocks that a multiprocessor runs at once.
    const RESIDENT: f64 = 2.0;
    /// Useful floating-point operations a microsecond of one multiprocessor on CUDA cores.
    const WALKED: f64 = 11e6 / 132.0;
    let multiprocessors = f64::from(properties.multiprocessors.max(1));
    let (Some(counts), Some(tile)) = (&choice.counts, choice.kernel.tile()) else {
        return LAUNCH + problem.useful_flops() / (WALKED * multiprocessors);
    };
    // For 64 queries: 64 keys without masks, what a mask adds to that, an item besides its tiles. Fitted as above to 14
    // problems of head_dim 32, 20 of 64, 17 of 128 and 8 of 256, nearly all within a tenth of the prediction (C3 a fifth).
    let (square, mask, item) = match choice.kernel.max_head_dim {
        0..=32 => (0.25, 0.54, 0.85),
        33..=64 => (0.37, 0.41, 1.2),
        65..=128 => (0.67, 0.19, 1.9),
        _ => (1.43, 0.1, 2.75),
    };
    let small = if tile.queries < 128 { SMALL_TILE } else { 1.0 };
    let full = square * small * (tile.queries * tile.keys) as f64 / 4096.0;
    let masked_tiles = (counts.key_tiles - counts.full_tiles) as f64;
    let tiles = counts.full_tiles as f64 + masked_tiles * (1.0 + mask);
    let mean = item * tile.queries as f64 / 64.0 + full * tiles / counts.query_tiles.max(1) as f64;
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
