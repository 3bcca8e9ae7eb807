//! Neighborhood attention for candle tensors: [`na1d`], [`na2d`], [`na3d`] and plain [`attention`], differentiable by candle's
//! `backward`, on the CPU and (feature `cuda`) on NVIDIA GPUs; and NATTEN's modules ([`NeighborhoodAttention`]).
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use natten_candle::{Params, na2d};
//!
//! # fn main() -> candle_core::Result<()> {
//! // [batch, height, width, heads, head_dim]
//! let x = Var::randn(0f32, 1f32, (1, 16, 16, 2, 32), &Device::Cpu)?;
//! // Each query sees the 7 x 7 tokens around it, every second column.
//! let out = na2d(&x, &x, &x, &Params::new([7, 7]).dilation([1, 2]))?;
//! let gradients = out.sqr()?.sum_all()?.backward()?;
//! assert_eq!(gradients.get(&x).map(Tensor::dims), Some(x.dims()));
//! # Ok(())
//! # }
//! ```
//!
//! # Copies
//! Operands are read where candle keeps them, by their strides and offset, broadcast axes included: views of a packed qkv,
//! transposed and narrowed tensors cost nothing. The last axis must be contiguous; where it is not, the call is an error
//! that names the operand and its stride, and `contiguous()` makes it right. Two things are copied: keys and values that come
//! with additional ones (candle's operators have three inputs, so the two are joined), and a gradient that arrives with
//! another last axis, as that of a sum does.
//!
//! # Gradients
//! Outputs carry the graph of all operands, additional ones included; so does a log-sum-exp that was asked for, whose
//! gradient is a backward pass of its own. A second derivative is an error. Nothing is kept for tensors without a graph.
//!
//! # CUDA
//! Work is queued on the stream of candle's device, in memory that candle allocates, and never waited for; a call can
//! be captured into a graph after one like it has run. Tensors of `f64` run on the CPU only, and Metal is an error.
//!
//! # Errors
//! Those of natten, with its sentence, which names the operand, the axis and the values: `axis 0: kernel_size 9 x dilation 1
//! exceeds the token extent 8`. They are [`candle_core::Error`]s.
#![deny(unsafe_code)]

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod module;
mod op;
mod place;

use candle_core::{Result, Tensor};
pub use natten::{
    AttentionParams, AxisParams, DynParams, KernelSize, KernelSizePolicy, MaskParams, Params, Region,
};

pub use module::{
    NeighborhoodAttention, NeighborhoodAttention1d, NeighborhoodAttention2d, NeighborhoodAttention3d,
};
use place::Arrangement;

macro_rules! entries {
    ($(#[$doc:meta])* $forward:ident, $with_lse:ident, $params:ty, $mask:path) => {
        $(#[$doc])*
        pub fn $forward(query: &Tensor, key: &Tensor, value: &Tensor, params: $params) -> Result<Tensor> {
            Call::new(query, key, value).forward($mask(params))
        }

        #[doc = concat!("[`", stringify!($forward), "`], and the log-sum-exp `[batch, tokens.., heads]` of the scaled")]
        /// scores, in f32.
        ///
        /// # Errors
        #[doc = concat!("As [`", stringify!($forward), "`].")]
        pub fn $with_lse(
            query: &Tensor,
            key: &Tensor,
            value: &Tensor,
            params: $params,
        ) -> Result<(Tensor, Tensor)> {
            Call::new(query, key, value).forward_with_lse($mask(params))
        }
    };
}

entries! {
    /// Neighborhood attention over a sequence: [`na2d`] with one token axis.
    ///
    /// # Errors
    /// As [`na2d`].
    na1d, na1d_with_lse, &Params<1>, neighborhood
}

entries! {
    /// Neighborhood attention over an image: every query sees the keys in the window around it.
    ///
    /// # Shapes
    /// `query` `[batch, X, Y, heads, head_dim]`, `key` `[batch, X, Y, heads_kv, head_dim]`, `value` `[batch, X, Y, heads_kv,
    /// head_dim_v]`, output `[batch, X, Y, heads, head_dim_v]`; `heads` is a multiple of `heads_kv`. All of one element type:
    /// f16, bf16, f32, or on the CPU f64.
    ///
    /// # Errors
    /// When a rule of the operator is broken, naming the argument and the values; when the device fails.
    na2d, na2d_with_lse, &Params<2>, neighborhood
}

entries! {
    /// Neighborhood attention over video or a volume: [`na2d`] with three token axes.
    ///
    /// # Errors
    /// As [`na2d`].
    na3d, na3d_with_lse, &Params<3>, neighborhood
}

entries! {
    /// Neighborhood attention whose rank is known at run time: `query` `[batch, tokens.., heads, head_dim]` with one to three
    /// token axes, as many as the parameters have.
    ///
    /// # Errors
    /// As [`na2d`].
    neighborhood_attention, neighborhood_attention_with_lse, impl Into<DynParams>, neighborhood
}

entries! {
    /// Plain attention, `query` `[batch, queries, heads, head_dim]` and `key` and `value` `[batch, keys, heads_kv, ..]`.
    /// Tensors `[batch, heads, tokens, head_dim]` come as `query.transpose(1, 2)?`, which moves nothing.
    ///
    /// # Errors
    /// As [`na2d`].
    attention, attention_with_lse, &AttentionParams, MaskParams::from
}

/// Neighborhood attention of a packed tensor `[batch, tokens.., 3, heads, head_dim]`, as one linear layer makes queries, keys
/// and values. The gradient comes packed too: three views of the tensor would cost candle's backward a copy each.
///
/// # Errors
/// As [`na2d`].
pub fn neighborhood_attention_qkv(qkv: &Tensor, params: impl Into<DynParams>) -> Result<Tensor> {
    Ok(op::call([qkv, qkv, qkv], Arrangement::Packed, neighborhood(params), false)?.0)
}

fn neighborhood(params: impl Into<DynParams>) -> MaskParams {
    MaskParams::Neighborhood(params.into())
}

/// The operands of one call, for what the plain functions do not cover: additional keys and values.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use natten_candle::{Call, Params};
/// # fn main() -> candle_core::Result<()> {
/// let x = Tensor::randn(0f32, 1f32, (1, 8, 8, 2, 16), &Device::Cpu)?;
/// let registers = Tensor::randn(0f32, 1f32, (1, 4, 2, 16), &Device::Cpu)?;
/// let call = Call::new(&x, &x, &x).additional(&registers, &registers);
/// let (out, lse) = call.forward_with_lse(&Params::new([3, 3]))?;
/// assert_eq!((out.dims(), lse.dims()), (&[1, 8, 8, 2, 16][..], &[1, 8, 8, 2][..]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    operands: [&'a Tensor; 3],
    additional: Option<[&'a Tensor; 2]>,
}

impl<'a> Call<'a> {
    /// A call on these operands, shaped as [`na2d`] says.
    pub fn new(query: &'a Tensor, key: &'a Tensor, value: &'a Tensor) -> Self {
        Call { operands: [query, key, value], additional: None }
    }

    /// Adds keys `[batch, n, heads_kv, head_dim]` and values `[batch, n, heads_kv, head_dim_v]` that every query sees besides
    /// its window, in the same softmax.
    pub fn additional(self, keys: &'a Tensor, values: &'a Tensor) -> Self {
        Call { additional: Some([keys, values]), ..self }
    }

    /// Attends. Any parameters will do: those of neighborhoods of a rank ([`Params`]), of a rank known at run time
    /// ([`DynParams`]), or of plain attention ([`AttentionParams`]).
    ///
    /// # Errors
    /// As [`na2d`].
    pub fn forward(&self, params: impl Into<MaskParams>) -> Result<Tensor> {
        Ok(self.run(params.into(), false)?.0)
    }

    /// Attends, and returns the log-sum-exp as well.
    ///
    /// # Errors
    /// As [`na2d`].
    pub fn forward_with_lse(&self, params: impl Into<MaskParams>) -> Result<(Tensor, Tensor)> {
        let (out, lse) = self.run(params.into(), true)?;
        Ok((out, lse.ok_or_else(op::no_lse)?))
    }

    fn run(&self, mask: MaskParams, with_lse: bool) -> Result<(Tensor, Option<Tensor>)> {
        let ([query, key, value], Some([keys, values])) = (self.operands, self.additional) else {
            return op::call(self.operands, Arrangement::Apart, mask, with_lse);
        };
        let join =
            |first: &Tensor, second: &Tensor| Tensor::cat(&[first.flatten_all()?, second.flatten_all()?], 0);
        let arrangement = Arrangement::Joined {
            keys: [key.shape().clone(), keys.shape().clone()],
            values: [value.shape().clone(), values.shape().clone()],
        };
        op::call([query, &join(key, keys)?, &join(value, values)?], arrangement, mask, with_lse)
    }
}
