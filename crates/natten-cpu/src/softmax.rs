//! The exponential, and the online softmax of a strip of scores.

use crate::arch::Simd;

/// Below this, `e^x` is taken for 0: the smallest exponent whose result is a normal number.
const LOWEST: f32 = -87.336_54;
/// Above this, `e^x` is taken for its value here. Softmax never gets there; a backward fed with another call's
/// log-sum-exp may.
const HIGHEST: f32 = 88.376_26;

/// `e^x` to within 2 units in the last place from -87.3 to 88.3; 0 below (minus infinity included), a constant
/// above. NaN stays NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, and a polynomial of degree 7 in `r`. `ln 2` is split in two so that
/// `n ln 2` is exact enough: the upper part has 9 bits to spare for `n`.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::V) -> S::V {
    exp_below(simd, simd.min(simd.splat(HIGHEST), x))
}

/// [`exp`] of what is known not to exceed 88.3.
#[inline(always)]
pub(crate) fn exp_below<S: Simd>(simd: S, x: S::V) -> S::V {
    let c = |value: f32| simd.splat(value);
    // Far below the range `n` and `r` are meaningless, and so is all that follows, until the last line.
    let n = simd.round(simd.mul(x, c(std::f32::consts::LOG2_E)));
    let r = simd.fma(n, c(-0.693_359_4), x);
    let r = simd.fma(n, c(2.121_944_4e-4), r);
    let p = simd.fma(c(1.987_569_1e-4), r, c(1.398_199_9e-3));
    let p = simd.fma(p, r, c(8.333_452e-3));
    let p = simd.fma(p, r, c(4.166_579_6e-2));
    let p = simd.fma(p, r, c(1.666_666_5e-1));
    let p = simd.fma(p, r, c(0.5));
    let p = simd.add(simd.fma(p, simd.mul(r, r), r), c(1.0));
    simd.zero_below(LOWEST, x, simd.times_power_of_two(p, n))
}

/// The rows of a strip: `[x][y]` rows of `pitch` slots, of which `columns` from `first` on belong to the group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StripShape {
    /// Rows along the first axis.
    pub x: usize,
    /// Rows along the second axis.
    pub y: usize,
    /// Slots of a row.
    pub pitch: usize,
    /// First slot of the group.
    pub first: usize,
    /// Slots of the group.
    pub columns: usize,
}

/// Which lanes see which coordinate of a strip, one bit a lane; `None` where all see all.
pub(crate) struct LaneMasks<'a> {
    /// Along each axis.
    pub axes: Option<[&'a [u32]; 3]>,
}

/// Replaces what a lane does not see by minus infinity, whatever it was, and returns each lane's largest score.
/// NaN is passed over here; it reaches the sum.
#[inline(always)]
pub(crate) fn mask_and_max<S: Simd>(
    simd: S,
    strip: &mut [f32],
    shape: &StripShape,
    masks: &LaneMasks<'_>,
) -> S::V {
    let lowest = simd.splat(f32::NEG_INFINITY);
    let mut max = lowest;
    for x in 0..shape.x {
        for y in 0..shape.y {
            let start = ((x * shape.y + y) * shape.pitch + shape.first) * S::LANES;
            let row = &mut strip[start..start + shape.columns * S::LANES];
            let mut row_max = lowest;
            match &masks.axes {
                None => {
                    for slot in row.chunks_exact(S::LANES) {
                        row_max = simd.max(simd.load(slot), row_max);
                    }
                }
                Some(axes) => {
                    let bits = axes[0][x] & axes[1][y];
                    for (slot, &column) in row.chunks_exact_mut(S::LANES).zip(axes[2]) {
                        let score = simd.select(bits & column, simd.load(slot), lowest);
                        simd.store(slot, score);
                        row_max = simd.max(score, row_max);
                    }
                }
            }
            max = simd.max(row_max, max);
        }
    }
    max
}

/// Replaces scores by `exp(score - max)` and returns each lane's sum.
#[inline(always)]
pub(crate) fn exponentiate<S: Simd>(simd: S, strip: &mut [f32], shape: &StripShape, max: S::V) -> S::V {
    let mut sum = simd.splat(0.0);
    for row in 0..shape.x * shape.y {
        let start = (row * shape.pitch + shape.first) * S::LANES;
        let mut row_sum = simd.splat(0.0);
        for slot in strip[start..start + shape.columns * S::LANES].chunks_exact_mut(S::LANES) {
            let p = exp_below(simd, simd.sub(simd.load(slot), max));
            simd.store(slot, p);
            row_sum = simd.add(row_sum, p);
        }
        sum = simd.add(sum, row_sum);
    }
    sum
}

/// The largest scores, with 0 where a lane has seen no key yet: minus infinity minus itself would be NaN.
#[inline(always)]
pub(crate) fn finite_max<S: Simd>(simd: S, max: S::V) -> S::V {
    let mut lanes = [0.0; 32];
    simd.store(&mut lanes, max);
    let mut seen = 0u32;
    for (lane, &max) in lanes.iter().take(S::LANES).enumerate() {
        seen |= u32::from(max != f32::NEG_INFINITY) << lane;
    }
    simd.select(seen, max, simd.splat(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Kernel, dispatch};
    use crate::isa::Isa;

    /// The exponential of each number, in place.
    struct Exps<'a>(&'a mut [f32]);

    impl Kernel for Exps<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for chunk in self.0.chunks_exact_mut(S::LANES) {
                simd.store(chunk, exp(simd, simd.load(chunk)));
            }
        }
    }

    /// Error in units in the last place of the exact result.
    fn error_ulp(x: f32, found: f32) -> f64 {
        let exact = f64::from(x).exp();
        let ulp = (exact.log2().floor() - 23.0).exp2();
        (f64::from(found) - exact).abs() / ulp
    }

    #[test]
    fn the_exponential_is_within_two_units() {
        // Every 64th number of each sign between 1e-9 and the ends of the range: some ten million of them.
        let step = if cfg!(miri) { 1 << 22 } else { 64 };
        for isa in Isa::available() {
            let mut worst = 0f64;
            for (lowest, highest, sign) in [(1e-9f32, 87.3f32, -1.0f32), (1e-9, 88.3, 1.0)] {
                let numbers: Vec<f32> = (lowest.to_bits()..highest.to_bits())
                    .step_by(step)
                    .map(|bits| sign * f32::from_bits(bits))
                    .collect();
                for chunk in numbers.chunks_exact(8) {
                    let mut found: [f32; 8] = chunk.try_into().unwrap();
                    dispatch(isa, Exps(&mut found));
                    for (&x, &found) in chunk.iter().zip(&found) {
                        worst = worst.max(error_ulp(x, found));
                    }
                }
            }
            assert!(worst <= 2.0, "{isa}: {worst} units in the last place");
        }
    }

    #[test]
    fn the_exponential_of_the_extremes() {
        for isa in Isa::available() {
            let mut x = [f32::NEG_INFINITY, -1e30, -88.0, f32::MIN, 0.0, f32::NAN, 1.0, -0.0];
            dispatch(isa, Exps(&mut x));
            assert_eq!(x[..5], [0.0, 0.0, 0.0, 0.0, 1.0], "{isa}");
            assert!(x[5].is_nan() && x[7] == 1.0, "{isa}");
        }
    }
}
