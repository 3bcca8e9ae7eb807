//! `natten profile`: times a problem on a backend, beside the machine's limit measured in the same run.

mod sample;
mod timing;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use natten::cpu::{Cpu, ISA_VARIABLE, Isa};
use natten::plan::{KeyStart, TileCounts, Tiling, tile_boxes};
use natten::{AttentionParams, Call, DynParams, Element, ElementType, Inputs, Problem, Saved, Tensor};
use serde_json::{Value, json};

use crate::error::CliError;
use crate::output::{self, Rows, Tone, plain};
use crate::peak;
use crate::plan::BACKWARD_FACTOR;
use crate::problem_args::{DtypeName, ProblemArgs, describe};
use timing::{Budget, Timing};

/// Queries and keys whose results are held to the reference.
const SAMPLES: usize = 16;

/// Time a problem, and say how far from the machine's limit it runs.
///
/// Prints the median of repeated runs after a warm-up, useful FLOP/s (on visible pairs alone), issued FLOP/s (the
/// planner's count of what vectors compute), and their share of the FMA peak measured right before and after. A sample
/// of the results is held to the f64 reference.
///
/// Example: natten profile -i 64 64 -w 13 -d 64 -n 8 --backprop
#[derive(Args)]
pub struct ProfileArgs {
    #[command(flatten)]
    problem: ProblemArgs,
    /// Element type.
    #[arg(long, value_enum, default_value_t = DtypeName::Fp32)]
    dtype: DtypeName,
    /// What computes; auto takes the best there is.
    #[arg(long, value_enum, default_value_t = ProfileBackend::Auto)]
    backend: ProfileBackend,
    /// Instructions to use on the CPU [default: the best there are].
    #[arg(long)]
    isa: Option<Isa>,
    /// Threads to use on the CPU [default: one for each core].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=4096))]
    threads: Option<u16>,
    /// Time the backward pass too.
    #[arg(long)]
    backprop: bool,
    /// Also time this on the same tensors.
    #[arg(long, value_enum)]
    compare: Option<Comparison>,
    /// Most runs before the timed ones.
    #[arg(long, default_value_t = 10)]
    warmup_steps: usize,
    /// Most timed runs.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Time for warm-up and for timed runs, each; slow problems run less often.
    #[arg(long, default_value_t = 2.0, value_parser = seconds, value_name = "SECONDS")]
    budget: f64,
    /// Time every candidate that the backend can choose from, and take the fastest.
    #[arg(long)]
    optimize: bool,
    /// List the candidates and stop.
    #[arg(long)]
    dry_run: bool,
    /// Most candidates to list or time; 0 means all.
    #[arg(long, default_value_t = 10)]
    max_configs: usize,
    /// Print JSON, one object a pass.
    #[arg(long)]
    json: bool,
}

/// Backends that can be timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProfileBackend {
    /// The best there is: the CPU.
    Auto,
    /// The CPU.
    Cpu,
}

/// What to run beside the problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Comparison {
    /// Full attention over the same tokens.
    Dense,
}

fn seconds(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && (0.0..=3600.0).contains(value));
    value.ok_or_else(|| "seconds between 0 and 3600 are needed".to_owned())
}

/// One way to run the problem.
#[derive(Clone, Debug)]
struct Candidate {
    isa: Isa,
    threads: usize,
    cpu: Cpu,
}

impl Candidate {
    fn new(isa: Isa, threads: usize) -> Result<Self, CliError> {
        Ok(Candidate { isa, threads, cpu: Cpu::new().isa(isa)?.threads(threads)? })
    }

    fn kernel(&self) -> String {
        format!("cpu_{}", self.isa)
    }
}

/// Runs the verb.
pub fn run(args: &ProfileArgs) -> Result<ExitCode, CliError> {
    let problem = args.problem.problem(args.dtype.element_type())?;
    let candidates = candidates(args)?;
    if args.dry_run {
        return list(args, &problem, &candidates);
    }
    check_memory(&problem, args.backprop)?;
    match args.dtype.element_type() {
        ElementType::F16 => profile::<natten::f16>(args, &problem, &candidates),
        ElementType::Bf16 => profile::<natten::bf16>(args, &problem, &candidates),
        ElementType::F64 => profile::<f64>(args, &problem, &candidates),
        _ => profile::<f32>(args, &problem, &candidates),
    }
}

/// What the backend can choose from: the instruction sets of this machine, best first.
fn candidates(args: &ProfileArgs) -> Result<Vec<Candidate>, CliError> {
    let threads = args.threads.map_or_else(peak::threads, usize::from);
    let default = args.isa.map_or_else(|| Cpu::new().chosen_isa(), Ok)?;
    if !(args.optimize || args.dry_run) || args.isa.is_some() {
        return Ok(vec![Candidate::new(default, threads)?]);
    }
    let mut isas: Vec<Isa> = Isa::available().collect();
    // The one that a call would take comes first, then from best to worst.
    isas.sort_by_key(|&isa| (isa != default, std::cmp::Reverse(isa)));
    let limit = if args.max_configs == 0 { usize::MAX } else { args.max_configs };
    isas.into_iter().take(limit).map(|isa| Candidate::new(isa, threads)).collect()
}

fn list(args: &ProfileArgs, problem: &Problem, candidates: &[Candidate]) -> Result<ExitCode, CliError> {
    if args.json {
        for candidate in candidates {
            output::emit_json(&json!({
                "backend": "cpu", "kernel": candidate.kernel(), "threads": candidate.threads,
            }))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("problem  {}\n", describe(problem));
    for candidate in candidates {
        text += &format!("{} on {} threads\n", candidate.kernel(), candidate.threads);
    }
    output::emit(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses what the machine cannot hold, where it says how much that is.
fn check_memory(problem: &Problem, has_backward: bool) -> Result<(), CliError> {
    let size = problem.element_type().size_bytes() as f64;
    let width = (problem.head_dim() + problem.head_dim_v()) as f64;
    let queries = (problem.batch() * problem.query_tokens() * problem.heads()) as f64;
    let keys =
        (problem.batch() * (problem.key_tokens() + problem.additional_keys()) * problem.heads_kv()) as f64;
    let factor = if has_backward { 2.0 } else { 1.0 };
    let needed = (queries + keys) * width * size * factor;
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    });
    match available {
        Some(kilobytes) if needed > kilobytes * 1024.0 => Err(CliError::Memory {
            needed: output::with_prefix(needed, "B"),
            available: output::with_prefix(kilobytes * 1024.0, "B"),
        }),
        _ => Ok(()),
    }
}

/// The tensors of a problem.
struct Operands<E> {
    inputs: Inputs<Tensor<E>>,
    d_out: Tensor<E>,
}

impl<E: Element> Operands<E> {
    /// Numbers between -1 and 1 without pattern; their size decides nothing about the time.
    fn random(args: &ProblemArgs, problem: &Problem) -> Result<Self, CliError> {
        let mut state = 1u64;
        let mut tensor = |shape: &[usize]| -> Result<Tensor<E>, CliError> {
            let drawn = Tensor::from_fn(shape, |_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                E::from_f32((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
            });
            drawn.map_err(|error| natten::Error::from(error).into())
        };
        let rows = |heads: usize, width: usize| {
            [&[problem.batch()], args.input_size.as_slice(), &[heads, width]].concat()
        };
        let (d, d_v) = (problem.head_dim(), problem.head_dim_v());
        let query = tensor(&rows(problem.heads(), d))?;
        let key = tensor(&rows(problem.heads_kv(), d))?;
        let mut inputs = Inputs::new(query, key, tensor(&rows(problem.heads_kv(), d_v))?);
        if problem.additional_keys() > 0 {
            let shape = |width| [problem.batch(), problem.additional_keys(), problem.heads_kv(), width];
            inputs = inputs.with_additional(tensor(&shape(d))?, tensor(&shape(d_v))?);
        }
        Ok(Operands { inputs, d_out: tensor(&problem.out_shape())? })
    }

    fn call<'a>(&'a self, candidate: &Candidate) -> Result<Call<'a, Cpu, E>, natten::Error> {
        let Inputs { query, key, value, additional } = &self.inputs;
        let call = Call::new(query, key, value)?.on(candidate.cpu.clone())?;
        match additional {
            Some([keys, values]) => call.additional(keys, values),
            None => Ok(call),
        }
    }
}

fn profile<E: Element>(
    args: &ProfileArgs,
    problem: &Problem,
    candidates: &[Candidate],
) -> Result<ExitCode, CliError> {
    let crowding = peak::crowding();
    let operands = Operands::<E>::random(&args.problem, problem)?;
    let params = args.problem.params()?;
    let budget = Budget { warmup: args.warmup_steps, runs: args.repeats as usize, seconds: args.budget };
    let (chosen, trials) = match candidates {
        [only] => (only, Vec::new()),
        _ => fastest(&operands, &params, candidates, &budget)?,
    };
    let measured_peak = || peak::fma_flops(chosen.threads, Duration::from_millis(150));
    let peak_before = measured_peak();
    let mut passes = time_passes(args, problem, &operands, &params, chosen, &budget)?;
    let peak_flops = peak_before.max(measured_peak());
    if args.compare == Some(Comparison::Dense) {
        passes.push(time_dense(args, problem, &operands, chosen, &budget)?);
    }
    let report = Report { problem, chosen, passes, trials, peak_flops, isa_asked: args.isa, crowding };
    if args.json {
        let described = args.problem.to_json(problem);
        report.passes.iter().try_for_each(|pass| output::emit_json(&report.pass_json(pass, &described)))?;
    } else {
        output::emit(&report.text())?;
    }
    let is_wrong = report.passes.iter().any(|pass| pass.error.is_some_and(|error| !error.is_within()));
    Ok(if is_wrong { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// A candidate with the time of its forward.
type Trial<'a> = (&'a Candidate, Timing);

/// Times the forward of every candidate.
fn fastest<'a, E: Element>(
    operands: &Operands<E>,
    params: &DynParams,
    candidates: &'a [Candidate],
    budget: &Budget,
) -> Result<(&'a Candidate, Vec<Trial<'a>>), CliError> {
    let bar = timing::progress(candidates.len());
    let mut trials = Vec::new();
    for candidate in candidates {
        bar.set_message(candidate.kernel());
        let call = operands.call(candidate)?;
        trials.push((candidate, Timing::of(budget, || call.forward(params).map(drop))?));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let best = trials.iter().min_by(|a, b| a.1.median.total_cmp(&b.1.median));
    let best = best.map_or(&candidates[0], |(candidate, _)| candidate);
    Ok((best, trials))
}

/// One timed pass.
struct Pass {
    name: &'static str,
    timing: Timing,
    useful_flops: f64,
    issued_flops: f64,
    error: Option<sample::SampleError>,
}

fn time_passes<E: Element>(
    args: &ProfileArgs,
    problem: &Problem,
    operands: &Operands<E>,
    params: &DynParams,
    chosen: &Candidate,
    budget: &Budget,
) -> Result<Vec<Pass>, CliError> {
    let call = operands.call(chosen)?;
    let timing = Timing::of(budget, || call.forward(params).map(drop))?;
    let (out, lse) = call.forward_with_lse(params)?;
    let useful_flops = problem.useful_flops();
    let issued_flops = useful_flops * issued_share(problem, chosen.isa);
    let results = sample::Results { inputs: &operands.inputs, out: &out, lse: &lse, d_out: &operands.d_out };
    let error = Some(results.forward_error(problem, SAMPLES));
    let mut passes = vec![Pass { name: "forward", timing, useful_flops, issued_flops, error }];
    if args.backprop {
        let saved = Saved { out: &out, lse: &lse, d_out: &operands.d_out, d_lse: None };
        let timing = Timing::of(budget, || call.backward(params, &saved).map(drop))?;
        let gradients = call.backward(params, &saved)?;
        passes.push(Pass {
            name: "backward",
            timing,
            useful_flops: BACKWARD_FACTOR * useful_flops,
            issued_flops: BACKWARD_FACTOR * issued_flops,
            error: Some(results.backward_error(problem, &gradients, SAMPLES)),
        });
    }
    Ok(passes)
}

/// Full attention on the same tensors, tokens in a row.
fn time_dense<E: Element>(
    args: &ProfileArgs,
    problem: &Problem,
    operands: &Operands<E>,
    chosen: &Candidate,
    budget: &Budget,
) -> Result<Pass, CliError> {
    let flat = |tensor: &Tensor<E>| {
        let shape = tensor.shape();
        let [heads, width] = [shape[shape.len() - 2], shape[shape.len() - 1]];
        let tokens: usize = args.problem.input_size.iter().product();
        Tensor::from_vec(&[shape[0], tokens, heads, width], tensor.as_slice().to_vec())
            .map_err(natten::Error::from)
    };
    let Inputs { query, key, value, .. } = &operands.inputs;
    let (query, key, value) = (flat(query)?, flat(key)?, flat(value)?);
    let call = Call::new(&query, &key, &value)?.on(chosen.cpu.clone())?;
    let params = AttentionParams::new();
    let timing = Timing::of(budget, || call.forward(&params).map(drop))?;
    let tokens = problem.query_tokens() as f64;
    let pairs = tokens * tokens * (problem.batch() * problem.heads()) as f64;
    let flops = pairs * 2.0 * (problem.head_dim() + problem.head_dim_v()) as f64;
    Ok(Pass { name: "dense", timing, useful_flops: flops, issued_flops: flops, error: None })
}

/// Arithmetic issued over useful on the CPU, as planned: scores for the union of the windows of the queries in one
/// vector, weighted sums for the windows themselves.
fn issued_share(problem: &Problem, isa: Isa) -> f64 {
    let lanes = match isa {
        Isa::Avx2 => 8,
        Isa::Avx512 | Isa::Avx512Bf16 => 16,
        Isa::Neon => 4,
        _ => 1,
    };
    let (d, d_v) = (problem.head_dim() as f64, problem.head_dim_v() as f64);
    let shares = tile_boxes(lanes, problem.axes()).into_iter().map(|query_tile| {
        let tiling = Tiling { query_tile, key_tile: [1; 3], key_start: KeyStart::Dynamic };
        (TileCounts::of(problem, &tiling).issued_over_useful() * d + d_v) / (d + d_v)
    });
    shares.fold(f64::INFINITY, f64::min).max(1.0)
}

struct Report<'a> {
    problem: &'a Problem,
    chosen: &'a Candidate,
    passes: Vec<Pass>,
    trials: Vec<Trial<'a>>,
    peak_flops: f64,
    isa_asked: Option<Isa>,
    /// The machine's load before the run, if there was more of it than threads.
    crowding: Option<f64>,
}

impl Report<'_> {
    fn pass_json(&self, pass: &Pass, described: &Value) -> Value {
        let timing = &pass.timing;
        json!({
            "backend": "cpu",
            "kernel": self.chosen.kernel(),
            "pass": pass.name,
            "median_s": timing.median,
            "min_s": timing.min,
            "max_s": timing.max,
            "quartiles_s": timing.quartiles,
            "runs": timing.runs,
            "useful_gflops": pass.useful_flops / timing.median * 1e-9,
            "issued_gflops": pass.issued_flops / timing.median * 1e-9,
            "peak_gflops": self.peak_flops * 1e-9,
            "share_of_peak": pass.useful_flops / timing.median / self.peak_flops,
            "threads": self.chosen.threads,
            "load": self.crowding,
            "sample_error": pass.error.map(|error| error.to_json()),
            "rejected": self.rejections().iter().map(|(kernel, reason)| json!({"kernel": kernel, "reason": reason}))
                .collect::<Vec<_>>(),
            "trials": self.trials.iter().map(|(candidate, timing)| {
                json!({"kernel": candidate.kernel(), "median_s": timing.median})
            }).collect::<Vec<_>>(),
            "problem": described,
        })
    }

    fn text(&self) -> String {
        let mut text = format!("problem  {}\nkernel   {}", describe(self.problem), self.chosen.kernel());
        text += &format!(" on {} threads\n", self.chosen.threads);
        for (kernel, reason) in self.rejections() {
            text += &format!("         not {kernel}: {reason}\n");
        }
        let peak = output::with_prefix(self.peak_flops, "FLOP/s");
        text += &format!("peak     {peak} of f32 fused multiply-adds, measured before and after\n");
        if let Some(load) = self.crowding {
            text += &format!(
                "busy     other work runs here (load {load:.1}): the fastest run says more than the median\n"
            );
        }
        text += "\n";
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
            table.push([
                plain(pass.name),
                plain(output::duration(timing.median)),
                plain(output::duration(timing.min)),
                plain(output::duration(timing.max)),
                plain(timing.runs.to_string()),
                plain(rate(pass.useful_flops)),
                plain(rate(pass.issued_flops)),
                plain(format!("{:.1} %", 100.0 * pass.useful_flops / timing.median / self.peak_flops)),
                match pass.error {
                    None => plain("-"),
                    Some(error) if error.is_within() => plain(format!("{:.1e}", error.error)),
                    Some(error) => (format!("{:.1e} WRONG", error.error), Tone::Bad),
                },
            ]);
        }
        text + &table.render()
    }

    /// Why the other kernels do not run.
    fn rejections(&self) -> Vec<(String, String)> {
        let reason = |isa: Isa| match self.trials.iter().find(|(candidate, _)| candidate.isa == isa) {
            Some((_, timing)) => format!("timed at {}, slower", output::duration(timing.median)),
            None if !isa.is_available() => "this machine lacks it".to_owned(),
            None if self.isa_asked.is_some() => "another was asked for".to_owned(),
            None if std::env::var_os(ISA_VARIABLE).is_some() => format!("{ISA_VARIABLE} asks for another"),
            None => "there is better".to_owned(),
        };
        let others = Isa::ALL.into_iter().filter(|&isa| isa != self.chosen.isa);
        others.map(|isa| (format!("cpu_{isa}"), reason(isa))).collect()
    }
}
