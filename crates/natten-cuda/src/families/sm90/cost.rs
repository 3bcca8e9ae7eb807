//! What tiles and work items of this family cost, in microseconds of one multiprocessor of an H100. Fitted to the times in
//! docs/performance.md, section 6.

use crate::families::boxes::{Rates, warpgroups};
use crate::registry::Kernel;

/// Tiles of 128 queries, each row fitted to all times of its kernels: 8 problems of head_dim 32, 17 of 64 and of 128, 8 of
/// 256. Predictions come within a sixteenth, a ninth, an eighth and a fifth of them. What is least certain: the item of
/// head_dim 32 rests on one small image; of head_dim 256, a full tile of FLUX took 1.8 and one of a single axis 1.5. Three
/// warpgroups take 1.3 times as long as two for 1.5 times the queries.
pub(in crate::families) fn rates(kernel: &Kernel) -> Rates {
    let (full, mask, item) = match kernel.max_head_dim {
        32 => (0.98, 0.27, 2.2),
        64 => (1.15, 0.28, 2.7),
        128 => (1.7, 0.14, 3.0),
        _ => (1.6, 0.3, 2.5),
    };
    let wider = if warpgroups(kernel) == 3 { 1.3 } else { 1.0 };
    Rates { full: full * wider, masked: full * wider * (1.0 + mask), item }
}
