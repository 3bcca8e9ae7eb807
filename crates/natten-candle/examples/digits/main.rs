//! Trains two blocks of neighborhood attention and a head to read handwritten digits of 8 x 8 pixels, with candle's optimizer.
//!
//! `cargo run --release --example digits`

mod network;
#[path = "../shared/seeded.rs"]
mod seeded;

use std::process::ExitCode;
use std::time::Instant;

use candle_core::{D, DType, Device, Module, Result, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap, loss::cross_entropy};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use network::{Network, PATCH, SIDE, TOKENS};
use seeded::{Rng, set_weights};

/// 64 pixels from 0 to 16 and the digit that they show, 1797 times; the README beside the file says whose they are.
const DIGITS: &[u8] = include_bytes!("../../../../examples/data/digits.bin");
/// One in so many is held out, from everywhere in the file: its writer has probably been learned from.
const HELD_OUT: usize = 5;

/// Train two blocks of neighborhood attention to read handwritten digits of 8 x 8 pixels.
#[derive(Parser)]
struct Args {
    /// Times that each digit is learned from.
    #[arg(long, default_value_t = 8)]
    epochs: usize,
    /// Digits of a step.
    #[arg(long, default_value_t = 32, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1438))]
    batch: usize,
    /// AdamW's rate at the start; it falls evenly to nothing.
    #[arg(long, default_value_t = 6e-3)]
    rate: f64,
    /// Where weights and the order of digits come from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Fail when less than this share of the held-out digits is read right.
    #[arg(long, default_value_t = 0.0)]
    expect_accuracy: f64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match train(&args) {
        Ok(accuracy) if accuracy >= args.expect_accuracy => ExitCode::SUCCESS,
        Ok(accuracy) => {
            eprintln!("error: accuracy {accuracy:.4}, {} expected", args.expect_accuracy);
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn train(args: &Args) -> Result<f64> {
    let began = Instant::now();
    let mut rng = Rng(args.seed);
    let vars = VarMap::new();
    let network = Network::new(VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
    set_weights(&vars, &mut rng)?;
    let [(patches, labels), held_out] = [digits(false)?, digits(true)?];
    let (count, numbers) =
        (labels.elem_count(), vars.all_vars().iter().map(|var| var.elem_count()).sum::<usize>());
    println!(
        "digits    {count} to learn from, {} held out; {numbers} numbers to learn",
        held_out.1.elem_count()
    );

    let steps = (args.epochs * count).div_ceil(args.batch);
    let mut optimizer = AdamW::new(vars.all_vars(), ParamsAdamW { lr: args.rate, ..Default::default() })?;
    let bar = ProgressBar::new(steps as u64);
    bar.set_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}").map_err(candle_core::Error::wrap)?,
    );
    let mut order: Vec<u32> = Vec::new();
    for step in 0..steps {
        while order.len() < args.batch {
            order.extend(shuffled(count, &mut rng));
        }
        let chosen: Vec<u32> = order.drain(..args.batch).collect();
        let chosen = Tensor::from_vec(chosen, args.batch, &Device::Cpu)?;
        let scores = network.forward(&patches.index_select(&chosen, 0)?)?;
        let loss = cross_entropy(&scores, &labels.index_select(&chosen, 0)?)?;
        optimizer.set_learning_rate(args.rate * (1.0 - step as f64 / steps as f64));
        optimizer.backward_step(&loss)?;
        if step % 20 == 0 {
            bar.set_message(format!("loss {:.4}", loss.to_scalar::<f32>()?));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();

    let read = network.forward(&held_out.0)?.argmax(D::Minus1)?;
    let right = read.eq(&held_out.1)?.to_dtype(DType::F32)?.mean_all()?.to_scalar::<f32>()?;
    let seconds = began.elapsed().as_secs_f64();
    println!("accuracy  {:.1} % of the held-out digits after {steps} steps, {seconds:.1} s", 100.0 * right);
    Ok(f64::from(right))
}

/// The 3 x 3 pixels around each pixel from -1 (paper, also beyond the border) to 1 (ink), `[digits, 8, 8, 9]`; and labels.
fn digits(is_held_out: bool) -> Result<(Tensor, Tensor)> {
    let mine = |&(i, _): &(usize, &[u8])| (i % HELD_OUT == HELD_OUT - 1) == is_held_out;
    let records: Vec<&[u8]> =
        DIGITS.chunks_exact(TOKENS + 1).enumerate().filter(mine).map(|(_, record)| record).collect();
    let pixel = |record: &[u8], at: usize, from: usize| {
        // One too many each, so that the border is not below zero.
        let (y, x) = (at / SIDE + from / 3, at % SIDE + from % 3);
        let is_inside = (1..=SIDE).contains(&y) && (1..=SIDE).contains(&x);
        if is_inside { f32::from(record[(y - 1) * SIDE + x - 1]) / 8.0 - 1.0 } else { -1.0 }
    };
    let patches: Vec<f32> = records
        .iter()
        .flat_map(|record| (0..TOKENS * PATCH).map(move |i| pixel(record, i / PATCH, i % PATCH)))
        .collect();
    let labels: Vec<u32> = records.iter().map(|record| u32::from(record[TOKENS])).collect();
    let count = labels.len();
    Ok((
        Tensor::from_vec(patches, (count, SIDE, SIDE, PATCH), &Device::Cpu)?,
        Tensor::from_vec(labels, count, &Device::Cpu)?,
    ))
}

fn shuffled(len: usize, rng: &mut Rng) -> Vec<u32> {
    let mut order: Vec<u32> = (0..len as u32).collect();
    for i in (1..len).rev() {
        order.swap(i, (rng.next() % (i as u64 + 1)) as usize);
    }
    order
}
