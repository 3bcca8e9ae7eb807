//! What tiles and work items of the backward passes cost, in microseconds of one multiprocessor of an H100.

use super::tiles::{Counts, Rows, Work};
use crate::classes::Class;
use crate::cost::{LAUNCH, waves};

/// Rates of a pass.
struct Rates {
    /// A tile of 128 rows and 64 columns that needs no mask.
    full: f64,
    /// A masked one.
    masked: f64,
    /// What an item costs besides its tiles: its rows, the last sums, the results.
    item: f64,
}

/// Fitted to ten problems on an H100 (docs/performance.md, section 6): FLUX, Hunyuan and one axis at head_dim 128, Hunyuan and the
/// small windows at 64. Of head_dim 32 none was among them; its rates are those of 64 by the ratio of their exponentials and
/// products.
fn rates(work: &Work<'_>) -> Rates {
    let (full, masked, item) = match (work.head_dim, work.rows) {
        (0..=32, Rows::Queries) => (0.55, 0.7, 1.8),
        (0..=32, Rows::Keys) => (0.9, 0.95, 2.3),
        (33..=64, Rows::Queries) => (0.75, 0.95, 2.2),
        (33..=64, Rows::Keys) => (1.26, 1.33, 3.0),
        (_, Rows::Queries) => (1.18, 1.7, 3.5),
        (_, Rows::Keys) => (1.95, 2.15, 5.0),
    };
    Rates { full, masked, item }
}

/// The predicted time of a pass whose cut has these counts. Each class of residues is a launch of its own, whose last wave
/// ends before the next begins.
pub(super) fn predict(work: &Work<'_>, classes: &[Class], row_tile: &[usize; 3], counts: &Counts) -> f64 {
    let Rates { full, masked, item } = rates(work);
    let sharing = work.sharing as f64;
    let tiles = full * counts.full as f64 + masked * counts.columns.saturating_sub(counts.full) as f64;
    let mean = item + sharing * tiles / counts.rows.max(1) as f64;
    let slots = f64::from(work.multiprocessors.max(1));
    let items = |class: &Class| {
        work.rows.tiles(class, row_tile).iter().map(|&tiles| tiles as f64).product::<f64>()
            * work.heads as f64
    };
    classes.iter().map(|class| LAUNCH + waves(items(class), slots) * mean).sum()
}
