//! Golden files, as the program `natten` reads them.
#![no_main]

#[allow(dead_code, reason = "the program uses all of it")]
#[path = "../../crates/natten-cli/src/golden.rs"]
mod golden;
#[path = "../../crates/natten-cli/tests/hostile/golden.rs"]
mod hostile_golden;
#[allow(dead_code, reason = "the program uses all of it")]
#[path = "../../crates/natten-cli/src/names.rs"]
mod names;

libfuzzer_sys::fuzz_target!(|data: &[u8]| hostile_golden::body(data));
