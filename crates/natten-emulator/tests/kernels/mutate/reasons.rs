//! Why a kernel with an edit is still right, where that takes a human to see. The kinds of reasons are a closed list; an
//! edit that none of these holds for is a hole in the suites.

use natten_emulator::mutate::Edit;

use super::report::Evidence;

/// Kinds of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing reads the result.
    DeadResult,
    /// The edited instruction gives the same for all operands that it can have.
    SameValue,
    /// A barrier that is named orders the same accesses.
    StrongerBarrier,
    /// The result differs by less than the suites' tolerance can be.
    BelowTolerance,
}

/// An entry: for edits of an operator, in kernels of a family, on instructions whose text has these parts in this order.
struct Reason {
    operator: &'static str,
    family: &'static str,
    text: &'static [&'static str],
    kind: Kind,
    why: &'static str,
}

const REASONS: &[Reason] = &[];

/// The reason for an edit to be none that a suite could notice.
pub fn of(edit: &Edit, family: &str, evidence: &Evidence) -> Option<(Kind, String)> {
    known(edit, family).or_else(|| rounding(edit, evidence))
}

/// Another rounding of the same result, by as little as the measured difference.
fn rounding(edit: &Edit, evidence: &Evidence) -> Option<(Kind, String)> {
    let results = evidence.beside.filter(|_| edit.operator == "rounding")?;
    // One unit in the last place of bf16, the shortest element type.
    let is_one_unit = results.widest <= 2f64.powi(-7);
    let why = format!("one rounding, {:.1e} of the result at most", results.widest);
    is_one_unit.then_some((Kind::BelowTolerance, why))
}

fn known(edit: &Edit, family: &str) -> Option<(Kind, String)> {
    let holds = |reason: &&Reason| {
        reason.operator == edit.operator
            && family.contains(reason.family)
            && has_parts(&edit.from, reason.text)
    };
    REASONS.iter().find(holds).map(|reason| (reason.kind, reason.why.to_owned()))
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
