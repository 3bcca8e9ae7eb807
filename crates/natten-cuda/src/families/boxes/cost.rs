//! What a call on boxes costs, by the rates of its kernel.

use crate::classes::Class;
use crate::cost::{LAUNCH, waves};
use crate::registry::Kernel;

/// Rates of a kernel, in microseconds of one multiprocessor.
pub(in crate::families) struct Rates {
    /// A tile that needs no mask.
    pub full: f64,
    /// A masked one.
    pub masked: f64,
    /// What an item costs besides its tiles: its queries, the first scores, the last product, the result.
    pub item: f64,
}

/// A family's.
pub(in crate::families) type RatesOf = fn(&Kernel) -> Rates;

/// How a problem is cut, for one batch item and head.
pub(super) struct Cut<'a> {
    /// Queries of a cta along each axis.
    pub sides: &'a [usize; 3],
    pub query_tiles: u64,
    pub key_tiles: u64,
    /// Those of them that need no mask.
    pub full_tiles: u64,
}

/// The predicted time of a problem that is cut so, for as many heads of as many batch
/// items. Each class of residues is a launch of its own, whose last wave ends before the next begins.
pub(super) fn predict(
    rates: &Rates,
    cut: &Cut<'_>,
    classes: &[Class],
    heads: usize,
    multiprocessors: u32,
) -> f64 {
    let Rates { full, masked, item } = rates;
    let tiles = full * cut.full_tiles as f64 + masked * (cut.key_tiles - cut.full_tiles) as f64;
    let mean = item + tiles / cut.query_tiles.max(1) as f64;
    let slots = f64::from(multiprocessors.max(1));
    let items = |class: &Class| class.tiles(cut.sides).iter().map(|&tiles| tiles as f64).product::<f64>();
    classes.iter().map(|class| LAUNCH + waves(items(class) * heads as f64, slots) * mean).sum()
}
