//! Trains a small network with neighborhood attention to read handwritten digits of 8 x 8 pixels.
//!
//! `cargo run --release --example train` takes the CPU; with `--features cuda`, `-- --device cuda` lets the attention run
//! on a GPU and holds the first losses to those of the CPU.

mod attention;
mod digits;
#[cfg(feature = "cuda")]
mod gpu;
mod layers;
mod network;
mod training;

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use natten::cpu::Cpu;

use attention::Attention;
use digits::Digits;
use training::{Settings, Training};

/// Losses that are printed, and compared between devices.
const LOSSES: usize = 20;
/// How far they may be apart, over the CPU's: f32 rounds differently in another order of sums.
#[cfg(feature = "cuda")]
const APART: f32 = 1e-3;

/// Train a network with neighborhood attention to read handwritten digits.
#[derive(Parser)]
struct Args {
    /// Where the attention runs.
    #[arg(long, value_enum, default_value_t = DeviceName::Cpu)]
    device: DeviceName,
    /// Times that each digit is learned from.
    #[arg(long, default_value_t = 10)]
    epochs: usize,
    /// Digits of a step, at most 1438.
    #[arg(long, default_value_t = 32, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1438))]
    batch: usize,
    /// Adam's rate at the start.
    #[arg(long, default_value_t = 6e-3)]
    rate: f64,
    /// Where weights and the order of digits come from: the same seed trains the same network.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Fail when less than this share of the held-out digits is read right.
    #[arg(long, default_value_t = 0.0)]
    expect_accuracy: f64,
}

#[derive(Clone, Copy, ValueEnum)]
enum DeviceName {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda,
}

#[derive(Debug, thiserror::Error)]
enum TrainError {
    #[error(transparent)]
    Natten(#[from] natten::Error),
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Device(#[from] natten::cuda::DeviceError),
    #[cfg(feature = "cuda")]
    #[error("loss {step} is {found} there and {expected} on the CPU, more than {APART} apart")]
    Apart { step: usize, found: f32, expected: f32 },
    #[error("{} of the held-out digits are read right, {} were expected", percent(*found), percent(*expected))]
    Accuracy { found: f64, expected: f64 },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.device {
        DeviceName::Cpu => train(&args, Cpu::new(), "the CPU").map(drop),
        #[cfg(feature = "cuda")]
        DeviceName::Cuda => train_on_gpu(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Trains on the first GPU, and compares the first losses with the CPU's.
#[cfg(feature = "cuda")]
fn train_on_gpu(args: &Args) -> Result<(), TrainError> {
    use natten::cuda::{Cuda, Device, driver::Driver};
    let driver = Driver::new(0)?;
    let name = driver.properties().name.clone();
    let losses = train(args, Cuda::new(driver), &name)?;
    let [digits, _] = Digits::bundled();
    let mut on_cpu = Training::new(Cpu::new(), digits, args.settings());
    let mut largest = 0.0f32;
    for (step, &found) in losses.iter().enumerate() {
        let expected: f32 = on_cpu.step()?;
        let apart = (found - expected).abs() / expected;
        // A loss that is no number is not close to anything.
        if apart.is_nan() || apart > APART {
            return Err(TrainError::Apart { step, found, expected });
        }
        largest = largest.max(apart);
    }
    println!("compared  the first {} losses are at most {largest:.1e} from the CPU's", losses.len());
    Ok(())
}

/// Trains, tells how it went and returns the first losses.
fn train(args: &Args, device: impl Attention<f32>, device_name: &str) -> Result<Vec<f32>, TrainError> {
    let began = Instant::now();
    let settings = args.settings();
    let [digits, held_out] = Digits::bundled();
    let steps = settings.steps(digits.len());
    println!("digits    {} to learn from, {} held out", digits.len(), held_out.len());
    let mut training = Training::new(device, digits, settings);
    println!("network   {} numbers to learn; attention on {device_name}", training.parameters());
    let bar = progress(steps);
    let mut losses = Vec::new();
    for _ in 0..steps {
        let loss = training.step()?;
        bar.set_message(format!("loss {loss:.4}"));
        bar.inc(1);
        if losses.len() < LOSSES {
            losses.push(loss);
        }
    }
    bar.finish_and_clear();
    let shown: Vec<_> = losses.iter().map(|loss| format!("{loss:.4}")).collect();
    println!("losses    {}", shown.join(" "));
    let accuracy = training.accuracy(&held_out)?;
    let seconds = began.elapsed().as_secs_f64();
    println!("accuracy  {} of the held-out digits after {steps} steps, {seconds:.1} s", percent(accuracy));
    if accuracy < args.expect_accuracy {
        return Err(TrainError::Accuracy { found: accuracy, expected: args.expect_accuracy });
    }
    Ok(losses)
}

impl Args {
    fn settings(&self) -> Settings {
        Settings { epochs: self.epochs, batch: self.batch, rate: self.rate, seed: self.seed }
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A bar on standard error; hidden when that is no terminal.
fn progress(steps: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {bar:40} {pos}/{len} steps, {elapsed}, {msg}");
    ProgressBar::new(steps as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
