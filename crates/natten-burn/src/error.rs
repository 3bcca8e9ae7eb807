//! What can go wrong before, or instead of, what natten itself reports.

use burn::backend::GradientCheckpointingStrategy;
use burn::tensor::DType;
use natten::Role;

/// Any failure of a call or of building a module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operator's own: a broken rule, which names the argument and the values.
    #[error(transparent)]
    Natten(#[from] natten::Error),
    /// A tensor lives where this crate does not run.
    #[error(
        "{tensor} lives on burn's {device}, natten-burn runs on Flex (the CPU): move it with `to_device(&Device::flex())`, \
         for gradients with `to_device(&Device::flex().autodiff())`"
    )]
    Backend {
        /// The tensor.
        tensor: Role,
        /// Where it lives, as burn names it.
        device: String,
    },
    /// A tensor holds what natten does not compute in.
    #[error("{tensor} holds {found:?}, expected F16, BF16, F32 or F64")]
    ElementType {
        /// The tensor.
        tensor: Role,
        /// What it holds.
        found: DType,
    },
    /// A tensor's bytes do not begin where numbers of its type may.
    #[error("{tensor}: its bytes are not aligned to numbers of its type")]
    Unaligned {
        /// The tensor.
        tensor: Role,
    },
    /// Tensors record gradients in two ways that burn does not mix.
    #[error("{tensor} checkpoints gradients as {found:?}, tensors before it as {expected:?}")]
    Checkpointing {
        /// The tensor.
        tensor: Role,
        /// The strategy of tensors before it.
        expected: GradientCheckpointingStrategy,
        /// This one's.
        found: GradientCheckpointingStrategy,
    },
    /// A module cannot be built.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A module's input is not shaped as its configuration says.
    #[error("the input is {found:?}, expected [batch, {token_axes} token axes, {embed_dim}]")]
    Input {
        /// Its shape.
        found: Vec<usize>,
        /// The token axes it must have.
        token_axes: usize,
        /// The last extent it must have.
        embed_dim: usize,
    },
}

/// Why a configuration describes no module.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// `kernel_size` has one entry for each token axis, and there are 1 to 3.
    #[error("kernel_size has {found} entries, expected 1, 2 or 3: one for each token axis")]
    Rank {
        /// Entries it has.
        found: usize,
    },
    /// Another list has another number of entries than `kernel_size`.
    #[error("{field} has {found} entries, kernel_size {expected}")]
    Entries {
        /// The list.
        field: &'static str,
        /// Entries of `kernel_size`.
        expected: usize,
        /// Entries it has.
        found: usize,
    },
    /// `embed_dim` does not divide into heads.
    #[error("embed_dim = {embed_dim} does not divide into num_heads = {num_heads}")]
    Heads {
        /// Numbers of a token.
        embed_dim: usize,
        /// Heads.
        num_heads: usize,
    },
    /// `proj_drop` is no probability below 1.
    #[error("proj_drop = {proj_drop}, expected 0 <= proj_drop < 1")]
    Dropout {
        /// The probability asked for.
        proj_drop: f64,
    },
}
