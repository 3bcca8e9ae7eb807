//! What tiles of the backward passes cost, in microseconds of one multiprocessor of an H100.

use super::tiles::Counts;
use crate::cost::{LAUNCH, waves};
use crate::registry::{Facts, Kernel, Operation};

/// Ctas that a multiprocessor runs at once.
const RESIDENT: f64 = 2.0;

/// The predicted time of a pass with these counts, over so many heads of rows, of which each meets so many heads of columns, and with so
/// many ctas to a box of rows.
pub(super) fn predict(
    kernel: &Kernel,
    counts: &Counts,
    (heads, splits): (usize, usize),
    sharing: f64,
    multiprocessors: u32,
) -> f64 {
    let Some(tile) = kernel.tile() else { return LAUNCH };
    // For 64 rows: 64 columns without masks, what a mask adds to that, an item besides its tiles. The forward's rates by the
    // ratio of products, three and four instead of two; not measured.
    let (square, mask, item) = match kernel.max_head_dim {
        0..=32 => (0.25, 0.54, 0.85),
        33..=64 => (0.37, 0.41, 1.2),
        65..=128 => (0.67, 0.19, 1.9),
        _ => (1.43, 0.1, 2.75),
    };
    let is_of_keys = kernel.operation == Operation::BackwardKey;
    let products = if is_of_keys { 2.0 } else { 1.5 };
    let rows = if is_of_keys { tile.keys } else { tile.queries };
    let full = square * products * (tile.queries * tile.keys) as f64 / 4096.0;
    let masked = counts.columns.saturating_sub(counts.full) as f64;
    let tiles = counts.full as f64 + masked * (1.0 + mask);
    let ctas = counts.rows as f64 * heads as f64 * splits as f64;
    let of_cta = full * sharing * tiles / (counts.rows as f64 * splits as f64).max(1.0);
    let mean = item * products * rows as f64 / 64.0 + of_cta;
    let slots = f64::from(multiprocessors.max(1)) * RESIDENT;
    // Adding partial sums up takes two launches more.
    let launches = if splits > 1 { 3.0 } else { 1.0 };
    LAUNCH * launches + waves(ctas, slots) * mean * RESIDENT
}
