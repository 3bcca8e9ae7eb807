//! What holds every backend to the definition: suites over a [`Subject`], and what they share: problems with their data, the
//! naive implementations that errors are measured against, tensors placed at any strides, the backends under test.
//!
//! A suite is a list of checks ([`suites::Suite`]); [`mount`] makes tests of them, a line for each backend.

pub mod compare;
pub mod dense;
pub mod golden;
pub mod kernels;
pub mod on_device;
pub mod place;
pub mod rng;
pub mod shards;
pub mod spec;
pub mod streams;
pub mod subject;
pub mod suites;
pub mod tolerance;
pub mod vast;
pub mod watched;

pub use compare::{assert_close, largest_error};
pub use on_device::OnDevice;
pub use place::{Arrangement, Place, Placed};
pub use rng::Rng;
pub use spec::{Case, Mask, Spec};
pub use subject::{Reference, Subject};
pub use watched::Watched;
