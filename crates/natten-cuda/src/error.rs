//! What can fail: the device, or a call that no kernel or number of bits can serve.

use crate::rejection::Rejections;

/// The device or its driver refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No driver library on this machine.
    #[error("no CUDA driver on this machine (libcuda.so.1 or nvcuda.dll was not found)")]
    NoDriver,
    /// The driver library lacks a function that every supported driver has.
    #[error("the CUDA driver has no function {symbol}: it is too old or not the real one")]
    MissingSymbol {
        /// The function.
        symbol: &'static str,
    },
    /// The device or its driver cannot do what a launch asks for.
    #[error("this device or driver has no support for {feature}")]
    MissingFeature {
        /// Such as clusters or tensor maps.
        feature: &'static str,
    },
    /// A driver call failed.
    #[error("{operation}: CUDA error {code} ({name})")]
    Driver {
        /// What was tried.
        operation: &'static str,
        /// The driver's number.
        code: u32,
        /// The driver's name for it.
        name: &'static str,
    },
    /// The driver could not compile a kernel.
    #[error("the driver could not load kernel {entry}: CUDA error {code} ({name})\n{log}")]
    Compile {
        /// The kernel.
        entry: &'static str,
        /// The driver's number.
        code: u32,
        /// The driver's name for it.
        name: &'static str,
        /// What its compiler said.
        log: Box<str>,
    },
    /// A copy would reach beyond a memory.
    #[error("a copy of {bytes} bytes at byte {at} of a memory of {length}")]
    Bounds {
        /// Where it begins.
        at: usize,
        /// How long it is.
        bytes: usize,
        /// How long the memory is.
        length: usize,
    },
    /// Another device's own failure.
    #[error("{operation}: {source}")]
    Other {
        /// What was tried.
        operation: &'static str,
        /// The failure.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A call on [`Cuda`](crate::Cuda) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The views of a call do not fit its problem.
    #[error(transparent)]
    Problem(#[from] natten_core::ProblemError),
    /// No kernel serves the problem on this device. The message is one sentence; the reasons, printed, are a line for each kernel.
    #[error("no CUDA kernel serves this problem: {}", .0.sentence())]
    Unsupported(Rejections),
    /// A number is beyond what the kernels count with.
    #[error("{what} is {value}, more than the {limit} that kernels can count")]
    TooLarge {
        /// The number's name.
        what: &'static str,
        /// Its value.
        value: u128,
        /// The largest that works.
        limit: u128,
    },
    /// A tensor lives on another device.
    #[error("a tensor lives on device {found}, the call runs on device {expected}")]
    WrongDevice {
        /// The device of the call.
        expected: u64,
        /// The tensor's.
        found: u64,
    },
    /// More partial results than one merge takes.
    #[error("merging {found} partial results at once; at most {limit}")]
    MergeCount {
        /// How many were given.
        found: usize,
        /// How many fit.
        limit: usize,
    },
    /// A host buffer does not hold as many elements as the tensor.
    #[error("the host buffer holds {found} elements, the tensor {expected}")]
    Length {
        /// The tensor's.
        expected: usize,
        /// The buffer's.
        found: usize,
    },
    /// A shape that no layout can describe.
    #[error(transparent)]
    Tensor(#[from] natten_core::TensorError),
}
