//! `natten verify`: runs golden cases on a backend and holds every result to a stated tolerance.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use natten::ElementType;
use serde_json::{Map, Value, json};

use crate::compute::{BackendFlags, Computed, Runner};
use crate::error::CliError;
use crate::golden::{Golden, RESULTS, files_of};
use crate::names::escaped;
use crate::output::{self, Rows, Tone, plain};

/// Run golden cases and compare with what they must give.
///
/// A case is a safetensors file with the operator's arguments under the metadata key "problem", inputs q, k, v
/// [add_k, add_v, d_lse], results out, lse [d_q, d_k, d_v, d_add_k, d_add_v], and d_out where there are gradients.
/// A file with other names or with arguments that make no problem is broken. The error of a result is
/// its largest absolute difference over the largest expected entry, or over 1 when that is larger; NaN fails,
/// and an infinite entry must be the same infinity.
///
/// Exit code: 0 when all cases pass, 1 when one fails, 2 when all readable ones pass but a file is broken.
#[derive(Args)]
pub struct VerifyArgs {
    /// Golden files, or folders that hold some.
    #[arg(required = true, value_name = "FILE_OR_FOLDER")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    backend: BackendFlags,
    /// Largest error of out and lse [default: by element type, f32 2e-5].
    #[arg(long, value_name = "ERROR", value_parser = tolerance)]
    tolerance: Option<f64>,
    /// Largest error of gradients [default: by element type, f32 1e-4].
    #[arg(long, value_name = "ERROR", value_parser = tolerance)]
    gradient_tolerance: Option<f64>,
    /// Print JSON, one object a line: each case, then the summary.
    #[arg(long)]
    json: bool,
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("a tolerance is a number, 0 or larger".to_owned()),
    }
}

/// Largest errors allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tolerance {
    forward: f64,
    gradients: f64,
}

impl Tolerance {
    /// f32: well above the rounding of sums of a few thousand terms. 16-bit types: a few units in the last place
    /// of the result and of what is saved between forward and backward. f64: lse is saved, and the scale given,
    /// in f32.
    fn default_of(element_type: ElementType) -> Self {
        match element_type {
            ElementType::F16 => Tolerance { forward: 2e-3, gradients: 1e-2 },
            ElementType::Bf16 => Tolerance { forward: 1.6e-2, gradients: 5e-2 },
            ElementType::F64 => Tolerance { forward: 1e-6, gradients: 1e-5 },
            _ => Tolerance { forward: 2e-5, gradients: 1e-4 },
        }
    }

    fn of(args: &VerifyArgs, element_type: ElementType) -> Self {
        let default = Self::default_of(element_type);
        Tolerance {
            forward: args.tolerance.unwrap_or(default.forward),
            gradients: args.gradient_tolerance.unwrap_or(default.gradients),
        }
    }

    fn for_result(&self, name: &str) -> f64 {
        if name.starts_with("d_") { self.gradients } else { self.forward }
    }
}

/// What became of one file.
struct Report {
    file: PathBuf,
    verdict: Verdict,
}

enum Verdict {
    Compared(Comparison),
    /// The backend refused the problem, failed or panicked.
    Failed(String),
    /// The file is no golden case.
    Broken(String),
}

struct Comparison {
    problem: String,
    element_type: ElementType,
    tolerance: Tolerance,
    /// Error of each result; NaN when either side holds one.
    errors: Vec<(&'static str, f64)>,
    seconds: f64,
}

impl Comparison {
    fn is_within(&self) -> bool {
        self.errors.iter().all(|&(name, error)| error <= self.tolerance.for_result(name))
    }
}

/// Runs the verb.
pub fn run(args: &VerifyArgs) -> Result<ExitCode, CliError> {
    let runner = Runner::new(&args.backend)?;
    let mut reports = Vec::new();
    let mut files = Vec::new();
    for path in &args.paths {
        match files_of(path) {
            Ok(found) => files.extend(found),
            Err(error) => {
                reports.push(Report { file: path.clone(), verdict: Verdict::Broken(error.to_string()) })
            }
        }
    }
    let bar = progress(files.len() as u64, args.json);
    for file in files {
        let verdict = check(&runner, &file, args);
        reports.push(Report { file, verdict });
        bar.inc(1);
    }
    bar.finish_and_clear();
    let summary = Summary::of(&reports, &runner);
    if args.json {
        reports.iter().try_for_each(|report| output::emit_json(&report.to_json()))?;
        output::emit_json(&summary.to_json())?;
    } else {
        output::emit(&format!("{}{}", render(&reports), summary.text()))?;
    }
    Ok(summary.exit_code())
}

/// A bar on standard error; indicatif hides it when that is no terminal.
fn progress(total: u64, hidden: bool) -> ProgressBar {
    if hidden {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} cases, {eta} left");
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn check(runner: &Runner, file: &Path, args: &VerifyArgs) -> Verdict {
    let golden = match Golden::read(file) {
        Ok(golden) => golden,
        Err(error) => return Verdict::Broken(error.to_string()),
    };
    let start = Instant::now();
    // A panic would be a bug of the backend: it must not keep the other cases from running.
    let computed = match catch_unwind(AssertUnwindSafe(|| runner.run(&golden))) {
        Ok(Ok(computed)) => computed,
        Ok(Err(error)) => return Verdict::Failed(on_one_line(&error.to_string())),
        Err(_) => return Verdict::Failed("the backend panicked".to_owned()),
    };
    Verdict::Compared(Comparison {
        problem: golden.arguments.describe(),
        element_type: golden.element_type,
        tolerance: Tolerance::of(args, golden.element_type),
        errors: compare(&golden, &computed),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// A list of reasons, as selection gives, in one cell of a table.
fn on_one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// The error of every result that the file holds. One that the backend did not give counts as NaN.
fn compare(golden: &Golden, computed: &[Computed]) -> Vec<(&'static str, f64)> {
    let expected = RESULTS.into_iter().filter_map(|name| Some((name, golden.get(name)?)));
    expected
        .map(|(name, expected)| {
            let found = computed.iter().find(|result| result.name == name);
            let error = found
                .map_or(f64::NAN, |found| largest_error(found.values.as_slice(), expected.tensor.as_slice()));
            (name, error)
        })
        .collect()
}

/// Largest absolute difference over the largest finite expected entry, or over 1 when that is larger.
fn largest_error(found: &[f64], expected: &[f64]) -> f64 {
    if found.len() != expected.len() {
        return f64::NAN;
    }
    let finite = expected.iter().filter(|value| value.is_finite());
    let largest = finite.fold(1.0f64, |largest, value| largest.max(value.abs()));
    let mut worst = 0.0f64;
    for (&found, &expected) in found.iter().zip(expected) {
        // Equal infinities differ by nothing, though their difference is NaN.
        let difference = if found == expected { 0.0 } else { (found - expected).abs() };
        if difference.is_nan() {
            return f64::NAN;
        }
        worst = worst.max(difference);
    }
    worst / largest
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

    fn to_json(&self) -> Value {
        let file = self.file.display().to_string();
        match &self.verdict {
            Verdict::Broken(reason) => json!({"file": file, "status": "broken", "reason": reason}),
            Verdict::Failed(reason) => json!({"file": file, "status": "failed", "reason": reason}),
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

fn render(reports: &[Report]) -> String {
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
            Verdict::Failed(reason) | Verdict::Broken(reason) => {
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

fn error_cell(comparison: &Comparison, column: &str) -> (String, Tone) {
    let Some(&(_, error)) = comparison.errors.iter().find(|(name, _)| *name == column) else {
        return plain("-");
    };
    let is_within = error <= comparison.tolerance.for_result(column);
    (format!("{error:.1e}"), if is_within { Tone::Plain } else { Tone::Bad })
}

/// The last line.
struct Summary {
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
    fn of(reports: &[Report], runner: &Runner) -> Self {
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

    fn text(&self) -> String {
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

    fn to_json(&self) -> Value {
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

    fn exit_code(&self) -> ExitCode {
        match (self.failed, self.broken) {
            (0, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::from(2),
            _ => ExitCode::from(1),
        }
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_count_infinities_and_nan() {
        let infinity = f64::INFINITY;
        assert_eq!(largest_error(&[-infinity, 1.0], &[-infinity, 1.0]), 0.0);
        assert_eq!(largest_error(&[0.0, 1.0], &[-infinity, 1.0]), infinity);
        assert!(largest_error(&[f64::NAN], &[1.0]).is_nan());
        assert!(largest_error(&[1.0], &[f64::NAN]).is_nan());
        assert!(largest_error(&[1.0], &[]).is_nan());
        assert_eq!(largest_error(&[3.0, 8.0], &[4.0, 8.0]), 0.125);
        assert_eq!(largest_error(&[0.25], &[0.0]), 0.25);
    }
}
