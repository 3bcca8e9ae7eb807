//! What can be wrong with a call: every variant names the argument and carries the values.

use std::fmt;

use crate::element::ElementType;
use crate::region::RegionError;

mod tensor;

pub use tensor::TensorError;

/// A tensor of a call, for error messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// `query`, `[batch, tokens.., heads, head_dim]`.
    Query,
    /// `key`, `[batch, tokens.., heads_kv, head_dim]`.
    Key,
    /// `value`, `[batch, tokens.., heads_kv, head_dim_v]`.
    Value,
    /// `additional_keys`, `[batch, n, heads_kv, head_dim]`.
    AdditionalKeys,
    /// `additional_values`, `[batch, n, heads_kv, head_dim_v]`.
    AdditionalValues,
    /// `out`, `[batch, tokens.., heads, head_dim_v]`.
    Out,
    /// `lse`, `[batch, tokens.., heads]`.
    Lse,
    /// Gradient of `query`.
    DQuery,
    /// Gradient of `key`.
    DKey,
    /// Gradient of `value`.
    DValue,
    /// Gradient of `additional_keys`.
    DAdditionalKeys,
    /// Gradient of `additional_values`.
    DAdditionalValues,
    /// Gradient of `out`.
    DOut,
    /// Gradient of `lse`.
    DLse,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Query => "query",
            Role::Key => "key",
            Role::Value => "value",
            Role::AdditionalKeys => "additional_keys",
            Role::AdditionalValues => "additional_values",
            Role::Out => "out",
            Role::Lse => "lse",
            Role::DQuery => "d_query",
            Role::DKey => "d_key",
            Role::DValue => "d_value",
            Role::DAdditionalKeys => "d_additional_keys",
            Role::DAdditionalValues => "d_additional_values",
            Role::DOut => "d_out",
            Role::DLse => "d_lse",
        })
    }
}

/// An axis of a tensor, for error messages. Token axes count from 0 in the caller's own rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorAxis {
    /// The batch axis.
    Batch,
    /// A token (spatial) axis.
    Token(usize),
    /// The axis of heads.
    Heads,
    /// The axis of a head's components.
    HeadDim,
}

impl fmt::Display for TensorAxis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TensorAxis::Batch => f.write_str("batch"),
            TensorAxis::Token(axis) => write!(f, "token axis {axis}"),
            TensorAxis::Heads => f.write_str("heads"),
            TensorAxis::HeadDim => f.write_str("head_dim"),
        }
    }
}

/// Why a call describes no valid problem.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProblemError {
    /// A tensor has the wrong number of axes.
    #[error("{tensor} has {found} axes, expected {expected}")]
    TensorRank {
        /// The tensor.
        tensor: Role,
        /// Axes it must have.
        expected: usize,
        /// Axes it has.
        found: usize,
    },
    /// The number of token axes is not 1, 2 or 3.
    #[error("{rank} token axes, expected 1, 2 or 3")]
    Rank {
        /// Token axes asked for.
        rank: usize,
    },
    /// Two tensors that must agree along an axis do not.
    #[error("{tensor}: {axis} has extent {found}, expected {expected}")]
    ShapeMismatch {
        /// The tensor that disagrees.
        tensor: Role,
        /// The axis.
        axis: TensorAxis,
        /// Extent it must have.
        expected: usize,
        /// Extent it has.
        found: usize,
    },
    /// The last axis of a tensor is not contiguous in memory.
    #[error("{tensor}: the last axis has stride {stride}, it must be contiguous (stride 1)")]
    LastAxisNotContiguous {
        /// The tensor.
        tensor: Role,
        /// Its last stride, in elements.
        stride: isize,
    },
    /// An axis that must hold something is empty.
    #[error("{tensor}: {axis} has extent 0")]
    EmptyAxis {
        /// The tensor.
        tensor: Role,
        /// The axis.
        axis: TensorAxis,
    },
    /// `heads` is no multiple of `heads_kv`.
    #[error("heads = {heads} is not a multiple of heads_kv = {heads_kv}")]
    HeadsNotDivisible {
        /// Heads of the query.
        heads: usize,
        /// Heads of key and value.
        heads_kv: usize,
    },
    /// `kernel_size` is 0.
    #[error("axis {axis}: kernel_size is 0, it must be at least 1")]
    KernelSizeZero {
        /// The token axis.
        axis: usize,
    },
    /// `stride` is 0.
    #[error("axis {axis}: stride is 0, it must be at least 1")]
    StrideZero {
        /// The token axis.
        axis: usize,
    },
    /// `dilation` is 0.
    #[error("axis {axis}: dilation is 0, it must be at least 1")]
    DilationZero {
        /// The token axis.
        axis: usize,
    },
    /// The dilated window does not fit the axis.
    #[error(
        "axis {axis}: kernel_size {kernel_size} x dilation {dilation} exceeds the token extent {token_extent}"
    )]
    KernelSizeTooLarge {
        /// The token axis.
        axis: usize,
        /// Window, in tokens.
        kernel_size: usize,
        /// Dilation, in tokens.
        dilation: usize,
        /// Tokens along the axis.
        token_extent: usize,
    },
    /// No window fits, whatever its size: the dilation alone is longer than the axis.
    #[error("axis {axis}: dilation {dilation} exceeds the token extent {token_extent}, so no window fits")]
    DilationTooLarge {
        /// The token axis.
        axis: usize,
        /// Dilation, in tokens.
        dilation: usize,
        /// Tokens along the axis.
        token_extent: usize,
    },
    /// The stride skips keys.
    #[error("axis {axis}: stride {stride} exceeds kernel_size {kernel_size}")]
    StrideTooLarge {
        /// The token axis.
        axis: usize,
        /// Stride, in tokens.
        stride: usize,
        /// Window, in tokens.
        kernel_size: usize,
    },
    /// There is no such token axis: to be opened whole, to hold a region of, or to be asked for.
    #[error("axis {axis}: there are {rank} token axes, counted from 0")]
    NoSuchAxis {
        /// The axis asked for.
        axis: usize,
        /// Token axes there are.
        rank: usize,
    },
    /// A region is none of the whole, or not what the tensors hold.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The softmax scale is NaN or infinite.
    #[error("scale is {scale}, it must be finite")]
    ScaleNotFinite {
        /// The scale given.
        scale: f32,
    },
    /// The problem has additional keys, but there is nowhere to write their gradients.
    #[error("{additional_keys} additional keys, but no tensors for their gradients")]
    AdditionalGradientsMissing {
        /// Additional keys of the problem.
        additional_keys: usize,
    },
    /// The problem has additional keys, the operands of the call have none.
    #[error("{additional_keys} additional keys in the problem, none among the operands")]
    AdditionalMissing {
        /// Additional keys of the problem.
        additional_keys: usize,
    },
    /// The operands are of another element type than the problem.
    #[error("the problem is of {expected}, the operands hold {found}")]
    ElementType {
        /// The problem's element type.
        expected: ElementType,
        /// The operands'.
        found: ElementType,
    },
    /// Packed sequences need a batch of one.
    #[error("packed sequences need batch = 1, {tensor} has batch = {found}")]
    PackedBatch {
        /// The tensor.
        tensor: Role,
        /// Its batch extent.
        found: usize,
    },
    /// Cumulative sequence lengths hold at least their leading 0, which stands for no sequence.
    #[error("cumulative lengths of {tensor}: the list is empty, it must at least hold the leading 0")]
    NoCumulativeLengths {
        /// The tensor they describe.
        tensor: Role,
    },
    /// Cumulative sequence lengths must start at 0, never fall and end at the tensor's tokens.
    #[error("cumulative lengths of {tensor}: entry {index} is {found}, expected {expected}")]
    CumulativeLengths {
        /// The tensor they describe.
        tensor: Role,
        /// Index into the list.
        index: usize,
        /// What the entry must be (a lower bound where the list must not fall).
        expected: usize,
        /// What it is.
        found: usize,
    },
    /// Queries and keys are packed into different numbers of sequences.
    #[error("{queries} query sequences but {keys} key sequences")]
    SequenceCount {
        /// Sequences of queries.
        queries: usize,
        /// Sequences of keys.
        keys: usize,
    },
    /// Merging needs a log-sum-exp for each partial output.
    #[error("merging {outs} partial outputs with {lses} log-sum-exps (lse)")]
    MergeLseCount {
        /// Partial outputs given.
        outs: usize,
        /// Log-sum-exps given.
        lses: usize,
    },
    /// Merging needs at least two partial results.
    #[error("merging needs at least 2 partial results, got {found}")]
    MergeCount {
        /// Partial results given.
        found: usize,
    },
    /// The gradient of a merge has one result for each partial result.
    #[error("gradients of {found} partial results, {expected} were merged")]
    MergeGradientCount {
        /// Partial results merged.
        expected: usize,
        /// Gradients to be written.
        found: usize,
    },
}

/// Any failure of a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The arguments describe no valid problem.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// Shape, strides and buffer do not fit.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// Operands live on different devices.
    #[error("{tensor} lives on {found}, query on {expected}")]
    DeviceMismatch {
        /// The operand that is elsewhere.
        tensor: Role,
        /// Where the query lives.
        expected: String,
        /// Where this one lives.
        found: String,
    },
    /// Operands chosen at run time differ in element type.
    #[error("{tensor} holds {found}, query {expected}")]
    ElementMismatch {
        /// The operand that differs.
        tensor: Role,
        /// The query's element type.
        expected: ElementType,
        /// This one's.
        found: ElementType,
    },
    /// The backend failed; `source` is its own typed error.
    #[error("backend {backend}: {source}")]
    Backend {
        /// Name of the backend.
        backend: &'static str,
        /// Its error, to be downcast.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
