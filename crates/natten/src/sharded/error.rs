//! What can be wrong with a problem over several ranks.

use std::ops::Range;

use natten_core::region::SplitError;
use natten_core::{ElementType, Error, ExchangeError, ProblemError, Role, TensorError};

/// Why a problem cannot be shared, or a call of it failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShardedError {
    /// The whole is no valid problem.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// The whole cannot be split so.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// Ranks could not reach each other.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// A call of this rank's own failed.
    #[error(transparent)]
    Call(#[from] Error),
    /// A view that a call is made of does not fit.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// Each rank of the exchange has one part, and each part one rank.
    #[error("{parts} parts for {ranks} ranks")]
    Parts {
        /// Parts asked for.
        parts: usize,
        /// Ranks of the exchange.
        ranks: usize,
    },
    /// A tensor is not this rank's shard of the whole.
    #[error("rank {rank}: {tensor} has shape {found:?}, its shard of the whole has {expected:?}")]
    Shape {
        /// This rank.
        rank: usize,
        /// The tensor.
        tensor: Role,
        /// The shard's shape.
        expected: Vec<usize>,
        /// The tensor's.
        found: Vec<usize>,
    },
    /// The whole has additional keys and the call none, or the other way round.
    #[error("{expected} additional keys in the whole, {found} in the call")]
    AdditionalKeys {
        /// The whole's.
        expected: usize,
        /// The call's.
        found: usize,
    },
    /// Operands of another element type than the whole's.
    #[error("the whole is of {expected}, the operands hold {found}")]
    ElementType {
        /// The whole's element type.
        expected: ElementType,
        /// The operands'.
        found: ElementType,
    },
    /// Halos were kept by another split.
    #[error("halos of tokens {found:?} were kept, this rank needs {expected:?}")]
    Halos {
        /// Tokens of each that this rank needs.
        expected: Vec<Range<usize>>,
        /// Tokens of each that were kept.
        found: Vec<Range<usize>>,
    },
    /// A ring passes blocks of keys on, which only windows that reach over all of an axis can take one by one.
    #[error("axis {axis}: a ring needs windows that reach over all of it, without dilation")]
    NoRing {
        /// The split axis.
        axis: usize,
    },
    /// A rate of a device or a link that is no positive number.
    #[error("{name} is {value}, it must be positive and finite")]
    Rate {
        /// Which.
        name: &'static str,
        /// Its value.
        value: f64,
    },
}
