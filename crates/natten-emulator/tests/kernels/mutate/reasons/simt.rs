//! Reasons in the kernels on CUDA cores.

use super::{ANY, Kind, Reason};

/// From whether some item exists to how much of each axis it sees. What kernels for gradients do for items beyond the edge they
/// throw away, and there additional keys ask as well.
const SEES: &[&str] = &["and.pred", "selp.b32"];
const SEES_OR_IS_ASKED: &[&str] = &["and.pred", "selp.b32", "selp.u16"];
const OF_EXISTENCE: &[&str] = &["and.pred", "setp.lt.s32", "setp.gt.s32"];
const ITEMS_BEYOND: &str = "an item beyond the edge stands where the last one does, and whatever it sees is thrown away; windows never end before they start";

/// From the tokens of a residue to where a block's walk along it starts.
const WALK_START: &[&str] = &["setp.gt.s32", "selp.u32", "add.s32", ", -1", "max.s32", "min.s32"];
const STARTS_EARLIER: &str = "whatever the walk's start is held below, it is held above 0 and not beyond the first window's start, which is that of a key that there is: from any such start on each key that a query sees is found";

/// From a position to the token there, times a stride.
const TOKEN: &[&str] = &["cvt.s64.s32", "mul.lo.s64", "add.s64", "mul.lo.s64"];
const FEW_TOKENS: &str = "the number of a token, of which an axis has fewer than 2^31";

/// From a lane's number to whether it writes the log-sum-exp of its items.
const WRITES: &[&str] = &["and.b32", "setp.ne.s32", "or.pred"];
const LSE: &[&str] = &["+48]", "setp.eq.s64"];
const ALIKE: &str = "lanes that agree in their low bits have the same items and write the same";

/// From a window to its half, by a compiler that does not know that it is no negative number.
const HALF: &[&str] = &[", 31", "add.s32", "shr.s32"];
const NATURAL: &str = "windows and strides are no negative numbers, so that the highest bit is 0";

/// From half a window on to where one ends.
const HALF_AND_ON: &[&str] = &[", 31", "add.s32", "shr.s32", "add.s32", "add.s32", ", 1"];

const ONE_ITEM: &str = "a group has one item, which each of its lanes owns: it is the same in whichever of them it is taken from";

pub const REASONS: &[Reason] = &[
    Reason {
        operator: "compare of NaN",
        kernel: &["_forward_simt_"],
        text: &["setp.neu", "visible"],
        kind: Kind::SameOutput,
        why: "a weight that is NaN makes the sum of weights NaN, and with it the whole row, with its own products or without",
        ..ANY
    },
    Reason {
        operator: "shuffle ",
        kernel: &["natten_backward_", "_d8"],
        text: &["shfl.sync.bfly"],
        kind: Kind::SameOutput,
        why: "groups of one lane exchange no scores: a lane that knows less of the warp's longest walk still ends its own",
        ..ANY
    },
    Reason {
        operator: "shuffle mode",
        kernel: &["_simt_"],
        text: &["shfl.sync.bfly.b32 %f"],
        to: "shfl(down)",
        kind: Kind::SameOutput,
        why: "of the two lanes of an exchange beyond the last split the lower gets the same, and owners of scores are lower lanes of all of them",
        ..ANY
    },
    Reason {
        operator: "shuffle mask",
        kernel: &["_simt_"],
        text: &["shfl.sync.bfly.b32 %f"],
        to: "twice that",
        kind: Kind::SameOutput,
        why: "lane 31 alone is out of reach, of a lane that owns no score whose sum another asks for",
        ..ANY
    },
    Reason {
        operator: "logic",
        kernel: &["_forward_simt_"],
        text: &["and.pred"],
        into: SEES,
        from: OF_EXISTENCE,
        kind: Kind::SameOutput,
        why: ITEMS_BEYOND,
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
        operator: "compare bound",
        kernel: &["_simt_"],
        text: &["setp.gt.s32", ", 0"],
        into: SEES,
        kind: Kind::SameOutput,
        why: ITEMS_BEYOND,
        ..ANY
    },
    Reason {
        kernel: &["_forward_simt_"],
        way: WALK_START,
        kind: Kind::SameOutput,
        why: STARTS_EARLIER,
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
        operator: "narrow address",
        kernel: &["_simt_"],
        text: &["mul.lo.s64"],
        from: &["cvt.s64.s32", "ld.param.u32"],
        way: TOKEN,
        kind: Kind::SameValue,
        why: FEW_TOKENS,
        ..ANY
    },
    Reason {
        operator: "narrow address",
        kernel: &["_simt_"],
        text: &["add.s64"],
        from: &["cvt.s64.s32", "mul.lo.s64"],
        way: TOKEN,
        kind: Kind::SameValue,
        why: FEW_TOKENS,
        ..ANY
    },
    Reason {
        operator: "predicate operand",
        kernel: &["_forward_simt_"],
        near: LSE,
        way: WRITES,
        kind: Kind::SameOutput,
        why: ALIKE,
        ..ANY
    },
    Reason {
        operator: "logic",
        kernel: &["_forward_simt_"],
        near: LSE,
        way: WRITES,
        kind: Kind::SameOutput,
        why: ALIKE,
        ..ANY
    },
    Reason {
        operator: "compare direction",
        kernel: &["_forward_simt_"],
        near: LSE,
        way: WRITES,
        kind: Kind::SameOutput,
        why: ALIKE,
        ..ANY
    },
    Reason {
        operator: "integer literal",
        kernel: &["_forward_simt_"],
        near: LSE,
        way: WRITES,
        kind: Kind::SameOutput,
        why: ALIKE,
        ..ANY
    },
    Reason {
        operator: "operation",
        kernel: &["_simt_"],
        text: &["and.b32", "2139095040"],
        near: &["and.b32", "setp.lt.u32", "1065353217"],
        kind: Kind::BelowTolerance,
        why: "whether a scale is split in two decides about one rounding of it",
        ..ANY
    },
    Reason {
        operator: "integer literal",
        kernel: &["_simt_"],
        text: &["setp.lt.u32", "1065353217"],
        to: "zero",
        kind: Kind::BelowTolerance,
        why: "whether a scale is split in two decides about one rounding of it",
        ..ANY
    },
    Reason {
        operator: "integer literal",
        kernel: &["_simt_"],
        text: &["setp.gt.u32", "2139095040"],
        to: "one more",
        kind: Kind::SameValue,
        why: "what is packed arithmetic gave, and of a NaN that is from there all bits of the fraction are set",
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
        operator: "integer literal",
        kernel: &["_simt_"],
        text: &["max.s32"],
        near: &["+-188]", "max.s32", "min.s32"],
        way: &[", 1;", "max.s32", "min.s32"],
        to: "one more",
        kind: Kind::SameValue,
        why: "plain attention alone has offsets, along the last axis: on others a causal window ends behind its own query",
        ..ANY
    },
    Reason {
        operator: "integer literal",
        kernel: &["_simt_"],
        text: &["max.s32"],
        near: &["+-136]", "max.s32", "min.s32"],
        way: &[", 1;", "max.s32", "min.s32"],
        to: "one more",
        kind: Kind::SameValue,
        why: "plain attention alone has offsets, along the last axis: on others a causal window ends behind its own query",
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
        operator: "shuffle ",
        kernel: &["_forward_simt_", "_d1024_unaligned"],
        text: &["shfl.sync.idx.b32 %f"],
        kind: Kind::SameValue,
        why: ONE_ITEM,
        ..ANY
    },
    Reason {
        operator: "logic",
        kernel: &["_simt_"],
        text: &["or.pred"],
        near: &["setp.lt.s32", ", 1;", "setp.lt.s32", ", 1;", "or.pred"],
        into: &["or.pred", "bra"],
        kind: Kind::SameValue,
        why: "a residue is one of fewer than there are tokens: each has one",
        ..ANY
    },
    Reason {
        operator: "integer literal",
        kernel: &["_simt_"],
        text: &["setp.lt.s32", ", 1"],
        into: &["or.pred", "bra"],
        to: "zero",
        kind: Kind::SameValue,
        why: "a residue is one of fewer than there are tokens: each has one",
        ..ANY
    },
    Reason {
        kernel: &["_simt_f16_d8"],
        near: &["setp.lt.s32", ", 1;", "bra"],
        kind: Kind::NeverExecuted,
        why: "aligned rows of at most 8 elements of 16 bits have 8, which are loaded as whole rows are",
        ..ANY
    },
    Reason {
        kernel: &["_simt_bf16_d8"],
        near: &["setp.lt.s32", ", 1;", "bra"],
        kind: Kind::NeverExecuted,
        why: "aligned rows of at most 8 elements of 16 bits have 8, which are loaded as whole rows are",
        ..ANY
    },
    Reason {
        operator: "narrow address",
        kernel: &["natten_backward_", "_simt_"],
        into: &["add.s64", ", 3;"],
        kind: Kind::SameValue,
        why: "rows of statistics lie densely, and they are fewer than 2^31: whoever fills them counts them in 32 bits",
        ..ANY
    },
    Reason {
        operator: "shuffle mode",
        kernel: &["_simt_"],
        text: &["shfl.sync.bfly.b32 %f"],
        to: "shfl(index)",
        kind: Kind::SameOutput,
        why: "of an exchange over half a warp the lower half gets the same, and owners of scores are in it",
        ..ANY
    },
    Reason {
        operator: "integer literal",
        kernel: &["_simt_"],
        text: &["shr.u32", ", 31"],
        way: HALF,
        kind: Kind::SameValue,
        why: NATURAL,
        ..ANY
    },
    Reason {
        operator: "operation",
        kernel: &["_simt_"],
        text: &["add.s32"],
        way: HALF,
        kind: Kind::SameValue,
        why: NATURAL,
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
        within: 80,
        kind: Kind::NeverExecuted,
        why: "aligned rows of at most 8 elements of 16 bits have 8, and fill the lanes: the loop for others is for longer rows",
        ..ANY
    },
    Reason {
        kernel: &["natten_backward_", "_simt_bf16_d8"],
        near: &["visible"],
        within: 80,
        kind: Kind::NeverExecuted,
        why: "aligned rows of at most 8 elements of 16 bits have 8, and fill the lanes: the loop for others is for longer rows",
        ..ANY
    },
];
