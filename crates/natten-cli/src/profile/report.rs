//! What a profile found, for people and for programs, whatever the backend.

use natten::Problem;
use natten::plan::Tiling;
use serde_json::{Value, json};

use super::sample::SampleError;
use super::timing::Timing;
use crate::error::CliError;
use crate::output::{self, Rows, Tone, plain};
use crate::problem_args::{describe, times};

/// One timed pass.
pub struct Pass {
    pub name: &'static str,
    /// Those that compute pairs of a query and a key, with the pairs computed for each one that is wanted, as planned.
    pub kernels: Vec<(String, f64)>,
    pub timing: Timing,
    pub useful_flops: f64,
    pub issued_flops: f64,
    pub error: Option<SampleError>,
}

/// A way to run the problem that was or could be timed.
#[derive(Clone, Debug)]
pub struct Way {
    pub kernel: String,
    /// Of the CPU, or of a thread block.
    pub threads: usize,
    /// What it runs on, for a person.
    pub place: String,
    pub tiling: Option<Tiling>,
    /// As planned.
    pub issued_over_useful: f64,
}

/// A way and its time, or why there is none.
pub struct Trial {
    pub way: Way,
    pub outcome: Result<Timing, String>,
}

/// What a pass is measured against.
#[derive(Clone, Debug)]
pub struct Limits {
    /// FLOP/s that arithmetic alone reaches.
    pub peak_flops: f64,
    pub peak_of: String,
    /// Bytes read and written a second by a copy, where it was measured.
    pub copy_rate: Option<f64>,
    /// FLOP/s of a GPU's CUDA cores, where the peak is of other units.
    pub cuda_core_flops: Option<f64>,
}

/// All of it.
pub struct Report<'a> {
    pub problem: &'a Problem,
    pub backend: &'static str,
    pub device: String,
    pub chosen: Way,
    pub passes: Vec<Pass>,
    pub trials: Vec<Trial>,
    pub limits: Limits,
    /// Kernels that did not run, and why.
    pub rejections: Vec<(String, String)>,
    /// How to get the chosen way in code.
    pub code: Option<String>,
    /// The machine's load before the run, if there was more of it than threads.
    pub crowding: Option<f64>,
}

impl Report<'_> {
    /// Prints it. False if a result was wrong.
    pub fn emit(&self, as_json: bool, described: &Value) -> Result<bool, CliError> {
        match as_json {
            true => self.passes.iter().try_for_each(|pass| output::emit_json(&self.json(pass, described)))?,
            false => output::emit(&self.text())?,
        }
        Ok(self.passes.iter().all(|pass| pass.error.is_none_or(|error| error.is_within())))
    }

    fn json(&self, pass: &Pass, described: &Value) -> Value {
        let (timing, limits) = (&pass.timing, &self.limits);
        let mut line = json!({
            "backend": self.backend,
            "device": self.device,
            "kernel": pass.kernel(),
            "kernels": pass.kernels.iter().map(|(kernel, ratio)| json!({"kernel": kernel, "issued_over_useful": ratio}))
                .collect::<Vec<_>>(),
            "pass": pass.name,
            "median_s": timing.median,
            "min_s": timing.min,
            "max_s": timing.max,
            "quartiles_s": timing.quartiles,
            "runs": timing.runs,
            "useful_gflops": pass.useful_flops / timing.median * 1e-9,
            "issued_gflops": pass.issued_flops / timing.median * 1e-9,
            "peak_gflops": limits.peak_flops * 1e-9,
            "peak_of": limits.peak_of,
            "share_of_peak": pass.useful_flops / timing.median / limits.peak_flops,
            "copy_bytes_per_s": limits.copy_rate,
            "cuda_core_gflops": limits.cuda_core_flops.map(|flops| flops * 1e-9),
            "threads": self.chosen.threads,
            "load": self.crowding,
            "sample_error": pass.error.map(|error| error.to_json()),
            "rejected": self.rejections.iter().map(|(kernel, reason)| json!({"kernel": kernel, "reason": reason}))
                .collect::<Vec<_>>(),
            "trials": self.trials.iter().map(|trial| trial.json(self.problem)).collect::<Vec<_>>(),
            "code": self.code,
            "problem": described,
        });
        line["q_tile"] = sides(self.chosen.tiling.map(|tiling| tiling.query_tile), self.problem);
        line["kv_tile"] = sides(self.chosen.tiling.map(|tiling| tiling.key_tile), self.problem);
        line
    }

    fn text(&self) -> String {
        let mut text = format!("problem  {}\ndevice   {}\n", describe(self.problem), self.device);
        text += &format!("kernel   {}\n", self.chosen.text());
        for line in grouped(&self.rejections) {
            text += &format!("         not {line}\n");
        }
        for pass in self.passes.iter().filter(|pass| pass.kernel() != self.chosen.kernel) {
            let kernels: Vec<String> = pass
                .kernels
                .iter()
                .map(|(kernel, ratio)| format!("{kernel}, {ratio:.2} issued/useful"))
                .collect();
            text += &format!("{:<9}{}\n", pass.name, kernels.join("; "));
        }
        let limits = &self.limits;
        let peak = output::with_prefix(limits.peak_flops, "FLOP/s");
        text += &format!("peak     {peak} of {}, measured before and after\n", limits.peak_of);
        if let Some(flops) = limits.cuda_core_flops {
            let flops = output::with_prefix(flops, "FLOP/s");
            text += &format!("         {flops} of f32 multiply-adds on CUDA cores\n");
        }
        if let Some(rate) = limits.copy_rate {
            let rate = output::with_prefix(rate, "B/s");
            text += &format!("copy     {rate} read and written, measured in the same run\n");
        }
        if let Some(load) = self.crowding {
            text += &format!(
                "busy     other work runs here (load {load:.1}): the fastest run says more than the median\n"
            );
        }
        if !self.trials.is_empty() {
            text += &format!("\nforward, each way\n{}", self.trial_table());
        }
        if let Some(code) = &self.code {
            text += &format!("\nin code  {code}\n");
        }
        text + "\n" + &self.pass_table()
    }

    fn trial_table(&self) -> String {
        let mut table = Rows::new(&["kernel", "q tile", "kv tile", "issued/useful", "median", "fastest"]);
        let best = self.trials.iter().filter_map(|trial| Some(trial.outcome.as_ref().ok()?.median));
        let best = best.fold(f64::INFINITY, f64::min);
        for Trial { way, outcome } in &self.trials {
            let side = |of: fn(&Tiling) -> [usize; 3]| way.box_text(of, self.problem);
            let (median, fastest) = match outcome {
                Ok(timing) => (output::duration(timing.median), output::duration(timing.min)),
                Err(reason) => (reason.clone(), "-".to_owned()),
            };
            let is_best = outcome.as_ref().is_ok_and(|timing| timing.median <= best);
            table.push([
                plain(way.kernel.clone()),
                plain(side(|tiling| tiling.query_tile)),
                plain(side(|tiling| tiling.key_tile)),
                plain(format!("{:.2}", way.issued_over_useful)),
                (median, if is_best { Tone::Good } else { Tone::Plain }),
                plain(fastest),
            ]);
        }
        table.render()
    }

    fn pass_table(&self) -> String {
        let mut table = Rows::new(&[
            "pass",
            "median",
            "fastest",
            "slowest",
            "runs",
            "useful",
            "issued (planned)",
            "of peak",
            "sample error",
        ]);
        for pass in &self.passes {
            let timing = &pass.timing;
            let rate = |flops: f64| output::with_prefix(flops / timing.median, "FLOP/s");
            let share = 100.0 * pass.useful_flops / timing.median / self.limits.peak_flops;
            table.push([
                plain(pass.name),
                plain(output::duration(timing.median)),
                plain(output::duration(timing.min)),
                plain(output::duration(timing.max)),
                plain(timing.runs.to_string()),
                plain(rate(pass.useful_flops)),
                plain(rate(pass.issued_flops)),
                plain(format!("{share:.1} %")),
                match pass.error {
                    None => plain("-"),
                    Some(error) if error.is_within() => plain(format!("{:.1e}", error.error)),
                    Some(error) => (format!("{:.1e} WRONG", error.error), Tone::Bad),
                },
            ]);
        }
        table.render()
    }
}

impl Pass {
    /// The kernels' names.
    fn kernel(&self) -> String {
        let names: Vec<&str> = self.kernels.iter().map(|(kernel, _)| kernel.as_str()).collect();
        names.join(" and ")
    }
}

impl Way {
    /// One line.
    pub fn text(&self) -> String {
        format!("{} on {}", self.kernel, self.place)
    }

    /// For a list in JSON.
    pub fn json(&self, backend: &str, problem: &Problem) -> Value {
        json!({
            "backend": backend,
            "kernel": self.kernel,
            "threads": self.threads,
            "q_tile": sides(self.tiling.map(|tiling| tiling.query_tile), problem),
            "kv_tile": sides(self.tiling.map(|tiling| tiling.key_tile), problem),
            "issued_over_useful": self.issued_over_useful,
        })
    }

    fn box_text(&self, of: fn(&Tiling) -> [usize; 3], problem: &Problem) -> String {
        self.tiling.as_ref().map_or("-".to_owned(), |tiling| box_text(of(tiling), problem))
    }
}

impl Trial {
    fn json(&self, problem: &Problem) -> Value {
        let mut line = self.way.json("", problem);
        if let Some(fields) = line.as_object_mut() {
            fields.remove("backend");
        }
        line["median_s"] = json!(self.outcome.as_ref().ok().map(|timing| timing.median));
        line["refused"] = json!(self.outcome.as_ref().err());
        line
    }
}

/// A box on the axes that the problem has.
pub fn box_text(sides: [usize; 3], problem: &Problem) -> String {
    times(&sides[3 - problem.rank()..])
}

fn sides(sides: Option<[usize; 3]>, problem: &Problem) -> Value {
    sides.map_or(Value::Null, |sides| json!(sides[3 - problem.rank()..]))
}

/// Kernels with the same reason on one line, and only one of them by name where there are many.
fn grouped(rejections: &[(String, String)]) -> Vec<String> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for (kernel, reason) in rejections {
        match groups.iter_mut().find(|(known, _)| known == reason) {
            Some((_, kernels)) => kernels.push(kernel),
            None => groups.push((reason, vec![kernel])),
        }
    }
    let line = |(reason, kernels): (&str, Vec<&str>)| match kernels[..] {
        [first, _, _, ..] => format!("{first} and {} like it: {reason}", kernels.len() - 1),
        _ => format!("{}: {reason}", kernels.join(", ")),
    };
    groups.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_reasons_share_a_line() {
        let rejection = |kernel: &str, reason: &str| (kernel.to_owned(), reason.to_owned());
        let list = [rejection("a", "x"), rejection("b", "y"), rejection("c", "x"), rejection("d", "x")];
        assert_eq!(grouped(&list), ["a and 2 like it: x", "b: y"]);
    }
}
