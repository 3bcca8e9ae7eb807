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
//! slabs, so a slab takes about half of the memory that a call may have.
//!
//! The gradients are not computed so: a clip that is trained on has to fit.

mod pipeline;
mod plan;
mod staging;

use natten_core::{Element, Inputs, Output, Problem, TensorView, TensorViewMut};

use crate::cuda::Cuda;
use crate::error::{CudaError, DeviceError};
use crate::transfer::Transfer;
use plan::Plan;
use staging::Copying;

/// Why a problem was not computed out of core.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutOfCoreError {
    /// Not even the smallest slabs fit.
    #[error(
        "the smallest slabs take {needed} bytes of device memory, more than the {bound} that they may have"
    )]
    Memory {
        /// Bytes of the buffers, which workspace of kernels comes on top of.
        needed: u64,
        /// What was said that they may have.
        bound: u64,
    },
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
    memory_bytes: u64,
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
    /// Buffers on the device take at most so many bytes. On the host, copies have four page-locked buffers of 32 MiB each way, and as many
    /// threads each way as the process may have processors, up to eight.
    pub fn within(memory_bytes: u64) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(8));
        OutOfCore { memory_bytes, copying: Copying { buffers: 4, bytes: 32 << 20, threads } }
    }

    /// With so many page-locked buffers each way, of so many bytes each; one of either at least.
    pub fn staging(self, buffers: usize, bytes: usize) -> Self {
        let copying = Copying { buffers: buffers.max(1), bytes: bytes.max(1), ..self.copying };
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
        let plan = Plan::of(problem, output.lse.is_some(), self.memory_bytes)?;
        let uploaded_bytes =
            inputs.roles().map(|(_, view)| (view.layout().len() * size_of::<E>()) as u64).sum();
        let of_lse = output.lse.as_ref().map_or(0, |lse| lse.layout().len() * 4);
        let report = Report {
            axis: plan.axis,
            slabs: plan.slabs.len(),
            memory_bytes: plan.bytes,
            uploaded_bytes,
            downloaded_bytes: (output.out.layout().len() * size_of::<E>() + of_lse) as u64,
        };
        if problem.batch() > 0 && problem.query_tokens() > 0 {
            pipeline::run(cuda, problem, &plan, &self.copying, inputs, output)?;
        }
        Ok(report)
    }
}
