//! Why a kernel with an edit is still right, where that takes a human to see. The kinds of reasons are a closed list; an
//! edit that none of these holds for is a hole in the suites.

use natten_emulator::mutate::Edit;

use super::report::Evidence;

/// Kinds of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The edited instruction gives the same for all operands that it can have.
    SameValue,
    /// Nothing that is written depends on what it gives.
    SameOutput,
    /// A barrier that is named orders the same accesses.
    StrongerBarrier,
    /// The result differs by less than the suites' tolerance can be.
    BelowTolerance,
}

/// An entry: for edits of an operator or of all whose names begin so, in kernels whose names have these parts in this order, on
/// instructions whose texts have such, to what begins with a word.
struct Reason {
    operator: &'static str,
    kernel: &'static [&'static str],
    text: &'static [&'static str],
    to: &'static str,
    kind: Kind,
    why: &'static str,
}

/// Each holds for survivors alone, and for no more of them than it says; where checks tell otherwise it does not hold.
const REASONS: &[Reason] = &[
    Reason {
        operator: "predicate operand",
        kernel: &["natten_merge_"],
        text: &["and.pred"],
        to: "",
        kind: Kind::SameOutput,
        why: "every lane of a warp holds its row's log-sum-exp, so whichever stores it stores the same",
    },
    Reason {
        operator: "logic",
        kernel: &["natten_merge_"],
        text: &["and.pred"],
        to: "",
        kind: Kind::SameOutput,
        why: "every lane of a warp holds its row's log-sum-exp, so whichever stores it stores the same",
    },
    Reason {
        operator: "compare of NaN",
        kernel: &["natten_merge_"],
        text: &["setp.eq.f32", "0fFF800000"],
        to: "",
        kind: Kind::SameValue,
        why: "the largest log-sum-exp of the branches is a maximum that begins at -inf, and max.f32 gives the other operand for NaN",
    },
    Reason {
        operator: "compare of NaN",
        kernel: &["natten_merge_"],
        text: &["setp.neu", "visible"],
        to: "",
        kind: Kind::SameOutput,
        why: "a weight that is NaN makes the sum of weights NaN, and with it the whole row, with its own products or without",
    },
    Reason {
        operator: "compare of NaN",
        kernel: &["_forward_simt_"],
        text: &["setp.neu", "visible"],
        to: "",
        kind: Kind::SameOutput,
        why: "a weight that is NaN makes the sum of weights NaN, and with it the whole row, with its own products or without",
    },
    Reason {
        operator: "shuffle ",
        kernel: &["_d8"],
        text: &["shfl.sync.bfly"],
        to: "",
        kind: Kind::SameOutput,
        why: "groups of one lane exchange no scores: a lane that knows less of the warp's longest walk still ends its own",
    },
    Reason {
        operator: "operands swapped",
        kernel: &["natten_sum_partials_"],
        text: &["sub.s32"],
        to: "",
        kind: Kind::SameValue,
        why: "what is summed are gradients of additional keys, all along the last axis of tokens: other coordinates are 0",
    },
    Reason {
        operator: "compare bound",
        kernel: &["_forward_sm80_"],
        text: &["setp.gt.f32"],
        to: "",
        kind: Kind::SameOutput,
        why: "a score that is 2^8 above the reference exactly gives the same softmax whether the reference moves or not",
    },
    Reason {
        operator: "barrier ",
        kernel: &["_sm90_"],
        text: &["wgmma.fence"],
        to: "",
        kind: Kind::StrongerBarrier,
        why: "the fence before the first of the products in a row, since nothing touches registers of the second after it",
    },
    Reason {
        operator: "barrier dropped",
        kernel: &["_sm90_"],
        text: &["fence.mbarrier_init"],
        to: "",
        kind: Kind::StrongerBarrier,
        why: "fence.proxy.async behind it shows fresh barriers to the copy engine as well",
    },
    Reason {
        operator: "shuffle mode",
        kernel: &["natten_backward_", "_simt_"],
        text: &["shfl.sync.bfly.b32 %r"],
        to: "",
        kind: Kind::SameOutput,
        why: "how far the warp's longest walk goes: lanes of a group hold the same and no less than their own, whichever group they take it from, and what comes after their own is invisible",
    },
    Reason {
        operator: "shuffle lane",
        kernel: &["natten_backward_", "_simt_"],
        text: &["shfl.sync.bfly.b32 %r"],
        to: "",
        kind: Kind::SameOutput,
        why: "how far the warp's longest walk goes: lanes of a group hold the same and no less than their own, whichever group they take it from, and what comes after their own is invisible",
    },
    Reason {
        operator: "shuffle mode",
        kernel: &["_simt_"],
        text: &["shfl.sync.bfly.b32 %f"],
        to: "shfl(down)",
        kind: Kind::SameOutput,
        why: "of the two lanes of an exchange beyond the last split the lower gets the same, and owners of scores are lower lanes of all of them",
    },
    Reason {
        operator: "shuffle mask",
        kernel: &["_simt_"],
        text: &["shfl.sync.bfly.b32 %f"],
        to: "twice that",
        kind: Kind::SameOutput,
        why: "lane 31 alone is out of reach, of a lane that owns no score whose sum another asks for",
    },
    Reason {
        operator: "compare of NaN",
        kernel: &["_forward_sm80_"],
        text: &["setp.gt.f32"],
        to: "",
        kind: Kind::SameOutput,
        why: "each row decides for itself whether its reference moves, and a row of NaN is NaN relative to any",
    },
    Reason {
        operator: "compare of NaN",
        kernel: &["_forward_s"],
        text: &["setp.eq.f32", "0f00000000"],
        to: "",
        kind: Kind::SameOutput,
        why: "a sum that is NaN has a weight that is, and so is every component of its row, whatever it is multiplied by",
    },
    Reason {
        operator: "float literal",
        kernel: &["_forward_sm"],
        text: &["add.f32", "0f41000000"],
        to: "",
        kind: Kind::SameOutput,
        why: "how far above its reference a score moves it decides about rounding alone, and rows decide anew what the warp voted for",
    },
    Reason {
        operator: "barrier moved",
        kernel: &[],
        text: &["commit_group"],
        to: "behind",
        kind: Kind::StrongerBarrier,
        why: "a group that is committed later holds more, and who waits for it waits for that as well",
    },
    Reason {
        operator: "registers given",
        kernel: &["_sm90_"],
        text: &["setmaxnreg"],
        to: "",
        kind: Kind::SameOutput,
        why: "the assembler keeps code within what it is given; the emulator's registers know no limit, and who takes too many waits for ever",
    },
    Reason {
        operator: "compare of NaN",
        kernel: &["_forward_sm90_"],
        text: &["setp.gt.f32", "0fFF7FFFFF"],
        to: "",
        kind: Kind::SameOutput,
        why: "of the two comparisons that find a reference too far the other says no of NaN, and a row of NaN is NaN relative to any",
    },
];

/// The reason for an edit to be none that a suite could notice.
pub fn of(edit: &Edit, entry: &str, evidence: &Evidence) -> Option<(Kind, String)> {
    let proven = evidence.proof.as_ref().map(|proof| (Kind::SameValue, proof.clone()));
    proven.or_else(|| known(edit, entry, evidence)).or_else(|| rounding(edit, evidence))
}

/// Another rounding of the same result, by as little as the measured difference.
fn rounding(edit: &Edit, evidence: &Evidence) -> Option<(Kind, String)> {
    let results = evidence.beside.filter(|_| edit.operator == "rounding")?;
    // One unit in the last place of bf16, the shortest element type.
    let is_one_unit = results.widest <= 2f64.powi(-7);
    let why = format!("one rounding, {:.1e} of the result at most", results.widest);
    is_one_unit.then_some((Kind::BelowTolerance, why))
}

fn known(edit: &Edit, entry: &str, evidence: &Evidence) -> Option<(Kind, String)> {
    let holds = |reason: &&Reason| {
        edit.operator.starts_with(reason.operator)
            && has_parts(entry, reason.kernel)
            && has_parts(&edit.from, reason.text)
            && edit.to.starts_with(reason.to)
            && reason.kind.agrees_with(evidence)
    };
    REASONS.iter().find(holds).map(|reason| (reason.kind, reason.why.to_owned()))
}

impl Kind {
    /// Whether what the checks saw leaves room for a reason of this kind.
    fn agrees_with(self, evidence: &Evidence) -> bool {
        match self {
            Kind::SameValue => evidence.beside.is_some_and(|results| !results.differ),
            Kind::SameOutput | Kind::StrongerBarrier => evidence.with_same_bits == evidence.checks,
            Kind::BelowTolerance => true,
        }
    }
}

fn has_parts(text: &str, parts: &[&str]) -> bool {
    let mut rest = text;
    parts.iter().all(|part| match rest.split_once(part) {
        Some((_, behind)) => {
            rest = behind;
            true
        }
        None => false,
    })
}
