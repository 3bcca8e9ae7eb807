//! Times the operator in candle on the CPU: what a call costs beside natten's own, a NAT block, and an attention of LTX's last
//! stage, each against attention that candle can do by itself, in one run, by medians.
//!
//! `cargo run --release --example bench -- [host] [block] [video]`

#[path = "../shared/dense.rs"]
mod dense;
mod timing;

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{Linear, VarBuilder, VarMap, linear};
use natten_candle::{NeighborhoodAttention2d, Params, na1d, na3d, neighborhood_attention_qkv};

use dense::{Blocks, Dense};
use timing::{Median, alternate, load};

/// Calls that are timed together where one is short.
const RUN: usize = 20;

fn main() -> Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let is_asked = |name: &str| asked.is_empty() || asked.iter().any(|asked| asked == name);
    println!("threads {}, load {}", rayon::current_num_threads(), load());
    if is_asked("host") {
        host()?;
    }
    if is_asked("block") {
        block()?;
    }
    if is_asked("video") {
        video()?;
    }
    println!("load {}", load());
    Ok(())
}

/// The smallest problem of natten's benchmarks, through candle and through the facade, on the same memory.
fn host() -> Result<()> {
    const CALLS: usize = 10_000;
    let params = Params::<1>::new(7);
    let shape = [1, 64, 1, 32];
    let operands: Vec<Tensor> =
        (0..3).map(|_| Tensor::randn(0f32, 1f32, &shape[..], &Device::Cpu)).collect::<Result<_>>()?;
    let held: Vec<_> = operands.iter().map(Tensor::storage_and_layout).collect();
    let slice = |i: usize| match &*held[i].0 {
        candle_core::Storage::Cpu(storage) => storage.as_slice::<f32>(),
        _ => unreachable!("made on the CPU"),
    };
    let wrap = candle_core::Error::wrap;
    let view = |i| natten::TensorView::from_slice(&shape, slice(i)?).map_err(wrap);
    let (query, key, value) = (view(0)?, view(1)?, view(2)?);
    let mut out = natten::Tensor::<f32>::zeros(&shape).map_err(wrap)?;
    let tracked = Var::from_tensor(&operands[0])?;
    // In runs of some calls, so that no call pays for what the one before it left in the caches.
    let mut candle = repeat(|| na1d(&operands[0], &operands[1], &operands[2], &params).map(drop));
    let mut graph = repeat(|| na1d(&tracked, &operands[1], &operands[2], &params).map(drop));
    let mut into = repeat(|| {
        natten::na1d_into(&query, &key, &value, &params, &mut out).map_err(candle_core::Error::wrap)
    });
    let [through_candle, with_graph, facade] =
        alternate(CALLS / RUN, [&mut candle, &mut graph, &mut into])?.map(|run| run.times(1.0 / RUN as f64));
    println!(
        "host    T0, {CALLS} calls: candle {through_candle}, with a graph {with_graph}, facade {facade}"
    );
    let micros = |a: &Median, b: &Median| (a.median - b.median) * 1e6;
    println!(
        "        over the facade: {:.2} us, with a graph {:.2} us",
        micros(&through_candle, &facade),
        micros(&with_graph, &facade)
    );
    Ok(())
}

fn repeat(mut call: impl FnMut() -> Result<()>) -> impl FnMut() -> Result<()> {
    move || (0..RUN).try_for_each(|_| call())
}

/// A NAT block without its MLP: 56 x 56 tokens of 128 channels, 4 heads, window 7.
fn block() -> Result<()> {
    const RUNS: usize = 9;
    let (side, dim, heads) = (56, 128, 4);
    let params = Params::<2>::new(7);
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let layer = NeighborhoodAttention2d::new(dim, heads, params, vb.clone())?;
    // The same parameters, by name.
    let (qkv, proj) = (linear(dim, 3 * dim, vb.pp("qkv"))?, linear(dim, dim, vb.pp("proj"))?);
    let masked = Dense::new(&[side, side], &[7, 7], heads, dim / heads)?;
    let tokens = side * side;
    let x = Var::from_tensor(&Tensor::randn(0f32, 1f32, (1, side, side, dim), &Device::Cpu)?)?;
    let rows = Var::from_tensor(&Tensor::randn(0f32, 1f32, (tokens, 3 * dim), &Device::Cpu)?)?;
    let weights = Tensor::randn(0f32, 1f32, (tokens, dim), &Device::Cpu)?;

    let between = |rows: &Tensor| {
        let qkv = rows.reshape((1, side, side, 3, heads, dim / heads))?;
        neighborhood_attention_qkv(&qkv, params)?.reshape((tokens, dim))
    };
    let linears = |x: &Tensor| {
        let rows = qkv.forward(&x.reshape((tokens, dim))?)?;
        proj.forward(&rows.narrow(1, 0, dim)?.contiguous()?)
    };
    let whole = |x: &Tensor| layer.forward(x)?.reshape((tokens, dim));
    let dense_whole = |x: &Tensor, has_graph| dense_block(&masked, [&qkv, &proj], x, has_graph);
    let backward = |out: Tensor| out.mul(&weights)?.sum_all()?.backward().map(drop);

    let (plain_x, plain_rows) = (x.as_tensor().detach(), rows.as_tensor().detach());
    let apart = (whole(&plain_x)?.detach() - dense_whole(&plain_x, false)?.detach())?.abs()?.max_all()?;
    println!(
        "block   {side} x {side}, dim {dim}, {heads} heads, window 7: at most {:.1e} apart",
        apart.to_scalar::<f32>()?
    );
    let [ours, theirs] = alternate(
        RUNS,
        [&mut || between(&plain_rows).map(drop), &mut || masked.forward(&plain_rows, false).map(drop)],
    )?;
    report("operator and views, forward", &ours, &theirs);
    let [ours, theirs] =
        alternate(RUNS, [&mut || backward(between(&rows)?), &mut || backward(masked.forward(&rows, true)?)])?;
    report("operator and views, with backward", &ours, &theirs);
    let [ours, theirs, layers] = alternate(
        RUNS,
        [&mut || whole(&plain_x).map(drop), &mut || dense_whole(&plain_x, false).map(drop), &mut || {
            linears(&plain_x).map(drop)
        }],
    )?;
    report("whole block, forward", &ours, &theirs);
    println!("        of which the linear layers alone {layers}");
    let [ours, theirs, layers] = alternate(
        RUNS,
        [&mut || backward(whole(&x)?), &mut || backward(dense_whole(&x, true)?), &mut || {
            backward(linears(&x)?)
        }],
    )?;
    report("whole block, with backward", &ours, &theirs);
    println!("        of which the linear layers alone {layers}");
    Ok(())
}

fn dense_block(masked: &Dense, [qkv, proj]: [&Linear; 2], x: &Tensor, has_graph: bool) -> Result<Tensor> {
    let (tokens, dim) = (masked.tokens(), proj.weight().dim(1)?);
    proj.forward(&masked.forward(&qkv.forward(&x.reshape((tokens, dim))?)?, has_graph)?)
}

/// One attention of LTX's last stage.
fn video() -> Result<()> {
    const RUNS: usize = 3;
    let (tokens, heads, dim, window) = ([17, 56, 56], 4, 64, [11, 11, 11]);
    let shape = [1, tokens[0], tokens[1], tokens[2], heads, dim];
    let operands: Vec<Tensor> =
        (0..3).map(|_| Tensor::randn(0f32, 1f32, &shape[..], &Device::Cpu)).collect::<Result<_>>()?;
    let params = Params::<3>::new(window);
    let ours_out = na3d(&operands[0], &operands[1], &operands[2], &params)?;
    println!("video   {tokens:?} tokens, {heads} heads of {dim}, window {window:?}");
    let small = Blocks::new(&operands, &tokens, &window, [4, 4, 4])?;
    let large = Blocks::new(&operands, &tokens, &window, [8, 8, 8])?;
    // So many queries at once against every key.
    let chunks = Blocks::new(&operands, &tokens, &[usize::MAX; 3], [1, 8, 56])?.masked_for(&window);
    // Parts of the work, evenly chosen, stand for all of it.
    for (name, blocks, share) in
        [("dense by chunks", &chunks, 24), ("blocks of 4^3", &small, 14), ("blocks of 8^3", &large, 7)]
    {
        let sample = blocks.sample(share)?;
        println!(
            "        {name}: at most {:.1e} apart, {} of {} timed",
            sample.error(&ours_out)?,
            sample.len(),
            blocks.len()
        );
        let mut part = || sample.run();
        let [ours, theirs] = alternate(
            RUNS,
            [&mut || na3d(&operands[0], &operands[1], &operands[2], &params).map(drop), &mut part],
        )?;
        report(name, &ours, &theirs.times(blocks.len() as f64 / sample.len() as f64));
    }
    Ok(())
}

fn report(name: &str, ours: &Median, theirs: &Median) {
    println!(
        "        {name}: natten {ours}, candle {theirs}, {:.1} times faster",
        theirs.median / ours.median
    );
}
