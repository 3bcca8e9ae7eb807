//! The problems that are measured, what the machine could do at best, and how calls are timed.

pub mod options;
mod problems;
mod runs;
mod timing;

pub use problems::{Bench, Operands, problems};
pub use runs::{Results, backward, forward};
pub use timing::{Clock, Timing, time};
