//! Reasons in kernels of several families.

use super::{ANY, Kind, Reason};

pub const REASONS: &[Reason] = &[
    Reason {
        operator: "compare of NaN",
        kernel: &["_forward_s"],
        text: &["setp.eq.f32", "0f00000000"],
        kind: Kind::SameOutput,
        why: "a sum that is NaN has a weight that is, and so is every component of its row, whatever it is multiplied by",
        ..ANY
    },
    Reason {
        operator: "float literal",
        kernel: &["_forward_sm"],
        text: &["add.f32", "0f41000000"],
        kind: Kind::SameOutput,
        why: "how far above its reference a score moves it decides about rounding alone, and rows decide anew what the warp voted for",
        ..ANY
    },
    Reason {
        operator: "barrier moved",
        text: &["commit_group"],
        to: "behind",
        kind: Kind::StrongerBarrier,
        why: "a group that is committed later holds more, and who waits for it waits for that as well",
        ..ANY
    },
    Reason {
        operator: "integer literal",
        text: &["selp.u32", ", 1, 0, %p"],
        near: &["selp.u32", "setp.ne.u32 holds", "vote.sync"],
        kind: Kind::SameOutput,
        why: "a vote that asks whether the number is 0",
        ..ANY
    },
    Reason {
        operator: "compare of NaN",
        kernel: &["_forward_s"],
        text: &["setp.neu.f32", "0f00000000"],
        kind: Kind::SameOutput,
        why: "a sum that is NaN makes the log-sum-exp of a near reference NaN and that of a far one",
        ..ANY
    },
    Reason {
        operator: "compare of NaN",
        kernel: &["_forward_s"],
        text: &["setp.geu.f32", "0f00000000"],
        kind: Kind::SameValue,
        why: "whether the scale is negative: one that is no number is refused",
        ..ANY
    },
    Reason {
        operator: "float literal",
        text: &["mov.f32", "0f00000000"],
        to: "one",
        kind: Kind::SameOutput,
        why: "what sums begin as is multiplied by a weight of 0 before it counts",
        ..ANY
    },
];
