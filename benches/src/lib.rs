//! The problems that are measured, and what the machine could do at best.

pub mod peak;
mod problems;

pub use problems::{Bench, Operands, problems};
