//! Neighborhood attention: sliding-window attention over sequences, images and video, with window, stride,
//! dilation and causality per axis; forward and backward.
//!
//! ```
//! use natten::{Params, Tensor, na2d};
//!
//! # fn main() -> Result<(), natten::Error> {
//! // [batch, height, width, heads, head_dim]
//! let shape = [1, 32, 32, 4, 64];
//! let query = Tensor::from_fn(&shape, |i| (i as f32 * 0.37).sin())?;
//! let key = Tensor::from_fn(&shape, |i| (i as f32 * 0.73).cos())?;
//! let value = Tensor::from_fn(&shape, |i| (i as f32 * 0.11).sin())?;
//! // Each query sees the 7x7 tokens around it, every second column.
//! let out = na2d(&query, &key, &value, &Params::new([7, 7]).dilation([1, 2]))?;
//! assert_eq!(out.shape(), &shape);
//! # Ok(())
//! # }
//! ```
//!
//! The operator itself is defined in [`natten_core`]; the backend follows from where the operands live (see
//! [`Operand`]). [`Call`] is the same thing spelled out, for additional keys and values or settings of one's
//! own; [`dynamic`] takes element types chosen at run time.
//!
//! [`sharded`] spreads one problem over several devices.
//!
//! With the feature `ndarray`, views of that crate's arrays become operands without copying, whatever their strides
//! (`TensorView::try_from(array.view())`), and results become arrays (`ArrayD::from(tensor)`).
#![forbid(unsafe_code)]

mod call;
pub mod dynamic;
mod mask;
mod merge;
mod operand;
pub mod sharded;
pub mod streaming;

pub use call::{Call, OutAndLse};
pub use mask::{Mask, MaskParams, Packed};
pub use merge::{merge_attentions, merge_attentions_backward, merge_attentions_into};
pub use natten_core::{
    AttentionParams, AxisParams, Backend, BackwardCall, DynParams, Element, ElementType, Error, Exchange,
    ExchangeError, ForwardCall, Gradients, InputElement, Inputs, KernelSize, KernelSizePolicy, Layout,
    MergeBackwardCall, MergeCall, Output, Params, Partials, PerAxis, Problem, ProblemError, Ranks, Region,
    Role, Saved, Sequences, Tensor, TensorAxis, TensorError, TensorView, TensorViewMut, bf16, exchange, f16,
    plan, reference, region, window,
};
#[cfg(feature = "cpu")]
pub use natten_cpu as cpu;
#[cfg(feature = "cuda")]
pub use natten_cuda as cuda;
pub use operand::{Host, Operand, OperandMut};

// The recipes of the page for engines' authors are compiled and, where a machine without a GPU can, run.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/interop.md")]
struct Interop;

/// The element type of what a call on `T` gives: `T`'s own, unless that is too narrow for results.
pub type ResultOf<T> = <<T as Operand>::Elem as InputElement>::Out;

/// The owned tensor that a call on `T`'s device returns.
pub type OwnedOf<T> = <<T as Operand>::Device as Backend>::Tensor<ResultOf<T>>;

/// The owned log-sum-exp that a call on `T`'s device returns.
pub type LseOf<T> = <<T as Operand>::Device as Backend>::Tensor<f32>;

macro_rules! entries {
    ($(#[$doc:meta])* $forward:ident, $with_lse:ident, $into:ident, $backward:ident, $params:ty) => {
        $(#[$doc])*
        pub fn $forward<Q, K, V>(query: &Q, key: &K, value: &V, params: &$params) -> Result<OwnedOf<Q>, Error>
        where
            Q: Operand,
            K: Operand<Device = Q::Device, Elem = Q::Elem>,
            V: Operand<Device = Q::Device, Elem = Q::Elem>,
        {
            Call::new(query, key, value)?.forward(params)
        }

        #[doc = concat!("[`", stringify!($forward), "`], and the log-sum-exp `[batch, tokens.., heads]`: the ")]
        /// natural logarithm of the softmax's denominator, in f32.
        ///
        /// # Errors
        #[doc = concat!("As [`", stringify!($forward), "`].")]
        pub fn $with_lse<Q, K, V>(
            query: &Q,
            key: &K,
            value: &V,
            params: &$params,
        ) -> Result<(OwnedOf<Q>, LseOf<Q>), Error>
        where
            Q: Operand,
            K: Operand<Device = Q::Device, Elem = Q::Elem>,
            V: Operand<Device = Q::Device, Elem = Q::Elem>,
        {
            Call::new(query, key, value)?.forward_with_lse(params)
        }

        #[doc = concat!("[`", stringify!($forward), "`] into a tensor of the caller's, every element of which is")]
        /// written.
        ///
        /// # Errors
        #[doc = concat!("As [`", stringify!($forward), "`]; a wrong shape of `out` is a broken rule too.")]
        pub fn $into<Q, K, V, O>(
            query: &Q,
            key: &K,
            value: &V,
            params: &$params,
            out: &mut O,
        ) -> Result<(), Error>
        where
            Q: Operand,
            K: Operand<Device = Q::Device, Elem = Q::Elem>,
            V: Operand<Device = Q::Device, Elem = Q::Elem>,
            O: OperandMut<Device = Q::Device, Elem = ResultOf<Q>>,
        {
            Call::new(query, key, value)?.forward_into(params, out)
        }

        #[doc = concat!("The gradients of [`", stringify!($forward), "`] with respect to its operands, given those")]
        /// of its output and, if it was used, of the log-sum-exp.
        ///
        /// # Errors
        #[doc = concat!("As [`", stringify!($forward), "`]; a wrong shape in `saved` is a broken rule too.")]
        pub fn $backward<Q, K, V, O, L, D>(
            query: &Q,
            key: &K,
            value: &V,
            params: &$params,
            saved: &Saved<&O, &L, &D>,
        ) -> Result<Gradients<OwnedOf<Q>>, Error>
        where
            Q: Operand,
            K: Operand<Device = Q::Device, Elem = Q::Elem>,
            V: Operand<Device = Q::Device, Elem = Q::Elem>,
            O: Operand<Device = Q::Device, Elem = ResultOf<Q>>,
            L: Operand<Device = Q::Device, Elem = f32>,
            D: Operand<Device = Q::Device, Elem = ResultOf<Q>>,
        {
            Call::new(query, key, value)?.backward(params, saved)
        }
    };
}

entries! {
    /// Neighborhood attention over a sequence: [`na2d`] with one token axis.
    ///
    /// # Errors
    /// As [`na2d`].
    na1d, na1d_with_lse, na1d_into, na1d_backward, Params<1>
}

entries! {
    /// Neighborhood attention over an image: `out_i = sum_j softmax_j(scale q_i . k_j) v_j` over the keys `j` in
    /// the window of query `i`.
    ///
    /// The result lives where the operands live, and that decides the backend.
    ///
    /// # Shapes
    /// `query` `[batch, X, Y, heads, head_dim]`, `key` `[batch, X, Y, heads_kv, head_dim]`, `value` `[batch, X, Y,
    /// heads_kv, head_dim_v]`, output `[batch, X, Y, heads, head_dim_v]`. `heads` is a multiple of `heads_kv`; head
    /// `h` reads key and value head `h / (heads / heads_kv)`. The last axis is contiguous, other strides are free. Along an axis
    /// with a [`Region`] query and output have its queries, key and value its keys.
    ///
    /// # Errors
    /// [`Error::Problem`] naming the argument and the values when a rule is broken ([`ProblemError`] lists them),
    /// [`Error::DeviceMismatch`] when operands live apart, [`Error::Backend`] when the device fails.
    ///
    /// # Examples
    /// ```
    /// # use natten::{Params, Tensor, na2d};
    /// # fn main() -> Result<(), natten::Error> {
    /// let x = Tensor::from_fn(&[1, 6, 6, 1, 8], |i| i as f32 * 0.01)?;
    /// let out = na2d(&x, &x, &x, &Params::new(3).is_causal([true, false]))?;
    /// assert_eq!(out.shape(), x.shape());
    /// assert!(na2d(&x, &x, &x, &Params::new([7, 3])).is_err());
    /// # Ok(())
    /// # }
    /// ```
    na2d, na2d_with_lse, na2d_into, na2d_backward, Params<2>
}

entries! {
    /// Neighborhood attention over video or a volume: [`na2d`] with three token axes.
    ///
    /// # Errors
    /// As [`na2d`].
    na3d, na3d_with_lse, na3d_into, na3d_backward, Params<3>
}

entries! {
    /// Plain attention: every query sees every key, or with `is_causal` the keys `j <= i` (top-left aligned), or with
    /// `causal_from_end` the keys `j <= i + K - Q` (bottom-right aligned: decoding, and FlashAttention's `causal`).
    ///
    /// Packed batches of sequences go through [`Call`] with [`Packed`].
    ///
    /// # Shapes
    /// `query` `[batch, queries, heads, head_dim]`, `key` `[batch, keys, heads_kv, head_dim]`, `value` `[batch, keys,
    /// heads_kv, head_dim_v]`, output `[batch, queries, heads, head_dim_v]`. Where a query sees no key the output is 0 and
    /// the log-sum-exp minus infinity.
    ///
    /// # Errors
    /// As [`na2d`].
    ///
    /// # Examples
    /// One new token over a cache of five; it sees all of them, and with `is_causal` would see the first alone.
    /// ```
    /// # use natten::{AttentionParams, Tensor, attention};
    /// # fn main() -> Result<(), natten::Error> {
    /// let query = Tensor::from_fn(&[1, 1, 2, 8], |i| i as f32 * 0.1)?;
    /// let cache = Tensor::from_fn(&[1, 5, 2, 8], |i| i as f32 * 0.01)?;
    /// let out = attention(&query, &cache, &cache, &AttentionParams::new().causal_from_end())?;
    /// let all = attention(&query, &cache, &cache, &AttentionParams::new())?;
    /// assert!(out.as_slice().iter().zip(all.as_slice()).all(|(a, b)| (a - b).abs() < 1e-6));
    /// # Ok(())
    /// # }
    /// ```
    attention, attention_with_lse, attention_into, attention_backward, AttentionParams
}
