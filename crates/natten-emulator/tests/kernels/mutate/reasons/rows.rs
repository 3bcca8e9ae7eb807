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
        operator: "compare of NaN",
        kernel: &["natten_delta_"],
        text: &["setp.lt.f32", "0f4C800000"],
        kind: Kind::SameValue,
        why: "a log-sum-exp that is no number has left before, and what is clamped is one",
        ..ANY
    },
    Reason {
        operator: "predicate sense",
        kernel: &["natten_delta_"],
        near: &["shfl.sync.bfly", "setp.ne.s32", "bra", "ld.param.u64"],
        kind: Kind::SameOutput,
        why: "every lane of a warp holds its row's sum, so whichever stores it stores the same",
        ..ANY
    },
    Reason {
        operator: "integer literal",
        kernel: &["natten_delta_"],
        text: &["mov.u32"],
        near: &["mov.u32", "shfl.sync.bfly", "add.f32", "shfl.sync.bfly", "add.f32"],
        to: "negative",
        kind: Kind::BelowTolerance,
        why: "the masks of an exchange over all lanes still reach each lane once: the same sum in another order",
        ..ANY
    },
    Reason {
        operator: "integer literal",
        kernel: &["natten_merge_backward_"],
        text: &["mov.u32"],
        near: &["mov.u32", "shfl.sync.bfly", "add.f32", "shfl.sync.bfly", "add.f32"],
        to: "negative",
        kind: Kind::BelowTolerance,
        why: "the masks of an exchange over all lanes still reach each lane once: the same sum in another order",
        ..ANY
    },
    Reason {
        operator: "shuffle mode",
        kernel: &["natten_delta_"],
        text: &["shfl.sync.bfly"],
        to: "shfl(down)",
        kind: Kind::SameOutput,
        why: "lane 0 alone stores the sum, and it gets the same from the lanes above it",
        ..ANY
    },
    Reason {
        operator: "shuffle mode",
        kernel: &["natten_merge_backward_"],
        text: &["shfl.sync.bfly"],
        to: "shfl(down)",
        kind: Kind::SameOutput,
        why: "lane 0 alone stores the sum, and it gets the same from the lanes above it",
        ..ANY
    },
    Reason {
        operator: "float literal",
        kernel: &["natten_merge_"],
        text: &["selp.f32", "0f00000000, %f"],
        near: &["0fFF800000", "=> selp.f32"],
        to: "one",
        kind: Kind::SameOutput,
        why: "what weights are relative to where no branch saw a key: they are 0 relative to any number",
        ..ANY
    },
    Reason {
        kernel: &["natten_sum_partials_"],
        text: &["mov.f32", "0f00000000"],
        kind: Kind::NeverExecuted,
        why: "what is summed has at least one part",
        ..ANY
    },
    Reason {
        operator: "compare bound",
        kernel: &["natten_merge_"],
        text: &["setp.lt.s32", ", 1"],
        kind: Kind::SameValue,
        why: "a merge has two branches or more",
        ..ANY
    },
    Reason {
        operator: "integer literal",
        kernel: &["natten_merge_"],
        text: &["setp.lt.s32", ", 1"],
        kind: Kind::SameValue,
        why: "a merge has two branches or more",
        ..ANY
    },
    Reason {
        operator: "float literal",
        kernel: &["natten_merge_"],
        text: &["mov.f32", "0fFF800000"],
        to: "negative",
        kind: Kind::SameOutput,
        why: "a merge has two branches or more, so the weights of the first two never stay what they begin as",
        ..ANY
    },
    Reason {
        operator: "shuffle mask",
        kernel: &["natten_delta_"],
        text: &["shfl.sync.bfly.b32 %f"],
        to: "twice that",
        kind: Kind::SameOutput,
        why: "lane 31 alone is out of reach, of a lane whose sum is not among those that lane 0 gets to",
        ..ANY
    },
    Reason {
        operator: "narrow address",
        kernel: &["natten_delta_"],
        into: &["add.s64", ", 3;"],
        kind: Kind::SameValue,
        why: "rows of statistics lie densely, and they are fewer than 2^31: whoever fills them counts them in 32 bits",
        ..ANY
    },
    Reason {
        operator: "compare bound",
        kernel: &["natten_merge_"],
        text: &["setp.gt.s32"],
        near: &[
            "=> setp.gt.s32 %p, %r,",
            "\n@%p bra $L",
            "\nbra.uni $L",
            "\nld.param.u64",
            "cvt.s64.s32",
            "mul.lo.s64",
        ],
        kind: Kind::SameOutput,
        why: "an address of a branch that there is not, at which nothing is read",
        ..ANY
    },
    Reason {
        operator: "narrow address",
        kernel: &["natten_sum_partials_"],
        into: &["add.s64", ", 2;"],
        kind: Kind::SameValue,
        why: "parts with places along every axis are made where boxes of rows are few, and additional keys lie along one",
        ..ANY
    },
    Reason {
        kernel: &["natten_sum_partials_f32"],
        near: &["setp.eq.s32 %p, %r, 1;", "mul.hi.u32", "shr.u32"],
        kind: Kind::NeverExecuted,
        why: "in f32 parts are of additional keys alone, which lie along one axis",
        ..ANY
    },
];
