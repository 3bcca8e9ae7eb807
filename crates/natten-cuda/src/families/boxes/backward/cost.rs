//! What the launches of a backward cost, by the rates of its family.

use natten_core::Problem;
use natten_core::window::Axis;

use super::pass::{Counts, Rows, Work};
use crate::classes::Class;
use crate::cost::{BYTES, LAUNCH, waves};

/// Rates of a pass, in microseconds of one multiprocessor.
pub(in crate::families) struct Rates {
    /// A tile of columns that needs no mask.
    pub full: f64,
    /// A masked one.
    pub masked: f64,
    /// What an item costs besides its tiles: its rows, the last sums, the results.
    pub item: f64,
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
    boxes: f64,
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
            rates: (work.design.rates)(work.head_dim, work.rows),
            boxes: work.design.boxes as f64,
            sharing: work.sharing as f64,
            splits: splits as f64,
            start: LAUNCH * classes.len() as f64,
            waves: classes.iter().map(|class| waves(items(class), slots)).sum(),
        }
    }

    /// The predicted time with columns that make these counts.
    pub fn predict(&self, counts: &Counts) -> f64 {
        let Rates { full, masked, item } = self.rates;
        // Boxes are worked on side by side: what one of them leaves out, the others have time for.
        let met = counts.met as f64 / self.boxes;
        let tiles = full * counts.full as f64 + masked * (met - counts.full as f64).max(0.0);
        let of_item = self.sharing * tiles / (self.splits * counts.rows.max(1) as f64);
        self.start + self.waves * (item + of_item)
    }
}
