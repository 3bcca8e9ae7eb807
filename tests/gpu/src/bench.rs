//! Times the operator on the GPU: every problem of problems.json, in every family of kernels that selection offers.
//!
//! Device events around batches of launches that last a millisecond or more together, after a warm-up; the median of many.
//! Buffers rotate where they would fit the cache. Outputs of the families are compared with one another on samples.

use std::time::{Duration, Instant};

use natten_core::{Element, ElementType, Layout, Problem, bf16, f16};
use natten_cuda::driver::Driver;
use natten_cuda::{ComputeCapability, Cuda, CudaError};
use serde_json::{Value, json};

use crate::calls::{Operands, Set, backward_pass, fill_kernel, forward, issued_over_useful, ways};
use crate::driver::{Checked, Failure, Gpu, Timer, copy};
use crate::problems::{Timed, problems};
use natten_tests::watched::{Launches, Watched};

/// What to time.
pub struct Request {
    /// Only problems whose name contains one of these.
    pub filters: Vec<String>,
    /// Seconds after which no new measurement starts.
    pub seconds: u64,
    /// Rate of a large bf16 matrix product, if it was measured.
    pub matmul_tflops: Option<f64>,
    /// Only these architectures, types and lengths of heads; all where nothing is said.
    pub capabilities: Option<Vec<ComputeCapability>>,
    pub types: Option<Vec<ElementType>>,
    pub head_dims: Option<Vec<usize>>,
    /// No backward.
    pub forward_only: bool,
    /// Of each forward so many ways, as the tuner ranks them, in turns.
    pub ways: usize,
}

/// A slow call is timed a few times only.
const TARGET_MS: f64 = 120.0;
const RUNS: (usize, usize) = (3, 40);
/// The device is not kept waiting for the host longer than this.
const LONGEST_WAIT: Duration = Duration::from_millis(150);
/// Kernels on CUDA cores are not tried where they would take longer: at this many useful TFLOP/s, in seconds.
const SLOW: (f64, f64) = (6.0, 0.4);
/// A call longer than this, in milliseconds, is timed once after its warm-up.
const LONG_MS: f64 = 300.0;

/// Each of several ways is timed so many times, in turns.
const TURNS: usize = 3;

/// What was found of one call.
struct Run<'a> {
    launches: &'a Launches,
    backward: bool,
    /// Milliseconds, sorted.
    times: &'a [f64],
    sets: usize,
    /// Of its result to the first family's.
    difference: Option<f64>,
    /// Pairs computed over pairs wanted.
    ratio: Option<f64>,
}

/// One family: the device posing for a capability.
struct Family {
    capability: ComputeCapability,
    device: Watched<Driver>,
    cuda: Cuda<Watched<Driver>>,
}

/// Times everything; one object a measurement.
///
/// # Errors
/// When the device cannot be used at all.
pub fn run(gpu: &Gpu, driver: &Driver, request: &Request) -> Checked<Value> {
    let start = Instant::now();
    let timer = Timer::new(gpu)?;
    let copy_tbs = copy_rate(gpu, &timer)?;
    let matmul = request.matmul_tflops.map_or("not measured".to_owned(), |rate| format!("{rate:.0} TFLOP/s"));
    println!("copy {copy_tbs:.2} TB/s (read and written); bf16 matrix product {matmul}");
    println!("{}", HEADER);
    let real = Watched::new(driver.clone());
    let own = natten_cuda::Device::properties(&real).compute_capability;
    let posing = [(8, 0), (5, 0)].map(|(major, minor)| ComputeCapability { major, minor });
    let families: Vec<Family> = [own]
        .into_iter()
        .chain(posing.into_iter().filter(|&older| older < own))
        .filter(|capability| request.capabilities.as_ref().is_none_or(|wanted| wanted.contains(capability)))
        .map(|capability| {
            let device = Watched::posing(driver.clone(), capability);
            Family { capability, cuda: Cuda::new(device.clone()), device }
        })
        .collect();
    let bench = Bench { gpu, timer, families, request, start, fill: gpu.load(&fill_kernel().ptx())? };
    let mut lines = Vec::new();
    for timed in problems().map_err(|text| Failure { text })? {
        let wanted =
            request.filters.is_empty() || request.filters.iter().any(|f| timed.name.contains(f.as_str()));
        if !wanted {
            continue;
        }
        for (i, &head_dim) in timed.head_dims.iter().enumerate() {
            let types = if i == 0 || timed.every_type { timed.types.len() } else { 1 };
            if request.head_dims.as_ref().is_some_and(|wanted| !wanted.contains(&head_dim)) {
                continue;
            }
            for &ty in &timed.types[..types] {
                if request.types.as_ref().is_some_and(|wanted| !wanted.contains(&ty)) {
                    continue;
                }
                let done = match ty {
                    ElementType::F32 => bench.measure::<f32>(&timed, head_dim, &mut lines),
                    ElementType::F16 => bench.measure::<f16>(&timed, head_dim, &mut lines),
                    _ => bench.measure::<bf16>(&timed, head_dim, &mut lines),
                };
                if let Err(failure) = done {
                    println!("{} hd {head_dim} {ty}: {failure}", timed.name);
                    lines.push(json!({ "problem": timed.name, "head_dim": head_dim, "type": ty.name(), "error": failure.text }));
                    // What broke the context breaks everything after it.
                    gpu.synchronize()?;
                }
            }
        }
    }
    Ok(json!({ "copy_tbs": copy_tbs, "matmul_tflops": request.matmul_tflops, "measurements": lines }))
}

const HEADER: &str = "problem               hd type pass     kernel                              ms  useful  issued TFLOP/s   share  vs simt  host ms  plan ms";

struct Bench<'a> {
    gpu: &'a Gpu,
    timer: Timer,
    families: Vec<Family>,
    request: &'a Request,
    start: Instant,
    fill: crate::driver::Module,
}

impl Bench<'_> {
    fn measure<E: Element>(&self, timed: &Timed, head_dim: usize, lines: &mut Vec<Value>) -> Checked<()> {
        if self.start.elapsed().as_secs() >= self.request.seconds {
            lines.push(json!({ "problem": timed.name, "head_dim": head_dim, "type": E::TYPE.name(), "skipped": "no time left" }));
            return Ok(());
        }
        let problem = timed.problem(head_dim, E::TYPE).map_err(|text| Failure { text })?;
        let bytes = timed.elements(head_dim) * size_of::<E>();
        let has_backward = timed.backward.contains(&head_dim) && !self.request.forward_only;
        let tensors = if has_backward { 8 } else { 4 };
        // Three times the cache, so that a set has left it when its turn comes again.
        let count = (3 * self.gpu.l2_bytes).div_ceil(tensors * bytes).clamp(1, 24);
        let operands = Operands { bytes, tensors, rows: timed.elements(1), element_type: E::TYPE };
        let sets =
            (0..count).map(|i| operands.filled(self.gpu, &self.fill, i)).collect::<Checked<Vec<_>>>()?;
        let layout =
            Layout::contiguous(&timed.shape(head_dim)).map_err(|e| Failure { text: e.to_string() })?;
        let shape = timed.shape(head_dim);
        let lse_layout =
            Layout::contiguous(&shape[..shape.len() - 1]).map_err(|e| Failure { text: e.to_string() })?;
        let (mut seen, mut sample): (Vec<String>, Option<Vec<f64>>) = (Vec::new(), None);
        // The oldest first: its kernels on CUDA cores are the yardstick of the others' results.
        for family in self.families.iter().rev() {
            for backward in [false, true] {
                if backward && !has_backward {
                    continue;
                }
                let call = |i: usize| match backward {
                    false => forward::<E>(&family.cuda, &problem, &sets[i % count], layout, lse_layout),
                    true => backward_pass::<E>(&family.cuda, &problem, &sets[i % count], layout, lse_layout),
                };
                let mut note = |key: &str, text: &str| {
                    let pass = if backward { "backward" } else { "forward" };
                    let capability = family.capability.to_string();
                    lines.push(json!({ "problem": timed.name, "head_dim": head_dim, "type": E::TYPE.name(), "pass": pass, "capability": capability, key: text }));
                };
                let (launches, plan_ms) = match family.planned(&call) {
                    Ok(planned) => planned,
                    Err(error) => {
                        let text = error.to_string();
                        println!("{:<21} {head_dim:>3} {:<4}  {}", timed.name, E::TYPE, first_line(&text));
                        note("error", &text);
                        continue;
                    }
                };
                let key = format!("{backward} {:?}", launches.keys().collect::<Vec<_>>());
                let work = problem.useful_flops() * if backward { 2.5 } else { 1.0 };
                if seen.contains(&key) {
                    note("same_as", main_kernel(&launches));
                    continue;
                }
                seen.push(key);
                if main_kernel(&launches).contains("_simt_") && work / (SLOW.0 * 1e12) > SLOW.1 {
                    note("skipped", "too slow on CUDA cores");
                    continue;
                }
                if backward {
                    // Outputs and log-sum-exps that belong to the operands, in every set.
                    let forward = |i| forward::<E>(&family.cuda, &problem, &sets[i], layout, lse_layout);
                    (0..count).try_for_each(forward).map_err(|e| Failure { text: e.to_string() })?;
                }
                let (times, host_ms) = self.times(count, &call)?;
                let difference = self.difference::<E>(&sets[0], bytes, backward, &mut sample)?;
                let layouts = (layout, lse_layout);
                let ratio = issued_over_useful::<E>(&family.cuda, &problem, &sets[0], layouts, backward).ok();
                let run =
                    Run { launches: &launches, backward, times: &times, sets: count, difference, ratio };
                let mut line = self.line(timed, &problem, &run);
                (line["host_ms"], line["plan_ms"]) = (json!(host_ms), json!(plan_ms));
                println!("{}", row(&line));
                lines.push(line);
            }
            if self.request.ways > 1 {
                self.ways::<E>(family, timed, &problem, &sets, (layout, lse_layout), lines)?;
            }
        }
        Ok(())
    }

    /// Milliseconds of one call on the device, many times, sorted; and milliseconds that the host needs to queue one.
    fn times(&self, sets: usize, call: &impl Fn(usize) -> Result<(), CudaError>) -> Checked<(Vec<f64>, f64)> {
        let time = |ahead: Duration, count: usize, first: usize| {
            self.timer.time(self.gpu, ahead, || (first..first + count).try_for_each(call))
        };
        self.gpu.synchronize()?;
        let mut queueing = Vec::new();
        let start = Instant::now();
        for i in 0..5 {
            let before = Instant::now();
            call(i).map_err(|error| Failure { text: error.to_string() })?;
            queueing.push(before.elapsed());
            self.gpu.synchronize()?;
            if start.elapsed().as_secs_f64() * 1e3 > LONG_MS {
                break;
            }
        }
        queueing.sort();
        let host = queueing[queueing.len() / 2];
        // A bit more than the host needs for so many calls.
        let ahead =
            |calls: usize| (host * calls as u32 * 3 / 2 + Duration::from_micros(30)).min(LONGEST_WAIT);
        let once = time(ahead(1), 1, 0)?;
        if once > LONG_MS {
            // The call before has warmed up enough.
            return Ok((vec![once], host.as_secs_f64() * 1e3));
        }
        let warm_up = ((20.0 / once) as usize).clamp(1, 50);
        time(Duration::ZERO, warm_up, 0)?;
        let once = time(ahead(1), 1, 0)?;
        // Batches: the gaps between launches and the events' own cost stay out of short kernels.
        let batch = if once > 1.0 { 1 } else { ((1.5 / once.max(1e-3)).ceil() as usize).max(sets) };
        let runs = ((TARGET_MS / (once * batch as f64)) as usize).clamp(RUNS.0, RUNS.1);
        let mut times = Vec::new();
        for run in 0..runs {
            times.push(time(ahead(batch), batch, run * batch)? / batch as f64);
        }
        times.sort_by(f64::total_cmp);
        Ok((times, host.as_secs_f64() * 1e3))
    }

    /// Largest difference of the output (or the query's gradient) to that of the first family, on a sample.
    fn difference<E: Element>(
        &self,
        set: &Set,
        bytes: usize,
        backward: bool,
        sample: &mut Option<Vec<f64>>,
    ) -> Checked<Option<f64>> {
        if backward {
            return Ok(None);
        }
        let buffer = &set.tensors[3];
        let mut found = Vec::new();
        let step = (bytes / 64).max(1).next_multiple_of(4096);
        for from in (0..bytes).step_by(step) {
            let content = self.gpu.download_part(buffer, from, 4096.min(bytes - from))?;
            found.extend(
                content.chunks_exact(size_of::<E>()).map(|b| bytemuck::pod_read_unaligned::<E>(b).to_f64()),
            );
        }
        match sample {
            None => {
                *sample = Some(found);
                Ok(None)
            }
            Some(first) => {
                let worst = first.iter().zip(&found).map(|(a, b)| (a - b).abs());
                Ok(Some(worst.fold(0.0, |worst: f64, e| if e.is_nan() { f64::NAN } else { worst.max(e) })))
            }
        }
    }

    /// Times the best ways of a forward in turns, and says how each cuts the problem.
    fn ways<E: Element>(
        &self,
        family: &Family,
        timed: &Timed,
        problem: &Problem,
        sets: &[Set],
        layouts: (Layout, Layout),
        lines: &mut Vec<Value>,
    ) -> Checked<()> {
        let failure = |error: CudaError| Failure { text: error.to_string() };
        let ways = ways::<E>(&family.cuda, problem, &sets[0], layouts, self.request.ways).map_err(failure)?;
        let asking: Vec<_> =
            ways.iter().map(|way| Cuda::new(family.device.clone()).with_request(way.request)).collect();
        let mut medians = vec![Vec::new(); ways.len()];
        for _ in 0..TURNS {
            for (cuda, medians) in asking.iter().zip(&mut medians) {
                let call =
                    |i: usize| forward::<E>(cuda, problem, &sets[i % sets.len()], layouts.0, layouts.1);
                let (times, _) = self.times(sets.len(), &call)?;
                medians.push(times[(times.len() - 1) / 2]);
            }
        }
        for (way, medians) in ways.iter().zip(&mut medians) {
            medians.sort_by(f64::total_cmp);
            let (kernel, ms) = (way.request.entry.unwrap_or("?"), medians[medians.len() / 2]);
            let boxes = way
                .request
                .tiling
                .map_or(String::new(), |tiling| format!("{:?} x {:?}", tiling.query_tile, tiling.key_tile));
            let (issued, predicted) = (way.issued_over_useful, way.microseconds / 1e3);
            let name = kernel.replace("natten_", "").replace("forward_", "");
            println!(
                "    {name:<26} {boxes:<28} {ms:>9.4} ms, predicted {predicted:>9.4}, issued/useful {issued:.2}"
            );
            lines.push(json!({
                "problem": timed.name, "head_dim": problem.head_dim(), "type": problem.element_type().name(), "way": kernel,
                "boxes": boxes, "median_ms": ms, "predicted_ms": predicted, "issued_over_useful": issued,
            }));
        }
        Ok(())
    }

    fn line(&self, timed: &Timed, problem: &Problem, run: &Run<'_>) -> Value {
        let &Run { launches, backward, times, sets, difference, ratio } = run;
        let factor = if backward { 2.5 } else { 1.0 };
        let median = times[(times.len() - 1) / 2];
        let useful = problem.useful_flops() * factor;
        let main = main_kernel(launches);
        let issued = ratio.map(|ratio| useful * ratio);
        let rate = |flops: f64| flops / median / 1e9;
        let shapes: Vec<Value> = launches
            .iter()
            .map(|(name, (_, config))| json!({ "kernel": name, "grid": config.grid, "block": config.block, "shared_bytes": config.shared_bytes }))
            .collect();
        json!({
            "problem": timed.name, "head_dim": problem.head_dim(), "type": problem.element_type().name(),
            "pass": if backward { "backward" } else { "forward" }, "kernel": main, "launches": shapes,
            "median_ms": median, "min_ms": times[0], "max_ms": times[times.len() - 1], "runs": times.len(), "sets": sets,
            "useful_tflop": useful / 1e12, "useful_tflops": rate(useful), "issued_tflops": issued.map(rate),
            "issued_over_useful": issued.map(|issued| issued / useful),
            "share_of_matmul": self.request.matmul_tflops.map(|peak| rate(issued.unwrap_or(useful)) / peak),
            "difference_to_first": difference,
        })
    }
}

impl Family {
    /// What a call would launch, and the median of the milliseconds that the host needs to plan it.
    fn planned(&self, call: &impl Fn(usize) -> Result<(), CudaError>) -> Result<(Launches, f64), CudaError> {
        self.device.take_launches();
        self.device.pretend(true);
        // The first call compiles.
        let mut outcome = call(0);
        let mut times = Vec::new();
        for i in 0..7 {
            let start = Instant::now();
            outcome = outcome.and_then(|()| call(i));
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        self.device.pretend(false);
        times.sort_by(f64::total_cmp);
        outcome.map(|()| (self.device.take_launches(), times[times.len() / 2]))
    }
}

/// The kernel that gives a call its name.
fn main_kernel(launches: &Launches) -> &'static str {
    let named = |part: &str| launches.keys().find(|name| name.contains(part)).copied();
    named("forward").or_else(|| named("backward")).or_else(|| launches.keys().next().copied()).unwrap_or("?")
}

fn row(line: &Value) -> String {
    let number = |key: &str| line[key].as_f64().unwrap_or(f64::NAN);
    let text = |key: &str| line[key].as_str().unwrap_or("?").to_owned();
    let kernel = text("kernel").replace("natten_", "").replace("forward_", "");
    format!(
        "{:<21} {:>3} {:<4} {:<8} {:<30} {:>9.4} {:>7.1} {:>7.1} {:>15.2} {:>8.1e} {:>8.4} {:>8.4}",
        text("problem"),
        line["head_dim"],
        text("type"),
        text("pass"),
        kernel,
        number("median_ms"),
        number("useful_tflops"),
        number("issued_tflops"),
        number("share_of_matmul"),
        number("difference_to_first"),
        number("host_ms"),
        number("plan_ms"),
    )
}

/// Bytes read and written a second by a copy of a gigabyte, in terabytes.
fn copy_rate(gpu: &Gpu, timer: &Timer) -> Checked<f64> {
    const BYTES: usize = 1 << 30;
    let (to, from) = (gpu.alloc(BYTES)?, gpu.alloc(BYTES)?);
    let mut times = Vec::new();
    for _ in 0..12 {
        times.push(timer.time(gpu, Duration::from_micros(50), || copy(&to, &from))?);
    }
    times.sort_by(f64::total_cmp);
    Ok(2.0 * BYTES as f64 / times[times.len() / 2] / 1e9)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
