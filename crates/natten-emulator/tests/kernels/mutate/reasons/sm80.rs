//! Reasons in the Ampere kernels. Those about a walk over the keys with references that are far from 0 are in `sm80_far.rs`.

use super::{ANY, Kind, Reason};

const ONE_LANE: &str = "every lane of the warp writes the same description, and that of any is enough";
const IN_STEPS: &str = "the wait for all copies at the head of each tile: these kernels read their rows behind it, and keep none";

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
    Reason {
        operator: "float literal",
        kernel: &["_forward_sm80_"],
        near: &["=> mov.f32 %f, 0f00000001;\nabs.f32 %f, %f;\nmax.f32 %f, %f, %f;\nshfl.sync.bfly"],
        kind: Kind::SameOutput,
        why: "how far a score is above the reference: -infinity is not, and neither is 0 times it, which is no number",
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
];

/// How a warp's first lane alone comes to describe the keys or columns at hand.
const fn one_lane(operator: &'static str, near: &'static [&'static str], to: &'static str) -> Reason {
    Reason { operator, kernel: &["_sm80_"], near, to, kind: Kind::SameOutput, why: ONE_LANE, ..ANY }
}

/// The wait for the rows of a cta.
const fn in_steps(operator: &'static str, kernel: &'static [&'static str]) -> Reason {
    let text = &["cp.async.wait_group 1"];
    Reason { operator, kernel, text, kind: Kind::StrongerBarrier, why: IN_STEPS, ..ANY }
}
