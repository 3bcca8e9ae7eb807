//! What tiles and work items of the backward passes cost, in microseconds of one multiprocessor of an H100.

use super::pass::{Counts, Rows, Work};
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

/// The launches of a pass by the rows of an item alone. Each class of residues is one of its own, whose last wave ends before
/// the next begins.
pub(super) struct Launches {
    rates: Rates,
    sharing: f64,
    /// What starting them takes, and the waves of all together.
    start: f64,
    waves: f64,
}

impl Launches {
    pub fn of(work: &Work<'_>, classes: &[Class], row_tile: &[usize; 3]) -> Self {
        let slots = f64::from(work.multiprocessors.max(1));
        let items = |class: &Class| {
            work.rows.tiles(class, row_tile).iter().map(|&tiles| tiles as f64).product::<f64>()
                * work.heads as f64
        };
        Launches {
            rates: rates(work),
            sharing: work.sharing as f64,
            start: LAUNCH * classes.len() as f64,
            waves: classes.iter().map(|class| waves(items(class), slots)).sum(),
        }
    }

    /// The predicted time with columns that make these counts.
    pub fn predict(&self, counts: &Counts) -> f64 {
        let Rates { full, masked, item } = self.rates;
        let tiles = full * counts.full as f64 + masked * counts.columns.saturating_sub(counts.full) as f64;
        self.start + self.waves * (item + self.sharing * tiles / counts.rows.max(1) as f64)
    }
}
