//! Neighborhood attention on CUDA devices. Kernels ship as PTX text (natten-kernels) and the driver compiles them, so
//! neither building nor using this crate needs a toolkit.
//!
//! ```text
//! Cuda::forward(call) -> select (pure: which kernel, or why none) -> launch (parameters, grid) -> Device
//! ```
//!
//! [`Device`] is what a launch needs of hardware: memory, modules, launches. [`driver::Driver`] is the CUDA driver through
//! cudarc (feature `driver`); the emulator is another. Calls are ordered on the device's stream and never synchronise.
#![deny(unsafe_code)]

mod backend;
mod backward;
mod boxes;
mod buffer;
mod candidates;
mod decide;
pub mod device;
#[cfg(feature = "driver")]
pub mod driver;
mod error;
mod launch;
pub mod measure;
mod merge;
mod operand;
pub mod params;
pub mod registry;
mod schedule;
pub mod select;
pub mod sm90;
pub mod tiles;
pub mod tma;

pub use backend::Cuda;
pub use buffer::{Bound, CudaTensor, CudaView, CudaViewMut};
pub use candidates::Candidate;
pub use decide::{Decision, kernels_on};
pub use device::Device;
pub use error::{CudaError, DeviceError};
pub use select::{ComputeCapability, Rejection, RejectionReason, Rejections};

#[cfg(feature = "driver")]
pub use cudarc;
