//! The exponential, and the online softmax of a score tile. Scores come in quarters of powers of 2: no score that f32 holds leaves it
//! there, and four times a number is exact.

use crate::arch::Simd;
use crate::tile_mask::ScoreTileShape;

/// A quarter of `log2 e`, the factor on scores.
pub(crate) const QUARTER_LOG2_E: f32 = std::f32::consts::LOG2_E / 4.0;
/// Four times the natural logarithm of 2: back from scores to a log-sum-exp.
pub(crate) const FOUR_LN_2: f32 = std::f32::consts::LN_2 * 4.0;
/// Four times a score beyond this leaves f32, or nearly.
const BEYOND: f32 = f32::MAX / 8.0;

/// Below this `2^x` is taken for 0.
const LOWEST: f32 = -200.0;

/// `2^x` to within 2 units in the last place from -126 to 127; 0 far below (minus infinity included), that of `highest` above,
/// which is at most 127. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(simd: S, x: S::V, highest: S::V) -> S::V {
    exp2_below(simd, simd.min(highest, x))
}

/// [`exp2`] of what is known not to exceed 127.
///
/// `x = n + r` with `|r| <= 1/2`, both exact, and a polynomial of degree 6 for `2^r`: the one whose largest relative
/// error is least among those that are 1 at 0.
#[inline(always)]
pub(crate) fn exp2_below<S: Simd>(simd: S, x: S::V) -> S::V {
    let c = |value: f32| simd.splat(value);
    let x = if S::ANY_POWER { x } else { simd.max(c(LOWEST), x) };
    let n = simd.round(x);
    let r = simd.sub(x, n);
    let p = simd.fma(c(1.559_468e-4), r, c(1.340_664_4e-3));
    let p = simd.fma(p, r, c(9.617_693e-3));
    let p = simd.fma(p, r, c(5.550_310_6e-2));
    let p = simd.fma(p, r, c(2.402_265_2e-1));
    let p = simd.fma(p, r, c(6.931_472e-1));
    let p = simd.fma(p, r, c(1.0));
    simd.times_power_of_two(p, n)
}

/// [`exp2`] of what is not above 0, for tokens with [`Simd::add_to_exponent`]; 0 from -127 on, minus infinity included. Of the few
/// numbers between -126 and -127 it is something below the normal numbers.
///
/// The integer part is found by adding what leaves no room for a fraction, and its low bits go into the exponent as they are. The
/// polynomial of degree 5 is within 3 units in the last place, less than a weight in bf16 loses. Several vectors go through it step
/// by step together: one alone is a chain of a dozen operations, of which a processor cannot hold enough to be busy.
#[inline(always)]
pub(crate) fn powers_below<S: Simd, const COUNT: usize>(simd: S, x: &mut [S::V; COUNT]) {
    /// 1.5 * 2^23.
    const NO_FRACTION: f32 = 12_582_912.0;
    const POLYNOMIAL: [f32; 5] = [9.669_692e-3, 5.550_558e-2, 2.402_228_2e-1, std::f32::consts::LN_2, 1.0];
    let c = |value: f32| simd.splat(value);
    let mut shifted = *x;
    let mut power = [c(1.330_060_7e-3); COUNT];
    for (x, shifted) in x.iter_mut().zip(&mut shifted) {
        *x = simd.max(c(-127.0), *x);
        *shifted = simd.add(*x, c(NO_FRACTION));
    }
    for (x, &shifted) in x.iter_mut().zip(&shifted) {
        *x = simd.sub(*x, simd.sub(shifted, c(NO_FRACTION)));
    }
    for coefficient in POLYNOMIAL {
        for (power, &x) in power.iter_mut().zip(&*x) {
            *power = simd.fma(*power, x, c(coefficient));
        }
    }
    for ((x, &power), &shifted) in x.iter_mut().zip(&power).zip(&shifted) {
        *x = simd.add_to_exponent(power, shifted);
    }
}

/// Whether four times some lane's largest score leaves f32. Minus infinity, where a lane has seen no key, does not count.
#[inline(always)]
pub(crate) fn is_beyond(maxima: &[f32]) -> bool {
    maxima.iter().any(|&max| max.abs() > BEYOND && max.is_finite())
}

/// What powers are relative to: minus four times the largest scores, or, `BEYOND` what f32 holds, the scores themselves.
#[derive(Clone, Copy)]
pub(crate) struct Reference<V, const BEYOND: bool>(V);

impl<V: Copy, const BEYOND: bool> Reference<V, BEYOND> {
    /// The largest scores. Where a lane has seen no key yet it is the lowest number that serves: minus infinity minus itself would
    /// be NaN.
    #[inline(always)]
    pub(crate) fn new<S: Simd<V = V>>(simd: S, max: V) -> Self {
        Reference(match BEYOND {
            true => simd.max(max, simd.splat(f32::MIN)),
            false => simd.mul(simd.max(max, simd.splat(f32::MIN / 4.0)), simd.splat(-4.0)),
        })
    }

    /// The power of 2 that a score no larger is relative to it.
    #[inline(always)]
    pub(crate) fn power<S: Simd<V = V>>(self, simd: S, score: V) -> V {
        let four = simd.splat(4.0);
        let exponent = match BEYOND {
            true => simd.mul(simd.sub(score, self.0), four),
            false => simd.fma(score, four, self.0),
        };
        exp2_below(simd, exponent)
    }
}

/// Replaces the scores of group `g` of a tile by their powers relative to the reference, and returns each lane's sum.
#[inline(always)]
pub(crate) fn exponentiate<S: Simd, const BEYOND: bool>(
    simd: S,
    scores: &mut [f32],
    (g, shape): (usize, &ScoreTileShape),
    reference: Reference<S::V, BEYOND>,
) -> S::V {
    let mut sum = simd.splat(0.0);
    for row in 0..shape.x * shape.y {
        let start = (row * shape.pitch + shape.first) * 2 * S::LANES;
        let slots = &mut scores[start..start + shape.columns * 2 * S::LANES];
        let mut row_sum = simd.splat(0.0);
        for slot in slots.chunks_exact_mut(2 * S::LANES) {
            let slot = &mut slot[g * S::LANES..][..S::LANES];
            let p = reference.power(simd, simd.load(slot));
            simd.store(slot, p);
            row_sum = simd.add(row_sum, p);
        }
        sum = simd.add(sum, row_sum);
    }
    sum
}

/// [`exponentiate`] into words of two neighbours, rounded to bf16. A neighbour outside the group's columns weighs 0.
#[inline(always)]
pub(crate) fn exponentiate_pairs<S: Simd, const BEYOND: bool>(
    simd: S,
    scores: &[f32],
    (g, shape): (usize, &ScoreTileShape),
    reference: Reference<S::V, BEYOND>,
    words: &mut [f32],
) -> S::V {
    let end = shape.first + shape.columns;
    let zero = simd.splat(0.0);
    let mut sums = [zero; 2];
    for row in 0..shape.x * shape.y {
        let scores = &scores[row * shape.pitch * 2 * S::LANES..][..shape.pitch * 2 * S::LANES];
        let words = &mut words[row * shape.pitch * S::LANES..][..shape.pitch * S::LANES];
        for word in shape.first / 2..end.div_ceil(2) {
            let slots = &scores[word * 4 * S::LANES..][..4 * S::LANES];
            let (mut even, mut odd) = (zero, zero);
            if 2 * word >= shape.first {
                even = reference.power(simd, simd.load(&slots[g * S::LANES..]));
            }
            if 2 * word + 1 < end {
                odd = reference.power(simd, simd.load(&slots[(2 + g) * S::LANES..]));
            }
            simd.store(&mut words[(word * 2 + g) * S::LANES..], simd.pair(even, odd));
            sums = [simd.add(sums[0], even), simd.add(sums[1], odd)];
        }
    }
    simd.add(sums[0], sums[1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Kernel, dispatch, dispatch_tiles};
    use crate::isa::Isa;

    /// The largest power that f32 has.
    const HIGHEST: f32 = 127.0;

    /// Two to the power of each number, in place.
    struct Exps<'a>(&'a mut [f32]);

    impl Kernel for Exps<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for chunk in self.0.chunks_exact_mut(S::LANES) {
                simd.store(chunk, exp2(simd, simd.load(chunk), simd.splat(HIGHEST)));
            }
        }
    }

    /// Error in units in the last place of the exact result.
    fn error_ulp(x: f32, found: f32) -> f64 {
        let exact = f64::from(x).exp2();
        let ulp = (exact.log2().floor() - 23.0).exp2();
        (f64::from(found) - exact).abs() / ulp
    }

    #[test]
    fn the_exponential_is_within_two_units() {
        // Every 64th number of each sign between 1e-9 and the ends of the range: some ten million of them.
        let step = if cfg!(miri) { 1 << 22 } else { 64 };
        for isa in Isa::every_available() {
            let mut worst = 0f64;
            for (lowest, highest, sign) in [(1e-9f32, 126.0f32, -1.0f32), (1e-9, 127.0, 1.0)] {
                let numbers: Vec<f32> = (lowest.to_bits()..highest.to_bits())
                    .step_by(step)
                    .map(|bits| sign * f32::from_bits(bits))
                    .collect();
                // As many as the longest vector of lanes has.
                for chunk in numbers.chunks_exact(16) {
                    let mut found: [f32; 16] = chunk.try_into().unwrap();
                    dispatch(isa, Exps(&mut found));
                    for (&x, &found) in chunk.iter().zip(&found) {
                        worst = worst.max(error_ulp(x, found));
                    }
                }
            }
            assert!(worst <= 2.0, "{isa}: {worst} units in the last task");
        }
    }

    #[test]
    fn the_exponential_of_the_extremes() {
        for isa in Isa::every_available() {
            let mut x = [1.0; 16];
            x[..8].copy_from_slice(&[f32::NEG_INFINITY, -1e30, -151.0, f32::MIN, 0.0, f32::NAN, 1.0, -0.0]);
            dispatch(isa, Exps(&mut x));
            assert_eq!(x[..5], [0.0, 0.0, 0.0, 0.0, 1.0], "{isa}");
            assert!(x[5].is_nan() && x[7] == 1.0, "{isa}");
        }
    }

    /// [`Exps`] for weights of tiles.
    struct Powers<'a>(&'a mut [f32]);

    impl Kernel for Powers<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for chunk in self.0.chunks_exact_mut(S::LANES) {
                let mut powers = [simd.load(chunk)];
                powers_below(simd, &mut powers);
                simd.store(chunk, powers[0]);
            }
        }
    }

    #[test]
    fn powers_for_tiles_are_within_three_units() {
        let step = if cfg!(miri) { 1 << 22 } else { 64 };
        let mut worst = 0f64;
        let numbers: Vec<f32> =
            (1e-9f32.to_bits()..126f32.to_bits()).step_by(step).map(|bits| -f32::from_bits(bits)).collect();
        for chunk in numbers.chunks_exact(16) {
            let mut found: [f32; 16] = chunk.try_into().unwrap();
            dispatch_tiles(Isa::AmxModel, Powers(&mut found));
            for (&x, &found) in chunk.iter().zip(&found) {
                worst = worst.max(error_ulp(x, found));
                assert!(found <= 1.0, "{x}");
            }
        }
        assert!(worst <= 3.0, "{worst} units in the last place");
        let mut x = [0.0; 16];
        x[..7].copy_from_slice(&[f32::NEG_INFINITY, f32::MIN, -127.0, -126.0, 0.0, -0.0, f32::NAN]);
        dispatch_tiles(Isa::AmxModel, Powers(&mut x));
        assert_eq!(x[..6], [0.0, 0.0, 0.0, f32::MIN_POSITIVE, 1.0, 1.0]);
        assert!(x[6].is_nan());
    }
}
