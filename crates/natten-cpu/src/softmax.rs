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
    let c = |value: f32| simd.splat(value);
    let clamped = simd.min(c(HIGHEST), simd.max(c(LOWEST), x));
    let n = simd.round(simd.mul(clamped, c(std::f32::consts::LOG2_E)));
    let r = simd.fma(n, c(-0.693_359_4), clamped);
    let r = simd.fma(n, c(2.121_944_4e-4), r);
    let p = simd.fma(c(1.987_569_1e-4), r, c(1.398_199_9e-3));
    let p = simd.fma(p, r, c(8.333_452e-3));
    let p = simd.fma(p, r, c(4.166_579_6e-2));
    let p = simd.fma(p, r, c(1.666_666_5e-1));
    let p = simd.fma(p, r, c(5.000_000_1e-1));
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
            let p = exp(simd, simd.sub(simd.load(slot), max));
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
