//! What tiles and work items of this family cost, in microseconds of one multiprocessor of an H100. Fitted to the times in
//! docs/performance.md, section 6.

use crate::families::boxes::{LeaveOut, Rates, warpgroups};
use crate::registry::Kernel;

/// Tiles of 128 queries, fitted to the times of all problems and to 90 other ways to cut them (56 at head_dim 64). Predictions come within an
/// eighth of the times of what is taken, and at head_dim 256 within a seventh. Three warpgroups take 1.36 times as long as two for 1.5 times the
/// queries.
pub(in crate::families) fn rates(kernel: &Kernel) -> Rates {
    let (full, mask, item, share) = match kernel.max_head_dim {
        32 => (0.88, 0.36, 2.6, 0.4),
        64 => (1.12, 0.40, 2.6, 0.2),
        128 => (1.58, 0.19, 3.6, 0.42),
        _ => (1.56, 0.25, 6.0, 0.4),
    };
    let warpgroups = warpgroups(kernel);
    let full = full * if warpgroups == 3 { 1.36 } else { 1.0 };
    let leave_out = Some(LeaveOut { warpgroups, share });
    Rates { full, masked: full * (1.0 + mask), start: 2.0, item, leave_out }
}
