//! Why a kernel was not taken, with the numbers.

use std::fmt;

use natten_core::ElementType;

use crate::capability::ComputeCapability;
use crate::trust::TrialFailure;

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
    /// An axis is longer than parameters can say.
    TooManyTokens {
        /// Its tokens.
        found: usize,
    },
    /// There are no keys.
    NoKeys,
    /// There are no queries.
    NoQueries,
    /// The copy engine cannot read a tensor as it lies.
    TensorMap(MapError),
    /// No chip had run its family before, and on this device one of its kernels failed where it was held to others.
    NotTrusted {
        /// That kernel.
        kernel: &'static str,
        /// How.
        how: TrialFailure,
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

impl RejectionReason {
    /// How little stands in the way, most being closest; of rows that are too long, the kernel that takes the longest.
    fn closeness(&self) -> (u8, usize) {
        match self {
            RejectionReason::NotAskedFor
            | RejectionReason::Slower { .. }
            | RejectionReason::Preferred { .. }
            | RejectionReason::PredictedSlower { .. }
            | RejectionReason::NotTrusted { .. }
            | RejectionReason::WastedScores { .. } => (0, 0),
            RejectionReason::OnlyOn { .. } => (1, 0),
            RejectionReason::ComputeCapability { .. } => (2, 0),
            RejectionReason::ElementType { .. } => (3, 0),
            RejectionReason::SharedMemory { .. } => (4, 0),
            RejectionReason::HeadDim { max, .. } => (5, *max),
            RejectionReason::Alignment
            | RejectionReason::Stride { .. }
            | RejectionReason::NoKeys
            | RejectionReason::NoQueries
            | RejectionReason::TooManyTokens { .. }
            | RejectionReason::TensorMap(_) => (6, 0),
        }
    }
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
            RejectionReason::TooManyTokens { found } => {
                write!(f, "takes axes of up to {} tokens, the problem has one of {found}", i32::MAX)
            }
            RejectionReason::NoKeys => write!(f, "needs at least one key"),
            RejectionReason::NoQueries => write!(f, "needs at least one query"),
            RejectionReason::TensorMap(reason) => write!(f, "cannot map a tensor: {reason}"),
            RejectionReason::NotTrusted { kernel, how } => {
                write!(f, "is not trusted: {kernel} {how} when it was first used on this device")
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

impl Rejections {
    /// One sentence: what stands in the way of the kernel that comes closest to serving, and what would serve.
    pub fn sentence(&self) -> String {
        let closest = self.0.iter().max_by_key(|rejection| rejection.reason.closeness());
        let Some(Rejection { kernel, reason }) = closest else {
            return "there is none for such a pass".to_owned();
        };
        let serves = match reason {
            RejectionReason::ElementType { .. } => {
                format!("tensors of {}", self.element_types().join(" or "))
            }
            RejectionReason::HeadDim { .. } => "shorter rows, or the CPU,".to_owned(),
            RejectionReason::Stride { max, .. } => format!("a stride up to {max}"),
            RejectionReason::SharedMemory { .. } => "a GPU with more shared memory for a cta".to_owned(),
            RejectionReason::ComputeCapability { needed, .. } => {
                format!("a GPU of compute capability {needed} or later")
            }
            RejectionReason::OnlyOn { only, .. } => format!("a GPU of compute capability {only}"),
            RejectionReason::Alignment | RejectionReason::TensorMap(_) => {
                "a dense copy of the tensors".to_owned()
            }
            RejectionReason::TooManyTokens { .. } => format!("axes of up to {} tokens", i32::MAX),
            RejectionReason::NoKeys | RejectionReason::NoQueries => "another kernel".to_owned(),
            RejectionReason::NotTrusted { .. } => "a call that asks for it by name".to_owned(),
            RejectionReason::WastedScores { .. }
            | RejectionReason::NotAskedFor
            | RejectionReason::Slower { .. }
            | RejectionReason::Preferred { .. }
            | RejectionReason::PredictedSlower { .. } => "a call that asks for no kernel".to_owned(),
        };
        format!("{kernel} {reason}; {serves} would serve")
    }

    /// What kernels there are for, where only the type of the tensors is against them.
    fn element_types(&self) -> Vec<String> {
        let mut types: Vec<ElementType> = Vec::new();
        for Rejection { reason, .. } in &self.0 {
            if let RejectionReason::ElementType { kernel, .. } = reason
                && !types.contains(kernel)
            {
                types.push(*kernel);
            }
        }
        types.iter().map(ElementType::to_string).collect()
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(reasons: &[RejectionReason]) -> String {
        let rejections = reasons.iter().map(|&reason| Rejection { kernel: "natten_k", reason }).collect();
        Rejections(rejections).sentence()
    }

    #[test]
    fn the_sentence_is_of_the_closest_kernel() {
        let of = |kernel| RejectionReason::ElementType { kernel, problem: ElementType::F64 };
        let only = RejectionReason::OnlyOn {
            only: ComputeCapability { major: 9, minor: 0 },
            found: ComputeCapability { major: 8, minor: 0 },
        };
        let [f16, f32] = [ElementType::F16, ElementType::F32].map(of);
        assert_eq!(
            sentence(&[only, f16, f32, f16]),
            "natten_k is for f16, the tensors are f64; tensors of f16 or f32 would serve"
        );
        let long = |max| RejectionReason::HeadDim { max, found: 3000 };
        assert_eq!(
            sentence(&[f16, long(256), long(1024), long(64), only]),
            "natten_k takes a head_dim up to 1024, the tensors have 3000; shorter rows, or the CPU, would serve"
        );
        assert_eq!(
            sentence(&[RejectionReason::Alignment, RejectionReason::NotAskedFor]),
            "natten_k needs bases, strides and rows in multiples of 16 bytes; a dense copy of the tensors would serve"
        );
        assert_eq!(sentence(&[]), "there is none for such a pass");
    }
}
