//! Reasons in kernels that work row by row: merges, sums of partial gradients, d_out . out.

use super::{ANY, Kind, Reason};

pub const REASONS: &[Reason] = &[
    Reason {
        operator: "predicate operand",
        kernel: &["natten_merge_"],
        text: &["and.pred"],
        kind: Kind::SameOutput,
        why: "every lane of a warp holds its row's log-sum-exp, so whichever stores it stores the same",
        ..ANY
    },
    Reason {
        operator: "logic",
        kernel: &["natten_merge_"],
        text: &["and.pred"],
        kind: Kind::SameOutput,
        why: "every lane of a warp holds its row's log-sum-exp, so whichever stores it stores the same",
        ..ANY
    },
    Reason {
        operator: "compare of NaN",
        kernel: &["natten_merge_"],
        text: &["setp.eq.f32", "0fFF800000"],
        kind: Kind::SameValue,
        why: "the largest log-sum-exp of the branches is a maximum that begins at -inf, and max.f32 gives the other operand for NaN",
        ..ANY
    },
    Reason {
        operator: "compare of NaN",
        kernel: &["natten_merge_"],
        text: &["setp.neu", "visible"],
        kind: Kind::SameOutput,
        why: "a weight that is NaN makes the sum of weights NaN, and with it the whole row, with its own products or without",
        ..ANY
    },
    Reason {
        operator: "operands swapped",
        kernel: &["natten_sum_partials_"],
        text: &["sub.s32"],
        kind: Kind::SameValue,
        why: "what is summed are gradients of additional keys, all along the last axis of tokens: other coordinates are 0",
        ..ANY
    },
];
