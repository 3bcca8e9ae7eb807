//! What tiles on mma cost, in microseconds of one multiprocessor of an H100.

use natten_core::Problem;
use natten_core::plan::TileCounts;

use crate::cost::{LAUNCH, waves};
use crate::device::Properties;
use crate::registry::{Facts, Kernel};

/// Tiles of 64 queries read every key from shared memory twice as often.
const SMALL_TILE: f64 = 1.2;
/// Ctas that a multiprocessor runs at once.
const RESIDENT: f64 = 2.0;

/// The predicted time of a kernel whose boxes have these counts.
pub(super) fn predict(
    kernel: &Kernel,
    problem: &Problem,
    counts: &TileCounts,
    properties: &Properties,
) -> f64 {
    let Some(tile) = kernel.tile() else { return LAUNCH };
    let multiprocessors = f64::from(properties.multiprocessors.max(1));
    // For 64 queries: 64 keys without masks, what a mask adds to that, an item besides its tiles. Fitted to the times in
    // docs/performance.md, section 6: 14 problems of head_dim 32, 20 of 64, 17 of 128 and 8 of 256, nearly all within a tenth
    // of the prediction (C3 a fifth).
    let (square, mask, item) = match kernel.max_head_dim {
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
