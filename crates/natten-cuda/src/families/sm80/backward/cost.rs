//! What tiles of the backward passes cost, in microseconds of one multiprocessor of an H100.

use super::tiles::Counts;
use crate::cost::{LAUNCH, waves};
use crate::device::Properties;
use crate::registry::{Facts, Kernel, Operation};

/// What a cta takes longer alone on a multiprocessor than its share where two are there: 1.1 to 1.47 times on an H100 that was told
/// to run one, most kernels of head_dim 128 near this.
const ALONE: f64 = 1.2;

/// Bytes of shared memory that the device keeps for each cta, and of a multiprocessor beyond what a cta can have.
const RESERVED: usize = 1024;

/// Rates of a kernel.
struct Rates {
    /// A tile that needs no mask.
    full: f64,
    /// A masked one.
    masked: f64,
    /// What a box of rows costs besides its tiles.
    item: f64,
}

/// Fitted to each kernel's own times on an H100, two ctas a multiprocessor but for the pass over keys of head_dim 256: FLUX and Hunyuan with
/// and without strides, one axis of 32768 tokens, 64x64 and L0 (docs/performance.md, section 6), all within 15 % of the prediction; those
/// of head_dim 256 to two of them.
fn rates(kernel: &Kernel) -> Rates {
    let rows = kernel.tile().map_or(0, |tile| tile.queries);
    let (full, masked, item) = match (kernel.operation, kernel.max_head_dim) {
        (Operation::BackwardKey, 0..=32) => (0.43, 0.48, 8.3),
        (Operation::BackwardKey, 33..=64) => (0.75, 0.76, 10.0),
        (Operation::BackwardKey, 65..=128) => (0.85, 0.92, 4.8),
        (Operation::BackwardKey, _) => (1.46, 1.82, 5.6),
        (_, 0..=32) => (0.6, 0.75, 5.4),
        (_, 33..=64) => (0.5, 0.61, 6.1),
        (_, 65..=128) if rows >= 128 => (1.0, 1.14, 7.7),
        (_, 65..=128) => (0.585, 0.68, 3.7),
        _ => (0.7, 0.81, 7.9),
    };
    Rates { full, masked, item }
}

/// Ctas that a multiprocessor runs at once.
fn resident(kernel: &Kernel, properties: &Properties) -> f64 {
    let room = properties.shared_bytes_per_block + RESERVED;
    let fits_twice = 2 * (kernel.shared_bytes as usize + RESERVED) <= room;
    if fits_twice && kernel.threads <= 128 { 2.0 } else { 1.0 }
}

/// The predicted time of a pass with these counts, over so many heads of rows, of which each meets so many heads of columns, and
/// with so many ctas to a box of rows.
pub(super) fn predict(
    kernel: &Kernel,
    counts: &Counts,
    (heads, splits): (usize, usize),
    sharing: f64,
    properties: &Properties,
) -> f64 {
    let Rates { full, masked, item } = rates(kernel);
    let resident = resident(kernel, properties);
    let is_alone = resident < 2.0 && kernel.threads <= 128;
    let masks = counts.columns.saturating_sub(counts.full) as f64;
    let ctas = counts.rows as f64 * heads as f64 * splits as f64;
    let tiles = sharing * (full * counts.full as f64 + masked * masks);
    let mean = item + tiles / (counts.rows as f64 * splits as f64).max(1.0);
    let mean = if is_alone { mean * ALONE } else { mean };
    let slots = f64::from(properties.multiprocessors.max(1)) * resident;
    // Adding partial sums up takes two launches more.
    let launches = if splits > 1 { 3.0 } else { 1.0 };
    LAUNCH * launches + waves(ctas, slots) * mean * resident
}
