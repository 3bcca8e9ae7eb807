//! Profiles on the CPU.

use std::time::Duration;

use natten::cpu::{Cpu, ISA_VARIABLE, Isa, peak};
use natten::plan::{KeyStart, TileCounts, Tiling, tile_boxes};
use natten::{AttentionParams, Call, DynParams, Element, Inputs, Problem, Saved, Tensor};

use super::operands::{self, Drawn, Operands};
use super::report::{Limits, Pass, Report, Trial, Way};
use super::sample::Results;
use super::timing::{self, Timing};
use super::{BACKWARD_FACTOR, Job, SAMPLES};
use crate::devices;
use crate::error::CliError;
use crate::machine;
use crate::output;

/// One way to run the problem.
#[derive(Clone, Debug)]
struct Candidate {
    isa: Isa,
    cpu: Cpu,
    way: Way,
}

/// What `--dry-run` lists.
pub fn ways(job: &Job<'_>) -> Result<Vec<Way>, CliError> {
    Ok(candidates(job)?.into_iter().map(|candidate| candidate.way).collect())
}

/// Times the problem. False if a result was wrong.
pub fn run<E: Element>(job: &Job<'_>) -> Result<bool, CliError> {
    let Job { args, problem, .. } = job;
    let candidates = candidates(job)?;
    if let Some(available) = operands::host_memory_bytes() {
        operands::check_memory(operands::tensor_bytes(problem, args.backprop), available)?;
    }
    let crowding = machine::crowding();
    let operands =
        Operands::<Drawn<E>>::random(&args.problem, problem, args.backprop, usize::MAX).on_host()?;
    let params = args.problem.params()?;
    let (chosen, trials) = match &candidates[..] {
        [only] => (only, Vec::new()),
        _ => fastest(job, &operands, &params, &candidates)?,
    };
    let measured_peak = || peak::ceiling(chosen.isa, E::TYPE, chosen.way.threads, Duration::from_millis(150));
    let peak_before = measured_peak();
    let mut passes = time_passes(job, &operands, &params, chosen)?;
    let peak_after = measured_peak();
    let (peak_flops, peak_of) = if peak_after.0 > peak_before.0 { peak_after } else { peak_before };
    if args.compare.is_some() {
        passes.push(time_dense(job, &operands, chosen)?);
    }
    let limits =
        Limits { peak_flops, peak_of: peak_of.describe().to_owned(), copy_rate: None, cuda_core_flops: None };
    let code = args.optimize.then(|| code(chosen));
    let report = Report {
        problem,
        backend: "cpu",
        device: devices::cpu_name().unwrap_or_else(|| "CPU".to_owned()),
        chosen: chosen.way.clone(),
        rejections: rejections(args.isa, chosen, &trials),
        passes,
        trials,
        limits,
        code,
        crowding,
    };
    report.emit(args.json, &args.problem.to_json(problem))
}

/// What the backend can choose from: the instruction sets of this machine, best first.
fn candidates(job: &Job<'_>) -> Result<Vec<Candidate>, CliError> {
    let Job { args, problem, .. } = job;
    let threads = args.threads.map_or_else(machine::threads, usize::from);
    let candidate = |isa: Isa| -> Result<Candidate, CliError> {
        let way = Way {
            kernel: format!("cpu_{isa}"),
            threads,
            place: format!("{threads} threads"),
            tiling: None,
            issued_over_useful: issued_share(problem, isa),
        };
        Ok(Candidate { isa, cpu: Cpu::new().isa(isa)?.threads(threads)?, way })
    };
    let default = args.isa.map_or_else(|| Cpu::new().chosen_isa(), Ok)?;
    if !(args.optimize || args.dry_run) || args.isa.is_some() {
        return Ok(vec![candidate(default)?]);
    }
    let mut isas: Vec<Isa> = Isa::available().collect();
    // The one that a call would take comes first, then from best to worst.
    isas.sort_by_key(|&isa| (isa != default, std::cmp::Reverse(isa)));
    isas.into_iter().take(job.most_candidates()).map(candidate).collect()
}

fn call<'a, E: Element>(
    operands: &'a Operands<Tensor<E>>,
    candidate: &Candidate,
) -> Result<Call<'a, Cpu, E>, natten::Error> {
    let Inputs { query, key, value, additional } = &operands.inputs;
    let call = Call::new(query, key, value)?.on(candidate.cpu.clone())?;
    match additional {
        Some([keys, values]) => call.additional(keys, values),
        None => Ok(call),
    }
}

/// Times the forward of every candidate.
fn fastest<'a, E: Element>(
    job: &Job<'_>,
    operands: &Operands<Tensor<E>>,
    params: &DynParams,
    candidates: &'a [Candidate],
) -> Result<(&'a Candidate, Vec<Trial>), CliError> {
    let bar = timing::progress(candidates.len());
    let budget = job.budget().shared(candidates.len());
    let mut timings = Vec::new();
    for candidate in candidates {
        bar.set_message(candidate.way.kernel.clone());
        let call = call(operands, candidate)?;
        timings.push(Timing::of(&budget, || call.forward(params).map(drop))?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let timed = candidates.iter().zip(timings);
    let trials: Vec<Trial> =
        timed.map(|(candidate, timing)| Trial { way: candidate.way.clone(), outcome: Ok(timing) }).collect();
    let median = |trial: &Trial| trial.outcome.as_ref().map_or(f64::INFINITY, |timing| timing.median);
    let best = candidates.iter().zip(&trials).min_by(|a, b| median(a.1).total_cmp(&median(b.1)));
    Ok((best.map_or(&candidates[0], |(candidate, _)| candidate), trials))
}

fn time_passes<E: Element>(
    job: &Job<'_>,
    operands: &Operands<Tensor<E>>,
    params: &DynParams,
    chosen: &Candidate,
) -> Result<Vec<Pass>, CliError> {
    let (problem, budget) = (job.problem, job.budget());
    let call = call(operands, chosen)?;
    let timing = Timing::of(&budget, || call.forward(params).map(drop))?;
    let (out, lse) = call.forward_with_lse(params)?;
    let useful_flops = problem.useful_flops();
    let issued_flops = useful_flops * chosen.way.issued_over_useful;
    let results = Results { inputs: &operands.inputs, out: &out, lse: &lse };
    let error = Some(results.forward_error(problem, SAMPLES));
    let kernels = vec![(chosen.way.kernel.clone(), chosen.way.issued_over_useful)];
    let mut passes =
        vec![Pass { name: "forward", kernels: kernels.clone(), timing, useful_flops, issued_flops, error }];
    if let Some(d_out) = &operands.d_out {
        let saved = Saved { out: &out, lse: &lse, d_out, d_lse: None };
        let timing = Timing::of(&budget, || call.backward(params, &saved).map(drop))?;
        let gradients = call.backward(params, &saved)?;
        passes.push(Pass {
            name: "backward",
            kernels,
            timing,
            useful_flops: BACKWARD_FACTOR * useful_flops,
            issued_flops: BACKWARD_FACTOR * issued_flops,
            error: Some(results.backward_error(problem, d_out, &gradients, SAMPLES)),
        });
    }
    Ok(passes)
}

/// Full attention on the same tensors, tokens in a row.
fn time_dense<E: Element>(
    job: &Job<'_>,
    operands: &Operands<Tensor<E>>,
    chosen: &Candidate,
) -> Result<Pass, CliError> {
    let [query, key, value] = operands.flat()?;
    let call = Call::new(&query, &key, &value)?.on(chosen.cpu.clone())?;
    let params = AttentionParams::new();
    let timing = Timing::of(&job.budget(), || call.forward(&params).map(drop))?;
    let flops = job.dense_flops();
    let kernels = vec![(chosen.way.kernel.clone(), 1.0)];
    Ok(Pass { name: "dense", kernels, timing, useful_flops: flops, issued_flops: flops, error: None })
}

/// Arithmetic issued over useful, as planned: scores for the union of the windows of the queries in one vector,
/// weighted sums for the windows themselves.
fn issued_share(problem: &Problem, isa: Isa) -> f64 {
    let lanes = match isa {
        Isa::Avx2 | Isa::Avx512Short | Isa::Avx512Bf16Short => 8,
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx | Isa::Avx512Long | Isa::Avx512Bf16Long => 16,
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

/// Why the other kernels do not run.
fn rejections(asked: Option<Isa>, chosen: &Candidate, trials: &[Trial]) -> Vec<(String, String)> {
    let reason = |isa: Isa| {
        let name = format!("cpu_{isa}");
        let trial = trials.iter().find(|trial| trial.way.kernel == name);
        match trial.and_then(|trial| trial.outcome.as_ref().ok()) {
            Some(timing) => format!("timed at {}, slower", output::duration(timing.median)),
            None if !isa.is_available() => "this machine lacks it".to_owned(),
            None if asked.is_some() => "another was asked for".to_owned(),
            None if std::env::var_os(ISA_VARIABLE).is_some() => format!("{ISA_VARIABLE} asks for another"),
            None => "there is better".to_owned(),
        }
    };
    let others = Isa::ALL.into_iter().filter(|&isa| isa != chosen.isa);
    others.map(|isa| (format!("cpu_{isa}"), reason(isa))).collect()
}

/// How to run the fastest.
fn code(chosen: &Candidate) -> String {
    if Cpu::new().chosen_isa().is_ok_and(|default| default == chosen.isa) {
        return "nothing to set: calls take it by themselves".to_owned();
    }
    format!(
        "natten::Call::new(&query, &key, &value)?.on(natten::cpu::Cpu::new().isa(natten::cpu::Isa::{:?})?)?",
        chosen.isa
    )
}
