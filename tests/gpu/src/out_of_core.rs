//! Times a problem from host memory and back, beside the same in memory and what the bus allows.

use std::time::Instant;

use natten_core::{Backend, ForwardCall, Inputs, Output, Problem, Tensor, bf16};
use natten_cuda::driver::Driver;
use natten_cuda::out_of_core::OutOfCore;
use natten_cuda::transfer::Transfer;
use natten_cuda::{Cuda, Device};
use natten_tests::largest_error;
use serde_json::{Value, json};

use crate::problems::{Timed, problems};

/// Bytes of a copy that is timed, and how often.
const COPY: (usize, usize) = (256 << 20, 8);
/// Runs of each, of which the median counts.
const RUNS: usize = 3;
/// Numbers that tensors repeat: an odd count, so that neighbouring rows differ.
const NUMBERS: usize = 1_000_003;

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Times a bf16 problem of problems.json with buffers of these shares of what all at once would take.
///
/// # Errors
/// When there is no such problem, or it does not run.
pub fn run(driver: &Driver, name: &str, head_dim: usize, shares: &[u64]) -> Result<Value, Failed> {
    let timed = problems()?.into_iter().find(|timed| timed.name == name);
    let timed = timed.ok_or_else(|| format!("no problem {name}"))?;
    let problem = timed.problem(head_dim, natten_core::ElementType::Bf16)?;
    let cuda = Cuda::new(driver.clone());
    let [up, down] = copy_rates(driver)?;
    let host = inputs(&timed, head_dim)?;
    let (in_memory, expected) = in_memory(&cuda, &problem, &host)?;
    println!(
        "{name} hd {head_dim}: in memory {:.4} s; pinned copies {:.1} and {:.1} GB/s",
        in_memory,
        up / 1e9,
        down / 1e9
    );
    let mut lines = Vec::new();
    let mut out = Tensor::<bf16>::zeros(&problem.out_shape())?;
    let views = host.map(Tensor::view);
    let mut attend = |memory_bytes: u64| {
        let output = Output { out: out.view_mut(), lse: None };
        let start = Instant::now();
        let report = OutOfCore::within(memory_bytes).forward(&cuda, &problem, &views, output)?;
        Ok::<_, Failed>((report, start.elapsed().as_secs_f64()))
    };
    let (whole, _) = attend(u64::MAX)?;
    for share in shares {
        let mut runs = Vec::new();
        let mut last = None;
        for _ in 0..RUNS {
            let (report, seconds) = attend(whole.memory_bytes / share)?;
            runs.push(seconds);
            last = Some(report);
        }
        runs.sort_by(f64::total_cmp);
        let (seconds, report) = (runs[RUNS / 2], last.ok_or("no run")?);
        let bus = (report.uploaded_bytes as f64 / up).max(report.downloaded_bytes as f64 / down);
        let share_of_best = in_memory.max(bus) / seconds;
        println!(
            "  {:>6.2} GB in {:>3} slabs along axis {}: {seconds:.4} s; the bus alone {bus:.4} s; {share_of_best:.2} of the better",
            report.memory_bytes as f64 / 1e9,
            report.slabs,
            report.axis,
        );
        lines.push(json!({
            "memory_bytes": report.memory_bytes, "slabs": report.slabs, "axis": report.axis, "seconds": seconds,
            "bus_seconds": bus, "share_of_best": share_of_best,
        }));
    }
    let apart = largest_error(&out, &expected);
    println!("  largest difference from in memory {apart:.2e}");
    Ok(json!({
        "problem": name, "head_dim": head_dim, "in_memory_seconds": in_memory, "up_bytes_per_second": up,
        "down_bytes_per_second": down, "difference": apart, "lines": lines,
    }))
}

/// Bytes a second to the device and from it, each way alone.
fn copy_rates(driver: &Driver) -> Result<[f64; 2], Failed> {
    let (bytes, times) = COPY;
    let memory = std::sync::Arc::new(driver.allocate(bytes)?);
    driver.synchronize()?;
    let beside = driver.beside()?;
    let mut pinned = beside.pinned(bytes)?;
    let mut rates = [0.0; 2];
    for (rate, is_up) in rates.iter_mut().zip([true, false]) {
        let start = Instant::now();
        for _ in 0..times {
            let copy = match is_up {
                true => beside.upload(pinned, bytes, &memory, 0)?,
                false => beside.download(&memory, 0, bytes, pinned)?,
            };
            pinned = copy.landed()?;
        }
        *rate = (bytes * times) as f64 / start.elapsed().as_secs_f64();
    }
    Ok(rates)
}

fn inputs(timed: &Timed, head_dim: usize) -> Result<Inputs<Tensor<bf16>>, Failed> {
    let shape = timed.shape(head_dim);
    let numbers: Vec<bf16> =
        (0..NUMBERS).map(|i| bf16::from_f32(((i * 7919 % 2003) as f32 / 1001.0) - 1.0)).collect();
    let tensor = |first: usize| {
        let count: usize = shape.iter().product();
        let repeated = numbers.iter().cycle().skip(first).take(count);
        Tensor::from_vec(&shape, repeated.copied().collect())
    };
    Ok(Inputs::new(tensor(0)?, tensor(777)?, tensor(123_456)?))
}

/// Seconds of a call whose tensors are on the device, and its output.
fn in_memory(
    cuda: &Cuda<Driver>,
    problem: &Problem,
    host: &Inputs<Tensor<bf16>>,
) -> Result<(f64, Tensor<bf16>), Failed> {
    let [query, key, value] = [&host.query, &host.key, &host.value].map(|tensor| cuda.upload(&tensor.view()));
    let (query, key, value) = (query?, key?, value?);
    let mut out = cuda.allocate::<bf16>(&problem.out_shape())?;
    let mut times = Vec::new();
    for _ in 0..RUNS + 1 {
        let inputs = Inputs::new(query.view(), key.view(), value.view());
        cuda.synchronize()?;
        let start = Instant::now();
        cuda.forward(ForwardCall::new(problem, inputs, Output { out: out.view_mut(), lse: None })?)?;
        cuda.synchronize()?;
        times.push(start.elapsed().as_secs_f64());
    }
    let mut times = times.split_off(1);
    times.sort_by(f64::total_cmp);
    Ok((times[RUNS / 2], cuda.download(&out)?))
}
