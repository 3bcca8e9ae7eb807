//! Deadlocks: who waits for what.

use std::fmt;

/// One line of a deadlock report.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wait {
    /// The warp that waits.
    pub warp: u32,
    /// Its lanes concerned.
    pub lanes: u32,
    /// PTX line of the wait.
    pub line: u32,
    /// What it waits for.
    pub reason: WaitReason,
}

/// What a warp waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitReason {
    /// A named barrier that not enough warps reached.
    Barrier {
        /// Barrier number.
        id: u32,
        /// Threads arrived.
        arrived: u32,
        /// Threads expected.
        expected: u32,
    },
    /// A phase of an mbarrier.
    Mbarrier {
        /// Shared address.
        address: u32,
        /// Arrivals still pending.
        pending_arrivals: i64,
        /// Bytes still expected.
        pending_bytes: i64,
    },
    /// Other lanes of the same warp.
    Lanes {
        /// Lanes needed.
        required: u32,
    },
    /// Registers for `setmaxnreg.inc`.
    Registers {
        /// Registers per thread asked for.
        count: u32,
    },
    /// The other warps of the warpgroup.
    Warpgroup,
    /// Columns of tensor memory for `tcgen05.alloc`.
    TensorMemory {
        /// Columns asked for.
        columns: u32,
    },
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "warp {} (lanes {:#010x}, line {}) waits for ", self.warp, self.lanes, self.line)?;
        match self.reason {
            WaitReason::Barrier { id, arrived, expected } => {
                write!(f, "barrier {id} ({arrived} of {expected} threads arrived)")
            }
            WaitReason::Mbarrier { address, pending_arrivals, pending_bytes } => {
                write!(
                    f,
                    "mbarrier {address:#x} ({pending_arrivals} arrivals and {pending_bytes} bytes pending)"
                )
            }
            WaitReason::Lanes { required } => write!(f, "lanes {required:#010x}"),
            WaitReason::Registers { count } => write!(f, "{count} registers"),
            WaitReason::Warpgroup => write!(f, "its warpgroup"),
            WaitReason::TensorMemory { columns } => write!(f, "{columns} columns of tensor memory"),
        }
    }
}

/// Prints a list with semicolons between its items.
pub(super) struct Listed<'a>(pub(super) &'a Vec<Wait>);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, wait) in self.0.iter().enumerate() {
            write!(f, "{}{wait}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}
