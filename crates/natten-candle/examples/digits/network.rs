//! The network: patches to channels, two blocks of neighborhood attention, and a head.

use candle_core::{D, Module, Result, Tensor};
use candle_nn::{Init, Linear, VarBuilder, linear};
use natten_candle::{NeighborhoodAttention2d, Params};

/// Pixels along each side of a digit.
pub const SIDE: usize = 8;
/// Pixels, which are the tokens.
pub const TOKENS: usize = SIDE * SIDE;
/// Pixels of a patch.
pub const PATCH: usize = 9;
const CLASSES: usize = 10;
const DIM: usize = 32;
const HEADS: usize = 4;

/// Each row less its mean and over its standard deviation, then times a gain and plus a shift: of pieces that have a
/// backward each, which candle's fused layer norm has not.
struct Norm {
    gain: Tensor,
    shift: Tensor,
}

impl Norm {
    fn new(vb: VarBuilder) -> Result<Self> {
        let gain = vb.get_with_hints(DIM, "weight", Init::Const(1.0))?;
        Ok(Norm { gain, shift: vb.get_with_hints(DIM, "bias", Init::Const(0.0))? })
    }
}

impl Module for Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let centered = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let deviation = (centered.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?;
        centered.broadcast_div(&deviation)?.broadcast_mul(&self.gain)?.broadcast_add(&self.shift)
    }
}

struct Block {
    norms: [Norm; 2],
    attention: NeighborhoodAttention2d,
    layers: [Linear; 2],
}

impl Block {
    fn new(window: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Block {
            norms: [Norm::new(vb.pp("norm1"))?, Norm::new(vb.pp("norm2"))?],
            attention: NeighborhoodAttention2d::new(DIM, HEADS, Params::new(window), vb.pp("attn"))?,
            layers: [linear(DIM, 2 * DIM, vb.pp("mlp.fc1"))?, linear(2 * DIM, DIM, vb.pp("mlp.fc2"))?],
        })
    }
}

impl Module for Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = (x + self.attention.forward(&self.norms[0].forward(x)?)?)?;
        let rows = self.norms[1].forward(&x)?.flatten_to(2)?;
        let rows = self.layers[1].forward(&self.layers[0].forward(&rows)?.silu()?)?;
        &x + rows.reshape(x.shape())?
    }
}

/// `[digits, 8, 8, 9]` to scores of the ten digits.
pub struct Network {
    embedding: Linear,
    place: Tensor,
    blocks: [Block; 2],
    norm: Norm,
    head: Linear,
}

impl Network {
    pub fn new(vb: VarBuilder) -> Result<Self> {
        Ok(Network {
            embedding: linear(PATCH, DIM, vb.pp("embedding"))?,
            place: vb.get_with_hints((TOKENS, DIM), "place", Init::Const(0.0))?,
            blocks: [Block::new(3, vb.pp("blocks.0"))?, Block::new(5, vb.pp("blocks.1"))?],
            norm: Norm::new(vb.pp("norm"))?,
            head: linear(DIM, CLASSES, vb.pp("head"))?,
        })
    }
}

impl Module for Network {
    fn forward(&self, patches: &Tensor) -> Result<Tensor> {
        let digits = patches.dim(0)?;
        let rows = self.embedding.forward(&patches.reshape((digits * TOKENS, PATCH))?)?;
        let x = rows.reshape((digits, TOKENS, DIM))?.broadcast_add(&self.place)?;
        let x = x.reshape((digits, SIDE, SIDE, DIM))?;
        let x = self.blocks.iter().try_fold(x, |x, block| block.forward(&x))?;
        self.head.forward(&self.norm.forward(&x)?.reshape((digits, TOKENS, DIM))?.mean(1)?)
    }
}
