//! What can be wrong with a tensor.

/// Why a shape, a buffer and strides do not make a tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// More axes than a tensor can have.
    #[error("{rank} axes, a tensor has 1 to {max}")]
    Rank {
        /// Axes asked for.
        rank: usize,
        /// Most axes a tensor can have.
        max: usize,
    },
    /// There is no such axis.
    #[error("axis {axis} of a tensor with {rank} axes")]
    Axis {
        /// The axis asked for.
        axis: usize,
        /// Axes there are.
        rank: usize,
    },
    /// A range leaves its axis.
    #[error("{start}..{end} of axis {axis}, which has {extent}")]
    Range {
        /// The axis.
        axis: usize,
        /// First index asked for.
        start: usize,
        /// One past the last index asked for.
        end: usize,
        /// The axis' extent.
        extent: usize,
    },
    /// A list of axes is no order of all of them.
    #[error("axes {axes:?} are no order of the {rank} axes of a tensor")]
    Permutation {
        /// The list.
        axes: Vec<usize>,
        /// Axes there are.
        rank: usize,
    },
    /// Shape and strides disagree in length.
    #[error("{shape} extents but {strides} strides")]
    StrideCount {
        /// Extents given.
        shape: usize,
        /// Strides given.
        strides: usize,
    },
    /// The shape's element count is not the buffer's.
    #[error("the shape holds {expected} elements, the buffer {found}")]
    Length {
        /// Elements the shape holds.
        expected: usize,
        /// Elements the buffer holds.
        found: usize,
    },
    /// What one tensor's elements are written to has another shape.
    #[error("a tensor of shape {found:?} where {expected:?} is written")]
    Shape {
        /// The shape of what is written to.
        expected: Vec<usize>,
        /// The other.
        found: Vec<usize>,
    },
    /// The shape addresses more than the machine can.
    #[error("the shape's element count overflows")]
    Overflow,
    /// A tensor with elements begins nowhere.
    #[error("a null pointer to a tensor that is not empty")]
    NullPointer,
    /// There is no memory for so many bytes.
    #[error("{bytes} bytes of memory cannot be had")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// Strides reach outside the buffer.
    #[error("elements {lowest} to {highest} are addressed, the buffer holds {len}")]
    OutOfBounds {
        /// Lowest index reached.
        lowest: i128,
        /// Highest index reached.
        highest: i128,
        /// Elements in the buffer.
        len: usize,
    },
    /// A tensor to write to names some element twice.
    #[error("axes overlap in memory, a tensor to write to must not")]
    Overlap,
}
