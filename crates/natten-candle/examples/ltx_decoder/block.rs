//! A block of the decoder: normalized neighborhood attention with rotary positions, then a gated MLP, each added to its input.

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{Linear, RmsNorm, VarBuilder, linear, linear_no_bias, rms_norm, rotary_emb::rope_i};
use natten_candle::{Params, na3d};

use crate::dense;

/// Numbers of a head's row.
pub const HEAD_DIM: usize = 64;
const EPSILON: f64 = 1e-6;

/// Attention of queries, keys and values `[batch, T, H, W, heads, head_dim]`, scaled already.
pub type Attend = dyn Fn([&Tensor; 3], [usize; 3]) -> Result<Tensor>;

/// One block.
pub struct Block {
    norms: [RmsNorm; 2],
    qkv: [Linear; 3],
    /// Of queries and of keys, head by head.
    row_norms: [RmsNorm; 2],
    proj: Linear,
    up: Linear,
    gate: Linear,
    down: Linear,
    window: [usize; 3],
}

/// Names and shapes of a block's parameters.
pub fn weights(channels: usize) -> Vec<(String, Vec<usize>)> {
    let mut weights = vec![
        ("norm1.weight".to_owned(), vec![channels]),
        ("norm2.weight".to_owned(), vec![channels]),
        ("attn.q_norm.weight".to_owned(), vec![HEAD_DIM]),
        ("attn.k_norm.weight".to_owned(), vec![HEAD_DIM]),
        ("mlp.w_up.weight".to_owned(), vec![4 * channels, channels]),
        ("mlp.w_gate.weight".to_owned(), vec![4 * channels, channels]),
        ("mlp.w_down.weight".to_owned(), vec![channels, 4 * channels]),
    ];
    for name in ["to_q", "to_k", "to_v", "proj"] {
        weights.push((format!("attn.{name}.weight"), vec![channels, channels]));
        weights.push((format!("attn.{name}.bias"), vec![channels]));
    }
    weights
}

impl Block {
    pub fn new(channels: usize, window: [usize; 3], vb: VarBuilder) -> Result<Self> {
        let (attn, mlp) = (vb.pp("attn"), vb.pp("mlp"));
        let square = |name| linear(channels, channels, attn.pp(name));
        let row_norm = |name| rms_norm(HEAD_DIM, EPSILON, attn.pp(name));
        Ok(Block {
            norms: [
                rms_norm(channels, EPSILON, vb.pp("norm1"))?,
                rms_norm(channels, EPSILON, vb.pp("norm2"))?,
            ],
            qkv: [square("to_q")?, square("to_k")?, square("to_v")?],
            row_norms: [row_norm("q_norm")?, row_norm("k_norm")?],
            proj: square("proj")?,
            up: linear_no_bias(channels, 4 * channels, mlp.pp("w_up"))?,
            gate: linear_no_bias(channels, 4 * channels, mlp.pp("w_gate"))?,
            down: linear_no_bias(4 * channels, channels, mlp.pp("w_down"))?,
            window,
        })
    }

    /// `[1, T, H, W, channels]` to the same shape.
    pub fn forward(&self, x: &Tensor, attend: &Attend) -> Result<Tensor> {
        let (_, t, h, w, channels) = x.dims5()?;
        let rows = x.reshape((t * h * w, channels))?;
        let attended = self.attention(&self.norms[0].forward(&rows)?, [t, h, w], attend)?;
        let rows = (rows + attended)?;
        let normed = self.norms[1].forward(&rows)?;
        let hidden = (self.gate.forward(&normed)?.silu()? * self.up.forward(&normed)?)?;
        (rows + self.down.forward(&hidden)?)?.reshape(x.shape())
    }

    fn attention(&self, rows: &Tensor, tokens: [usize; 3], attend: &Attend) -> Result<Tensor> {
        let (count, channels) = rows.dims2()?;
        let [t, h, w] = tokens;
        let heads = channels / HEAD_DIM;
        let by_head = |i: usize| self.qkv[i].forward(rows)?.reshape((count, heads, HEAD_DIM));
        let (cos, sin) = rotations(tokens)?;
        let to_grid = |rows: Tensor| rows.reshape((1, t, h, w, heads, HEAD_DIM));
        let rotated = |i: usize, scale: f64| {
            let rows = self.row_norms[i].forward(&by_head(i)?)?.affine(scale, 0.0)?;
            // Candle rotates heads before tokens; back in the order of tokens they are a view, which natten reads as it lies.
            let rows = rope_i(&rows.transpose(0, 1)?.contiguous()?.unsqueeze(0)?, &cos, &sin)?;
            rows.reshape((1, heads, t, h, w, HEAD_DIM))?.permute((0, 2, 3, 4, 1, 5))
        };
        let query = rotated(0, (HEAD_DIM as f64).powf(-0.5))?;
        let out = attend([&query, &rotated(1, 1.0)?, &to_grid(by_head(2)?)?], self.window)?;
        self.proj.forward(&out.reshape((count, channels))?)
    }
}

/// By natten. The scale is in the queries.
pub fn attend([query, key, value]: [&Tensor; 3], window: [usize; 3]) -> Result<Tensor> {
    na3d(query, key, value, &Params::new(window).scale(1.0))
}

/// By candle, with a mask over all keys.
pub fn dense_attend(operands: [&Tensor; 3], window: [usize; 3]) -> Result<Tensor> {
    let &[_, t, h, w, heads, dim] = operands[0].dims() else {
        candle_core::bail!("queries of shape {:?}", operands[0].dims());
    };
    let mask = dense::whole_mask(&[t, h, w], &window)?;
    let rows = |tensor: &Tensor| tensor.reshape((t * h * w, heads, dim))?.transpose(0, 1)?.contiguous();
    let [query, key, value] = operands.map(rows);
    let out = dense::attend([&query?, &key?, &value?], &mask, 1.0, false)?;
    out.transpose(0, 1)?.contiguous()?.reshape((1, t, h, w, heads, dim))
}

/// Cosines and sines `[tokens, head_dim / 2]`: of a row's pairs of numbers the first eighth of the row and then two parts of
/// three eighths each turn with the position along time, height and width, at rates that fall geometrically from 1.
fn rotations([t, h, w]: [usize; 3]) -> Result<(Tensor, Tensor)> {
    let of_time = HEAD_DIM / 4;
    let of_space = (HEAD_DIM - of_time) / 2;
    let rates = |numbers: usize| (0..numbers / 2).map(move |i| 1e4f64.powf(-2.0 * i as f64 / numbers as f64));
    let mut angles = Vec::with_capacity(t * h * w * HEAD_DIM / 2);
    for (x, y, z) in (0..t).flat_map(|x| (0..h).flat_map(move |y| (0..w).map(move |z| (x, y, z)))) {
        angles.extend(rates(of_time).map(|rate| (x as f64 * rate) as f32));
        angles.extend(rates(of_space).map(|rate| (y as f64 * rate) as f32));
        angles.extend(rates(of_space).map(|rate| (z as f64 * rate) as f32));
    }
    let angles = Tensor::from_vec(angles, (t * h * w, HEAD_DIM / 2), &Device::Cpu)?.to_dtype(DType::F32)?;
    Ok((angles.cos()?, angles.sin()?))
}
