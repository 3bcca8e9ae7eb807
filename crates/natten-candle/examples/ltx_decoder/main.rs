//! The neighborhood-attention stages of LTX-2.5's diffusion video decoder, on the CPU: by default the last stage, whose windows
//! are 11 x 11 x 11, over a small volume; one of its blocks is held to dense masked attention in candle. Each stage runs on
//! numbers of its own: the layers between stages, and what the last one adds to its blocks of the diffusion's time and context,
//! are left out.
//!
//! `cargo run --release --example ltx_decoder -- [--all] [--frames N --height N --width N] [--checkpoint FILE]`

mod block;
#[allow(dead_code, reason = "the benchmark takes the rest")]
#[path = "../shared/dense.rs"]
mod dense;
#[allow(dead_code, reason = "training takes the rest")]
#[path = "../shared/seeded.rs"]
mod seeded;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{DType, Device, Error, Result, Tensor};
use candle_nn::VarBuilder;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use block::{Attend, Block, HEAD_DIM, dense_attend, weights};
use seeded::Rng;

/// One stage of the decoder.
struct Stage {
    /// Where its blocks are in a checkpoint.
    name: &'static str,
    channels: usize,
    depth: usize,
    window: [usize; 3],
    /// How many tokens of the last stage one of this stage becomes along each axis.
    upsampling: [usize; 3],
}

/// Channels, depths and windows as public implementations of the decoder give them. About the last window they differ, 3 x 7 x 7
/// or 11 x 11 x 11; the larger is taken.
const STAGES: [Stage; 5] = [
    Stage { name: "det_stages.0", channels: 2048, depth: 4, window: [3, 7, 7], upsampling: [8, 8, 8] },
    Stage { name: "det_stages.1", channels: 1024, depth: 6, window: [3, 7, 7], upsampling: [8, 4, 4] },
    Stage { name: "det_stages.2", channels: 512, depth: 4, window: [3, 5, 5], upsampling: [4, 4, 4] },
    Stage { name: "det_stages.3", channels: 512, depth: 2, window: [3, 5, 5], upsampling: [2, 2, 2] },
    Stage { name: "diff_blocks", channels: 256, depth: 8, window: [11, 11, 11], upsampling: [1, 1, 1] },
];

/// Run the neighborhood-attention stages of a video decoder as LTX-2.5 has it.
#[derive(Parser)]
struct Args {
    /// Every stage instead of the last alone, which takes 1.1 GB of memory where that takes 0.4.
    #[arg(long)]
    all: bool,
    /// Tokens of the last stage along time, at least 11.
    #[arg(long, default_value_t = 13)]
    frames: usize,
    /// Tokens of the last stage along the height, at least 11.
    #[arg(long, default_value_t = 32)]
    height: usize,
    /// Tokens of the last stage along the width, at least 11.
    #[arg(long, default_value_t = 32)]
    width: usize,
    /// Weights, a safetensors file whose blocks are named det_stages.STAGE.BLOCK and diff_blocks.BLOCK; seeded ones without.
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// What comes before the names in the checkpoint.
    #[arg(long, default_value = "vae_diffusion_decoder")]
    prefix: String,
    /// Where inputs, and weights without a checkpoint, come from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Fail when a number of the checked block is further from dense attention than this.
    #[arg(long, default_value_t = 1e-3)]
    most_apart: f32,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let mut rng = Rng(args.seed);
    let stages = if args.all { &STAGES[..] } else { &STAGES[4..] };
    let last = [args.frames, args.height, args.width];
    for stage in stages {
        // No axis is shorter than the window, as in the decoder, which pads the latent for it.
        let tokens = std::array::from_fn(|a| last[a].div_ceil(stage.upsampling[a]).max(stage.window[a]));
        let vb = match &args.checkpoint {
            Some(path) => from_checkpoint(path)?.pp(&args.prefix).pp(stage.name),
            None => VarBuilder::from_tensors(seeded_weights(stage, &mut rng)?, DType::F32, &Device::Cpu),
        };
        let blocks = (0..stage.depth).map(|i| Block::new(stage.channels, stage.window, vb.pp(i)));
        let blocks: Vec<Block> = blocks.collect::<Result<_>>()?;
        let seconds = run_stage(stage, &blocks, tokens, &mut rng)?;
        let [t, h, w] = tokens;
        let count = t * h * w;
        println!(
            "{:<13} {t} x {h} x {w} tokens, {} channels, {} heads, window {:?}, {} blocks: {seconds:.2} s, {:.0} tokens/s",
            stage.name,
            stage.channels,
            stage.channels / HEAD_DIM,
            stage.window,
            stage.depth,
            count as f64 / seconds
        );
    }
    check(args, &mut rng)
}

/// The stage over numbers of its own; how long it took.
fn run_stage(stage: &Stage, blocks: &[Block], tokens: [usize; 3], rng: &mut Rng) -> Result<f64> {
    let bar = ProgressBar::new(blocks.len() as u64).with_message(stage.name);
    bar.set_style(ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} blocks").map_err(Error::wrap)?);
    let mut x = input(tokens, stage.channels, rng)?;
    let began = Instant::now();
    for block in blocks {
        x = block.forward(&x, &block::attend)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let size = x.sqr()?.mean_all()?.to_scalar::<f32>()?.sqrt();
    if !size.is_finite() {
        candle_core::bail!("{}: the output is not finite", stage.name);
    }
    Ok(began.elapsed().as_secs_f64())
}

/// A block of the last stage, over so few tokens that a dense mask fits.
fn check(args: &Args, rng: &mut Rng) -> Result<()> {
    let stage = &STAGES[4];
    let tokens = stage.window.map(|window| window + 2);
    let vb = match &args.checkpoint {
        Some(path) => from_checkpoint(path)?.pp(&args.prefix).pp(stage.name),
        None => VarBuilder::from_tensors(seeded_weights(stage, rng)?, DType::F32, &Device::Cpu),
    };
    let block = Block::new(stage.channels, stage.window, vb.pp(0))?;
    let x = input(tokens, stage.channels, rng)?;
    let of = |attend: &Attend| block.forward(&x, attend);
    let (found, expected) = (of(&block::attend)?, of(&dense_attend)?);
    let largest = |tensor: &Tensor| tensor.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
    let (apart, size) = (largest(&(found - &expected)?)?, largest(&expected)?);
    let [t, h, w] = tokens;
    println!(
        "checked       a block over {t} x {h} x {w} tokens: at most {apart:.1e} from dense masked attention, of {size:.1}"
    );
    // No number is not close to anything.
    if apart.is_nan() || apart > args.most_apart {
        candle_core::bail!(
            "the block is {apart:.1e} from dense attention, at most {:.1e} allowed",
            args.most_apart
        );
    }
    Ok(())
}

fn input(tokens: [usize; 3], channels: usize, rng: &mut Rng) -> Result<Tensor> {
    let [t, h, w] = tokens;
    let numbers: Vec<f32> = (0..t * h * w * channels).map(|_| rng.symmetric()).collect();
    Tensor::from_vec(numbers, (1, t, h, w, channels), &Device::Cpu)
}

fn from_checkpoint(path: &Path) -> Result<VarBuilder<'static>> {
    let file = std::fs::read(path).map_err(|error| Error::msg(format!("{}: {error}", path.display())))?;
    VarBuilder::from_buffered_safetensors(file, DType::F32, &Device::Cpu)
}

fn seeded_weights(stage: &Stage, rng: &mut Rng) -> Result<std::collections::HashMap<String, Tensor>> {
    let blocks = (0..stage.depth).flat_map(|i| {
        weights(stage.channels).into_iter().map(move |(name, shape)| (format!("{i}.{name}"), shape))
    });
    blocks.map(|(name, shape)| Ok((name.clone(), seeded::tensor(&name, &shape, rng)?))).collect()
}
