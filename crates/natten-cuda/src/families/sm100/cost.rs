//! What tiles and work items of this family are expected to cost, in microseconds of one multiprocessor of a B200.
//!
//! **Predictions, every one: no chip has run this family.** They follow from clocks of the tensor cores, of exponentials and of
//! issue slots (docs/kernels-sm100.md), at 1.85 GHz, with a third on top for what none of them counts. All that they decide
//! is which boxes are taken, and that this family comes before the others.

use crate::families::boxes::{Rates, warpgroups};
use crate::registry::Kernel;

/// Two warpgroups take turns on the tensor cores; one waits for its own products.
pub(super) fn rates(kernel: &Kernel) -> Rates {
    let full = match (kernel.max_head_dim, warpgroups(kernel)) {
        (32 | 64, 2) => 1.5,
        (_, 2) => 1.7,
        (32 | 64, _) => 1.1,
        _ => 1.4,
    };
    Rates { full, masked: full * 1.2, item: 3.0 }
}
