//! Variants of `tcgen05`, the tensor core of data-center Blackwell, and of its memory.

/// One `tcgen05` instruction; what its slots hold stands with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tcgen05 {
    /// `a` plus the immediate is the shared address that gets the tensor-memory address, `b` the columns.
    Alloc {
        wide_address: bool,
    },
    /// `a` is the tensor-memory address, `b` the columns.
    Dealloc,
    RelinquishAllocPermit,
    Mma(TensorMma),
    Load(Movement),
    Store(Movement),
    WaitLoad,
    WaitStore,
    /// `a` plus the immediate is the address of the mbarrier.
    Commit {
        wide_address: bool,
    },
    FenceBeforeThreadSync,
    FenceAfterThreadSync,
}

/// `tcgen05.mma.cta_group::1.kind::f16`. Slot `a` is A's descriptor, or its address in tensor memory; `b` is B's
/// descriptor, `c` the predicate that lets D in, negated where the immediate is 1. The list is the address of D and its
/// offset, the instruction descriptor, and the offset of A's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TensorMma {
    pub a_in_tensor_memory: bool,
}

/// `tcgen05.ld` and `tcgen05.st`: slot `a` plus the immediate is the address, the list the registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Movement {
    pub shape: MovementShape,
    /// How often the shape is repeated along the columns.
    pub repeats: u8,
    /// `.pack::16b` of a load, `.unpack::16b` of a store: a register is the low halves of two columns.
    pub halves: bool,
}

/// Lanes of tensor memory, and bits of each lane's columns, that one repetition covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MovementShape {
    L32B32,
    L16B64,
    L16B128,
    L16B256,
    /// Lanes 16 to 31 of the warp take the same lanes of tensor memory as lanes 0 to 15, so many columns further on.
    L16B32X2 {
        split: u32,
    },
}

impl MovementShape {
    /// Registers of a thread for one repetition.
    pub(crate) fn registers(self) -> usize {
        match self {
            Self::L32B32 | Self::L16B64 | Self::L16B32X2 { .. } => 1,
            Self::L16B128 => 2,
            Self::L16B256 => 4,
        }
    }

    /// The most repetitions: no thread has more than 128 registers of data.
    pub(crate) fn most_repeats(self) -> usize {
        128 / self.registers()
    }
}
