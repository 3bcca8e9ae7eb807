//! Which kernel serves a call, or the reason against each: a pure function, so it can be asked without a device.

use std::fmt;

use natten_core::{ElementType, Problem};

use crate::device::Properties;
use crate::registry::{Facts, Kernel, Operation, kernels};
use crate::sm90;
use crate::tiles::{self, Choice, Request};
use crate::tma::MapError;

/// A device's architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComputeCapability {
    /// 8 of 8.6.
    pub major: u32,
    /// 6 of 8.6.
    pub minor: u32,
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What matters of all tensors of a call together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutSummary {
    /// Every base, stride and row length is a multiple of 16 bytes.
    pub is_aligned: bool,
}

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
        /// The problem's, the larger of the two.
        found: usize,
    },
    /// A base address, a stride or a row length is no multiple of 16 bytes.
    Alignment,
    /// A thread block cannot have so much shared memory.
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
    /// Another kernel on tiles ends earlier.
    Slower {
        /// The faster one.
        than: &'static str,
    },
    /// Another kernel is preferred wherever it can run.
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
    /// The copy engine cannot read a tensor as it lies.
    TensorMap(MapError),
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
                write!(f, "needs {needed} bytes of shared memory, a thread block has {limit}")
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
            RejectionReason::TensorMap(reason) => write!(f, "cannot map a tensor: {reason}"),
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

/// What runs a forward pass.
#[derive(Clone, Debug)]
pub enum ForwardKernel {
    /// A kernel for Hopper alone.
    Hopper(&'static Kernel),
    /// A kernel of the registry, and the reasons against all others.
    Registered(Choice),
}

/// What a caller sees of a kernel of any family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// The kernel's name.
    pub entry: &'static str,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Whether it multiplies on tensor cores, and so rounds the softmax's weights to the element type.
    pub on_tensor_cores: bool,
}

impl From<&'static Kernel> for Text {
    fn from(kernel: &'static Kernel) -> Self {
        let on_tensor_cores = kernel.tile().is_some();
        Text { entry: kernel.entry, shared_bytes: kernel.shared_bytes, on_tensor_cores }
    }
}

impl ForwardKernel {
    /// What the driver compiles.
    pub fn text(&self) -> Text {
        match self {
            ForwardKernel::Hopper(kernel) => (*kernel).into(),
            ForwardKernel::Registered(choice) => choice.kernel.into(),
        }
    }
}

/// The kernel for a forward pass, of whatever family: the Hopper one if it can and is predicted to be faster.
///
/// # Errors
/// The reason against each kernel.
pub fn select_forward(
    problem: &Problem,
    layout: LayoutSummary,
    properties: &Properties,
    request: &Request,
) -> Result<ForwardKernel, Rejections> {
    match sm90::select(problem, layout, properties, request) {
        Ok(kernel) => Ok(ForwardKernel::Hopper(kernel)),
        Err(reason) => {
            without_hopper(reason, problem, layout, properties, request).map(ForwardKernel::Registered)
        }
    }
}

/// The choice among the other families, with the reason against this one.
pub(crate) fn without_hopper(
    reason: RejectionReason,
    problem: &Problem,
    layout: LayoutSummary,
    properties: &Properties,
    request: &Request,
) -> Result<Choice, Rejections> {
    let rejection = Rejection { kernel: "natten_forward_sm90", reason };
    match tiles::choose(problem, layout, properties, request) {
        Ok(mut choice) => {
            choice.rejections.0.insert(0, rejection);
            Ok(choice)
        }
        Err(mut rejections) => {
            rejections.0.insert(0, rejection);
            Err(rejections)
        }
    }
}

/// The kernel for one operation of a problem on CUDA cores: of those that can, the one whose rows are shortest. For
/// forward passes see [`choose`](crate::tiles::choose).
///
/// # Errors
/// The reason against each kernel of that operation.
pub fn select(
    problem: &Problem,
    operation: Operation,
    layout: LayoutSummary,
    capability: ComputeCapability,
) -> Result<&'static Kernel, Rejections> {
    let head_dim = problem.head_dim().max(problem.head_dim_v());
    select_rows(operation, problem.element_type(), head_dim, layout, capability)
}

/// [`select`] for work on rows that belong to no problem.
///
/// # Errors
/// The reason against each kernel of that operation.
pub fn select_rows(
    operation: Operation,
    element_type: ElementType,
    head_dim: usize,
    layout: LayoutSummary,
    capability: ComputeCapability,
) -> Result<&'static Kernel, Rejections> {
    let mut rejections = Vec::new();
    let mut best: Option<&'static Kernel> = None;
    for kernel in kernels().filter(|kernel| kernel.operation == operation && kernel.tile().is_none()) {
        match reason_against(kernel, element_type, head_dim, layout, capability) {
            Some(reason) => rejections.push(Rejection { kernel: kernel.entry, reason }),
            // An aligned kernel comes before an unaligned one of the same size, and wins.
            None if best.is_none_or(|best| kernel.max_head_dim < best.max_head_dim) => best = Some(kernel),
            None => {}
        }
    }
    best.ok_or(Rejections(rejections))
}

pub(crate) fn reason_against(
    kernel: &Kernel,
    element_type: ElementType,
    head_dim: usize,
    layout: LayoutSummary,
    capability: ComputeCapability,
) -> Option<RejectionReason> {
    if kernel.element_type() != element_type {
        return Some(RejectionReason::ElementType { kernel: kernel.element_type(), problem: element_type });
    }
    if kernel.max_head_dim > 0 && head_dim > kernel.longest_row() {
        return Some(RejectionReason::HeadDim { max: kernel.longest_row(), found: head_dim });
    }
    if kernel.needs_alignment && !layout.is_aligned {
        return Some(RejectionReason::Alignment);
    }
    if capability < kernel.min_capability() {
        return Some(RejectionReason::ComputeCapability {
            needed: kernel.min_capability(),
            found: capability,
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const SM80: ComputeCapability = ComputeCapability { major: 8, minor: 0 };

    fn pick(head_dim: usize, is_aligned: bool) -> Result<&'static str, Rejections> {
        let layout = LayoutSummary { is_aligned };
        select_rows(Operation::Forward, ElementType::F16, head_dim, layout, SM80).map(|kernel| kernel.entry)
    }

    #[test]
    fn the_shortest_rows_win() {
        assert_eq!(pick(8, true).unwrap(), "natten_forward_simt_f16_d8");
        assert_eq!(pick(40, true).unwrap(), "natten_forward_simt_f16_d64");
        assert_eq!(pick(64, false).unwrap(), "natten_forward_simt_f16_d64_unaligned");
        assert_eq!(pick(72, true).unwrap(), "natten_forward_simt_f16_d128");
        assert_eq!(pick(72, false).unwrap(), "natten_forward_simt_f16_d256_unaligned");
    }

    #[test]
    fn every_kernel_gets_its_reason() {
        let Rejections(reasons) = pick(257, true).unwrap_err();
        assert_eq!(
            reasons.len(),
            kernels().filter(|k| k.operation == Operation::Forward && k.tile().is_none()).count()
        );
        let printed = Rejections(reasons).to_string();
        assert!(
            printed.contains("natten_forward_simt_f16_d256 takes a head_dim up to 256, the tensors have 257")
        );
        assert!(printed.contains("natten_forward_simt_f32_d64 is for f32, the tensors are f16"));

        let old = ComputeCapability { major: 3, minor: 5 };
        let layout = LayoutSummary { is_aligned: false };
        let Rejections(reasons) =
            select_rows(Operation::Delta, ElementType::F32, 64, layout, old).unwrap_err();
        assert!(reasons.iter().any(|r| r.reason.to_string().contains("capability 5.0, the device has 3.5")));
    }
}
