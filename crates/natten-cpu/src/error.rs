//! What can fail on the CPU.

use natten_core::TensorError;

use crate::isa::{Isa, Lack};

/// A failure of the CPU backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// No instruction set has this name.
    #[error("unknown instruction set \"{name}\", known are scalar, avx2, avx512, avx512_bf16, amx and neon")]
    UnknownIsa {
        /// The name given.
        name: String,
    },
    /// The machine lacks the instruction set asked for.
    #[error("this machine has no {isa}")]
    IsaUnavailable {
        /// The instruction set asked for.
        isa: Isa,
    },
    /// The machine lacks a part of the instruction set asked for.
    #[error("this machine has no {isa}: {lack}")]
    IsaLacks {
        /// The instruction set asked for.
        isa: Isa,
        /// What is missing.
        lack: Lack,
    },
    /// The thread pool could not be started.
    #[error("cannot start {threads} threads")]
    Threads {
        /// Threads asked for.
        threads: usize,
    },
    /// More threads than a pool may have.
    #[error("{threads} threads, at most {max} are started")]
    TooManyThreads {
        /// Threads asked for.
        threads: usize,
        /// Most threads of a pool.
        max: usize,
    },
    /// A result has no valid shape.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}
