//! Neighborhood attention without a backend: problem descriptors, window mathematics, parts of a whole ([`region`]), tile
//! planning and the f64 reference.
//!
//! A query at token `x` attends to the keys of a window around `x`, axis by axis:
//!
//! ```text
//! S_ij = scale * q_i . k_j          for j in window(i), and for every additional key
//! P_ij = exp(S_ij - lse_i)          lse_i = log sum_j exp S_ij
//! o_i  = sum_j P_ij v_j
//! ```
//!
//! `window(i)` is a box: the product over token axes of one interval each ([`window`]). Windows are shifted at
//! borders, never shrunk or padded. Tensors are `[batch, tokens.., heads, head_dim]`.
//!
//! | word | here |
//! |---|---|
//! | kernel_size, window | tokens a query sees along an axis |
//! | stride | queries that share one window; steps in memory are `*_strides` |
//! | dilation | step between the window's tokens |
//! | region | the part of a larger token space that a call holds, with the windows of the whole |
//! | tile | a box of tokens worked on together |
//! | lse | natural log of the softmax's denominator |
#![deny(unsafe_code)]

mod aligned;
pub mod backend;
pub mod call;
mod checks;
mod element;
mod error;
pub mod exchange;
pub mod layout;
mod operands;
mod packed;
mod params;
pub mod plan;
mod problem;
#[allow(unsafe_code, reason = "views over pointers, all of it in one module, each block with its reason")]
mod raw;
pub mod reference;
pub mod region;
mod tensor;
pub mod window;

pub use backend::{Backend, Operand, OperandMut};
pub use call::{BackwardCall, ForwardCall, MergeBackwardCall, MergeCall};
pub use element::{Element, ElementType, InputElement};
pub use error::{Error, ProblemError, Role, TensorAxis, TensorError};
pub use exchange::{Exchange, ExchangeError};
pub use half::{bf16, f16};
pub use layout::Layout;
pub use operands::{Gradients, Inputs, Output, Partials, Saved};
pub use packed::{PackedSequence, Sequences};
pub use params::{AttentionParams, AxisParams, DynParams, KernelSize, KernelSizePolicy, Params, PerAxis};
pub use problem::Problem;
pub use raw::{TensorView, TensorViewMut};
pub use region::Region;
pub use tensor::Tensor;
