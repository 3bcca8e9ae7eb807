//! Cumulative lengths of packed sequences.
#![no_main]

#[path = "../../crates/natten-core/tests/hostile/bytes.rs"]
mod bytes;
#[path = "../../crates/natten-core/tests/hostile/offsets.rs"]
mod offsets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| offsets::body(data));
