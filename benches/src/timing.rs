//! Times of repeated calls, with the machine's limit measured in between.

use std::time::{Duration, Instant};

use natten_cpu::peak::{Arithmetic, measure};

/// What a second is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// One that passed.
    #[default]
    Wall,
    /// One that each of the threads ran: what a machine shared with other work allows. Linux only, else as `Wall`.
    Cpu,
}

/// Seconds of a call, and GFLOP/s of as many threads that do nothing but arithmetic.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The shortest call.
    pub best: f64,
    /// The middle one.
    pub median: f64,
    /// f32 fused multiply-adds.
    pub peak: f64,
    /// bf16 dot products or products of tiles, the faster of what the machine has.
    pub bf16_peak: Option<f64>,
}

/// Calls for about `seconds` after one call that does not count; the limit is measured four times in between, and its
/// best taken, so that on a shared machine it has as good a chance at a quiet moment as the calls. Slow calls are three.
pub fn time(seconds: f64, clock: Clock, threads: usize, mut call: impl FnMut()) -> Timing {
    call();
    let mut peaks = [None::<f64>; 3];
    let mut samples = Vec::new();
    let start = Instant::now();
    for _ in 0..4 {
        if samples.len() >= 3 && start.elapsed().as_secs_f64() > seconds {
            break;
        }
        for (peak, arithmetic) in peaks.iter_mut().zip(Arithmetic::ALL) {
            let rate = measure(arithmetic, threads, Duration::from_secs_f64(seconds / 40.0));
            *peak = rate.map(|rate| (rate * 1e-9).max(peak.unwrap_or(0.0)));
        }
        let round = Instant::now();
        loop {
            samples.push(one_call(clock, threads, &mut call));
            if round.elapsed().as_secs_f64() >= seconds / 4.0 {
                break;
            }
        }
    }
    samples.sort_by(f64::total_cmp);
    let [peak, dots, tiles] = peaks;
    let bf16_peak = dots.into_iter().chain(tiles).reduce(f64::max);
    let median = f64::midpoint(samples[samples.len() / 2], samples[(samples.len() - 1) / 2]);
    Timing { best: samples[0], median, peak: peak.unwrap_or(f64::NAN), bf16_peak }
}

fn one_call(clock: Clock, threads: usize, call: &mut impl FnMut()) -> f64 {
    let ran = if clock == Clock::Cpu { cpu_seconds() } else { None };
    let begin = Instant::now();
    call();
    let passed = begin.elapsed().as_secs_f64();
    let used = || Some((cpu_seconds()? - ran?) / threads as f64);
    used().unwrap_or(passed)
}

/// Time that all threads of this program have run, where the system tells.
fn cpu_seconds() -> Option<f64> {
    let mut nanoseconds = 0f64;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let path = task.ok()?.path().join("schedstat");
        let text = std::fs::read_to_string(path).ok()?;
        nanoseconds += text.split(' ').next()?.parse::<f64>().ok()?;
    }
    Some(nanoseconds * 1e-9)
}
