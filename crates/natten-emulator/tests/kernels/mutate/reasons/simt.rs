//! Reasons in the kernels on CUDA cores.

use super::{ANY, Kind, Reason};

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
        kernel: &["_d8"],
        text: &["shfl.sync.bfly"],
        kind: Kind::SameOutput,
        why: "groups of one lane exchange no scores: a lane that knows less of the warp's longest walk still ends its own",
        ..ANY
    },
    Reason {
        operator: "shuffle mode",
        kernel: &["natten_backward_", "_simt_"],
        text: &["shfl.sync.bfly.b32 %r"],
        kind: Kind::SameOutput,
        why: "how far the warp's longest walk goes: lanes of a group hold the same and no less than their own, whichever group they take it from, and what comes after their own is invisible",
        ..ANY
    },
    Reason {
        operator: "shuffle lane",
        kernel: &["natten_backward_", "_simt_"],
        text: &["shfl.sync.bfly.b32 %r"],
        kind: Kind::SameOutput,
        why: "how far the warp's longest walk goes: lanes of a group hold the same and no less than their own, whichever group they take it from, and what comes after their own is invisible",
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
];
