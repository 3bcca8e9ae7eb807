//! The machine's arithmetic limit: fused multiply-adds on registers, nothing else.
//!
//! The accumulators start from a black box: equal ones would be computed once.

use std::time::Instant;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// f32 fused multiply-adds.
    Fma,
    /// bf16 dot products with f32 sums.
    Bf16Dot,
}

/// GFLOP/s of `threads` threads over about `seconds`, or `None` where the machine cannot do it.
///
/// # Panics
/// If a thread cannot be started.
pub fn measure(arithmetic: Arithmetic, threads: usize, seconds: f64) -> Option<f64> {
    let rates: Vec<Option<f64>> = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|_| scope.spawn(move || one_thread(arithmetic, seconds))).collect();
        workers.into_iter().map(|worker| worker.join().expect("it does not panic")).collect()
    });
    rates.into_iter().sum()
}

fn one_thread(arithmetic: Arithmetic, seconds: f64) -> Option<f64> {
    const ROUNDS: usize = 200_000;
    let mut best: f64 = 0.0;
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < seconds {
        let begin = Instant::now();
        let flops = match arithmetic {
            Arithmetic::Fma => fma(ROUNDS)?,
            Arithmetic::Bf16Dot => bf16_dot(ROUNDS)?,
        };
        best = best.max(flops as f64 / begin.elapsed().as_secs_f64() / 1e9);
    }
    Some(best)
}

/// With the widest vectors there are: on some machines 512 bits have the rate of 256, on others twice that.
#[cfg(target_arch = "x86_64")]
fn fma(rounds: usize) -> Option<usize> {
    use std::arch::x86_64::*;
    #[target_feature(enable = "avx2,fma")]
    fn narrow(rounds: usize) -> f32 {
        let (a, b) = (_mm256_set1_ps(0.999), _mm256_set1_ps(1e-3));
        let mut acc = std::hint::black_box([_mm256_set1_ps(1.0); 12]);
        for _ in 0..rounds {
            for acc in &mut acc {
                *acc = _mm256_fmadd_ps(*acc, a, b);
            }
        }
        let total = acc.into_iter().reduce(|x, y| _mm256_add_ps(x, y)).unwrap_or(a);
        _mm256_cvtss_f32(total)
    }
    #[target_feature(enable = "avx512f")]
    fn wide(rounds: usize) -> f32 {
        let (a, b) = (_mm512_set1_ps(0.999), _mm512_set1_ps(1e-3));
        let mut acc = std::hint::black_box([_mm512_set1_ps(1.0); 16]);
        for _ in 0..rounds {
            for acc in &mut acc {
                *acc = _mm512_fmadd_ps(*acc, a, b);
            }
        }
        let total = acc.into_iter().reduce(|x, y| _mm512_add_ps(x, y)).unwrap_or(a);
        _mm512_cvtss_f32(total)
    }
    let rounds = std::hint::black_box(rounds);
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the feature was just detected.
        std::hint::black_box(unsafe { wide(rounds) });
        return Some(rounds * 16 * 16 * 2);
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the features were just detected.
        std::hint::black_box(unsafe { narrow(rounds) });
        return Some(rounds * 12 * 8 * 2);
    }
    None
}

#[cfg(target_arch = "x86_64")]
fn bf16_dot(rounds: usize) -> Option<usize> {
    use std::arch::x86_64::*;
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn run(rounds: usize) -> f32 {
        let a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.1), _mm512_set1_ps(0.1));
        let mut acc = std::hint::black_box([_mm512_set1_ps(1.0); 16]);
        for _ in 0..rounds {
            for acc in &mut acc {
                *acc = _mm512_dpbf16_ps(*acc, a, a);
            }
        }
        let total = acc.into_iter().reduce(|x, y| _mm512_add_ps(x, y)).unwrap_or(acc[0]);
        _mm512_cvtss_f32(total)
    }
    if !is_x86_feature_detected!("avx512f") || !is_x86_feature_detected!("avx512bf16") {
        return None;
    }
    // SAFETY: the features were just detected.
    std::hint::black_box(unsafe { run(std::hint::black_box(rounds)) });
    Some(rounds * 16 * 16 * 4)
}

#[cfg(not(target_arch = "x86_64"))]
fn fma(rounds: usize) -> Option<usize> {
    let mut acc = [1.0f32; 64];
    for _ in 0..std::hint::black_box(rounds) {
        acc.iter_mut().for_each(|acc| *acc = acc.mul_add(0.999, 1e-3));
    }
    std::hint::black_box(acc);
    Some(rounds * 64 * 2)
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16_dot(_rounds: usize) -> Option<usize> {
    None
}
