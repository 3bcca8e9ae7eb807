//! Weights of a score tile for a unit that multiplies tiles: powers of the scores, rounded to bf16, two keys to a word.

use crate::arch::Simd;
use crate::arch::tiles::{SIDE, TILE};
use crate::buffer::Buffer;
use crate::softmax::powers_below;

/// Tiles of weights, sixteen pairs of a line each; where there are fewer, zeros follow.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    pub tiles: Buffer,
    /// Pairs of a line, and how many tiles have their zeros.
    pairs: usize,
    zeroed: usize,
}

impl Weights {
    /// Becomes so many tiles of lines of `pairs` pairs, whose weights are yet to be written.
    #[inline(always)]
    pub(crate) fn begin(&mut self, tiles: usize, pairs: usize) {
        if self.pairs != pairs {
            (self.pairs, self.zeroed) = (pairs, 0);
        }
        let numbers = self.tiles.reserve(tiles * TILE);
        for tile in self.zeroed..tiles {
            let rows = (pairs - tile % pairs.div_ceil(SIDE) * SIDE).min(SIDE);
            numbers[tile * TILE..][..TILE][rows * SIDE..].fill(0.0);
        }
        self.zeroed = self.zeroed.max(tiles);
    }
}

/// The weights of some pairs of a line, at most sixteen.
#[inline(always)]
pub(crate) fn weigh<S: Simd>(
    simd: S,
    power: &Powers<S::V>,
    (scores, seen): (&[f32], &[u32]),
    weights: &mut [f32],
    sums: &mut [S::V; 2],
) {
    let weights = &mut weights.as_chunks_mut::<SIDE>().0[..seen.len()];
    let (scores, last_scores) = scores.as_chunks::<SIDE>().0.as_chunks::<4>();
    let (seen, last_seen) = seen.as_chunks::<2>();
    let (weights, last_weights) = weights.as_chunks_mut::<2>();
    for ((scores, seen), weights) in scores.iter().zip(seen).zip(weights) {
        weigh_pairs(simd, power, (scores, seen), weights, sums);
    }
    if let ([even, odd], [seen], [weights]) = (last_scores, last_seen, last_weights) {
        weigh_pairs(simd, power, (&[*even, *odd], &[*seen]), std::array::from_mut(weights), sums);
    }
}

/// The weights of some pairs of keys, which are twice as many.
#[inline(always)]
fn weigh_pairs<S: Simd, const KEYS: usize, const PAIRS: usize>(
    simd: S,
    power: &Powers<S::V>,
    (scores, seen): (&[[f32; SIDE]; KEYS], &[u32; PAIRS]),
    weights: &mut [[f32; SIDE]; PAIRS],
    sums: &mut [S::V; 2],
) {
    let zero = simd.splat(0.0);
    let mut powers = [zero; KEYS];
    for (power_of, score) in powers.iter_mut().zip(scores) {
        *power_of = power.exponent(simd, simd.load(score));
    }
    powers_below(simd, &mut powers);
    #[allow(clippy::needless_range_loop, reason = "the index names places in three arrays")]
    for pair in 0..PAIRS {
        let even = simd.select(seen[pair], powers[2 * pair], zero);
        let odd = simd.select(seen[pair] >> 16, powers[2 * pair + 1], zero);
        *sums = [simd.add(sums[0], even), simd.add(sums[1], odd)];
        simd.store(&mut weights[pair], simd.pair(even, odd));
    }
}

/// Powers of 2 relative to the largest score. Halves of scores are subtracted, since two scores may be further apart than f32
/// reaches, and multiplied afterwards, so that the largest has a weight of 1.
pub(crate) struct Powers<V> {
    half: V,
    largest: V,
    factor: V,
}

impl<V: Copy> Powers<V> {
    /// Where a lane has seen no key, or scores that are minus infinity alone, the lowest number serves: minus infinity minus itself
    /// would be NaN.
    #[inline(always)]
    pub(crate) fn new<S: Simd<V = V>>(simd: S, max: V, scale: f32) -> Self {
        let factor = (scale * (2.0 * std::f32::consts::LOG2_E)).min(f32::MAX);
        Powers {
            half: simd.splat(0.5),
            largest: simd.mul(simd.max(max, simd.splat(f32::MIN)), simd.splat(-0.5)),
            factor: simd.splat(factor),
        }
    }

    /// The power of 2 that a score is relative to the largest.
    #[inline(always)]
    pub(crate) fn exponent<S: Simd<V = V>>(&self, simd: S, score: V) -> V {
        simd.mul(simd.fma(score, self.half, self.largest), self.factor)
    }
}
