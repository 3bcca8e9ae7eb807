//! Reasons in the Ampere kernels. Those about a walk over the keys with references that are far from 0 are in `sm80_far.rs`.

use super::{ANY, Kind, Reason};

const ONE_LANE: &str = "every lane of the warp writes the same description, and that of any is enough";
const IN_STEPS: &str = "the wait for all copies at the head of each tile: these kernels read their rows behind it, and keep none";

const FEW_PARTS: &str = "sums are made in parts where boxes of rows are few: 128 at most, of 128 rows of 256 elements, which are places of 32 bits";

const LINES_OF_FULL: &str = "from line to line of full tiles, of which a walk over far scores has none";

const FEWER_FULL: &str = "of what the first or the last row meets it is the end that tells which tiles all rows meet: fewer of them have no mask, and those with one give the same";

pub const REASONS: &[Reason] = &[
    Reason {
        operator: "compare bound",
        kernel: &["_forward_sm80_"],
        text: &["setp.gt.f32"],
        kind: Kind::SameOutput,
        why: "a score that is 2^8 above the reference exactly gives the same softmax whether the reference moves or not",
        ..ANY
    },
    Reason {
        operator: "compare of NaN",
        kernel: &["_forward_sm80_"],
        text: &["setp.leu.f32"],
        kind: Kind::SameOutput,
        why: "each row decides for itself whether its reference moves, and a row of NaN is NaN relative to any",
        ..ANY
    },
    Reason {
        operator: "compare of NaN",
        kernel: &["_forward_sm80_"],
        text: &["setp.gt.f32"],
        kind: Kind::SameOutput,
        why: "each row decides for itself whether its reference moves, and a row of NaN is NaN relative to any",
        ..ANY
    },
    one_lane(
        "special register",
        &["=> mov.u32 %r, %tid.x;\nand.b32 %r, %r, 31;\nsetp.ne.s32 %p, %r, 0;\n@%p bra"],
        "zero",
    ),
    one_lane("integer literal", &["=> and.b32 %r, %r, 31;\nsetp.ne.s32 %p, %r, 0;\n@%p bra"], "zero"),
    one_lane("integer literal", &["and.b32 %r, %r, 31;\n=> setp.ne.s32 %p, %r, 0;\n@%p bra"], "one more"),
    one_lane("compare direction", &["and.b32 %r, %r, 31;\n=> setp.ne.s32 %p, %r, 0;\n@%p bra"], ""),
    one_lane("predicate sense", &["and.b32 %r, %r, 31;\nsetp.ne.s32 %p, %r, 0;\n=> @%p bra"], ""),
    lazily(&["_forward_sm80_bf16_"], ""),
    lazily(&["_forward_sm80_f16_"], "zero"),
    lazily(&["_forward_sm80_f16_"], "negative"),
    Reason {
        operator: "barrier moved",
        kernel: &["_forward_sm80_"],
        near: &["cp.async.wait_group 0;\n=> bar.sync 0;\nld.shared.u16"],
        to: "behind",
        kind: Kind::StrongerBarrier,
        why: "the barrier behind the description of the keys at hand: whether others follow is written before it, and anew behind the next",
        ..ANY
    },
    Reason {
        operator: "barrier moved",
        kernel: &["_sm80_"],
        near: &[
            "=> bar.sync 0;\nld.shared.u32 %r, [shared+];\nadd.s32 %r, %r, 1;\nsetp.lt.s32 %p, %r, %r;\n@%p bra",
        ],
        to: "behind",
        kind: Kind::StrongerBarrier,
        why: "the barrier behind the description of what is at hand: where full tiles end is written before it and not again in the loop",
        ..ANY
    },
    Reason {
        operator: "compare bound",
        kernel: &["_sm80_"],
        near: &[
            "=> setp.gt.s32 %p, %r, 0;\nsetp.lt.s32 %p, %r, 1;\nand.pred %p, %p, %p;\nand.pred %p, %p, %p;\nsetp.gt.s32",
        ],
        kind: Kind::SameValue,
        why: "where full tiles end along an axis, asked when the last of them is behind: along each there is one",
        ..ANY
    },
    Reason {
        operator: "compare bound",
        kernel: &["_sm80_"],
        near: &[
            "setp.lt.s32 %p, %r, 1;\nand.pred %p, %p, %p;\nand.pred %p, %p, %p;\n=> setp.gt.s32 %p, %r, %r;\nand.pred",
        ],
        kind: Kind::SameValue,
        why: "whether full tiles end behind where they begin, asked when the last of them is behind: along each axis there is one",
        ..ANY
    },
    Reason {
        operator: "barrier ",
        kernel: &["_backward_", "_sm80_"],
        near: &["mma.sync", "\n=> bar.warp.sync 0xffffffff;\n"],
        kind: Kind::StrongerBarrier,
        why: "the barrier at the head of each tile, behind which statistics do not change; this one keeps the assembler from loading them earlier",
        ..ANY
    },
    in_steps("wait count", &["_backward_query_sm80_", "_d128_q128_"]),
    in_steps("barrier ", &["_backward_query_sm80_", "_d128_q128_"]),
    in_steps("wait count", &["_backward_key_sm80_", "_d256_"]),
    in_steps("barrier ", &["_backward_key_sm80_", "_d256_"]),
    in_steps("wait count", &["_backward_key_sm80_", "_d64_"]),
    in_steps("barrier ", &["_backward_key_sm80_", "_d64_"]),
    Reason {
        operator: "float literal",
        kernel: &["_forward_sm80_"],
        text: &["mov.f32", "0f00000001"],
        to: "twice",
        kind: Kind::BelowTolerance,
        why: "the smallest number stands for a scale of 0, and scores times twice as much are as good as 0, too",
        ..ANY
    },
    not_above(
        &["_forward_sm80_"],
        &["=> mov.f32 %f, 0f00000001;\nabs.f32 %f, %f;\nmax.f32 %f, %f, %f;\nshfl.sync.bfly"],
    ),
    not_above(
        &["_forward_sm80_"],
        &[
            "=> mov.f32 %f, 0f00000001;\nabs.f32 %f, %f;\nmax.f32 %f, %f, %f;\nadd.f32 %f, %f, 0f41000000;\nshfl.sync.bfly",
        ],
    ),
    // With twice the rows the same number makes the weights.
    not_above(
        &["_forward_sm80_", "_q64_"],
        &["abs.f32 %f, %f;\n=> mov.f32 %f, 0f00000001;\nmax.f32 %f, %f, %f;\nmax.f32 %f, %f, %f;"],
    ),
    Reason {
        operator: "float literal",
        kernel: &["_forward_sm80_"],
        near: &["=> mov.f32 %f, 0f00000001;\nmax.f32 %f, %f, %f;\nmov.u32 %r, %tid.x;"],
        kind: Kind::SameOutput,
        why: "whether a scale is larger than 65536, which none is that this number stands for",
        ..ANY
    },
    second_exchange(&[
        "shfl.sync.bfly.b32 %f, %f, %r, 0x1f, 0xffffffff;\nmax.f32 %f, %f, %f;\n=> shfl.sync.bfly.b32 %f",
    ]),
    second_exchange(&[
        "shfl.sync.bfly.b32 %f, %f, %r, 0x1f, 0xffffffff;\nmax.f32 %f, %f, %f;\nmov.u32 %r, 2;\n=> shfl.sync.bfly.b32 %f",
    ]),
    second_exchange(&[
        "shfl.sync.bfly.b32 %f, %f, %r, 0x1f, 0xffffffff;\nadd.f32 %f, %f, %f;\n=> shfl.sync.bfly.b32 %f",
    ]),
    second_exchange(&[
        "shfl.sync.bfly.b32 %f, %f, %r, 0x1f, 0xffffffff;\nadd.f32 %f, %f, %f;\nmov.u32 %r, 2;\n=> shfl.sync.bfly.b32 %f",
    ]),
    all_rows(&["[shared+];", "=> mov.u32 %r, 1;", TWO_ROWS]),
    all_rows(&["[shared+];", "=> mov.u32 %r, 4;", TWO_ROWS]),
    all_rows(&["[shared+];", "=> mov.u32 %r, 16;", TWO_ROWS]),
    all_rows(&["[shared+];", "=> mov.u32 %r, 64;", TWO_ROWS]),
    all_rows(&["[shared+];", "=> mov.u32 %r, 256;", TWO_ROWS]),
    all_rows(&["[shared+];", "=> mov.u32 %r, 4096;", TWO_ROWS]),
    later(
        "operation",
        &["=> add.s32 %r, %r, %r;\nadd.s32 %r, %r, 1;\nld.param.u32 %r, [%rd+];\nsub.s32", LAST_ROW],
        "",
    ),
    later("integer literal", &["=> add.s32 %r, %r, -1;\nadd.s32 %r, %r, -1;\nmin.s32", LAST_ROW], "negative"),
    later("integer literal", &["=> add.s32 %r, %r, -1;\nadd.s32 %r, %r, -1;\nmin.s32", LAST_ROW], "one more"),
    later("integer literal", &["add.s32 %r, %r, -1;\n=> add.s32 %r, %r, -1;\nmin.s32", LAST_ROW], "negative"),
    later("integer literal", &["add.s32 %r, %r, -1;\n=> add.s32 %r, %r, -1;\nmin.s32", LAST_ROW], "one more"),
    Reason {
        operator: "barrier moved",
        kernel: &["_backward_", "_sm80_"],
        near: &[
            "=> bar.sync 0;\nld.shared.u32 %r, [shared+];\nshl.b32 %r, %r, %r;\nld.shared.u32 %r, [shared+];",
        ],
        to: "behind",
        kind: Kind::StrongerBarrier,
        why: "the barrier behind the description of what is at hand: sides, ends and numbers of tiles are written before it and not again in the loop",
        ..ANY
    },
    Reason {
        operator: "float literal",
        kernel: &["_forward_sm80_"],
        near: &["mov.f32 %f, %f;\nmov.f32 %f, %f;\nmov.f32 %f, %f;\nmma.sync", "=> mov.f32 %f, 0f00000001;"],
        within: 350,
        kind: Kind::SameOutput,
        why: "in a tile that all rows see no score is -infinity but from a number that is not finite, and 0 times that is no number",
        ..ANY
    },
    Reason {
        operator: "rounding",
        kernel: &["_forward_sm80_"],
        near: &["=> mul.f32 %f, %f, %f;\nex2.approx"],
        kind: Kind::BelowTolerance,
        why: "the power of two of an exponent rounded once otherwise; where it ends at the lowest number and not at -infinity it is 0, too",
        ..ANY
    },
    // What repeats columns that are below a coordinate of the first axis.
    said_once(&[
        "=> shl.b32 %r, %r, %r;\nor.b32 %r, %r, %r;\nshl.b32 %r, %r, 1;\nsetp.lt.s32 %p, %r, 16;\nmov.u32 %r, %r;\n@%p bra",
        ABOVE,
    ]),
    said_once(&[
        "shl.b32 %r, %r, %r;\n=> or.b32 %r, %r, %r;\nshl.b32 %r, %r, 1;\nsetp.lt.s32 %p, %r, 16;\nmov.u32 %r, %r;\n@%p bra",
        ABOVE,
    ]),
    said_once(&[
        "shl.b32 %r, %r, %r;\nor.b32 %r, %r, %r;\n=> shl.b32 %r, %r, 1;\nsetp.lt.s32 %p, %r, 16;\nmov.u32 %r, %r;\n@%p bra",
        ABOVE,
    ]),
    said_once(&[
        "shl.b32 %r, %r, %r;\nor.b32 %r, %r, %r;\nshl.b32 %r, %r, 1;\n=> setp.lt.s32 %p, %r, 16;\nmov.u32 %r, %r;\n@%p bra",
        ABOVE,
    ]),
    said_once(&[
        "shl.b32 %r, %r, %r;\nor.b32 %r, %r, %r;\nshl.b32 %r, %r, 1;\nsetp.lt.s32 %p, %r, 16;\n=> mov.u32 %r, %r;\n@%p bra",
        ABOVE,
    ]),
    said_once(&[
        "shl.b32 %r, %r, %r;\nor.b32 %r, %r, %r;\nshl.b32 %r, %r, 1;\nsetp.lt.s32 %p, %r, 16;\nmov.u32 %r, %r;\n=> @%p bra",
        ABOVE,
    ]),
    said_once(&["=> setp.gt.s32 %p, %r, 31;\n@%p bra", ABOVE]),
    said_once(&["setp.gt.s32 %p, %r, 31;\n=> @%p bra", ABOVE]),
    Reason {
        operator: "narrow address",
        kernel: &["_backward_key_sm80_"],
        text: &["add.s64"],
        near: &["=> add.s64", "shl.b64 %rd, %rd, 2;", "st.global.v2.f32"],
        within: 10,
        kind: Kind::SameValue,
        why: FEW_PARTS,
        ..ANY
    },
    Reason {
        operator: "shuffle ",
        kernel: &["_backward_key_sm80_"],
        text: &["shfl.sync.idx.b32"],
        near: &["=> shfl.sync.idx.b32 %r", "cvt.u64.u32", "bfi.b64", "st.global.v2.f32"],
        within: 30,
        kind: Kind::SameValue,
        why: FEW_PARTS,
        ..ANY
    },
    Reason {
        operator: "barrier moved",
        kernel: &["_backward_", "_sm80_"],
        near: &["cp.async.wait_group 0;\n=> bar.sync 0;\nld.shared.u32", "shl.b32", "min.s32"],
        within: 12,
        kind: Kind::StrongerBarrier,
        why: "what a mask is looked up by was written before the walk, which a barrier separates from it",
        ..ANY
    },
    Reason {
        operator: "operation",
        kernel: &["_backward_query_sm80_"],
        near: &["=> add.s32 %r, %r, -1;\nadd.s32 %r, %r, -1;\nmin.s32"],
        to: "int2(sub",
        kind: Kind::SameOutput,
        why: FEWER_FULL,
        ..ANY
    },
    Reason {
        operator: "integer literal",
        kernel: &["_backward_query_sm80_"],
        text: &["shr.s32", ", 1"],
        near: &["=> shr.s32 %r, %r, 1;\nadd.s32 %r, %r, %r;\nadd.s32 %r, %r, -1;\nmin.s32"],
        to: "one more",
        kind: Kind::SameOutput,
        why: FEWER_FULL,
        ..ANY
    },
    Reason {
        operator: "compare bound",
        kernel: &["_sm80_"],
        text: &["setp.lt.s32"],
        near: &["=> setp.lt.s32 %p, %r, %r;\nselp.b32 %r, %r, 0, %p;\nsetp.lt.s32"],
        kind: Kind::SameValue,
        why: "the walk over partial tiles pauses at the start of a line here, and a line has a tile",
        ..ANY
    },
    Reason {
        kernel: &["natten_backward_", "_sm80_f16_"],
        text: &["and.b32"],
        way: &["and.b32", "setp.eq.s32", "selp.f32"],
        kind: Kind::SameOutput,
        why: "a hidden score has weight 0, and so its gradient is 0 unasked, unless a product of f32 overflows, which those of f16 cannot",
        ..ANY
    },
    Reason {
        operator: "predicate sense",
        kernel: &["_forward_sm80_", "_k32"],
        near: &["setp.gt.s32 %p, %r, 31;\n=> @%p bra"],
        kind: Kind::SameOutput,
        why: "tiles of 32 keys have 16 pairs: nothing reads the upper half of a word of masks",
        ..ANY
    },
    Reason {
        operator: "float literal",
        kernel: &["_forward_sm80_"],
        text: &["mov.f32", "0f00000000"],
        near: &["=> mov.f32 %f, 0f00000000;\nmov.f32 %f, 0fFF7FFFFF;"],
        to: "one",
        kind: Kind::BelowTolerance,
        why: "sums of a walk over far scores, of rows that have seen keys, begin with the smallest number instead of 0",
        ..ANY
    },
    Reason {
        operator: "narrow address",
        kernel: &["_backward_", "_sm80_"],
        into: &["add.s64", ", 3;"],
        kind: Kind::SameValue,
        why: "rows of statistics lie densely, and they are fewer than 2^31: whoever fills them counts them in 32 bits",
        ..ANY
    },
    Reason {
        kernel: &["_backward_", "_sm80_"],
        text: &["and.pred"],
        near: &[
            "setp.lt.s32 %p, %r, %r;\n=> and.pred %p, %p, %p;\nld.param.u32 %r, [%rd+];\nsetp.eq.s32 %p, %r, 1;",
        ],
        kind: Kind::SameOutput,
        why: "a box without rows stores nothing, whether or not its cta leaves at once",
        ..ANY
    },
    Reason {
        operator: "compare bound",
        kernel: &["_sm80_"],
        text: &["setp.lt.s32", ", 16"],
        near: &["shl.b32 %r, %r, 1;\n=> setp.lt.s32 %p, %r, 16;"],
        kind: Kind::SameOutput,
        why: "once more by a shift of all 32 bits, which adds none",
        ..ANY
    },
    Reason {
        operator: "barrier moved",
        kernel: &["_backward_query_sm80_"],
        text: &["cp.async.commit_group"],
        to: "before",
        kind: Kind::StrongerBarrier,
        why: "rows that join the group of the first tile are waited for at the head of that tile, as are all copies",
        ..ANY
    },
    Reason {
        operator: "barrier moved",
        kernel: &["_sm80_"],
        text: &["cp.async.wait_group 0"],
        near: &["=> cp.async.wait_group 0;\nbar.sync 0;"],
        to: "before",
        kind: Kind::StrongerBarrier,
        why: "what is read between is no copy's, and the barrier behind it is passed once all have waited",
        ..ANY
    },
    Reason {
        operator: "integer literal",
        kernel: &["_backward_", "_sm80_"],
        text: &["and.b32", ", 31"],
        near: &["=> and.b32 %r, %r, 31;\nshr.u32 %r, %r, 3;\nor.b32 %r, %r, %r;\nor.b32 %r, %r,"],
        to: "twice that",
        kind: Kind::SameOutput,
        why: "the bit of the warp that gets in is set already, by the row's place among the passes",
        ..ANY
    },
    Reason {
        operator: "shuffle lane",
        kernel: &["_forward_sm80_"],
        text: &["shfl.sync.idx.b32 %f"],
        near: &["and.b32 %r, %r, 28;", "=> shfl.sync.idx.b32 %f"],
        within: 12,
        kind: Kind::SameValue,
        why: "the lanes of a quad hold the same sum",
        ..ANY
    },
    Reason {
        operator: "memory offset",
        kernel: &["_forward_sm80_"],
        text: &["ld.shared.u32"],
        near: &[
            "ld.shared.u32 %r, [%rd+];\n=> ld.shared.u32 %r, [%rd+];\nmul.lo.s32 %r, %r, %r;\nld.shared.u32 %r, [%rd+];\nmul.lo.s32",
        ],
        kind: Kind::SameOutput,
        why: "a walk over far scores takes no tile for full: of their number it asks whether it is 0",
        ..ANY
    },
    Reason {
        operator: "narrow address",
        kernel: &["_forward_sm80_"],
        text: &["sub.s64"],
        near: &["=> sub.s64 %rd, %rd, %rd;\nst.shared.u64"],
        kind: Kind::SameOutput,
        why: LINES_OF_FULL,
        ..ANY
    },
    Reason {
        operator: "memory offset",
        kernel: &["_forward_sm80_"],
        text: &["ld.shared.u64"],
        near: &[
            "=> ld.shared.u64 %rd, [%rd+];\nmul.lo.s64 %rd, %rd, %rd;\nsub.s64 %rd, %rd, %rd;\nst.shared.u64",
        ],
        kind: Kind::SameOutput,
        why: LINES_OF_FULL,
        ..ANY
    },
];

/// Where they go in the table of 64 keys.
const ABOVE: &str = "or.b32 %r, %r, %r;\nmov.u32 %r, 133;";

/// The loop that doubles columns until a word is full.
const fn said_once(near: &'static [&'static str]) -> Reason {
    let why = "the sides of a tile of 64 keys are 32 pairs all together, a whole word: nothing is left to repeat, and a shift by 32 gives 0";
    let kernel = &["_forward_sm80_", "_k64"];
    Reason { kernel, near, within: 28, kind: Kind::SameOutput, why, ..ANY }
}

/// Two copies of one thread in a row, of neighbouring rows of a tile, that hang on the same bit.
const TWO_ROWS: &str = "bytes; }\nadd.s32 %r, %r, 2048;\n{ .reg .pred is_valid";

/// Which bit says whether a row of a tile without masks exists.
const fn all_rows(near: &'static [&'static str]) -> Reason {
    let why =
        "the bit of the next row of the same tensor and part: where a tile has no mask all of its rows exist";
    let (operator, kernel, text) = ("integer literal", &["_forward_sm80_"], &["mov.u32"]);
    Reason { operator, kernel, text, near, within: 24, to: "twice", kind: Kind::SameOutput, why, ..ANY }
}

/// By how much a score is above the reference.
const fn not_above(kernel: &'static [&'static str], near: &'static [&'static str]) -> Reason {
    let why = "how far a score is above the reference: -infinity is not, and neither is 0 times it, which is no number";
    Reason { operator: "float literal", kernel, near, kind: Kind::SameOutput, why, ..ANY }
}

/// The end of what the last row of a box sees along a causal axis.
const LAST_ROW: &str =
    "add.s32 %r, %r, %r;\nmax.s32 %r, %r, 0;\nmin.s32 %r, %r, %r;\nmax.s32 %r, %r, 0;\nbra.uni";

/// Where along a causal axis tiles begin that all rows see, by what the last row sees. Queries are off the keys only where each sees
/// from the first key on, so that an offset that is taken off is no earlier begin either.
const fn later(operator: &'static str, near: &'static [&'static str], to: &'static str) -> Reason {
    let why = "a begin of the tiles that all rows see which is never too early: the later it is, the more tiles have masks";
    Reason { operator, kernel: &["_sm80_"], near, within: 14, to, kind: Kind::SameOutput, why, ..ANY }
}

/// How far above its reference a score moves it.
const fn lazily(kernel: &'static [&'static str], to: &'static str) -> Reason {
    let why = "a reference that moves earlier, or where weights have room later, rounds otherwise, each weight once as ever";
    let (operator, text) = ("float literal", &["add.f32", "0f41000000"]);
    Reason { operator, kernel, text, to, kind: Kind::BelowTolerance, why, ..ANY }
}

/// The second of the two exchanges of a quad.
const fn second_exchange(near: &'static [&'static str]) -> Reason {
    let why = "pairs of lanes have the same since they exchanged, so that either of the other pair will do";
    let (operator, kernel) = ("shuffle lane", &["_forward_sm80_"]);
    Reason { operator, kernel, near, to: "one more", kind: Kind::SameValue, why, ..ANY }
}

/// How a warp's first lane alone comes to describe the keys or columns at hand.
const fn one_lane(operator: &'static str, near: &'static [&'static str], to: &'static str) -> Reason {
    Reason { operator, kernel: &["_sm80_"], near, to, kind: Kind::SameOutput, why: ONE_LANE, ..ANY }
}

/// The wait for the rows of a cta.
const fn in_steps(operator: &'static str, kernel: &'static [&'static str]) -> Reason {
    let text = &["cp.async.wait_group 1"];
    Reason { operator, kernel, text, kind: Kind::StrongerBarrier, why: IN_STEPS, ..ANY }
}
