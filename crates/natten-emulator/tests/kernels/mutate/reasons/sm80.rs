//! Reasons in the Ampere kernels.

use super::{ANY, Kind, Reason};

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
];
