//! Broken rules of tensor memory and of `tcgen05`.

use thiserror::Error;

/// Misuses of tensor memory and of what works in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TensorMemoryProblem {
    /// A number of columns that is no power of two from 32 to 512.
    #[error("{columns} columns, where a power of two from 32 to 512 is needed")]
    ColumnCount {
        /// Columns asked for.
        columns: u32,
    },
    /// An allocation larger than an earlier one of the CTA.
    #[error("{columns} columns after an allocation of {before}: allocations of a CTA may not grow")]
    AllocationGrew {
        /// Columns asked for.
        columns: u32,
        /// Columns of the allocation before.
        before: u32,
    },
    /// `tcgen05.alloc` after `tcgen05.relinquish_alloc_permit`.
    #[error("allocation after the permit to allocate was given up")]
    PermitRelinquished,
    /// `tcgen05.dealloc` of what is no start of an allocation.
    #[error("nothing that was allocated begins at {address:#010x}")]
    NotAllocated {
        /// The address given, its lane in the upper half.
        address: u32,
    },
    /// `tcgen05.dealloc` with another number of columns than was allocated.
    #[error("{columns} columns given back of an allocation of {allocated}")]
    DeallocatedSize {
        /// Columns named.
        columns: u32,
        /// Columns of the allocation.
        allocated: u32,
    },
    /// The kernel ended without `tcgen05.dealloc`.
    #[error("{columns} columns were never given back")]
    Leaked {
        /// Columns of the allocation.
        columns: u32,
    },
    /// A column beyond 511 or a lane beyond 127.
    #[error("{columns} columns from {address:#010x} on lie outside")]
    OutOfRange {
        /// The first address, its lane in the upper half.
        address: u32,
        /// How many columns.
        columns: u32,
    },
    /// A column that the CTA did not allocate.
    #[error("column {column} is not allocated")]
    ColumnNotAllocated {
        /// The column.
        column: u32,
    },
    /// A warp reaches for lanes of another: warp w of a warpgroup has lanes 32 w to 32 w + 31.
    #[error("lane {lane} is not one of warp {warp}'s")]
    ForeignLane {
        /// The first lane asked for.
        lane: u32,
        /// The warp's place in its warpgroup.
        warp: u32,
    },
    /// A first lane at which the operation cannot begin.
    #[error("first lane {lane}, where a multiple of {alignment} is needed")]
    LaneAlignment {
        /// The lane.
        lane: u32,
        /// What it must be a multiple of.
        alignment: u32,
    },
    /// A and D of an `mma` of 64 rows begin at different halves of a warp's lanes.
    #[error("A begins at lane {a}, D at lane {d}")]
    LaneMismatch {
        /// First lane of A.
        a: u32,
        /// First lane of D.
        d: u32,
    },
    /// A read of a column that nobody wrote.
    #[error("column {column} is read and was never written at lane {lane}")]
    NeverWritten {
        /// The first such lane.
        lane: u32,
        /// The column.
        column: u32,
    },
    /// The lanes of a warp gave different addresses or numbers of columns.
    #[error("the lanes of the warp differ in an operand that they must share")]
    OperandsDiffer,
    /// A warp of which lanes are missing.
    #[error("the warp is not whole")]
    IncompleteWarp,
    /// `tcgen05.mma` issued by several lanes at once, each of which multiplies.
    #[error("{lanes} lanes issue the operation, which is one thread's")]
    SeveralIssuers {
        /// How many.
        lanes: u32,
    },
    /// A register that a `tcgen05.ld` still writes was read before `tcgen05.wait::ld`.
    #[error("register read before tcgen05.wait::ld")]
    RegisterRead,
    /// A register that a `tcgen05.ld` still writes was written before `tcgen05.wait::ld`.
    #[error("register written before tcgen05.wait::ld")]
    RegisterWritten,
}

/// What is missing between two accesses to tensor memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TensorOrderProblem {
    /// The earlier access is an `mma` of which no commit has been waited for.
    #[error("no commit that covers it has been waited for")]
    Commit,
    /// The earlier access is a load of the same warp, not waited for.
    #[error("tcgen05.wait::ld is missing")]
    WaitLoad,
    /// The earlier access is a store of the same warp, not waited for.
    #[error("tcgen05.wait::st is missing")]
    WaitStore,
    /// Nothing orders the accesses of two warps: no synchronisation, or no wait before it.
    #[error("no wait and synchronisation lie between them")]
    Synchronisation,
    /// The earlier access was waited for, but not handed on by `tcgen05.fence::before_thread_sync`.
    #[error("tcgen05.fence::before_thread_sync is missing")]
    BeforeThreadSync,
    /// The later access does not follow a `tcgen05.fence::after_thread_sync`.
    #[error("tcgen05.fence::after_thread_sync is missing")]
    AfterThreadSync,
}

/// An operand of `tcgen05.mma` that is described by a matrix descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MatrixOperand {
    /// The left one.
    A,
    /// The right one.
    B,
}

impl std::fmt::Display for MatrixOperand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            MatrixOperand::A => "A",
            MatrixOperand::B => "B",
        })
    }
}

/// What is wrong with a descriptor of `tcgen05.mma`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DescriptorProblem {
    /// Bits that must have one value have another.
    #[error("bits {first} to {last} are {got:#b}, {needed:#b} is needed")]
    FixedBits {
        /// The lowest bit.
        first: u32,
        /// The highest bit.
        last: u32,
        /// Their value.
        got: u64,
        /// What they must be.
        needed: u64,
    },
    /// A value that stands for nothing.
    #[error("{field} is {got}")]
    Illegal {
        /// The field.
        field: &'static str,
        /// Its value.
        got: u64,
    },
    /// Fields that are right one by one and not together.
    #[error("{what}")]
    Combination {
        /// What does not go together.
        what: &'static str,
    },
    /// What the hardware has and the emulator has no model of.
    #[error("{what} is not modelled")]
    NotModelled {
        /// The feature.
        what: &'static str,
    },
}
