//! Neighborhood attention for [burn]'s tensors: the operator of [`natten`], forward and backward, and a module around it.
//!
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//! use natten_burn::{Params, na2d};
//!
//! # fn main() -> Result<(), natten_burn::Error> {
//! let device = Device::flex().autodiff();
//! // [batch, height, width, heads, head_dim]
//! let [q, k, v] = [(); 3].map(|()| Tensor::<5>::random([1, 16, 16, 2, 8], Distribution::Default, &device).require_grad());
//! // Each query sees the 7x7 tokens around it, every second column.
//! let out = na2d(q.clone(), k, v, &Params::new([7, 7]).dilation([1, 2]))?;
//! let gradients = out.sum().backward();
//! assert_eq!(q.grad(&gradients).unwrap().dims(), [1, 16, 16, 2, 8]);
//! # Ok(())
//! # }
//! ```
//!
//! # Layouts
//! `[batch, tokens.., heads, head_dim]`, as in natten. What has its heads first, as in burn's own attention `[batch, heads, tokens..,
//! head_dim]`, is turned without a copy: `q.swap_dims(1, 2)` for a sequence, `q.permute([0, 2, 3, 1, 4])` for an image.
//!
//! # Backends
//! Flex, burn's CPU backend, with and without `Autodiff`, in f16, bf16, f32 and f64.
//!
//! *Memory.* Operands are read where they lie, strides included, and results handed over as they were written. One thing is copied:
//! an operand (or a gradient that burn hands to the backward) whose *last* axis is transposed, flipped or expanded, because natten reads
//! the numbers of a head side by side and burn has no operation that lays them out so. `sum().backward()` makes such a gradient.
//!
//! *Gradients.* One call computes those of all operands, additional keys and values included, from the saved log-sum-exp; the
//! log-sum-exp itself has gradients too. Operands that are not tracked, or not on an autodiff device, are constants. burn
//! differentiates once only, and so does this crate. A backward that finds no memory panics, as burn's own does: there is no way there to
//! return an error.
//!
//! *Other backends* are refused with [`Error::Backend`], which says how to move a tensor to Flex. Among them is CUDA: burn keeps
//! device memory behind cubecl 0.11, which gives out a tensor's address (`Client::get_resource`) but neither the stream that works on it
//! nor an event, so that kernels of another library could run only between two waits of the host; and with burn's feature `fusion`,
//! on by default there, a tensor has no memory before its graph has run. On CUDA use `natten` on memory of its own, or burn's masked
//! attention.
#![forbid(unsafe_code)]

mod autodiff;
mod call;
mod error;
mod flex;
mod module;

use burn::Tensor;
pub use call::Call;
pub use error::{ConfigError, Error};
pub use module::{NeighborhoodAttention, NeighborhoodAttentionConfig};
pub use natten::{
    AttentionParams, AxisParams, DynParams, KernelSize, KernelSizePolicy, MaskParams, Params, Region,
};

macro_rules! entries {
    ($(#[$doc:meta])* $forward:ident, $with_lse:ident, $params:ty, $axes:literal, $lse_axes:literal) => {
        $(#[$doc])*
        pub fn $forward(
            query: Tensor<$axes>,
            key: Tensor<$axes>,
            value: Tensor<$axes>,
            params: &$params,
        ) -> Result<Tensor<$axes>, Error> {
            Call::new(query, key, value).forward(params)
        }

        #[doc = concat!("[`", stringify!($forward), "`], and the log-sum-exp `[batch, tokens.., heads]`: the ")]
        /// natural logarithm of the softmax's denominator, in f32.
        ///
        /// # Errors
        #[doc = concat!("As [`", stringify!($forward), "`].")]
        pub fn $with_lse(
            query: Tensor<$axes>,
            key: Tensor<$axes>,
            value: Tensor<$axes>,
            params: &$params,
        ) -> Result<(Tensor<$axes>, Tensor<$lse_axes>), Error> {
            Call::new(query, key, value).forward_with_lse(params)
        }
    };
}

entries! {
    /// Neighborhood attention over a sequence: [`na2d`] with one token axis.
    ///
    /// # Errors
    /// As [`na2d`].
    na1d, na1d_with_lse, Params<1>, 4, 3
}

entries! {
    /// Neighborhood attention over an image: each query sees the keys in the window around it.
    ///
    /// # Shapes
    /// `query` `[batch, X, Y, heads, head_dim]`, `key` `[batch, X, Y, heads_kv, head_dim]`, `value` `[batch, X, Y, heads_kv,
    /// head_dim_v]`, output `[batch, X, Y, heads, head_dim_v]`. `heads` is a multiple of `heads_kv`.
    ///
    /// # Errors
    /// [`Error::Natten`] naming the argument and the values when a rule is broken, [`Error::Backend`] for tensors that are not on
    /// Flex, [`Error::ElementType`] and [`Error::Unaligned`] for what they hold, [`Error::Checkpointing`].
    na2d, na2d_with_lse, Params<2>, 5, 4
}

entries! {
    /// Neighborhood attention over video or a volume: [`na2d`] with three token axes.
    ///
    /// # Errors
    /// As [`na2d`].
    na3d, na3d_with_lse, Params<3>, 6, 5
}

entries! {
    /// Plain attention: every query sees every key, or a causal part of them ([`AttentionParams`] has both alignments).
    ///
    /// # Shapes
    /// `query` `[batch, queries, heads, head_dim]`, `key` `[batch, keys, heads_kv, head_dim]`, `value` `[batch, keys, heads_kv,
    /// head_dim_v]`, output `[batch, queries, heads, head_dim_v]`.
    ///
    /// # Errors
    /// As [`na2d`].
    attention, attention_with_lse, AttentionParams, 4, 3
}

/// [`na1d`], [`na2d`] or [`na3d`], whichever the parameters ask for; tensors of another rank are an error.
///
/// # Errors
/// As [`na2d`].
pub fn neighborhood_attention<const D: usize>(
    query: Tensor<D>,
    key: Tensor<D>,
    value: Tensor<D>,
    params: impl Into<DynParams>,
) -> Result<Tensor<D>, Error> {
    Call::new(query, key, value).forward(params.into())
}

/// [`neighborhood_attention`], and the log-sum-exp as in [`Call::forward_with_lse`].
///
/// # Errors
/// As [`na2d`].
pub fn neighborhood_attention_with_lse<const D: usize, const LSE: usize>(
    query: Tensor<D>,
    key: Tensor<D>,
    value: Tensor<D>,
    params: impl Into<DynParams>,
) -> Result<(Tensor<D>, Tensor<LSE>), Error> {
    Call::new(query, key, value).forward_with_lse(params.into())
}
