//! What can be wrong with a stream.

use natten_core::{ElementType, Error, ProblemError, Role, TensorError};

/// Why a stream cannot be kept, or a step of it not be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The first token axis is not causal, so that its frames would see some that are not there yet.
    #[error("axis 0 is not causal, a stream's frames see none that come later")]
    NotCausal,
    /// The window of the first axis is as long as the stream, which has no length.
    #[error("axis 0 has a window over all frames of a stream of unknown length, expected a number of them")]
    EndlessWindow,
    /// An append has more frames than the cache was made for.
    #[error("an append of {found} frames, the cache takes at most {most} at once")]
    TooManyFrames {
        /// Frames of the append.
        found: usize,
        /// Most that the cache takes.
        most: usize,
    },
    /// An append goes beyond the length of the stream.
    #[error("{found} frames after the first {frames} of a stream of {length}")]
    PastTheEnd {
        /// Frames of the append.
        found: usize,
        /// Frames before it.
        frames: u64,
        /// Frames of the whole stream.
        length: usize,
    },
    /// An append begins at another frame than the stream's next.
    #[error("frame {found} is appended, the stream's next is frame {expected}")]
    OutOfOrder {
        /// The stream's next frame, counted from 0.
        expected: u64,
        /// The append's first.
        found: u64,
    },
    /// A query has another number of frames than the last append.
    #[error("query has {found} frames, the last append {expected}")]
    QueryFrames {
        /// Frames of the last append, 0 before the first.
        expected: usize,
        /// Frames of the query.
        found: usize,
    },
    /// A tensor holds another element type than the cache.
    #[error("{tensor} holds {found}, the cache {expected}")]
    ElementType {
        /// The tensor.
        tensor: Role,
        /// The cache's element type.
        expected: ElementType,
        /// The tensor's.
        found: ElementType,
    },
    /// A tensor lives on another device than the cache.
    #[error("{tensor} lives on {found}, the cache on {expected}")]
    Device {
        /// The tensor.
        tensor: Role,
        /// Where the cache lives.
        expected: String,
        /// Where the tensor lives.
        found: String,
    },
    /// A call or a shape breaks a rule, or the device failed.
    #[error(transparent)]
    Call(#[from] Error),
}

impl From<TensorError> for StreamError {
    fn from(error: TensorError) -> Self {
        StreamError::Call(error.into())
    }
}

impl From<ProblemError> for StreamError {
    fn from(error: ProblemError) -> Self {
        StreamError::Call(error.into())
    }
}
