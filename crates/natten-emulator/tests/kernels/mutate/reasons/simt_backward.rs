//! Reasons in the backward kernels on CUDA cores.

use super::simt::{ITEMS_BEYOND, OF_EXISTENCE, ONE_ITEM, STARTS_EARLIER, WALK_START};
use super::{ANY, Kind, Reason};

const SEES_OR_IS_ASKED: &[&str] = &["and.pred", "selp.b32", "selp.u16"];

/// From half a window on to where one ends.
const HALF_AND_ON: &[&str] = &[", 31", "add.s32", "shr.s32", "add.s32", "add.s32", ", 1"];

const ALONE: &str = "a group of one item loads no row that the item does not see: what is multiplied by a weight of 0 is a row that it has seen";

const STATISTICS: &str = "rows of statistics lie densely, and they are fewer than 2^31: whoever fills them counts them in 32 bits; steps are larger where a walk has ended";

pub const REASONS: &[Reason] = &[
    Reason {
        operator: "shuffle ",
        kernel: &["natten_backward_", "_d8"],
        text: &["shfl.sync.bfly"],
        kind: Kind::SameOutput,
        why: "groups of one lane exchange no scores: a lane that knows less of the warp's longest walk still ends its own",
        ..ANY
    },
    Reason {
        operator: "logic",
        kernel: &["natten_backward_", "_simt_"],
        text: &["and.pred"],
        into: SEES_OR_IS_ASKED,
        from: OF_EXISTENCE,
        kind: Kind::SameOutput,
        why: ITEMS_BEYOND,
        ..ANY
    },
    Reason {
        operator: "compare bound",
        kernel: &["natten_backward_", "_simt_"],
        text: &["setp.lt.s32"],
        into: SEES_OR_IS_ASKED,
        kind: Kind::SameOutput,
        why: ITEMS_BEYOND,
        ..ANY
    },
    Reason {
        kernel: &["_backward_query_simt_"],
        way: WALK_START,
        kind: Kind::SameOutput,
        why: STARTS_EARLIER,
        ..ANY
    },
    Reason {
        operator: "compare direction",
        kernel: &["_backward_key_simt_"],
        way: WALK_START,
        to: "setp { cmp: lt",
        kind: Kind::SameOutput,
        why: "queries that see no key or keys that no query sees are on axes without residues, of which the comparison says the same; elsewhere the walk starts with the first query of a window, or one before",
        ..ANY
    },
    Reason {
        operator: "compare of NaN",
        kernel: &["natten_backward_", "_simt_"],
        text: &["setp.lt.f32", "0f4C800000"],
        kind: Kind::SameOutput,
        why: "relative to a log-sum-exp that is NaN so is every exponent, wherever exponents end",
        ..ANY
    },
    Reason {
        operator: "shuffle ",
        kernel: &["_backward_key_simt_", "_unaligned"],
        text: &["shfl.sync.idx.b32 %f"],
        kind: Kind::SameValue,
        why: ONE_ITEM,
        ..ANY
    },
    Reason {
        operator: "shuffle ",
        kernel: &["_backward_key_simt_", "_d1024"],
        text: &["shfl.sync.idx.b32 %f"],
        kind: Kind::SameValue,
        why: ONE_ITEM,
        ..ANY
    },
    Reason {
        operator: "shuffle ",
        kernel: &["_backward_query_simt_", "_d1024"],
        text: &["shfl.sync.idx.b32 %f"],
        kind: Kind::SameValue,
        why: ONE_ITEM,
        ..ANY
    },
    Reason {
        operator: "narrow address",
        kernel: &["natten_backward_", "_simt_"],
        into: &["add.s64", ", 3;"],
        kind: Kind::SameOutput,
        why: STATISTICS,
        ..ANY
    },
    Reason {
        operator: "operands swapped",
        kernel: &["_backward_key_simt_"],
        text: &["shr.u32", ", 31"],
        way: HALF_AND_ON,
        kind: Kind::SameOutput,
        why: "half a window comes out no less than it is, and a walk that ends later than it need is none the worse: its items tell what they see",
        ..ANY
    },
    Reason {
        operator: "shuffle ",
        kernel: &["natten_backward_", "_simt_"],
        text: &["shfl.sync.idx.b32 %r", ", 0, 0x1f"],
        kind: Kind::SameValue,
        why: "the trips of a warp, which the butterfly before has made the same in every lane; from lane 0 it is taken once more so that the assembler knows",
        ..ANY
    },
    Reason {
        operator: "shuffle mode",
        kernel: &["natten_backward_", "_simt_"],
        text: &["shfl.sync.bfly.b32 %r"],
        to: "shfl(down)",
        kind: Kind::SameOutput,
        why: "the trips of a warp are taken from lane 0, which gets the largest from the lanes above it",
        ..ANY
    },
    Reason {
        operator: "compare bound",
        kernel: &["natten_backward_", "_simt_", "_d8"],
        text: &["setp.lt.s32"],
        near: &["=> setp.lt.s32", "bra", "st.global"],
        within: 16,
        kind: Kind::SameValue,
        why: "aligned rows of at most 8 elements have 8, or 4 in f32, which are stored by what bounds are not",
        ..ANY
    },
    Reason {
        kernel: &["natten_backward_", "_simt_f16_d8"],
        near: &["visible"],
        within: 160,
        kind: Kind::NeverExecuted,
        why: "aligned rows of at most 8 elements of 16 bits have 8, and fill the lanes: the loop for others is for longer rows",
        ..ANY
    },
    Reason {
        kernel: &["natten_backward_", "_simt_bf16_d8"],
        near: &["visible"],
        within: 160,
        kind: Kind::NeverExecuted,
        why: "aligned rows of at most 8 elements of 16 bits have 8, and fill the lanes: the loop for others is for longer rows",
        ..ANY
    },
    Reason {
        operator: "shuffle mode",
        kernel: &["natten_backward_", "_simt_"],
        text: &["shfl.sync.bfly.b32 %r"],
        near: &["=> shfl.sync.bfly.b32 %r", "max.s32"],
        to: "shfl(index)",
        kind: Kind::SameOutput,
        why: "the trips of a warp are taken from lane 0, and it gets those of the lane that the exchange is named for",
        ..ANY
    },
    Reason {
        operator: "narrow address",
        kernel: &["natten_backward_", "_simt_"],
        into: &["sub.s64", ", 3;"],
        kind: Kind::SameOutput,
        why: STATISTICS,
        ..ANY
    },
    Reason {
        operator: "predicate operand",
        kernel: &["natten_backward_", "_simt_"],
        text: &["or.pred"],
        near: &["setp.lt.s32", ", 1;", "setp.lt.s32", ", 1;", "or.pred"],
        into: &["or.pred", "bra"],
        kind: Kind::SameOutput,
        why: "where items are found once more they are where they were, whether or not that is worked out again",
        ..ANY
    },
    Reason {
        operator: "shuffle ",
        kernel: &["_backward_key_simt_"],
        text: &["shfl.sync.bfly.b32", ", 0, 0x1f"],
        kind: Kind::SameValue,
        why: "a step that every lane has: the exchange is there for the assembler alone, which cannot tell that it is the warp's",
        ..ANY
    },
    Reason {
        operator: "compare bound",
        kernel: &["_backward_key_simt_"],
        text: &["setp.gt.s32"],
        near: &[
            "=> setp.gt.s32 %p, %r, %r;",
            "\nselp.u32",
            "\nadd.s32",
            "setp.ge.s32",
            "bra",
            "\nsetp.eq.s32 %p, %r, 1;\n$L",
        ],
        within: 24,
        kind: Kind::SameOutput,
        why: "of the first window only its start is asked for, which is held to the queries that there are once more",
        ..ANY
    },
    Reason {
        operator: "float literal",
        kernel: &["_backward_key_simt_", "_unaligned"],
        text: &["setp.neu.f32 visible"],
        to: "one",
        kind: Kind::SameOutput,
        why: ALONE,
        ..ANY
    },
    Reason {
        operator: "float literal",
        kernel: &["_backward_key_simt_", "_d1024"],
        text: &["setp.neu.f32 visible"],
        to: "one",
        kind: Kind::SameOutput,
        why: ALONE,
        ..ANY
    },
    Reason {
        operator: "float literal",
        kernel: &["_backward_query_simt_", "_d1024"],
        text: &["setp.neu.f32 visible"],
        to: "one",
        kind: Kind::SameOutput,
        why: ALONE,
        ..ANY
    },
    Reason {
        kernel: &["natten_backward_", "_simt_"],
        text: &["or.pred"],
        near: &["setp.ne.s32", "setp.ne.s32", "=> or.pred"],
        within: 3,
        kind: Kind::SameOutput,
        why: "the loop for rows of any length does for those that fill the lanes as well",
        ..ANY
    },
    Reason {
        operator: "compare bound",
        kernel: &["natten_backward_key_simt_f32_"],
        text: &["setp.gt.s32", ", 0"],
        near: &["ld.param.u32 %r, [%rd+];\n=> setp.gt.s32 %p, %r, 0;\nld.param.u64"],
        kind: Kind::SameOutput,
        why: "in f32 the sums of a part are stored as whole gradients are, and the first part lies where those do",
        ..ANY
    },
    Reason {
        operator: "operation",
        kernel: &["_backward_key_simt_"],
        near: &["=> not.b32 %r, %r;\nadd.s32", "setp.lt.s32"],
        to: "mov32",
        kind: Kind::SameOutput,
        why: "a walk that ends later than it need is none the worse: its items tell what they see",
        ..ANY
    },
    Reason {
        kernel: &["_backward_key_simt_"],
        text: &["selp.u32"],
        near: &[
            "setp.gt.s32 %p, %r, %r;\n=> selp.u32",
            "\nadd.s32",
            "setp.ge.s32",
            "bra",
            "\nsetp.eq.s32 %p, %r, 1;\n$L",
        ],
        within: 24,
        kind: Kind::SameOutput,
        why: "of the first window only its start is asked for, which is held to the queries that there are once more",
        ..ANY
    },
    Reason {
        operator: "compare bound",
        kernel: &["natten_backward_", "_simt_"],
        text: &["setp.lt.s32", ", 1"],
        into: &["or.pred", "bra"],
        kind: Kind::SameOutput,
        why: "where items are found once more they are where they were, whether or not that is worked out again",
        ..ANY
    },
    Reason {
        operator: "integer literal",
        kernel: &["natten_backward_", "_simt_"],
        near: &["=> add.s32 %r, %r, -1;\nmin.s32 %r, %r, %r;\nshr.s32"],
        kind: Kind::SameOutput,
        why: "groups of a head that there is not store nothing, whichever head they are given",
        ..ANY
    },
    Reason {
        operator: "operation",
        kernel: &["_backward_query_simt_"],
        text: &["shr.s32", ", 1"],
        near: &["=> shr.s32 %r, %r, 1;\nsub.s32 %r, %r, %r;\nmax.s32 %r, %r, 0;"],
        to: "int2(shl",
        kind: Kind::SameOutput,
        why: STARTS_EARLIER,
        ..ANY
    },
    Reason {
        operator: "shuffle lane",
        kernel: &["natten_backward_", "_simt_"],
        text: &["shfl.sync.bfly.b32 %r"],
        near: &["=> shfl.sync.bfly.b32 %r", "max.s32"],
        kind: Kind::SameValue,
        why: "the lanes of a group make the same trips",
        ..ANY
    },
    Reason {
        operator: "float literal",
        kernel: &["natten_backward_", "_simt_f32_d8"],
        text: &["setp.neu.f32 visible"],
        to: "one",
        kind: Kind::BelowTolerance,
        why: "rows that do not fill a lane have 4 elements, and 0 for the others: all that changes is the sign of a zero",
        ..ANY
    },
    Reason {
        operator: "float literal",
        kernel: &["natten_backward_", "_simt_"],
        text: &["setp.gt.f32", "0f00000000"],
        to: "one",
        kind: Kind::BelowTolerance,
        why: "an exponent above 0 is rounding, or far above it beside a coarse log-sum-exp: none is between 0 and 1",
        ..ANY
    },
];
