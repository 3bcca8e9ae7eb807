//! What came of edits: a line each for machines, a table and the holes for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use natten_emulator::mutate::Edit;
use serde_json::json;

use super::reasons::Kind;

/// What came of one edit.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// A check failed: which, what it says, and how many were tried.
    Noticed {
        check: String,
        how: String,
        tried: usize,
    },
    Survived(Survivor),
}

/// An edit that no check noticed.
#[derive(Clone, Debug)]
pub struct Survivor {
    pub evidence: Evidence,
    /// Why the kernel is right all the same; without it the edit is a hole.
    pub reason: Option<(Kind, String)>,
}

/// What is known of a survivor.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Checks that executed the instruction, if any do, and those among them that read back the same bits as ever.
    pub checks: usize,
    pub with_same_bits: usize,
    /// Results of the edited instruction beside those of the original, where it does nothing but compute.
    pub beside: Option<Results>,
    /// Why it changes nothing, by the ranges of its operands.
    pub proof: Option<String>,
}

/// See [`natten_emulator::mutate::Difference`].
#[derive(Clone, Copy, Debug)]
pub struct Results {
    pub runs: u64,
    pub differ: bool,
    pub widest: f64,
}

impl Evidence {
    fn words(&self) -> String {
        let Evidence { checks, with_same_bits, beside, .. } = self;
        if *checks == 0 {
            return "executed by no check".to_owned();
        }
        let results = match beside {
            Some(Results { differ: false, runs, .. }) => format!("; same results in {runs} runs"),
            Some(Results { widest, runs, .. }) => {
                format!("; results differ by up to {widest:.1e} in {runs} runs")
            }
            None => String::new(),
        };
        format!("{checks} checks, same bits in {with_same_bits}{results}")
    }
}

/// One edit and what came of it.
#[derive(Clone, Debug)]
pub struct Report {
    pub family: &'static str,
    pub seed: u64,
    pub kernel: &'static str,
    pub edit: Edit,
    pub verdict: Verdict,
    pub time: Duration,
}

impl Report {
    fn is_hole(&self) -> bool {
        matches!(&self.verdict, Verdict::Survived(Survivor { reason: None, .. }))
    }

    fn is_noticed(&self) -> bool {
        matches!(self.verdict, Verdict::Noticed { .. })
    }

    fn line(&self) -> String {
        let Report { family, seed, kernel, edit, verdict, time } = self;
        let (outcome, detail) = match verdict {
            Verdict::Noticed { check, how, tried } => {
                let how: String = how.chars().take(300).collect();
                ("noticed", json!({ "check": check, "how": how, "tried": tried }))
            }
            Verdict::Survived(Survivor { evidence, reason: None }) => {
                let outcome = if evidence.checks == 0 { "unreached" } else { "hole" };
                (outcome, json!({ "evidence": evidence.words() }))
            }
            Verdict::Survived(Survivor { evidence, reason: Some((kind, why)) }) => (
                "equivalent",
                json!({ "evidence": evidence.words(), "kind": format!("{kind:?}"), "why": why }),
            ),
        };
        let line = json!({
            "family": family, "seed": seed, "kernel": kernel, "operator": edit.operator,
            "instruction": edit.instruction, "line": edit.line, "from": edit.from, "to": edit.to,
            "outcome": outcome, "detail": detail, "seconds": time.as_secs_f64(),
        });
        line.to_string()
    }
}

/// Prints the holes and a table; returns each family's rate in per cent of edits that are not equivalent.
pub fn summary(reports: &[Report]) -> Vec<(&'static str, f64)> {
    let mut text = String::new();
    for report in reports {
        let Report { family, seed, kernel, edit, verdict, .. } = report;
        let what = match verdict {
            Verdict::Survived(Survivor { reason: Some((kind, why)), evidence }) => {
                format!("{kind:?}: {why} ({})", evidence.words())
            }
            Verdict::Survived(Survivor { reason: None, evidence }) => format!("HOLE, {}", evidence.words()),
            Verdict::Noticed { .. } => continue,
        };
        let Edit { operator, line, from, to, .. } = edit;
        let _ = writeln!(text, "{family} seed {seed} {kernel}:{line} {operator}: `{from}` -> {to}: {what}");
    }
    let mut families: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    for report in reports {
        let [all, noticed, holes] = families.entry(report.family).or_default();
        *all += 1;
        *noticed += usize::from(report.is_noticed());
        *holes += usize::from(report.is_hole());
    }
    let _ = writeln!(text, "{:<16} edits  noticed  equivalent  holes   rate", "family");
    let mut rates = Vec::new();
    for (family, [all, noticed, holes]) in families {
        let rate = 100.0 * noticed as f64 / (noticed + holes).max(1) as f64;
        let equivalent = all - noticed - holes;
        let _ =
            writeln!(text, "{family:<16} {all:>5}  {noticed:>7}  {equivalent:>10}  {holes:>5}  {rate:>5.1}");
        rates.push((family, rate));
    }
    println!("{text}");
    rates
}

/// Notes edits as they are done: a line of JSON for each, and how many they are, shown now and then.
pub struct Progress {
    all: usize,
    start: Instant,
    state: Mutex<State>,
}

struct State {
    done: usize,
    shown: Instant,
    lines: Option<File>,
}

impl Progress {
    /// # Panics
    /// When the file for the lines cannot be written.
    pub fn new(all: usize, lines: Option<&Path>) -> Self {
        let open = |path: &Path| File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let start = Instant::now();
        let state = State { done: 0, shown: start, lines: lines.map(open) };
        Progress { all, start, state: Mutex::new(state) }
    }

    pub fn step(&self, report: &Report) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lines) = &mut state.lines {
            writeln!(lines, "{}", report.line()).expect("a file that can be written");
        }
        state.done += 1;
        if state.shown.elapsed() > Duration::from_secs(1) || state.done == self.all {
            state.shown = Instant::now();
            let (done, seconds) = (state.done, self.start.elapsed().as_secs_f64());
            let filled = 40 * done / self.all.max(1);
            let bar = format!("{}{}", "#".repeat(filled), ".".repeat(40 - filled));
            let mut to = std::io::stderr().lock();
            // A bar that cannot be shown is no reason to stop.
            let _ = write!(to, "\r[{bar}] {done} of {} edits, {seconds:.0} s ", self.all);
            let _ = to.flush();
        }
    }
}
