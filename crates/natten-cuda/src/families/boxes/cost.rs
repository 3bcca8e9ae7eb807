//! What a call on boxes costs, by the rates of its kernel.

use crate::classes::{Class, Rows};
use crate::cost::{LAUNCH, waves};
use crate::registry::Kernel;

/// Rates of a kernel, in microseconds of one multiprocessor.
pub(in crate::families) struct Rates {
    /// A tile that needs no mask.
    pub full: f64,
    /// A masked one.
    pub masked: f64,
    /// What a launch costs besides its items: barriers, mask words, the first item's description.
    pub start: f64,
    /// What an item costs besides its tiles: its queries, the first scores, the last product, the result.
    pub item: f64,
    /// Of families whose warpgroups leave out masked tiles that their queries do not see.
    pub leave_out: Option<LeaveOut>,
}

/// What one warpgroup leaves out, the others have time for, but for a share of a tile's cost that it takes whoever works on it.
#[derive(Clone, Copy)]
pub(in crate::families) struct LeaveOut {
    pub warpgroups: usize,
    pub share: f64,
}

/// A family's.
pub(in crate::families) type RatesOf = fn(&Kernel) -> Rates;

/// How a problem is cut, for one batch item and head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Queries of a cta along each axis.
    pub sides: [usize; 3],
    pub query_tiles: u64,
    pub key_tiles: u64,
    /// Those of them that need no mask.
    pub full_tiles: u64,
    /// Tiles of keys that warpgroups see something of, each counted for itself.
    pub met: u64,
}

impl Cut {
    /// Tiles of keys that are multiplied: what the warpgroups do between them, as if all worked on each.
    pub fn worked(&self, leave_out: Option<LeaveOut>) -> f64 {
        leave_out.map_or(self.key_tiles as f64, |leave_out| self.met as f64 / leave_out.warpgroups as f64)
    }
}

/// The predicted time of a problem that is cut so, for as many heads of as many batch
/// items. Each class of residues is a launch of its own, whose last wave ends before the next begins.
pub(super) fn predict(
    rates: &Rates,
    cut: &Cut,
    classes: &[Class],
    heads: usize,
    multiprocessors: u32,
) -> f64 {
    let Rates { full, masked, start, item, leave_out } = *rates;
    let all = cut.key_tiles as f64;
    let share = leave_out.map_or(0.0, |leave_out| leave_out.share);
    let worked = share * all + (1.0 - share) * cut.worked(leave_out);
    let tiles = full * cut.full_tiles as f64 + masked * (worked - cut.full_tiles as f64).max(0.0);
    let mean = item + tiles / cut.query_tiles.max(1) as f64;
    let slots = f64::from(multiprocessors.max(1));
    let tiles = |class: &Class| Rows::Queries.tiles(class, &cut.sides);
    let items = |class: &Class| tiles(class).iter().map(|&tiles| tiles as f64).product::<f64>();
    classes.iter().map(|class| LAUNCH + start + waves(items(class) * heads as f64, slots) * mean).sum()
}
