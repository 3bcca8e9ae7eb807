//! What a verification found, for people and for programs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use natten::ElementType;
use serde_json::{Map, Value, json};

use super::Tolerance;
use crate::compute::{Kernels, Runner};
use crate::golden::RESULTS;
use crate::names::escaped;
use crate::output::{self, Rows, Tone, plain};

/// What became of one file.
pub struct Report {
    pub file: PathBuf,
    pub verdict: Verdict,
}

pub enum Verdict {
    Compared(Comparison),
    /// The backend refused the problem, failed, panicked or ran on another kernel than was expected; and what every kernel has
    /// against it, where none serves.
    Failed(String, Vec<(&'static str, String)>),
    /// The file is no golden case.
    Broken(String),
}

pub struct Comparison {
    pub problem: String,
    pub element_type: ElementType,
    pub tolerance: Tolerance,
    /// Error of each result; NaN when either side holds one.
    pub errors: Vec<(&'static str, f64)>,
    pub kernels: Kernels,
    pub seconds: f64,
}

impl Comparison {
    fn is_within(&self) -> bool {
        self.errors.iter().all(|&(name, error)| error <= self.tolerance.for_result(name))
    }
}

impl Report {
    /// The file's name, fit to be shown.
    fn name(&self) -> String {
        let name = self.file.file_name().map_or(self.file.as_path(), Path::new);
        escaped(&name.display().to_string())
    }

    fn is_passed(&self) -> bool {
        matches!(&self.verdict, Verdict::Compared(comparison) if comparison.is_within())
    }

    /// One line of JSON.
    pub fn to_json(&self) -> Value {
        let file = self.file.display().to_string();
        match &self.verdict {
            Verdict::Broken(reason) => json!({"file": file, "status": "broken", "reason": reason}),
            Verdict::Failed(reason, rejections) => json!({
                "file": file,
                "status": "failed",
                "reason": reason,
                "rejected": rejections.iter().map(|(kernel, reason)| json!({"kernel": kernel, "reason": reason}))
                    .collect::<Vec<_>>(),
            }),
            Verdict::Compared(comparison) => {
                let errors: Map<String, Value> = comparison
                    .errors
                    .iter()
                    .map(|(name, error)| ((*name).to_owned(), number(*error)))
                    .collect();
                json!({
                    "file": file,
                    "status": if comparison.is_within() { "passed" } else { "failed" },
                    "problem": comparison.problem,
                    "dtype": comparison.element_type.name(),
                    "errors": errors,
                    "tolerance": comparison.tolerance.forward,
                    "gradient_tolerance": comparison.tolerance.gradients,
                    "kernels": {
                        "forward": comparison.kernels.forward,
                        "backward": comparison.kernels.backward,
                    },
                    "seconds": comparison.seconds,
                })
            }
        }
    }
}

/// JSON has no NaN and no infinity: they become text.
fn number(value: f64) -> Value {
    if value.is_finite() { json!(value) } else { json!(value.to_string()) }
}

/// The table of all cases.
pub fn render(reports: &[Report]) -> String {
    let is_shown = |name: &str| {
        reports.iter().any(|report| match &report.verdict {
            Verdict::Compared(comparison) => comparison.errors.iter().any(|(other, _)| *other == name),
            _ => false,
        })
    };
    let columns: Vec<&str> = RESULTS.into_iter().filter(|name| is_shown(name)).collect();
    let mut table = Rows::new(&[&["case", "problem"], columns.as_slice(), &["time", "result"]].concat());
    for report in reports {
        let mut cells = vec![plain(report.name())];
        match &report.verdict {
            Verdict::Compared(comparison) => {
                cells.push(plain(&comparison.problem));
                cells.extend(columns.iter().map(|column| error_cell(comparison, column)));
                cells.push(plain(output::duration(comparison.seconds)));
            }
            Verdict::Failed(reason, _) | Verdict::Broken(reason) => {
                cells.push(plain(escaped(reason)));
                cells.extend((0..columns.len() + 1).map(|_| plain("")));
            }
        }
        cells.push(match &report.verdict {
            _ if report.is_passed() => ("passed".to_owned(), Tone::Good),
            Verdict::Broken(_) => ("BROKEN".to_owned(), Tone::Bad),
            _ => ("FAILED".to_owned(), Tone::Bad),
        });
        table.push(cells);
    }
    table.render()
}

/// Each kernel that ran, and for how many cases.
pub fn kernels_text(reports: &[Report]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for report in reports {
        let Verdict::Compared(Comparison { kernels: Kernels { forward, backward }, .. }) = &report.verdict
        else {
            continue;
        };
        let mut of_case: Vec<&str> = forward.iter().chain(backward).map(String::as_str).collect();
        of_case.sort();
        of_case.dedup();
        for kernel in of_case {
            match counts.iter_mut().find(|(known, _)| *known == kernel) {
                Some((_, count)) => *count += 1,
                None => counts.push((kernel, 1)),
            }
        }
    }
    counts.sort();
    counts.iter().map(|(kernel, count)| format!("ran on {kernel}: {count}\n")).collect()
}

/// Of each case that no kernel serves, what every kernel has against it.
pub fn details(reports: &[Report]) -> String {
    let mut text = String::new();
    for report in reports {
        if let Verdict::Failed(_, rejections) = &report.verdict
            && !rejections.is_empty()
        {
            text += &format!("{}\n", report.name());
            rejections.iter().for_each(|(kernel, reason)| text += &format!("  {kernel} {reason}\n"));
        }
    }
    text
}

fn error_cell(comparison: &Comparison, column: &str) -> (String, Tone) {
    let Some(&(_, error)) = comparison.errors.iter().find(|(name, _)| *name == column) else {
        return plain("-");
    };
    let is_within = error <= comparison.tolerance.for_result(column);
    (format!("{error:.1e}"), if is_within { Tone::Plain } else { Tone::Bad })
}

/// The last line.
pub struct Summary {
    backend: String,
    passed: usize,
    failed: usize,
    broken: usize,
    /// Error, result and file of what deviates most; what fails comes before what passes.
    worst: Option<(f64, &'static str, String)>,
    /// What was allowed, by element type; one unless the files mix types.
    tolerances: Vec<(ElementType, Tolerance)>,
}

impl Summary {
    /// Over all files.
    pub fn of(reports: &[Report], runner: &Runner) -> Self {
        let passed = reports.iter().filter(|report| report.is_passed()).count();
        let broken = reports.iter().filter(|report| matches!(report.verdict, Verdict::Broken(_))).count();
        let mut tolerances: Vec<(ElementType, Tolerance)> = Vec::new();
        let mut worst: Option<(bool, f64, &'static str, String)> = None;
        for report in reports {
            let Verdict::Compared(comparison) = &report.verdict else { continue };
            let entry = (comparison.element_type, comparison.tolerance);
            if !tolerances.contains(&entry) {
                tolerances.push(entry);
            }
            for &(name, error) in &comparison.errors {
                // NaN is worse than any number.
                let size = if error.is_nan() { f64::INFINITY } else { error };
                let fails = size > comparison.tolerance.for_result(name);
                if worst.as_ref().is_none_or(|(most_fails, most, ..)| (fails, size) > (*most_fails, *most)) {
                    worst = Some((fails, size, name, report.name()));
                }
            }
        }
        Summary {
            backend: runner.describe(),
            passed,
            broken,
            failed: reports.len() - passed - broken,
            worst: worst.map(|(_, error, name, file)| (error, name, file)),
            tolerances,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let total = self.passed + self.failed + self.broken;
        let mut text = format!("{total} cases on {}: {} passed", self.backend, self.passed);
        text += &format!(", {} failed, {} broken", self.failed, self.broken);
        if let Some((error, name, file)) = &self.worst {
            text += &format!("; worst error {error:.2e} ({name} of {file})");
        }
        let allowed: Vec<String> = self
            .tolerances
            .iter()
            .map(|(element_type, allowed)| {
                let Tolerance { forward, gradients } = allowed;
                format!("{element_type} {forward:.1e}, gradients {gradients:.1e}")
            })
            .collect();
        if !allowed.is_empty() {
            text += &format!("; allowed {} of the largest entry or of 1", allowed.join("; "));
        }
        text + "\n"
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let worst = self
            .worst
            .as_ref()
            .map(|(error, name, file)| json!({"error": number(*error), "result": name, "file": file}));
        json!({
            "summary": {
                "backend": self.backend,
                "cases": self.passed + self.failed + self.broken,
                "passed": self.passed,
                "failed": self.failed,
                "broken": self.broken,
                "worst": worst,
            }
        })
    }

    /// Of the program.
    pub fn exit_code(&self) -> ExitCode {
        match (self.failed, self.broken) {
            (0, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::from(2),
            _ => ExitCode::from(1),
        }
    }
}
