//! What tiles and work items of the backward passes cost, in microseconds of one multiprocessor of an H100.

use natten_core::Problem;
use natten_core::window::Axis;

use super::pass::{Counts, Rows, Work};
use super::tiles::WARPGROUPS;
use crate::classes::Class;
use crate::cost::{BYTES, LAUNCH, waves};

/// Rates of a pass.
struct Rates {
    /// A tile of 128 rows and 64 columns that needs no mask.
    full: f64,
    /// A masked one.
    masked: f64,
    /// What an item costs besides its tiles: its rows, the last sums, the results.
    item: f64,
}

/// Fitted to whole calls in bf16 on an H100 (docs/performance.md, section 6): 4 of head_dim 32, 12 of 64, 9 of 128, 5 of 256.
/// They come within a seventh of their times; a pass was never timed alone, so its share is that of its products. Tiles of 256 have 32 columns,
/// and of the two kinds of items of its pass over keys these are the mean.
fn rates(work: &Work<'_>) -> Rates {
    let (full, masked, item) = match (work.head_dim, work.rows) {
        (0..=32, Rows::Queries) => (0.53, 0.89, 3.9),
        (0..=32, Rows::Keys) => (0.87, 1.26, 4.8),
        (33..=64, Rows::Queries) => (0.71, 1.02, 4.0),
        (33..=64, Rows::Keys) => (1.19, 1.43, 5.5),
        (65..=128, Rows::Queries) => (1.11, 1.75, 5.7),
        (65..=128, Rows::Keys) => (1.84, 2.21, 8.2),
        (_, Rows::Queries) => (1.58, 1.92, 8.4),
        (_, Rows::Keys) => (1.33, 1.61, 8.4),
    };
    Rates { full, masked, item }
}

/// The kernel that prepares row statistics: it reads outputs and their gradients. In floating point, since views without
/// strides may claim any number of tokens.
pub(super) fn statistics(problem: &Problem) -> f64 {
    let extents = [problem.batch(), problem.query_tokens(), problem.heads(), problem.head_dim_v()];
    let elements: f64 = extents.iter().map(|&extent| extent as f64).product();
    LAUNCH + 2.0 * elements * problem.element_type().size_bytes() as f64 / BYTES
}

/// Adding up partial sums: memory that is written and read, and launches.
pub(super) fn sums(work: &Work<'_>, splits: usize) -> f64 {
    let rows = |axis: &Axis| work.rows.extent(axis) as f64;
    let rows: f64 = work.axes.iter().map(rows).product::<f64>() * work.heads as f64;
    let (gradients, row_bytes) =
        (if work.rows == Rows::Keys { 2.0 } else { 1.0 }, f64::from(work.head_dim) * 4.0);
    gradients * (LAUNCH + 2.0 * rows * row_bytes * splits as f64 / BYTES)
}

/// The launches of a pass by the rows of an item and its splits alone. Each class of residues is one of its own, whose last wave ends before
/// the next begins.
pub(super) struct Launches {
    rates: Rates,
    /// Heads that an item takes one after the other, and splits that share its tiles.
    sharing: f64,
    splits: f64,
    /// What starting them takes, and the waves of all together.
    start: f64,
    waves: f64,
}

impl Launches {
    pub fn of(work: &Work<'_>, classes: &[Class], row_tile: &[usize; 3], splits: usize) -> Self {
        let slots = f64::from(work.multiprocessors.max(1));
        let parts = (work.heads * work.gradients() * splits) as f64;
        let items = |class: &Class| {
            work.rows.tiles(class, row_tile).iter().map(|&tiles| tiles as f64).product::<f64>() * parts
        };
        Launches {
            rates: rates(work),
            sharing: work.sharing as f64,
            splits: splits as f64,
            start: LAUNCH * classes.len() as f64,
            waves: classes.iter().map(|class| waves(items(class), slots)).sum(),
        }
    }

    /// The predicted time with columns that make these counts.
    pub fn predict(&self, counts: &Counts) -> f64 {
        let Rates { full, masked, item } = self.rates;
        // Warpgroups work side by side: what one of them leaves out, the others have time for.
        let met = counts.met as f64 / WARPGROUPS as f64;
        let tiles = full * counts.full as f64 + masked * (met - counts.full as f64).max(0.0);
        let of_item = self.sharing * tiles / (self.splits * counts.rows.max(1) as f64);
        self.start + self.waves * (item + of_item)
    }
}
