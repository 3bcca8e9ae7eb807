//! Profiles on a GPU, or on what stands in for one.

use natten::cuda::measure::{Peak, Stopwatch, Timed};
use natten::cuda::{
    Candidate, Cuda, CudaError, CudaTensor, CudaView, CudaViewMut, Decision, Device, RejectionReason, Request,
};
use natten::{
    AttentionParams, Backend, BackwardCall, Element, ForwardCall, Gradients, Inputs, Mask, Output, Problem,
    Saved,
};

use super::operands::{self, Drawn, Operands};
use super::report::{self, Limits, Pass, Report, Trial, Way};
use super::sample::Results;
use super::timing::{self, Timing};
use super::{BACKWARD_FACTOR, Job, SAMPLES};
use crate::error::CliError;
use crate::output;

/// The tensors of a forward pass in device memory.
struct OnDevice<E, D: Device> {
    inputs: Inputs<CudaTensor<E, D>>,
    out: CudaTensor<E, D>,
    lse: CudaTensor<f32, D>,
}

impl<E: Element, D: Device> OnDevice<E, D> {
    /// Tensors of the problem's shapes; `tensor` makes each operand from its shape.
    fn new(cuda: &Cuda<D>, problem: &Problem, inputs: Inputs<CudaTensor<E, D>>) -> Result<Self, CudaError> {
        let out = cuda.allocate::<E>(&problem.out_shape())?;
        Ok(OnDevice { inputs, out, lse: cuda.allocate::<f32>(&problem.lse_shape())? })
    }

    fn views(&self) -> Inputs<CudaView<'_, E>> {
        views(&self.inputs)
    }

    fn forward(&mut self, cuda: &Cuda<D>, problem: &Problem) -> Result<(), CudaError> {
        let OnDevice { inputs, out, lse } = self;
        let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
        cuda.forward(ForwardCall::new(problem, views(inputs), output)?)
    }
}

fn views<E: Element, D: Device>(inputs: &Inputs<CudaTensor<E, D>>) -> Inputs<CudaView<'_, E>> {
    inputs.map(CudaTensor::view)
}

/// Drawn on the host, repeated on the device.
fn repeated<E: Element, D: Timed>(
    cuda: &Cuda<D>,
    inputs: &Inputs<Drawn<E>>,
) -> Result<Inputs<CudaTensor<E, D>>, CudaError> {
    inputs.try_map(|_, drawn| cuda.repeated(&drawn.shape, &drawn.numbers))
}

/// What `--dry-run` lists. Memory is allocated, for kernels to be asked about its layout, but not written.
pub fn ways<E: Element, D: Timed>(job: &Job<'_>, device: D) -> Result<Vec<Way>, CliError> {
    let (cuda, problem) = (Cuda::new(device), job.problem);
    operands::check_memory(operands::tensor_bytes(problem, false), cuda.device().free_bytes()? as f64)?;
    let rows = |heads: usize, width: usize| {
        [&[problem.batch()], job.args.problem.input_size.as_slice(), &[heads, width]].concat()
    };
    let (d, d_v) = (problem.head_dim(), problem.head_dim_v());
    let tensor = |shape: &[usize]| cuda.allocate::<E>(shape);
    let (query, key) = (tensor(&rows(problem.heads(), d))?, tensor(&rows(problem.heads_kv(), d))?);
    let mut inputs = Inputs::new(query, key, tensor(&rows(problem.heads_kv(), d_v))?);
    if problem.additional_keys() > 0 {
        let shape = |width| [problem.batch(), problem.additional_keys(), problem.heads_kv(), width];
        inputs = inputs.with_additional(tensor(&shape(d))?, tensor(&shape(d_v))?);
    }
    let mut tensors = OnDevice::new(&cuda, problem, inputs)?;
    let candidates = candidates(job, &cuda, &mut tensors)?;
    Ok(candidates.iter().map(|candidate| way(candidate, problem)).collect())
}

/// Times the problem. False if a result was wrong.
pub fn run<E: Element, D: Timed>(job: &Job<'_>, backend: &'static str, device: D) -> Result<bool, CliError> {
    let Job { args, problem, .. } = job;
    let needed = operands::tensor_bytes(problem, args.backprop);
    operands::check_memory(needed, device.free_bytes()? as f64)?;
    if let Some(available) = operands::host_memory_bytes() {
        operands::check_memory(operands::result_bytes(problem, args.backprop), available)?;
    }
    let stopwatch = Stopwatch::new(device.clone());
    let operands = Operands::<Drawn<E>>::random(&args.problem, problem, args.backprop, operands::PERIOD);
    let mut cuda = Cuda::new(device);
    let mut tensors = OnDevice::new(&cuda, problem, repeated(&cuda, &operands.inputs)?)?;
    let default = decide(&cuda, problem, &mut tensors)?;
    let mut trials = Vec::new();
    if args.optimize {
        let candidates = candidates(job, &cuda, &mut tensors)?;
        let (best, timed) = fastest(job, &cuda, &stopwatch, &mut tensors, &candidates)?;
        (cuda, trials) = (cuda.with_request(best.request), timed);
    }
    let decision = decide(&cuda, problem, &mut tensors)?;
    let limits_before = limits(&stopwatch, cuda.device(), E::TYPE)?;
    let mut passes = time_passes(job, &cuda, &stopwatch, &mut tensors, &operands, &decision)?;
    let mut limits = limits(&stopwatch, cuda.device(), E::TYPE)?;
    limits.peak_flops = limits.peak_flops.max(limits_before.peak_flops);
    limits.copy_rate = limits.copy_rate.into_iter().chain(limits_before.copy_rate).reduce(f64::max);
    if args.compare.is_some() {
        drop(tensors);
        passes.push(time_dense(job, &cuda, &stopwatch, &operands)?);
    }
    let chosen = way(
        &Candidate {
            request: Request { entry: Some(decision.kernel), tiling: decision.tiling, ..Request::default() },
            threads: decision.threads,
            issued_over_useful: decision.issued_over_useful,
            microseconds: decision.microseconds,
        },
        problem,
    );
    let report = Report {
        problem,
        backend,
        device: device_name(cuda.device()),
        code: args.optimize.then(|| code(&default, &decision)),
        chosen,
        rejections: rejections(&default, &decision, &trials),
        passes,
        trials,
        limits,
        crowding: None,
    };
    report.emit(args.json, &args.problem.to_json(problem))
}

fn device_name(device: &impl Device) -> String {
    let properties = device.properties();
    format!("{} (compute capability {})", properties.name, properties.compute_capability)
}

fn decide<E: Element, D: Device>(
    cuda: &Cuda<D>,
    problem: &Problem,
    tensors: &mut OnDevice<E, D>,
) -> Result<Decision, CudaError> {
    let OnDevice { inputs, out, lse } = tensors;
    let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
    cuda.explain(problem, &views(inputs), &output)
}

fn candidates<E: Element, D: Device>(
    job: &Job<'_>,
    cuda: &Cuda<D>,
    tensors: &mut OnDevice<E, D>,
) -> Result<Vec<Candidate>, CudaError> {
    let OnDevice { inputs, out, lse } = tensors;
    let output: Output<CudaViewMut<'_, E>, _> = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
    cuda.tune(job.problem, &views(inputs), &output, job.most_candidates())
}

fn way(candidate: &Candidate, problem: &Problem) -> Way {
    let place = match &candidate.request.tiling {
        None => "exact windows".to_owned(),
        Some(tiling) => format!(
            "boxes of {} queries and {} keys",
            report::box_text(tiling.query_tile, problem),
            report::box_text(tiling.key_tile, problem)
        ),
    };
    Way {
        kernel: candidate.request.entry.unwrap_or("any kernel").to_owned(),
        threads: candidate.threads as usize,
        place: format!("{place}, {:.2} issued/useful", candidate.issued_over_useful),
        tiling: candidate.request.tiling,
        issued_over_useful: candidate.issued_over_useful,
    }
}

/// Why the others did not run: those timed were slower, the rest selection had reasons against.
fn rejections(default: &Decision, chosen: &Decision, trials: &[Trial]) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let is_new = |found: &[(String, String)], kernel: &str| {
        kernel != chosen.kernel && found.iter().all(|(known, _)| known != kernel)
    };
    for Trial { way, outcome } in trials {
        if is_new(&found, &way.kernel) {
            let reason = match outcome {
                Ok(timing) => format!("timed at {}, slower", output::duration(timing.median)),
                Err(reason) => reason.clone(),
            };
            found.push((way.kernel.clone(), reason));
        }
    }
    // Kernels for another element type are no alternative.
    let is_type = |reason: &RejectionReason| matches!(reason, RejectionReason::ElementType { .. });
    for rejection in default.rejections.0.iter().filter(|rejection| !is_type(&rejection.reason)) {
        if is_new(&found, rejection.kernel) {
            found.push((rejection.kernel.to_owned(), rejection.reason.to_string()));
        }
    }
    found
}

/// Times the forward of every candidate. One that a kernel refuses is listed with its reason.
fn fastest<E: Element, D: Timed>(
    job: &Job<'_>,
    cuda: &Cuda<D>,
    stopwatch: &Stopwatch<D>,
    tensors: &mut OnDevice<E, D>,
    candidates: &[Candidate],
) -> Result<(Candidate, Vec<Trial>), CliError> {
    let bar = timing::progress(candidates.len());
    let budget = job.budget().shared(candidates.len());
    let (mut trials, mut best) = (Vec::new(), (candidates[0], f64::INFINITY));
    for candidate in candidates {
        let way = way(candidate, job.problem);
        bar.set_message(way.kernel.clone());
        let cuda = cuda.clone().with_request(candidate.request);
        let seconds = stopwatch.repeat(&budget.repeats(), || tensors.forward(&cuda, job.problem));
        let outcome = match seconds {
            Ok(seconds) => Ok(Timing::from_seconds(seconds)),
            Err(CudaError::Unsupported(_)) => Err("not for tensors that lie so".to_owned()),
            Err(error) => return Err(error.into()),
        };
        if let Ok(timing) = &outcome
            && timing.median < best.1
        {
            best = (*candidate, timing.median);
        }
        trials.push(Trial { way, outcome });
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((best.0, trials))
}

fn limits<D: Timed>(
    stopwatch: &Stopwatch<D>,
    device: &D,
    element_type: natten::ElementType,
) -> Result<Limits, CliError> {
    let capability = device.properties().compute_capability;
    let no_limits = CliError::NoLimits { element_type };
    let (peak, cores) = Peak::of(element_type, capability).zip(Peak::of_cuda_cores()).ok_or(no_limits)?;
    let is_cores = peak.kernel.entry == cores.kernel.entry;
    Ok(Limits {
        peak_flops: stopwatch.peak_flops(&peak)?,
        peak_of: match is_cores {
            true => peak.what.to_owned(),
            false => format!("{element_type} {}", peak.what),
        },
        copy_rate: Some(stopwatch.copy_rate()?),
        cuda_core_flops: if is_cores { None } else { Some(stopwatch.peak_flops(&cores)?) },
    })
}

fn time_passes<E: Element, D: Timed>(
    job: &Job<'_>,
    cuda: &Cuda<D>,
    stopwatch: &Stopwatch<D>,
    tensors: &mut OnDevice<E, D>,
    operands: &Operands<Drawn<E>>,
    decision: &Decision,
) -> Result<Vec<Pass>, CliError> {
    let (problem, repeats) = (job.problem, job.budget().repeats());
    let seconds = stopwatch.repeat(&repeats, || tensors.forward(cuda, problem))?;
    let (out, lse) = (cuda.download(&tensors.out)?, cuda.download(&tensors.lse)?);
    let results = Results { inputs: &operands.inputs, out: &out, lse: &lse };
    let useful_flops = problem.useful_flops();
    let mut passes = vec![Pass {
        name: "forward",
        kernels: vec![(decision.kernel.to_owned(), decision.issued_over_useful)],
        timing: Timing::from_seconds(seconds),
        useful_flops,
        issued_flops: useful_flops * decision.issued_over_useful,
        error: Some(results.forward_error(problem, SAMPLES)),
    }];
    let Some(d_out) = &operands.d_out else { return Ok(passes) };

    let on_device = cuda.repeated(&d_out.shape, &d_out.numbers)?;
    let mut workspace = cuda.allocate::<f32>(&[cuda.backward_workspace_len(problem).max(1)])?;
    let mut gradients = gradients_like(cuda, &tensors.inputs)?;
    let seconds = stopwatch.repeat(&repeats, || {
        let saved =
            Saved { out: tensors.out.view(), lse: tensors.lse.view(), d_out: on_device.view(), d_lse: None };
        let gradients = gradients.map_mut(CudaTensor::view_mut);
        let call = BackwardCall::new(problem, tensors.views(), saved, gradients)?;
        cuda.backward_with(call, &mut workspace.view_mut())
    })?;
    let found = gradients.try_map(|_, gradient| cuda.download(gradient))?;
    let kernels = cuda.explain_backward(problem, &tensors.views())?;
    // Of five products for each pair, scores and their gradients are computed in both passes, if there are two: three and four.
    let issued = match &kernels[..] {
        [of_queries, of_keys] => {
            (3.0 * of_queries.issued_over_useful + 4.0 * of_keys.issued_over_useful) / 5.0
        }
        others => others.iter().map(|kernel| kernel.issued_over_useful).fold(1.0, f64::max),
    };
    let kernels = kernels.iter().map(|kernel| (kernel.kernel.to_owned(), kernel.issued_over_useful));
    passes.push(Pass {
        name: "backward",
        kernels: kernels.collect(),
        timing: Timing::from_seconds(seconds),
        useful_flops: BACKWARD_FACTOR * useful_flops,
        issued_flops: BACKWARD_FACTOR * useful_flops * issued,
        error: Some(results.backward_error(problem, d_out, &found, SAMPLES)),
    });
    Ok(passes)
}

fn gradients_like<E: Element, D: Device>(
    cuda: &Cuda<D>,
    inputs: &Inputs<CudaTensor<E, D>>,
) -> Result<Gradients<CudaTensor<E, D>>, CudaError> {
    Ok(inputs.try_map(|_, tensor| cuda.allocate(tensor.shape()))?.into_gradients())
}

/// Full attention on the same tensors, tokens in a row.
fn time_dense<E: Element, D: Timed>(
    job: &Job<'_>,
    cuda: &Cuda<D>,
    stopwatch: &Stopwatch<D>,
    operands: &Operands<Drawn<E>>,
) -> Result<Pass, CliError> {
    let cuda = cuda.clone().with_request(Request::default());
    let Inputs { query, key, value, .. } = &operands.inputs;
    let flat = |drawn: &Drawn<E>| cuda.repeated(&operands::flat_shape(&drawn.shape), &drawn.numbers);
    let inputs = Inputs::new(flat(query)?, flat(key)?, flat(value)?);
    let layouts = views(&inputs).map(|view| *view.layout());
    let problem = AttentionParams::new().problem(&layouts, E::TYPE)?;
    let mut tensors = OnDevice::new(&cuda, &problem, inputs)?;
    let decision = decide(&cuda, &problem, &mut tensors)?;
    let seconds = stopwatch.repeat(&job.budget().repeats(), || tensors.forward(&cuda, &problem))?;
    let flops = job.dense_flops();
    Ok(Pass {
        name: "dense",
        kernels: vec![(decision.kernel.to_owned(), decision.issued_over_useful)],
        timing: Timing::from_seconds(seconds),
        useful_flops: flops,
        issued_flops: flops * decision.issued_over_useful,
        error: None,
    })
}

/// How to run the fastest.
fn code(default: &Decision, chosen: &Decision) -> String {
    if (default.kernel, default.tiling) == (chosen.kernel, chosen.tiling) {
        return "nothing to set: calls take it by themselves".to_owned();
    }
    let tiling = chosen.tiling.map(|tiling| {
        format!(
            "Some(Tiling {{ query_tile: {:?}, key_tile: {:?}, key_start: KeyStart::{:?} }})",
            tiling.query_tile, tiling.key_tile, tiling.key_start
        )
    });
    format!(
        "Cuda::new(device).with_request(Request {{ entry: Some({:?}), tiling: {}, ..Request::default() }})",
        chosen.kernel,
        tiling.unwrap_or_else(|| "None".to_owned())
    )
}
