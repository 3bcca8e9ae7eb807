//! Neighborhood attention on CUDA devices. Kernels ship as PTX text (natten-kernels) and the driver compiles them, so
//! neither building nor using this crate needs a toolkit.
//!
//! ```text
//! Cuda::forward -> choose (pure: each family offers what it would launch, the best offer wins) -> submit -> Device
//! ```
//!
//! [`Device`] is what a launch needs of hardware: memory, modules, launches. [`driver::Driver`] is the CUDA driver through
//! cudarc (feature `driver`); the emulator is another. Calls are ordered on the device's stream and never synchronise.
//!
//! A kernel family is a folder of `families`: its limits, its tiles, its model of cost, its launches. What it offers is an
//! [`Offer`]: data, which [`Cuda::explain`], [`Cuda::tune`], [`Cuda::warm_up`] and a call read alike.
#![deny(unsafe_code)]

mod backend;
mod buffer;
mod capability;
mod choose;
mod classes;
mod cost;
mod cuda;
pub mod device;
#[cfg(feature = "driver")]
pub mod driver;
mod error;
mod explain;
mod families;
mod family;
mod fill;
mod inspect;
pub mod measure;
mod memo;
mod operand;
pub mod out_of_core;
pub mod params;
mod parts;
mod predict;
pub mod registry;
mod rejection;
mod starts;
mod submit;
mod tma;
pub mod transfer;
mod trust;
mod tune;
mod views;

pub use buffer::{Bound, CudaTensor, CudaView, CudaViewMut};
pub use capability::ComputeCapability;
pub use cost::bytes_read;
pub use cuda::Cuda;
pub use device::Device;
pub use error::{CudaError, DeviceError};
pub use explain::{Decision, kernels_on};
pub use family::{Bid, Launch, MapPatch, Offer, Patch, Request};
pub use inspect::LayoutSummary;
pub use predict::{BackwardPrediction, PredictedPass, Prediction, predict_backward, predict_forward};
pub use rejection::{MapError, Rejection, RejectionReason, Rejections};
pub use submit::{SubmitError, submit};
pub use trust::TrialFailure;
pub use tune::Candidate;
pub use views::{Addresses, Slot};

#[cfg(feature = "driver")]
pub use cudarc;

/// Former places of what is at the crate's root.
#[doc(hidden)]
#[deprecated(note = "use the crate's root")]
pub mod tiles {
    pub use crate::{Request, bytes_read};
}

/// Former places of what is at the crate's root.
#[doc(hidden)]
#[deprecated(note = "use the crate's root")]
pub mod select {
    pub use crate::{ComputeCapability, LayoutSummary, Rejection, RejectionReason, Rejections};
}
