//! Reasons in the kernels on CUDA cores, of a forward or of any pass.

use super::{ANY, Kind, Reason};

/// From whether some item exists to how much of each axis it sees. What kernels for gradients do for items beyond the edge they
/// throw away, and there additional keys ask as well.
const SEES: &[&str] = &["and.pred", "selp.b32"];

pub(super) const OF_EXISTENCE: &[&str] = &["and.pred", "setp.lt.s32", "setp.gt.s32"];
pub(super) const ITEMS_BEYOND: &str = "an item beyond the edge stands where the last one does, and whatever it sees is thrown away; windows never end before they start";

/// From the tokens of a residue to where a block's walk along it starts.
pub(super) const WALK_START: &[&str] = &["setp.gt.s32", "selp.u32", "add.s32", ", -1", "max.s32", "min.s32"];
pub(super) const STARTS_EARLIER: &str = "whatever the walk's start is held below, it is held above 0 and not beyond the first window's start, which is that of a key that there is: from any such start on each key that a query sees is found";

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

pub(super) const ONE_ITEM: &str = "a group has one item, which each of its lanes owns: it is the same in whichever of them it is taken from";

pub(super) const LAST_END: &str = "of the last item's window the end is asked for alone, which hangs on a leader where the axis is not causal; there the last windows end with the axis, whether or not leaders are held below the last query";

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
        operator: "compare bound",
        kernel: &["_query_simt_"],
        text: &["setp.gt.s32"],
        near: &[
            "=> setp.gt.s32 %p, %r, %r;",
            "\nselp.u32",
            "\nmax.s32 %r, %r, 0;\nmin.s32 %r, %r, %r;\nbra.uni",
        ],
        within: 40,
        kind: Kind::SameOutput,
        why: LAST_END,
        ..ANY
    },
    Reason {
        operator: "compare bound",
        kernel: &["_forward_simt_"],
        text: &["setp.gt.s32"],
        near: &[
            "=> setp.gt.s32 %p, %r, %r;",
            "\nselp.u32",
            "\nmax.s32 %r, %r, 0;\nmin.s32 %r, %r, %r;\nbra.uni",
        ],
        within: 40,
        kind: Kind::SameOutput,
        why: LAST_END,
        ..ANY
    },
    Reason {
        operator: "integer literal",
        kernel: &["_simt_bf16_"],
        text: &["selp.b32", "2147418112"],
        to: "twice that",
        kind: Kind::BelowTolerance,
        why: "one NaN for another",
        ..ANY
    },
    Reason {
        operator: "integer literal",
        kernel: &["_simt_", "_unaligned"],
        text: &["mov.u32", ", 0"],
        near: &["=> mov.u32 %r, 0;\n@%p bra", "ld.global.nc.u16"],
        to: "one more",
        kind: Kind::SameOutput,
        why: "what stands for elements beyond a row's end is multiplied by what stands for the other row's",
        ..ANY
    },
    Reason {
        operator: "compare ",
        kernel: &["_query_simt_"],
        text: &["setp.gt.s32"],
        near: &[
            "=> setp.gt.s32 %p, %r, %r;",
            "\nselp.u32",
            "\nmax.s32 %r, %r, 0;\nmin.s32 %r, %r, %r;\nbra.uni",
        ],
        within: 40,
        kind: Kind::SameOutput,
        why: LAST_END,
        ..ANY
    },
];
