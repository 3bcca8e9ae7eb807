//! What tiles and work items of this family cost, in microseconds of one multiprocessor of an H100. Fitted to the times in
//! docs/performance.md, section 6.

use super::warpgroups;
use crate::classes::Class;
use crate::cost::{LAUNCH, waves};
use crate::registry::Kernel;

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

/// How a problem is cut, for one batch item and head.
pub(super) struct Cut<'a> {
    /// Queries of a cta along each axis.
    pub sides: &'a [usize; 3],
    pub query_tiles: u64,
    pub key_tiles: u64,
    /// Those of them that need no mask.
    pub full_tiles: u64,
}

/// The predicted time of a kernel on a problem that is cut so, for as many heads of as many batch
/// items. Each class of residues is a launch of its own, whose last wave ends before the next begins.
pub(super) fn predict(
    kernel: &Kernel,
    cut: &Cut<'_>,
    classes: &[Class],
    heads: usize,
    multiprocessors: u32,
) -> f64 {
    let Rates { full, masked, item } = rates(kernel);
    let tiles = full * cut.full_tiles as f64 + masked * (cut.key_tiles - cut.full_tiles) as f64;
    let mean = item + tiles / cut.query_tiles.max(1) as f64;
    let slots = f64::from(multiprocessors.max(1));
    let items = |class: &Class| class.tiles(cut.sides).iter().map(|&tiles| tiles as f64).product::<f64>();
    classes.iter().map(|class| LAUNCH + waves(items(class) * heads as f64, slots) * mean).sum()
}
