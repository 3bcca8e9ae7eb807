//! What burn costs on top of natten, and what natten gains over burn's own masked attention. Medians of wall time.
//!
//! `cargo run --release --example bench --features burn/rayon,burn/simd`, the features that make Flex as fast as it goes.

use std::hint::black_box;
use std::time::Instant;

use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Device, Tensor, TensorData};
use natten::{TensorView, TensorViewMut, na1d_into};
use natten_burn::{Params, na1d, na2d};

/// Smallest problem of the bench set, T0: 64 tokens, one head of 32, window 7.
const SMALL: [usize; 4] = [1, 64, 1, 32];
const CALLS: usize = 10_000;
/// Image of the bench set, C1: 56 x 56 tokens, 4 heads of 32, window 7 x 7.
const IMAGE: [usize; 5] = [1, 56, 56, 4, 32];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    small()?;
    image()
}

/// The host time of a call: through burn, and of natten on the same memory.
fn small() -> Result<(), Box<dyn std::error::Error>> {
    let params = Params::new(7);
    let numbers = [1, 2, 3].map(|seed| random(SMALL.iter().product(), seed));
    let mut out = vec![0f32; numbers[0].len()];
    for (device, name) in [(Device::flex(), "burn"), (Device::flex().autodiff(), "burn, tracked")] {
        let tensors = numbers.clone().map(|numbers| {
            let tensor = Tensor::<4>::from_data(TensorData::new(numbers, SMALL), &device);
            if device.is_autodiff() { tensor.require_grad() } else { tensor }
        });
        // Alternating, so that both meet the same machine.
        let mut times = [Vec::with_capacity(CALLS), Vec::with_capacity(CALLS)];
        for _ in 0..CALLS {
            let began = Instant::now();
            let [query, key, value] =
                numbers.each_ref().map(|numbers| TensorView::from_slice(&SMALL, numbers));
            let mut view = TensorViewMut::from_slice(&SMALL, &mut out)?;
            na1d_into(&query?, &key?, &value?, &params, &mut view)?;
            times[0].push(began.elapsed().as_secs_f64());

            let began = Instant::now();
            let [query, key, value] = tensors.clone();
            black_box(na1d(query, key, value, &params)?);
            times[1].push(began.elapsed().as_secs_f64());
        }
        let [natten, burn] = times.map(median);
        println!(
            "T0 f32  natten {:6.2} us   {name} {:6.2} us   over {:5.2} us",
            natten * 1e6,
            burn * 1e6,
            (burn - natten) * 1e6
        );
    }
    Ok(())
}

/// An image: natten on burn's tensors, and burn's own attention under the same mask.
fn image() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::flex();
    let params = Params::new(7);
    let [_, height, width, heads, head_dim] = IMAGE;
    let tensors = [1, 2, 3].map(|seed| {
        Tensor::<5>::from_data(TensorData::new(random(IMAGE.iter().product(), seed), IMAGE), &device)
    });
    let window = |q: usize, k: usize, len: usize| {
        let start = q.saturating_sub(3).min(len - 7);
        (start..start + 7).contains(&k)
    };
    let tokens = height * width;
    let pairs = (0..tokens).flat_map(|q| (0..tokens).map(move |k| (q, k)));
    let hidden =
        pairs.map(|(q, k)| !(window(q / width, k / width, height) && window(q % width, k % width, width)));
    let hidden = TensorData::new(hidden.collect::<Vec<_>>(), [1, 1, tokens, tokens]);
    let hidden = Tensor::<4, Bool>::from_data(hidden, &device).expand([1, heads, tokens, tokens]);
    let by_head = |tensor: Tensor<5>| tensor.reshape([1, tokens, heads, head_dim]).swap_dims(1, 2);
    let dense = || {
        let [query, key, value] = tensors.clone().map(by_head);
        let options = AttentionModuleOptions::default();
        burn::tensor::module::attention(query, key, value, Some(hidden.clone()), None, options)
    };
    let windowed = || {
        let [query, key, value] = tensors.clone();
        na2d(query, key, value, &params)
    };
    let apart = (by_head(windowed()?) - dense()).abs().max().into_scalar::<f32>();
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..9 {
        let began = Instant::now();
        black_box(windowed()?);
        times[0].push(began.elapsed().as_secs_f64());
        let began = Instant::now();
        black_box(dense());
        times[1].push(began.elapsed().as_secs_f64());
    }
    let [natten, dense] = times.map(median);
    println!(
        "C1 f32  natten {:6.2} ms   burn's masked attention {:7.1} ms   {:.0} times   at most {apart:.1e} apart",
        natten * 1e3,
        dense * 1e3,
        dense / natten
    );
    Ok(())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}
