//! Trains two blocks of neighborhood attention to read handwritten digits of 8 x 8 pixels, with burn's modules and optimizer.
//!
//! `cargo run --release --example digits -- --expect-accuracy 0.95`

use std::process::ExitCode;
use std::time::Instant;

use burn::module::{Initializer, Module, Param};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use natten_burn::{Error, NeighborhoodAttention, NeighborhoodAttentionConfig};

/// 64 pixels from 0 to 16 and the digit that they show, 1797 times; the README beside the file says whose they are.
const DIGITS: &[u8] = include_bytes!("../../../examples/data/digits.bin");
const SIDE: usize = 8;
const TOKENS: usize = SIDE * SIDE;
/// Pixels of a patch, 3 x 3.
const PATCH: usize = 9;
const CLASSES: usize = 10;
/// Numbers of a token.
const WIDTH: usize = 32;
const HEADS: usize = 2;
/// One digit in so many is held out, from everywhere in the file.
const HELD_OUT: usize = 5;
const EPOCHS: usize = 6;
const BATCH: usize = 32;
/// Adam's rate at the start; it falls to nothing along a cosine.
const RATE: f64 = 6e-3;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let expected = expected_accuracy()?;
    let began = Instant::now();
    let device = Device::flex().autodiff();
    device.seed(1);
    let [train, held_out] = records();
    println!("digits    {} to learn from, {} held out", train.len(), held_out.len());
    let mut network = Network::new(&device)?;
    println!("network   {} numbers to learn", network.num_params());
    let mut optimizer = AdamConfig::new().init();
    let loss = CrossEntropyLossConfig::new().init(&device);
    let steps = EPOCHS * train.len().div_ceil(BATCH);
    let mut step = 0;
    for epoch in 0..EPOCHS {
        let order = shuffled(&train, epoch as u64 + 1);
        let mut sum = 0.0;
        for batch in order.chunks(BATCH) {
            let (patches, labels) = tensors(batch, &device);
            let loss = loss.forward(network.forward(patches)?, labels);
            sum += f64::from(loss.clone().into_scalar::<f32>()) * batch.len() as f64;
            let gradients = GradientsParams::from_grads(loss.backward(), &network);
            let rate = RATE * 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos());
            network = optimizer.step(rate, network, gradients);
            step += 1;
        }
        println!("epoch {epoch}   loss {:.4}", sum / train.len() as f64);
    }
    let accuracy = accuracy(&network.valid(), &held_out, &device.inner())?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "accuracy  {:.1} % of the held-out digits after {steps} steps, {seconds:.1} s",
        100.0 * accuracy
    );
    if accuracy < expected {
        return Err(
            format!("{accuracy:.3} of the held-out digits are read right, {expected} were expected").into()
        );
    }
    Ok(())
}

/// The one option there is.
fn expected_accuracy() -> Result<f64, Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => Ok(0.0),
        [option, share] if option == "--expect-accuracy" => Ok(share.parse()?),
        _ => Err("the one option is --expect-accuracy SHARE".into()),
    }
}

/// A token for the patch around each pixel, two blocks, the mean over tokens, a score for each digit.
#[derive(Module, Debug)]
struct Network {
    embedding: Linear,
    /// Where a pixel stands: attention itself does not tell.
    position: Param<Tensor<3>>,
    near: Block,
    far: Block,
    norm: LayerNorm,
    head: Linear,
}

impl Network {
    fn new(device: &Device) -> Result<Self, Error> {
        let attention = |window, dilation| {
            NeighborhoodAttentionConfig::new(WIDTH, HEADS, vec![window; 2])
                .with_dilation(Some(vec![dilation; 2]))
        };
        Ok(Network {
            embedding: LinearConfig::new(PATCH, WIDTH).init(device),
            position: Initializer::Uniform { min: -0.5, max: 0.5 }.init([SIDE, SIDE, WIDTH], device),
            // First the 5 x 5 pixels around, then nine of them further apart.
            near: Block::new(&attention(5, 1), device)?,
            far: Block::new(&attention(3, 2), device)?,
            norm: LayerNormConfig::new(WIDTH).init(device),
            head: LinearConfig::new(WIDTH, CLASSES).init(device),
        })
    }

    /// `[digits, 8, 8, 9]` to `[digits, 10]`.
    fn forward(&self, patches: Tensor<4>) -> Result<Tensor<2>, Error> {
        let digits = patches.dims()[0];
        let tokens = self.embedding.forward(patches) + self.position.val().unsqueeze();
        let tokens = self.far.forward(self.near.forward(tokens)?)?;
        let tokens = self.norm.forward(tokens).reshape([digits, TOKENS, WIDTH]);
        Ok(self.head.forward(tokens.mean_dim(1).reshape([digits, WIDTH])))
    }
}

/// `x += attend(norm(x))`, then `x += narrow(silu(widen(norm(x))))`.
#[derive(Module, Debug)]
struct Block {
    attention_norm: LayerNorm,
    attention: NeighborhoodAttention,
    perceptron_norm: LayerNorm,
    widen: Linear,
    narrow: Linear,
}

impl Block {
    fn new(attention: &NeighborhoodAttentionConfig, device: &Device) -> Result<Self, Error> {
        Ok(Block {
            attention_norm: LayerNormConfig::new(WIDTH).init(device),
            attention: attention.init(device)?,
            perceptron_norm: LayerNormConfig::new(WIDTH).init(device),
            widen: LinearConfig::new(WIDTH, 2 * WIDTH).init(device),
            narrow: LinearConfig::new(2 * WIDTH, WIDTH).init(device),
        })
    }

    fn forward(&self, tokens: Tensor<4>) -> Result<Tensor<4>, Error> {
        let tokens = tokens.clone() + self.attention.forward(self.attention_norm.forward(tokens))?;
        let hidden = activation::silu(self.widen.forward(self.perceptron_norm.forward(tokens.clone())));
        Ok(tokens + self.narrow.forward(hidden))
    }
}

/// Those to learn from, and those held out.
fn records() -> [Vec<&'static [u8]>; 2] {
    let records = DIGITS.chunks_exact(TOKENS + 1).enumerate();
    [false, true].map(|held_out| {
        let mine = records.clone().filter(|(i, _)| (i % HELD_OUT == HELD_OUT - 1) == held_out);
        mine.map(|(_, record)| record).collect()
    })
}

/// The 3 x 3 pixels around each pixel, paper beyond the border, and what each digit shows.
fn tensors(records: &[&[u8]], device: &Device) -> (Tensor<4>, Tensor<1, Int>) {
    let mut patches = Vec::with_capacity(records.len() * TOKENS * PATCH);
    for (record, token, at) in records
        .iter()
        .flat_map(|record| (0..TOKENS).flat_map(move |token| (0..PATCH).map(move |at| (record, token, at))))
    {
        // One too many each, so that the border is not below zero.
        let (y, x) = (token / SIDE + at / 3, token % SIDE + at % 3);
        let is_inside = (1..=SIDE).contains(&y) && (1..=SIDE).contains(&x);
        let pixel = if is_inside { record[(y - 1) * SIDE + x - 1] } else { 0 };
        patches.push(f32::from(pixel) / 8.0 - 1.0);
    }
    let labels: Vec<_> = records.iter().map(|record| i32::from(record[TOKENS])).collect();
    let patches = TensorData::new(patches, [records.len(), SIDE, SIDE, PATCH]);
    (Tensor::from_data(patches, device), Tensor::from_data(TensorData::new(labels, [records.len()]), device))
}

/// All of them in a random order.
fn shuffled<'a>(records: &[&'a [u8]], seed: u64) -> Vec<&'a [u8]> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut records = records.to_vec();
    for i in (1..records.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        records.swap(i, (state % (i as u64 + 1)) as usize);
    }
    records
}

/// The share of digits whose score is the largest of all.
fn accuracy(network: &Network, records: &[&[u8]], device: &Device) -> Result<f64, Error> {
    let (patches, labels) = tensors(records, device);
    let found = network.forward(patches)?.argmax(1).reshape([records.len()]);
    let right = found.equal(labels).int().sum().into_scalar::<i64>();
    Ok(right as f64 / records.len() as f64)
}
