//! Neighborhood attention from host memory and back, for problems that the device's memory does not hold.
//!
//! The problem is cut into slabs along one token axis: parts of the whole ([`natten_core::region`]), whose windows are the whole's. While
//! the device computes one slab, the next arrives and the one before leaves, each on a stream of its own:
//!
//! ```text
//! arriving    Q, K, V of slab i+1 -> page-locked buffers -> device
//! computing   the keys that slab i shares with slab i-1, on the device; the kernels of slab i
//! leaving     device -> page-locked buffers -> output of slab i-1
//! ```
//!
//! Each token of each tensor goes over the bus once: keys that two slabs need are copied on the device. There are buffers for two
//! slabs.
//!
//! The gradients are not computed so: a clip that is trained on has to fit.

mod pipeline;
mod plan;
mod staging;

use natten_core::{Element, Inputs, Output, Problem, TensorView, TensorViewMut};

use crate::cuda::Cuda;
use crate::error::{CudaError, DeviceError};
use crate::transfer::Transfer;
use plan::{Limits, Plan};
use staging::Copying;

/// Why a problem was not computed out of core.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutOfCoreError {
    /// Nothing fits.
    #[error("buffers take {needed} bytes of device memory at least, more than the {bound} that they may")]
    Memory {
        /// Bytes of the smallest buffers.
        needed: u64,
        /// What was said that they may have.
        bound: u64,
    },
    /// A part of the work stopped, and none says why.
    #[error("the work stopped half way")]
    Stopped,
    /// Plain attention has no windows, so every slab would need all keys.
    #[error("plain attention is not computed out of core, only neighborhood attention is")]
    PlainAttention,
    /// A tensor does not fit the problem.
    #[error(transparent)]
    Problem(#[from] natten_core::ProblemError),
    /// The device, or a call on it, failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

impl From<DeviceError> for OutOfCoreError {
    fn from(error: DeviceError) -> Self {
        OutOfCoreError::Cuda(error.into())
    }
}

impl From<natten_core::TensorError> for OutOfCoreError {
    fn from(error: natten_core::TensorError) -> Self {
        OutOfCoreError::Cuda(error.into())
    }
}

/// How much of the device and of the host such a call may take.
#[derive(Clone, Copy, Debug)]
pub struct OutOfCore {
    limits: Limits,
    copying: Copying,
}

/// What a call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The token axis along which it was cut.
    pub axis: usize,
    /// Into so many slabs; with one, nothing overlaps.
    pub slabs: usize,
    /// Bytes of the buffers on the device.
    pub memory_bytes: u64,
    /// Bytes that went to the device.
    pub uploaded_bytes: u64,
    /// Bytes that came back.
    pub downloaded_bytes: u64,
}

impl OutOfCore {
    /// Buffers on the device take at most so many bytes. There are eight slabs at least, where they are not shorter than windows, so that
    /// little of the copies is not beside a kernel. On the host, inputs, outputs and log-sum-exps have four page-locked buffers each, as large
    /// as what a slab has of them, 32 MiB at most, and as many threads each way as the process may have processors, up to eight.
    pub fn within(memory_bytes: u64) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(8));
        let limits = Limits { memory_bytes, slabs: 8 };
        OutOfCore { limits, copying: Copying { buffers: 4, bytes: 32 << 20, threads } }
    }

    /// With so many slabs at least, where they are not shorter than windows.
    pub fn slabs(self, at_least: usize) -> Self {
        OutOfCore { limits: Limits { slabs: at_least.max(1), ..self.limits }, ..self }
    }

    /// With so many page-locked buffers, one at least, of so many bytes each, eight at least.
    pub fn staging(self, buffers: usize, bytes: usize) -> Self {
        let copying = Copying { buffers: buffers.max(1), bytes: bytes.max(8), ..self.copying };
        OutOfCore { copying, ..self }
    }

    /// With so many threads of the host copying each way, one at least.
    pub fn threads(self, threads: usize) -> Self {
        OutOfCore { copying: Copying { threads: threads.max(1), ..self.copying }, ..self }
    }

    /// The forward pass of a problem on host tensors, which are shaped as for a call on the host. Returns when the output is complete.
    ///
    /// Results are those of a call that holds all, to rounding: slabs are cut elsewhere than its tiles.
    ///
    /// # Errors
    /// [`OutOfCoreError`]; the output may hold anything then.
    pub fn forward<E: Element, D: Transfer>(
        &self,
        cuda: &Cuda<D>,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        output: Output<TensorViewMut<'_, E>, TensorViewMut<'_, f32>>,
    ) -> Result<Report, OutOfCoreError> {
        problem.check_inputs(&inputs.map(|view| *view.layout()), E::ELEMENT_TYPE)?;
        problem.check_output(&output.map(|out| *out.layout(), |lse| *lse.layout()))?;
        if problem.is_plain() {
            return Err(OutOfCoreError::PlainAttention);
        }
        let plan = Plan::of(problem, output.lse.is_some(), &self.limits)?;
        let [uploaded_bytes, downloaded_bytes] = match problem.batch() > 0 && problem.query_tokens() > 0 {
            true => pipeline::run(cuda, problem, &plan, &self.copying, inputs, output)?,
            false => [0; 2],
        };
        let (axis, slabs, memory_bytes) = (plan.axis, plan.slabs.len(), plan.bytes);
        Ok(Report { axis, slabs, memory_bytes, uploaded_bytes, downloaded_bytes })
    }
}
