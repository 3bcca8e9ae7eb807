//! The processor that the program runs on.

use std::time::Duration;

use natten::ElementType;
use natten::cpu::{Cpu, Isa, peak};

/// Threads that this process may use, and that the CPU backend starts.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(natten::cpu::MAX_THREADS)
}

/// FLOP/s that arithmetic alone reaches on all threads, as calls on this element type would do it.
pub fn peak_flops(element_type: ElementType) -> f64 {
    let isa = Cpu::new().chosen_isa().unwrap_or(Isa::Scalar);
    peak::ceiling(isa, element_type, threads(), Duration::from_millis(200)).0
}

/// The mean number of running threads over the last minute, where it exceeds what there is to run them on: timings are
/// then of a shared machine.
pub fn crowding() -> Option<f64> {
    let load =
        std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse::<f64>().ok()?;
    (load > threads() as f64 + 0.5).then_some(load)
}
