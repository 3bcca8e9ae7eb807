//! What the suites share: problems with their data, the naive implementations that errors are measured against,
//! tensors placed at any strides, and the backends under test.
//!
//! A suite is a generic function over [`Subject`]; [`for_each_subject`] mounts it on all that this machine has.

pub mod compare;
pub mod dense;
pub mod golden;
pub mod place;
pub mod rng;
pub mod spec;
pub mod subject;
pub mod suites;

pub use compare::{assert_close, largest_error};
pub use place::{Arrangement, Placed};
pub use rng::Rng;
pub use spec::{Case, Mask, Spec};
pub use subject::{Reference, Subject};
