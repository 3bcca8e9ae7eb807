//! One clip of video over several ranks: how long each number of them takes, what crosses between them, and that the result is that of
//! one device.
//!
//! `cargo run --release --example sharded` takes threads of the CPU, one core each. With `--features nccl`, `-- --gpus 2` takes a GPU
//! for each rank; that has not run on a GPU yet.

mod cpu;
#[cfg(feature = "nccl")]
mod gpu;
mod job;

use std::process::ExitCode;

use clap::Parser;

use job::{Job, Measured};

/// Neighborhood attention over a clip of video that is spread over ranks.
#[derive(Parser)]
struct Args {
    /// Frames, rows and columns.
    #[arg(long, value_parser = three, default_value = "48,20,20")]
    tokens: [usize; 3],
    /// Window along each of them.
    #[arg(long, value_parser = three, default_value = "11,11,11")]
    window: [usize; 3],
    /// Heads of the query.
    #[arg(long, default_value_t = 2)]
    heads: usize,
    /// Heads of key and value; fewer make halos smaller.
    #[arg(long, default_value_t = 2)]
    heads_kv: usize,
    /// Components of a head.
    #[arg(long, default_value_t = 64)]
    head_dim: usize,
    /// The axis that is cut: 0 for frames.
    #[arg(long, default_value_t = 0)]
    axis: usize,
    /// Tokens of that axis at whose multiples queries inside and at borders meet [default: a block of the stride].
    #[arg(long)]
    grid: Option<usize>,
    /// Numbers of ranks to try.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    ranks: Vec<usize>,
    /// Gradients too.
    #[arg(long)]
    backward: bool,
    /// How often each is run; the fastest counts.
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// A GPU for each of so many ranks, instead of threads of the CPU.
    #[arg(long)]
    gpus: Option<usize>,
    /// The largest difference from one device that is no failure.
    #[arg(long, default_value_t = 1e-4)]
    tolerance: f32,
}

fn three(text: &str) -> Result<[usize; 3], String> {
    let numbers: Result<Vec<usize>, _> = text.split(',').map(|part| part.trim().parse()).collect();
    numbers
        .ok()
        .and_then(|numbers| numbers.try_into().ok())
        .ok_or_else(|| "three numbers, as 48,20,20".to_owned())
}

#[derive(Debug, thiserror::Error)]
enum ExampleError {
    #[error(transparent)]
    Sharded(#[from] natten::sharded::ShardedError),
    #[error(transparent)]
    Natten(#[from] natten::Error),
    #[error(transparent)]
    Problem(#[from] natten::ProblemError),
    #[error(transparent)]
    Tensor(#[from] natten::TensorError),
    #[error(transparent)]
    Exchange(#[from] natten::ExchangeError),
    #[error(transparent)]
    Split(#[from] natten::region::SplitError),
    #[error(transparent)]
    Cpu(#[from] natten::cpu::CpuError),
    #[cfg(feature = "nccl")]
    #[error(transparent)]
    Cuda(#[from] natten::cuda::CudaError),
    #[cfg(feature = "nccl")]
    #[error(transparent)]
    Device(#[from] natten::cuda::DeviceError),
    #[cfg(feature = "nccl")]
    #[error("a stream for transfers: {0}")]
    Stream(String),
    #[cfg(not(feature = "nccl"))]
    #[error("--gpus {0}: built without the feature nccl, so there are no GPUs to take")]
    NoGpus(usize),
    #[error("a rank panicked")]
    Panicked,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool, ExampleError> {
    let job = Job::new(args)?;
    let counts = match args.gpus {
        // One GPU first: the others are held to it.
        Some(gpus) if gpus > 1 => vec![1, gpus],
        Some(gpus) => vec![gpus],
        None => args.ranks.clone(),
    };
    println!("{}", job.describe());
    println!("ranks   seconds   efficiency   halo bytes   closed form   difference");
    let (mut alone, mut is_good) = (None, true);
    for ranks in counts {
        let Measured { seconds, halo_bytes, difference } = measure(args, &job, ranks)?;
        // Of the first number that was tried: usually one.
        let (first, of) = *alone.get_or_insert((seconds, ranks));
        let efficiency = first * of as f64 / (seconds * ranks as f64);
        let closed = job.closed_form(ranks);
        let expected = closed.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
        println!(
            "{ranks:5}  {seconds:8.4}  {:9.1} %  {halo_bytes:11}  {expected:>12}   {difference:.1e}",
            100.0 * efficiency
        );
        is_good &= difference <= args.tolerance && closed.is_none_or(|bytes| bytes == halo_bytes);
    }
    if !is_good {
        println!("beyond {:e}, or other bytes than foretold", args.tolerance);
    }
    Ok(is_good)
}

fn measure(args: &Args, job: &Job, ranks: usize) -> Result<Measured, ExampleError> {
    match args.gpus {
        None => cpu::measure(job, ranks),
        #[cfg(feature = "nccl")]
        Some(_) => gpu::measure(job, ranks),
        #[cfg(not(feature = "nccl"))]
        Some(gpus) => Err(ExampleError::NoGpus(gpus)),
    }
}
