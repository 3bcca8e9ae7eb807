//! PTX text, as the emulator parses it.
#![no_main]

#[path = "../../crates/natten-emulator/tests/hostile/ptx.rs"]
mod ptx;

libfuzzer_sys::fuzz_target!(|data: &[u8]| ptx::body(data));
