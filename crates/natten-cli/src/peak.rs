//! The machine's arithmetic limit: f32 fused multiply-adds on registers, nothing else, on as many threads as asked.

use std::time::{Duration, Instant};

use pulp::{Arch, Simd, WithSimd};

/// Chains long enough that a call's overhead does not count, short enough to hit quiet moments of a shared machine.
const ROUNDS: usize = 100_000;

/// Independent chains: twice the latency of a multiply-add times the units that do them on current machines, and
/// still few enough for the registers.
const CHAINS: usize = 12;

struct Chains;

impl WithSimd for Chains {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> usize {
        let (factor, addend) = (simd.splat_f32s(0.999), simd.splat_f32s(1e-3));
        // Starts that differ and are unknown to the compiler: equal chains would become one.
        let mut chains = [simd.splat_f32s(0.0); CHAINS];
        for (i, chain) in chains.iter_mut().enumerate() {
            *chain = simd.splat_f32s(std::hint::black_box(1.0 + i as f32));
        }
        for _ in 0..std::hint::black_box(ROUNDS) {
            for chain in &mut chains {
                *chain = simd.mul_add_e_f32s(*chain, factor, addend);
            }
        }
        let sum = chains.into_iter().fold(simd.splat_f32s(0.0), |sum, chain| simd.add_f32s(sum, chain));
        std::hint::black_box(simd.reduce_sum_f32s(sum));
        2 * ROUNDS * CHAINS * S::F32_LANES
    }
}

/// FLOP/s of `threads` threads together: the best moment of each within `time`, with the widest vectors there are.
pub fn fma_flops(threads: usize, time: Duration) -> f64 {
    let arch = Arch::new();
    let one_thread = move || {
        let (start, mut best) = (Instant::now(), 0.0f64);
        while start.elapsed() < time {
            let begin = Instant::now();
            let flops = arch.dispatch(Chains);
            best = best.max(flops as f64 / begin.elapsed().as_secs_f64());
        }
        best
    };
    std::thread::scope(|scope| {
        // The calling thread is one of them, so there is always a result.
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(one_thread)).collect();
        one_thread() + others.into_iter().filter_map(|other| other.join().ok()).sum::<f64>()
    })
}

/// Threads that this process may use.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The mean number of running threads over the last minute, where it exceeds what there is to run them on: timings are
/// then of a shared machine.
pub fn crowding() -> Option<f64> {
    let load =
        std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse::<f64>().ok()?;
    (load > threads() as f64 + 0.5).then_some(load)
}
