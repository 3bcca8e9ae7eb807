//! `natten verify`: runs golden cases on a backend and holds every result to a stated tolerance.

mod report;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use natten::ElementType;

use crate::compute::{BackendFlags, Computed, Kernels, Runner};
use crate::error::CliError;
use crate::golden::{Golden, RESULTS, files_of};
use crate::output;
use report::{Comparison, Report, Summary, Verdict};

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
    /// Fail a case whose forward ran on no kernel with this text in its name.
    #[arg(long, value_name = "TEXT")]
    expect_kernel: Option<String>,
    /// Fail a case whose gradients were computed by no kernel with this text in its name.
    #[arg(long, value_name = "TEXT")]
    expect_backward_kernel: Option<String>,
    /// Print JSON, one object a line: each case, then the summary.
    #[arg(long)]
    json: bool,
}

impl VerifyArgs {
    /// What is wrong with the kernels that ran. A case with nothing to compute ran on none, which is right.
    fn unexpected(&self, kernels: &Kernels) -> Option<String> {
        let passes = [
            ("forward", &kernels.forward, &self.expect_kernel),
            ("backward", &kernels.backward, &self.expect_backward_kernel),
        ];
        passes.into_iter().find_map(|(pass, ran, expected)| {
            let expected = expected.as_deref()?;
            let is_other = !ran.is_empty() && ran.iter().all(|kernel| !kernel.contains(expected));
            is_other.then(|| format!("the {pass} ran on {}, {expected} was expected", ran.join(", ")))
        })
    }
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

/// Runs the verb.
pub fn run(args: &VerifyArgs, is_verbose: bool) -> Result<ExitCode, CliError> {
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
        let details = if is_verbose { report::details(&reports) } else { String::new() };
        output::emit(&format!(
            "{}{details}{}{}",
            report::render(&reports),
            report::kernels_text(&reports),
            summary.text()
        ))?;
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
    let ran = match catch_unwind(AssertUnwindSafe(|| runner.run(&golden))) {
        Ok(Ok(ran)) => ran,
        Ok(Err(error)) => return Verdict::Failed(on_one_line(&error.to_string()), error.rejections()),
        Err(_) => return Verdict::Failed("the backend panicked".to_owned(), Vec::new()),
    };
    if let Some(reason) = args.unexpected(&ran.kernels) {
        return Verdict::Failed(reason, Vec::new());
    }
    Verdict::Compared(Comparison {
        problem: golden.arguments.describe(),
        element_type: golden.element_type,
        tolerance: Tolerance::of(args, golden.element_type),
        errors: compare(&golden, &ran.results),
        kernels: ran.kernels,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// What a driver says in several lines, in one cell of a table.
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
