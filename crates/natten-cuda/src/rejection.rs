//! Why a kernel was not taken, with the numbers.

use std::fmt;

use natten_core::ElementType;

use crate::capability::ComputeCapability;

/// Why a kernel was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RejectionReason {
    /// Made for another element type.
    ElementType {
        /// The kernel's.
        kernel: ElementType,
        /// The problem's.
        problem: ElementType,
    },
    /// A row is too long.
    HeadDim {
        /// The kernel's longest.
        max: usize,
        /// The longest row of the problem that it would have to take at once.
        found: usize,
    },
    /// A base address, a stride or a row length is no multiple of 16 bytes.
    Alignment,
    /// A cta cannot have so much shared memory.
    SharedMemory {
        /// The kernel's bytes.
        needed: usize,
        /// The device's limit.
        limit: usize,
    },
    /// More queries share a window than the kernel's masks can count.
    Stride {
        /// The most that works.
        max: usize,
        /// The problem's largest.
        found: usize,
    },
    /// Tiles would compute many more scores than the windows have: CUDA cores are faster.
    WastedScores {
        /// Scores computed per score needed, in hundredths.
        percent: u64,
        /// Where the other kernels become faster.
        limit: u64,
    },
    /// The caller wants another kernel, or other boxes.
    NotAskedFor,
    /// Another kernel of its family is predicted to end earlier.
    Slower {
        /// The faster one.
        than: &'static str,
    },
    /// Another kernel of its family is preferred wherever it can run.
    Preferred {
        /// That one.
        instead: &'static str,
    },
    /// The device is too old.
    ComputeCapability {
        /// The oldest that works.
        needed: ComputeCapability,
        /// The device's.
        found: ComputeCapability,
    },
    /// Runs on one architecture only.
    OnlyOn {
        /// That one.
        only: ComputeCapability,
        /// The device's.
        found: ComputeCapability,
    },
    /// There are no keys.
    NoKeys,
    /// There are no queries.
    NoQueries,
    /// The copy engine cannot read a tensor as it lies.
    TensorMap(MapError),
    /// A tensor that is written runs backwards along an axis.
    BackwardOutput {
        /// The step along that axis, in elements.
        stride: i64,
    },
    /// A kernel of another family is predicted to end earlier.
    PredictedSlower {
        /// That one.
        than: &'static str,
        /// Its predicted time, in nanoseconds.
        nanoseconds: u64,
        /// This kernel's.
        own_nanoseconds: u64,
    },
}

impl fmt::Display for RejectionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RejectionReason::ElementType { kernel, problem } => {
                write!(f, "is for {kernel}, the tensors are {problem}")
            }
            RejectionReason::HeadDim { max, found } => {
                write!(f, "takes a head_dim up to {max}, the tensors have {found}")
            }
            RejectionReason::Alignment => {
                write!(f, "needs bases, strides and rows in multiples of 16 bytes")
            }
            RejectionReason::SharedMemory { needed, limit } => {
                write!(f, "needs {needed} bytes of shared memory, a cta has {limit}")
            }
            RejectionReason::Stride { max, found } => {
                write!(f, "takes a stride up to {max}, the problem has {found}")
            }
            RejectionReason::WastedScores { percent, limit } => {
                write!(f, "would compute {percent} % of the scores in the windows, more than {limit} %")
            }
            RejectionReason::NotAskedFor => write!(f, "was not asked for"),
            RejectionReason::Slower { than } => write!(f, "would take longer than {than}"),
            RejectionReason::Preferred { instead } => write!(f, "serves where {instead} does not"),
            RejectionReason::ComputeCapability { needed, found } => {
                write!(f, "needs compute capability {needed}, the device has {found}")
            }
            RejectionReason::OnlyOn { only, found } => {
                write!(f, "runs on compute capability {only} alone, the device has {found}")
            }
            RejectionReason::NoKeys => write!(f, "needs at least one key"),
            RejectionReason::NoQueries => write!(f, "needs at least one query"),
            RejectionReason::TensorMap(reason) => write!(f, "cannot map a tensor: {reason}"),
            RejectionReason::BackwardOutput { stride } => {
                write!(f, "takes no output with a stride of {stride} elements")
            }
            RejectionReason::PredictedSlower { than, nanoseconds, own_nanoseconds } => {
                let [own, other] = [own_nanoseconds, nanoseconds].map(|&time| time as f64 / 1e3);
                write!(f, "would take {own:.0} us, {than} {other:.0} us")
            }
        }
    }
}

/// A kernel and the reason against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The kernel's entry.
    pub kernel: &'static str,
    /// What is wrong.
    pub reason: RejectionReason,
}

/// The reasons against every kernel of an operation; prints one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejections(pub Vec<Rejection>);

impl fmt::Display for Rejections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Rejection { kernel, reason } in &self.0 {
            writeln!(f, "  {kernel} {reason}")?;
        }
        Ok(())
    }
}

/// Why the copy engine cannot read a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// Base or a stride is no multiple of 16 bytes.
    #[error("a base or stride is no multiple of 16 bytes")]
    Alignment,
    /// A stride is negative or too long, or zero where tokens must differ.
    #[error("the copy engine takes no stride of {elements} elements")]
    Stride {
        /// The stride.
        elements: i64,
    },
    /// The driver knows of a limit that this crate does not.
    #[error("the driver refuses the map")]
    Refused,
    /// An axis is too long.
    #[error("the copy engine takes no axis of {extent} elements")]
    Extent {
        /// The extent.
        extent: u64,
    },
}
