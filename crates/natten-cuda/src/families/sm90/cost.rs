//! What tiles and work items of this family cost, in microseconds of one multiprocessor of an H100 or H200. Fitted to the times in
//! docs/performance.md, section 6.

use crate::families::boxes::{LeaveOut, Rates, backward, warpgroups};
use crate::registry::Kernel;

/// Tiles of 128 queries, fitted to the problems that were timed on an H200. Predictions come within a seventh of their times. Three
/// warpgroups take 1.36 times as long as two for 1.5 times the queries.
pub(in crate::families) fn rates(kernel: &Kernel) -> Rates {
    let (full, mask, item, share) = match kernel.max_head_dim {
        32 => (0.86, 0.10, 1.55, 0.79),
        64 => (1.10, 0.13, 1.8, 0.06),
        128 => (1.54, 0.17, 1.8, 0.53),
        _ => (1.43, 0.51, 4.2, 0.14),
    };
    let warpgroups = warpgroups(kernel);
    let [full, item] = [full, item].map(|time| time * if warpgroups == 3 { 1.36 } else { 1.0 });
    let leave_out = Some(LeaveOut { warpgroups, share });
    Rates { full, masked: full * (1.0 + mask), start: 2.0, item, leave_out }
}

/// Of a tile of 128 rows and 64 columns, fitted to whole calls in bf16: 4 of head_dim 32, 12 of 64, 9 of 128, 5 of 256.
/// They come within a seventh of their times; a pass was never timed alone, so its share is that of its products. Tiles of 256 have 32 columns,
/// and of the two kinds of items of its pass over keys these are the mean.
pub(super) fn backward_rates(head_dim: u32, rows: backward::Rows) -> backward::Rates {
    use backward::Rows;
    let (full, masked, item) = match (head_dim, rows) {
        (0..=32, Rows::Queries) => (0.53, 0.89, 3.9),
        (0..=32, Rows::Keys) => (0.87, 1.26, 4.8),
        (33..=64, Rows::Queries) => (0.71, 1.02, 4.0),
        (33..=64, Rows::Keys) => (1.19, 1.43, 5.5),
        (65..=128, Rows::Queries) => (1.11, 1.75, 5.7),
        (65..=128, Rows::Keys) => (1.84, 2.21, 8.2),
        (_, Rows::Queries) => (1.58, 1.92, 8.4),
        (_, Rows::Keys) => (1.33, 1.61, 8.4),
    };
    backward::Rates { full, masked, item }
}
