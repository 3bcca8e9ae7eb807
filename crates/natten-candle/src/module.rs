//! NATTEN's module: a linear layer to queries, keys and values, neighborhood attention, and a linear layer out.

use candle_core::{Result, Tensor, bail};
use candle_nn::{Linear, Module, VarBuilder, linear, linear_b};
use natten::Params;

use crate::neighborhood_attention_qkv;

/// Neighborhood attention of channels-last tensors `[batch, tokens.., dim]` over `RANK` token axes.
///
/// Parameters have the names, shapes and order of NATTEN's modules, so that their state dicts load: `qkv.weight` `[3 dim,
/// dim]`, `qkv.bias` `[3 dim]`, `proj.weight` `[dim, dim]`, `proj.bias` `[dim]`. NATTEN's `qk_scale` is
/// [`Params::scale`]; its dropout after the last layer is the caller's to add.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use natten_candle::{NeighborhoodAttention2d, Params};
/// # fn main() -> candle_core::Result<()> {
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let layer = NeighborhoodAttention2d::new(64, 4, Params::new(7), vb.pp("attn"))?;
/// let x = Tensor::randn(0f32, 1f32, (1, 14, 14, 64), &Device::Cpu)?;
/// assert_eq!(layer.forward(&x)?.dims(), x.dims());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct NeighborhoodAttention<const RANK: usize> {
    qkv: Linear,
    proj: Linear,
    heads: usize,
    params: Params<RANK>,
}

/// Over sequences, `[batch, X, dim]`.
pub type NeighborhoodAttention1d = NeighborhoodAttention<1>;
/// Over images, `[batch, X, Y, dim]`.
pub type NeighborhoodAttention2d = NeighborhoodAttention<2>;
/// Over video or volumes, `[batch, X, Y, Z, dim]`.
pub type NeighborhoodAttention3d = NeighborhoodAttention<3>;

impl<const RANK: usize> NeighborhoodAttention<RANK> {
    /// The module of `dim` channels in `heads` heads.
    ///
    /// # Errors
    /// When `dim` is no multiple of `heads`, or a parameter is missing or of another shape.
    pub fn new(dim: usize, heads: usize, params: Params<RANK>, vb: VarBuilder) -> Result<Self> {
        Self::with_qkv_bias(dim, heads, params, true, vb)
    }

    /// The module with or without `qkv.bias`: NATTEN's `qkv_bias`.
    ///
    /// # Errors
    /// As [`NeighborhoodAttention::new`].
    pub fn with_qkv_bias(
        dim: usize,
        heads: usize,
        params: Params<RANK>,
        has_bias: bool,
        vb: VarBuilder,
    ) -> Result<Self> {
        if heads == 0 || !dim.is_multiple_of(heads) {
            bail!("dim = {dim} is not a multiple of heads = {heads}");
        }
        let qkv = linear_b(dim, 3 * dim, has_bias, vb.pp("qkv"))?;
        Ok(NeighborhoodAttention { qkv, proj: linear(dim, dim, vb.pp("proj"))?, heads, params })
    }
}

impl<const RANK: usize> Module for NeighborhoodAttention<RANK> {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (dims, channels) = (x.dims(), self.proj.weight().dim(1)?);
        if dims.len() != RANK + 2 || dims[RANK + 1] != channels {
            bail!(
                "the input has shape {dims:?}, expected a batch, {RANK} token axes and {channels} channels"
            );
        }
        let rows = dims[..RANK + 1].iter().product::<usize>();
        // Rows of a matrix: candle multiplies those faster than more axes.
        let qkv = self.qkv.forward(&x.reshape((rows, channels))?)?;
        let shape = [&dims[..RANK + 1], &[3, self.heads, channels / self.heads]].concat();
        let out = neighborhood_attention_qkv(&qkv.reshape(shape)?, self.params)?;
        self.proj.forward(&out.reshape((rows, channels))?)?.reshape(x.shape())
    }
}
