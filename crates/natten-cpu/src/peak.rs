//! The machine's arithmetic limit: multiply-adds on registers, nothing else, with each instruction set's own vectors.
//!
//! Everything that compares a rate with the limit measures it here, so that no two can differ. The chains run on the same
//! vectors as the kernels, of every instruction set that the machine has; on some machines 512 bits have the rate of 256,
//! on others twice that, so the best is taken.

use std::time::{Duration, Instant};

use natten_core::ElementType;

use crate::arch::{Kernel, Simd, WithTiles, dispatch, dispatch_tiles, tiles};
use crate::isa::Isa;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Arithmetic {
    /// f32 multiply-adds, fused where the machine has that.
    Fma,
    /// bf16 dot products with f32 sums.
    Bf16Dot,
    /// bf16 products of tiles with f32 sums.
    Bf16Tiles,
}

impl Arithmetic {
    /// All that there is.
    pub const ALL: [Arithmetic; 3] = [Arithmetic::Fma, Arithmetic::Bf16Dot, Arithmetic::Bf16Tiles];

    /// What it is, in words.
    pub fn describe(self) -> &'static str {
        match self {
            Arithmetic::Fma => "f32 fused multiply-adds",
            Arithmetic::Bf16Dot => "bf16 dot products",
            Arithmetic::Bf16Tiles => "bf16 products of tiles",
        }
    }
}

/// FLOP/s of `threads` threads together, each at its best moment in about `time`, or `None` where the machine has no
/// such instructions. 0 threads count as one.
pub fn measure(arithmetic: Arithmetic, threads: usize, time: Duration) -> Option<f64> {
    let isas: Vec<Isa> = Isa::available().filter(|&isa| burst(arithmetic, isa, 1).is_some()).collect();
    let share = time / isas.len().max(1) as u32;
    let rates = isas.iter().map(|&isa| on_threads(threads, || best_rate(arithmetic, isa, share)));
    rates.reduce(f64::max)
}

/// The limit of forward calls with `isa` on tensors of `element_type`, and what it is the limit of: [`Arithmetic::Fma`], or what
/// such calls use for bf16 where that is faster.
pub fn ceiling(isa: Isa, element_type: ElementType, threads: usize, time: Duration) -> (f64, Arithmetic) {
    let mut used = vec![Arithmetic::Fma];
    if element_type == ElementType::Bf16 {
        let of_bf16 = [Arithmetic::Bf16Dot, Arithmetic::Bf16Tiles];
        used.extend(of_bf16.into_iter().filter(|&arithmetic| burst(arithmetic, isa, 1).is_some()));
    }
    let share = time / used.len() as u32;
    let rates = used.into_iter().map(|arithmetic| (measure(arithmetic, threads, share), arithmetic));
    let rates = rates.map(|(rate, arithmetic)| (rate.unwrap_or(0.0), arithmetic));
    rates.max_by(|(a, _), (b, _)| a.total_cmp(b)).unwrap_or((0.0, Arithmetic::Fma))
}

/// The sum over threads. The calling thread is one of them, and a thread that the system refuses adds nothing.
fn on_threads(threads: usize, rate: impl Fn() -> f64 + Sync) -> f64 {
    std::thread::scope(|scope| {
        let start = |_| std::thread::Builder::new().spawn_scoped(scope, &rate).ok();
        let others: Vec<_> = (1..threads).filter_map(start).collect();
        rate() + others.into_iter().filter_map(|other| other.join().ok()).sum::<f64>()
    })
}

fn best_rate(arithmetic: Arithmetic, isa: Isa, time: Duration) -> f64 {
    /// Long enough that a call's overhead does not count, short enough to hit quiet moments of a shared machine.
    const ROUNDS: usize = 50_000;
    let (start, mut best) = (Instant::now(), 0.0f64);
    loop {
        let begin = Instant::now();
        let flops = burst(arithmetic, isa, ROUNDS).unwrap_or(0.0);
        best = best.max(flops / begin.elapsed().as_secs_f64());
        if start.elapsed() >= time {
            return best;
        }
    }
}

/// Computes, and counts the operations.
fn burst(arithmetic: Arithmetic, isa: Isa, rounds: usize) -> Option<f64> {
    match arithmetic {
        // The model is no limit of anything.
        Arithmetic::Bf16Tiles if isa != Isa::Amx => None,
        Arithmetic::Bf16Tiles => Some(dispatch_tiles(isa, WithTiles(TileBurst(rounds)))),
        _ => dispatch(isa, Burst { arithmetic, rounds }),
    }
}

/// Products of tiles that hold zeros, in registers.
struct TileBurst(usize);

impl Kernel for TileBurst {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        tiles::multiply_alone(simd, self.0)
    }
}

struct Burst {
    arithmetic: Arithmetic,
    rounds: usize,
}

impl Kernel for Burst {
    type Output = Option<f64>;

    /// Independent chains: at least the latency of a multiply-add times the units that do them, and few enough for the
    /// registers.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Option<f64> {
        if self.arithmetic == Arithmetic::Bf16Dot && !S::BF16_DOT {
            return None;
        }
        Some(if S::MANY_REGISTERS { self.chains::<S, 16>(simd) } else { self.chains::<S, 12>(simd) })
    }
}

impl Burst {
    #[inline(always)]
    fn chains<S: Simd, const CHAINS: usize>(self, simd: S) -> f64 {
        // Starts that the compiler does not know: equal chains would become one.
        let mut chains: [S::W; CHAINS] = std::hint::black_box([simd.splat_wide(1.0); CHAINS]);
        let rounds = std::hint::black_box(self.rounds);
        let flops_per_number = match self.arithmetic {
            Arithmetic::Fma => {
                let (factor, addend) = (simd.splat_wide(0.999), simd.splat_wide(1e-3));
                for _ in 0..rounds {
                    chains.iter_mut().for_each(|chain| *chain = simd.fma_wide(*chain, factor, addend));
                }
                2
            }
            Arithmetic::Bf16Dot | Arithmetic::Bf16Tiles => {
                /// 0.1 in either half.
                const PAIR: u32 = 0x3dcd_3dcd;
                let pairs = simd.splat_wide(f32::from_bits(PAIR));
                for _ in 0..rounds {
                    chains.iter_mut().for_each(|chain| *chain = simd.dot_wide(*chain, pairs, pairs));
                }
                4
            }
        };
        std::hint::black_box(chains);
        (rounds * CHAINS * S::WIDE * flops_per_number) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in the register that chains run on, and in the widest that kernels use.
    struct Widths;

    impl Kernel for Widths {
        type Output = [usize; 2];

        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> [usize; 2] {
            [S::WIDE, S::LANES.max(2 * S::LANES / S::D_REGISTERS)]
        }
    }

    #[test]
    fn chains_run_on_the_widest_vectors_of_the_kernels() {
        for isa in Isa::every_available() {
            let [chains, kernels] = dispatch(isa, Widths);
            assert!(chains >= kernels, "{isa}: chains of {chains} numbers, kernels of {kernels}");
        }
    }

    #[test]
    fn products_of_bf16_are_measured_where_there_are_any() {
        let has_dots = Isa::Avx512Bf16.is_available();
        assert_eq!(measure(Arithmetic::Bf16Dot, 1, Duration::ZERO).is_some(), has_dots);
        let has_tiles = Isa::Amx.is_available();
        assert_eq!(measure(Arithmetic::Bf16Tiles, 1, Duration::ZERO).is_some(), has_tiles);
        assert!(measure(Arithmetic::Fma, 0, Duration::ZERO).is_some_and(|rate| rate > 0.0));
        let (flops, _) = ceiling(Isa::Scalar, ElementType::Bf16, 2, Duration::ZERO);
        assert!(flops > 0.0);
    }
}
