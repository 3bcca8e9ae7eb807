//! Construction of problems from any shapes, strides and parameters.
#![no_main]

#[path = "../../crates/natten-core/tests/hostile/bytes.rs"]
mod bytes;
#[path = "../../crates/natten-core/tests/hostile/problem.rs"]
mod problem;

libfuzzer_sys::fuzz_target!(|data: &[u8]| problem::body(data));
