//! Why a kernel with an edit is still right, where that takes a human to see. The kinds of reasons are a closed list; an
//! edit that none of these holds for is a hole in the suites.

mod every;
mod flow;
mod rows;
mod simt;
mod simt_backward;
mod sm100;
mod sm80;
mod sm80_far;
mod sm90;

use natten_cuda::registry::by_name;
use natten_emulator::mutate::Edit;

use super::report::Evidence;
use flow::Flow;

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
    /// No call of the operator leads to the instruction.
    NeverExecuted,
}

/// An entry. What it leaves out, all edits have.
struct Reason {
    /// The operator, or how the names of several begin.
    operator: &'static str,
    /// Parts of the kernel's name, in this order, as in all that follow.
    kernel: &'static [&'static str],
    /// Of the instruction's text.
    text: &'static [&'static str],
    /// Of the kernel's text from `within` lines before the instruction to as many behind it, as it stands or [`plain`].
    near: &'static [&'static str],
    within: usize,
    /// Of all instructions on the ways of its result, see [`Flow::goes_into`].
    into: &'static [&'static str],
    /// Of all that its operands come from, see [`Flow::comes_from`].
    from: &'static [&'static str],
    /// Of it and what is before and behind it on a way of results, see [`Flow::is_on`].
    way: &'static [&'static str],
    /// How what becomes of it begins.
    to: &'static str,
    kind: Kind,
    why: &'static str,
}

/// What an entry does not say.
const ANY: Reason = Reason {
    operator: "",
    kernel: &[],
    text: &[],
    near: &[],
    within: 8,
    into: &[],
    from: &[],
    way: &[],
    to: "",
    kind: Kind::SameValue,
    why: "",
};

/// All of them. Each holds for survivors alone, and for no more of them than it says; where checks tell otherwise it does not
/// hold.
const REASONS: [&[Reason]; 8] = [
    rows::REASONS,
    simt::REASONS,
    simt_backward::REASONS,
    sm80::REASONS,
    sm80_far::REASONS,
    sm90::REASONS,
    sm100::REASONS,
    every::REASONS,
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
    let text = by_name(entry).expect("a shipped kernel").ptx();
    let flow = Flow::of(&text);
    let holds = |reason: &&Reason| {
        edit.operator.starts_with(reason.operator)
            && has_parts(entry, reason.kernel)
            && has_parts(&edit.from, reason.text)
            && is_near(&text, edit, reason)
            && flow.goes_into(&edit.from, reason.into)
            && flow.comes_from(&edit.from, reason.from)
            && flow.is_on(&edit.from, reason.way)
            && edit.to.starts_with(reason.to)
            && reason.kind.agrees_with(evidence)
    };
    REASONS.into_iter().flatten().find(holds).map(|reason| (reason.kind, reason.why.to_owned()))
}

/// Whether an edit stands where the reason says.
fn is_near(text: &str, edit: &Edit, reason: &Reason) -> bool {
    if reason.near.is_empty() {
        return true;
    }
    let (line, within) = (edit.line as usize, reason.within);
    let first = line.saturating_sub(within + 1);
    let lines: Vec<_> = text.lines().skip(first).take(line + within - first).collect();
    let plain: Vec<_> =
        lines.iter().enumerate().map(|(n, text)| plain(text, first + n + 1 == line)).collect();
    has_parts(&lines.join("\n"), reason.near) || has_parts(&plain.join("\n"), reason.near)
}

/// A line whose registers and offsets have no numbers, and words one space between them. The edited one begins with `=> `.
fn plain(line: &str, is_edited: bool) -> String {
    let mut plain = String::from(if is_edited { "=> " } else { "" });
    let mut is_number = false;
    for word in line.split_whitespace() {
        if !plain.is_empty() && !plain.ends_with(' ') {
            plain.push(' ');
        }
        let mut before = [' '; 2];
        for c in word.chars() {
            is_number = c.is_ascii_digit() && (is_number || before[1] == '+' || is_register(before));
            if !is_number {
                plain.push(c);
            }
            before = if is_number { before } else { [before[1], c] };
        }
    }
    plain
}

/// Whether these characters name a class of registers.
fn is_register(before: [char; 2]) -> bool {
    matches!(before, ['%', 'r' | 'f' | 'p'] | ['r', 'd' | 's'])
}

impl Kind {
    /// Whether what the checks saw leaves room for a reason of this kind.
    fn agrees_with(self, evidence: &Evidence) -> bool {
        match self {
            Kind::SameValue => evidence.beside.is_some_and(|results| !results.differ),
            Kind::SameOutput | Kind::StrongerBarrier => {
                evidence.checks > 0 && evidence.with_same_bits == evidence.checks
            }
            Kind::BelowTolerance => evidence.checks > 0,
            Kind::NeverExecuted => evidence.checks == 0,
        }
    }
}

#[test]
fn plain_lines_have_no_numbers_that_a_compiler_chose() {
    assert_eq!(plain("  ld.shared.u32  %r12, [%rd806+16544];", false), "ld.shared.u32 %r, [%rd+];");
    assert_eq!(plain("@%p311 bra  $L__BB0_270;", true), "=> @%p bra $L__BB0_270;");
    assert_eq!(plain("add.s32  %r3, %r4, -1;", false), "add.s32 %r, %r, -1;");
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
