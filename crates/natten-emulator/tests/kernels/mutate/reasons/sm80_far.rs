//! Reasons in the Ampere forward kernels, where they walk over the keys with references that are far from 0.
//!
//! All tiles have masks there, and none counts as full: along each axis the first full one is where the last one is. Shared memory is
//! addressed by a register in this walk alone, the keys of the windows are described for it alone by four stores in a row.

use super::{ANY, Kind, Reason};

const FORWARD: &[&str] = &["_forward_sm80_"];

pub const REASONS: &[Reason] = &[
    // Whether a line of tiles meets full ones: where it stands among them along an axis.
    none_full(
        "memory offset",
        &["=> ld.shared.u32 %r, [%rd+];\nsetp.ge.s32 %p, %r, %r;\nld.shared.u32 %r, [%rd+];\nsetp.lt.s32"],
    ),
    none_full(
        "compare ",
        &["ld.shared.u32 %r, [%rd+];\n=> setp.ge.s32 %p, %r, %r;\nld.shared.u32 %r, [%rd+];\nsetp.lt.s32"],
    ),
    none_full(
        "memory offset",
        &["ld.shared.u32 %r, [%rd+];\nsetp.ge.s32 %p, %r, %r;\n=> ld.shared.u32 %r, [%rd+];\nsetp.lt.s32"],
    ),
    none_full(
        "compare ",
        &["ld.shared.u32 %r, [%rd+];\nsetp.ge.s32 %p, %r, %r;\nld.shared.u32 %r, [%rd+];\n=> setp.lt.s32"],
    ),
    // Of two axes.
    none_full(
        "logic",
        &[
            "[%rd+];\nsetp.lt.s32 %p, %r, %r;\n=> and.pred %p, %p, %p;\nld.shared.u32 %r, [%rd+];\nsetp.ge.s32",
        ],
    ),
    none_full("logic", &["[%rd+];\nsetp.ge.s32", "=> and.pred %p, %p, %p;\nand.pred %p, %p, %p;\nnot.pred"]),
    none_full("logic", &["[%rd+];\nsetp.ge.s32", "and.pred %p, %p, %p;\n=> and.pred %p, %p, %p;\nnot.pred"]),
    none_full(
        "predicate operand",
        &[
            "[%rd+];\nsetp.lt.s32 %p, %r, %r;\n=> and.pred %p, %p, %p;\nld.shared.u32 %r, [%rd+];\nsetp.ge.s32",
        ],
    ),
    none_full(
        "predicate operand",
        &["[%rd+];\nsetp.ge.s32", "=> and.pred %p, %p, %p;\nand.pred %p, %p, %p;\nnot.pred"],
    ),
    none_full(
        "predicate operand",
        &["[%rd+];\nsetp.ge.s32", "and.pred %p, %p, %p;\n=> and.pred %p, %p, %p;\nnot.pred"],
    ),
    // Of the third, which is asked for where the others say yes.
    none_full(
        "predicate operand",
        &["[%rd+];\nsetp.lt.s32", "and.pred %p, %p, %p;\n=> not.pred %p, %p;\n@%p bra"],
    ),
    none_full(
        "predicate sense",
        &["[%rd+];\nsetp.lt.s32", "and.pred %p, %p, %p;\nnot.pred %p, %p;\n=> @%p bra"],
    ),
    none_full(
        "memory offset",
        &[
            "not.pred %p, %p;\n@%p bra",
            "\n=> ld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\nsetp.lt.s32",
        ],
    ),
    none_full(
        "memory offset",
        &[
            "not.pred %p, %p;\n@%p bra",
            "\nld.shared.u32 %r, [%rd+];\n=> ld.shared.u32 %r, [%rd+];\nsetp.lt.s32",
        ],
    ),
    none_full(
        "compare ",
        &[
            "not.pred %p, %p;\n@%p bra",
            "\nld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\n=> setp.lt.s32",
        ],
    ),
    none_full(
        "predicate sense",
        &["not.pred %p, %p;\n@%p bra", "ld.shared.u32 %r, [%rd+];\nsetp.lt.s32 %p, %r, %r;\n=> @%p bra"],
    ),
    // Behind the full tiles of a line.
    none_full(
        "memory offset",
        &["setp.ge.s32 %p, %r, %r;\n@%p bra", "\n=> ld.shared.u32 %r, [%rd+];\nmov.u32"],
    ),
    goes_round("compare "),
    goes_round("integer literal"),
    // How many are full.
    no_tiles(
        "memory offset",
        &[
            "=> ld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\nsub.s32 %r, %r, %r;\nld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\nsub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\n",
        ],
    ),
    no_tiles(
        "memory offset",
        &[
            "ld.shared.u32 %r, [%rd+];\n=> ld.shared.u32 %r, [%rd+];\nsub.s32 %r, %r, %r;\nld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\nsub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\n",
        ],
    ),
    no_tiles(
        "memory offset",
        &[
            "ld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\nsub.s32 %r, %r, %r;\n=> ld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\nsub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\n",
        ],
    ),
    no_tiles(
        "memory offset",
        &[
            "ld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\nsub.s32 %r, %r, %r;\nld.shared.u32 %r, [%rd+];\n=> ld.shared.u32 %r, [%rd+];\nsub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\n",
        ],
    ),
    no_tiles(
        "operation",
        &[
            "ld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\n=> sub.s32 %r, %r, %r;\nld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\nsub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\n",
        ],
    ),
    no_tiles(
        "operation",
        &[
            "ld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\nsub.s32 %r, %r, %r;\nld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\n=> sub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\n",
        ],
    ),
    no_tiles(
        "operands swapped",
        &[
            "ld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\n=> sub.s32 %r, %r, %r;\nld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\nsub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\n",
        ],
    ),
    no_tiles(
        "operands swapped",
        &[
            "ld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\nsub.s32 %r, %r, %r;\nld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\n=> sub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\n",
        ],
    ),
    no_tiles(
        "memory offset",
        &[
            "sub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\n=> ld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\nsub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\n",
        ],
    ),
    no_tiles(
        "memory offset",
        &[
            "sub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\nld.shared.u32 %r, [%rd+];\n=> ld.shared.u32 %r, [%rd+];\nsub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\n",
        ],
    ),
    no_tiles(
        "operation",
        &[
            "sub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\nld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\n=> sub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\n",
        ],
    ),
    no_tiles(
        "operands swapped",
        &[
            "sub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\nld.shared.u32 %r, [%rd+];\nld.shared.u32 %r, [%rd+];\n=> sub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\n",
        ],
    ),
    no_tiles(
        "operation",
        &["=> sub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\nsub.s32 %r, %r, %r;\nsetp.lt.s32 %p, %r, 1;"],
    ),
    no_tiles(
        "operands swapped",
        &["=> sub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\nsub.s32 %r, %r, %r;\nsetp.lt.s32 %p, %r, 1;"],
    ),
    no_tiles(
        "operation",
        &["sub.s32 %r, %r, %r;\nmul.lo.s32 %r, %r, %r;\n=> sub.s32 %r, %r, %r;\nsetp.lt.s32 %p, %r, 1;"],
    ),
    // Where what the last row sees along a causal axis begins.
    begins(&["=> add.s32 %r, %r, %r;\nadd.s32 %r, %r, -1;\nadd.s32 %r, %r, -1;\nmin.s32", CAUSAL, STORES]),
    begins(&["add.s32 %r, %r, %r;\n=> add.s32 %r, %r, -1;\nadd.s32 %r, %r, -1;\nmin.s32", CAUSAL, STORES]),
    begins(&["add.s32 %r, %r, %r;\nadd.s32 %r, %r, -1;\n=> add.s32 %r, %r, -1;\nmin.s32", CAUSAL, STORES]),
    begins(&["add.s32 %r, %r, %r;\nadd.s32 %r, %r, -1;\nadd.s32 %r, %r, -1;\n=> min.s32", CAUSAL, STORES]),
    begins(&["=> add.s32 %r, %r, %r;\nadd.s32 %r, %r, 1;\nld.param.u32 %r, [%rd+];\nsub.s32", END, STORES]),
    begins(&["add.s32 %r, %r, %r;\n=> add.s32 %r, %r, 1;\nld.param.u32 %r, [%rd+];\nsub.s32", END, STORES]),
    begins(&["add.s32 %r, %r, %r;\nadd.s32 %r, %r, 1;\n=> ld.param.u32 %r, [%rd+];\nsub.s32", END, STORES]),
    begins(&["add.s32 %r, %r, %r;\nadd.s32 %r, %r, 1;\nld.param.u32 %r, [%rd+];\n=> sub.s32", END, STORES]),
    begins(&["max.s32 %r, %r, 0;\nmin.s32 %r, %r, %r;\n=> max.s32 %r, %r, 0;\nbra.uni", STORES]),
];

/// The rest of where a causal window begins, and where it ends.
const CAUSAL: &str =
    "add.s32 %r, %r, 1;\nld.param.u32 %r, [%rd+];\nsub.s32 %r, %r, %r;\nadd.s32 %r, %r, %r;\nmax.s32";
const END: &str =
    " %r, %r, %r;\nadd.s32 %r, %r, %r;\nmax.s32 %r, %r, 0;\nmin.s32 %r, %r, %r;\nmax.s32 %r, %r, 0;";
const STORES: &str =
    "st.shared.u32 [%rd+], %r;\nst.shared.u32 [%rd+], %r;\nst.shared.u32 [%rd+], %r;\nst.shared.u32";

const fn none_full(operator: &'static str, near: &'static [&'static str]) -> Reason {
    let why = "no tile is full: neither this axis nor the others say that the line meets any";
    Reason { operator, kernel: FORWARD, near, kind: Kind::SameOutput, why, ..ANY }
}

const fn no_tiles(operator: &'static str, near: &'static [&'static str]) -> Reason {
    let why = "no tile is full: 0 along an axis, or times what is 0 along another, or taken from a number";
    Reason { operator, kernel: FORWARD, near, within: 12, kind: Kind::SameOutput, why, ..ANY }
}

const fn goes_round(operator: &'static str) -> Reason {
    let near =
        &["ld.shared.u32 %r, [%rd+];\nsetp.lt.s32", "=> setp.lt.s32 %p, %r, 1;\nmov.u32 %r, 0;\n@%p bra"];
    let why = "a line pauses at its end alone, which is behind its first tile: looking at it once more finds the same";
    Reason { operator, kernel: FORWARD, near, within: 9, kind: Kind::SameOutput, why, ..ANY }
}

const fn begins(near: &'static [&'static str]) -> Reason {
    let why = "where tiles begin that all rows see: none is to be full, wherever that is";
    Reason { kernel: FORWARD, near, within: 60, kind: Kind::SameOutput, why, ..ANY }
}
