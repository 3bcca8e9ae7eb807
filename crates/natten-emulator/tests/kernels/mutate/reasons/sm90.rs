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
];
