//! Reasons in the Hopper kernels.

use super::{ANY, Kind, Reason};

pub const REASONS: &[Reason] = &[
    Reason {
        operator: "barrier ",
        kernel: &["_sm90_"],
        text: &["wgmma.fence"],
        kind: Kind::StrongerBarrier,
        why: "the fence before the first of the products in a row, since nothing touches registers of the second after it",
        ..ANY
    },
    Reason {
        operator: "barrier dropped",
        kernel: &["_sm90_"],
        text: &["fence.mbarrier_init"],
        kind: Kind::StrongerBarrier,
        why: "fence.proxy.async behind it shows fresh barriers to the copy engine as well",
        ..ANY
    },
    Reason {
        operator: "registers given",
        kernel: &["_sm90_"],
        text: &["setmaxnreg"],
        kind: Kind::SameOutput,
        why: "the assembler keeps code within what it is given; the emulator's registers know no limit, and who takes too many waits for ever",
        ..ANY
    },
    Reason {
        operator: "compare of NaN",
        kernel: &["_forward_sm90_"],
        text: &["setp.gt.f32", "0fFF7FFFFF"],
        kind: Kind::SameOutput,
        why: "of the two comparisons that find a reference too far the other says no of NaN, and a row of NaN is NaN relative to any",
        ..ANY
    },
    Reason {
        operator: "compare bound",
        kernel: &["_forward_sm90_"],
        text: &["setp.gt.f32", "0fFF7FFFFF"],
        kind: Kind::BelowTolerance,
        why: "a row that has seen no key counts as lost: its warp takes far references, which are right for any score",
        ..ANY
    },
    Reason {
        operator: "compare of NaN",
        kernel: &["_forward_sm90_"],
        text: &["setp.gt.f32", "0f47800000"],
        kind: Kind::SameValue,
        why: "a scale that is no number is refused, and a reference that is none is not above the lowest",
        ..ANY
    },
    Reason {
        operator: "logic",
        kernel: &["_forward_sm90_"],
        text: &["and.pred"],
        near: &["0f47800000", "0fFF7FFFFF", "and.pred"],
        kind: Kind::BelowTolerance,
        why: "more rows count as lost: their warps take far references, which are right for any score",
        ..ANY
    },
    Reason {
        operator: "barrier ",
        kernel: &["_forward_sm90_", "_d64"],
        text: &["barrier.cta.sync"],
        near: &["128;", "barrier.cta.sync", "shr.s32", "31;", "shr.u32", "30;"],
        kind: Kind::StrongerBarrier,
        why: "rows of one slab: a warp stores its result over the queries that it alone has multiplied, and it has waited for these products",
        ..ANY
    },
    Reason {
        operator: "barrier ",
        kernel: &["_forward_sm90_", "_d32"],
        text: &["barrier.cta.sync"],
        near: &["128;", "barrier.cta.sync", "shr.s32", "31;", "shr.u32", "30;"],
        kind: Kind::StrongerBarrier,
        why: "rows of one slab: a warp stores its result over the queries that it alone has multiplied, and it has waited for these products",
        ..ANY
    },
    Reason {
        operator: "rounding",
        kernel: &["_forward_sm90_"],
        text: &["mul.f32"],
        near: &["sub.f32", "mul.f32", "ex2.approx"],
        kind: Kind::BelowTolerance,
        why: "the exponent of a weight relative to a far reference, one rounding below: where it leaves f32 the weight is 0 either way",
        ..ANY
    },
    Reason {
        operator: "operands swapped",
        kernel: &["_sm90_"],
        text: &["selp.b32"],
        near: &["selp.b32", "setp.lt.s32", "bra", "bra.uni", "sub.s32", "add.s32"],
        kind: Kind::BelowTolerance,
        why: "the last, partial tile of additional keys comes before the partial tiles of windows: the same sums in another order",
        ..ANY
    },
    Reason {
        operator: "float literal",
        kernel: &["_backward_query_sm90_"],
        text: &["selp.f32", "0fFF800000"],
        kind: Kind::SameOutput,
        why: "the gradient of a score that is not seen is put to 0, whatever the weight that this gives it",
        ..ANY
    },
    Reason {
        operator: "compare bound",
        kernel: &["_backward_", "_sm90_"],
        text: &["setp.lt.s32"],
        near: &["setp.lt.s32", "bra", "st.global.v2.f32"],
        kind: Kind::SameValue,
        why: "rows are multiples of 8 long, the bounds one more",
        ..ANY
    },
    Reason {
        operator: "integer literal",
        kernel: &["_backward_", "_sm90_"],
        text: &["setp.lt.s32"],
        near: &["setp.lt.s32", "bra", "st.global.v2.f32"],
        to: "one more",
        kind: Kind::SameValue,
        why: "rows are multiples of 8 long, the bounds one more",
        ..ANY
    },
    Reason {
        operator: "compare bound",
        kernel: &["_sm90_"],
        text: &["setp.lt.s32"],
        near: &["mul.lo.s32", "setp.gt.s32", "selp.u32", "add.s32", "setp.lt.s32", "and.b32"],
        kind: Kind::SameValue,
        why: "all residues of a launch have the same length, and no tile begins where they end",
        ..ANY
    },
];
