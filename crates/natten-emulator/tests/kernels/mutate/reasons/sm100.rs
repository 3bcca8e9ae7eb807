//! Reasons in the Blackwell kernels.

use super::{ANY, Kind, Reason};

pub const REASONS: &[Reason] = &[
    Reason {
        operator: "copy source size",
        kernel: &["_backward_key_sm100_"],
        text: &["cp.async.ca.shared.global", ", 4, "],
        to: "always whole",
        kind: Kind::SameOutput,
        why: "where a query does not exist, what is copied is the first one's, and no key meets it: its weight is 0, as is the gradient of its score",
        ..ANY
    },
    Reason {
        operator: "predicate sense",
        kernel: &["_backward_", "_sm100_"],
        text: &["bra"],
        near: &["setp.ne.s32", "bra", "elect.sync"],
        within: 2,
        kind: Kind::SameOutput,
        why: "warp 3 is the producer in place of warp 0: neither has any other part",
        ..ANY
    },
];
