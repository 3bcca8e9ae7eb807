//! What can be wrong with a region.

use crate::error::Role;

/// Why a region describes no part of a whole that a call could hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// The whole has more tokens than any tensor.
    #[error("axis {axis}: a whole of {extent} tokens, expected at most {limit}")]
    TooLong {
        /// The token axis.
        axis: usize,
        /// Tokens of the whole.
        extent: usize,
        /// Most that there may be.
        limit: usize,
    },
    /// A region ends before it begins.
    #[error("axis {axis}: the region of {tensor} ends before it begins, {start}..{end}")]
    Reversed {
        /// The tensor whose tokens it says.
        tensor: Role,
        /// The token axis.
        axis: usize,
        /// Its first token.
        start: usize,
        /// Where it ends.
        end: usize,
    },
    /// A region leaves the whole.
    #[error("axis {axis}: the region {start}..{end} of {tensor} leaves the {extent} tokens of the axis")]
    Outside {
        /// The tensor whose tokens it says.
        tensor: Role,
        /// The token axis.
        axis: usize,
        /// Its first token.
        start: usize,
        /// Where it ends.
        end: usize,
        /// Tokens of the whole.
        extent: usize,
    },
    /// A part of a problem has tokens that the problem does not hold.
    #[error(
        "axis {axis}: the part {start}..{end} of {tensor} is not within {from}..{to}, which the problem holds"
    )]
    NotHeld {
        /// The tensor whose tokens it says.
        tensor: Role,
        /// The token axis.
        axis: usize,
        /// Its first token.
        start: usize,
        /// Where it ends.
        end: usize,
        /// The first token that the problem holds.
        from: usize,
        /// Where these end.
        to: usize,
    },
    /// Plain attention has no windows whose whole a part could be of.
    #[error("plain attention has no parts, only neighborhood attention has")]
    PlainAttention,
    /// A tensor has not as many tokens as its region.
    #[error("{tensor}: token axis {axis} has extent {found}, its region {start}..{end} has {}", end - start)]
    Extent {
        /// The tensor.
        tensor: Role,
        /// The token axis.
        axis: usize,
        /// First token of the region.
        start: usize,
        /// Where it ends.
        end: usize,
        /// Tokens the tensor has.
        found: usize,
    },
    /// A query sees a key that is not among those of the call.
    #[error("axis {axis}: query {query} needs key {key}, the call holds the keys {start}..{end}")]
    KeyNotHeld {
        /// The token axis.
        axis: usize,
        /// The first such key, a token of the whole.
        key: usize,
        /// The first query that needs it, a token of the whole.
        query: usize,
        /// First key that the call holds.
        start: usize,
        /// Where these end.
        end: usize,
    },
}
