//! What tiles and work items of this family are expected to cost, in microseconds of one multiprocessor of a B200.
//!
//! **Predictions, every one: no chip has run this family.** Two warpgroups: the larger of what products and exponentials of a tile
//! take, and two waits of 200 clocks for a commit. One: the whole chain of scores, weights and sums, and 600 clocks of waits.
//! At 1.85 GHz, and up to two fifths more for what nobody counted (docs/kernels-sm100.md). All that they decide is which boxes are
//! taken, and that this family comes before the others.

use crate::families::boxes::{Rates, backward, warpgroups};
use crate::registry::Kernel;

/// Two warpgroups take turns on the tensor cores; one waits for its own products.
pub(super) fn rates(kernel: &Kernel) -> Rates {
    let full = match (kernel.max_head_dim, warpgroups(kernel)) {
        (32 | 64, 2) => 1.6,
        (_, 2) => 1.9,
        (32 | 64, _) => 1.2,
        _ => 1.5,
    };
    Rates { full, masked: full * 1.2, start: 0.0, item: 3.0, leave_out: None }
}

/// Of a tile of 128 rows and 128 columns. The longest of what products take with two waits for a commit, and of the chain of scores,
/// weights, gradients and sums; two fifths more for what nobody counted.
pub(super) fn backward_rates(head_dim: u32, rows: backward::Rows) -> backward::Rates {
    use backward::Rows;
    let (full, item) = match (head_dim, rows) {
        (0..=64, Rows::Queries) => (1.3, 4.0),
        (0..=64, Rows::Keys) => (1.4, 5.0),
        (_, Rows::Queries) => (1.4, 4.5),
        (_, Rows::Keys) => (1.9, 6.0),
    };
    backward::Rates { full, masked: full * 1.25, item }
}
