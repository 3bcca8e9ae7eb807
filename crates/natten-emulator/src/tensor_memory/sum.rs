//! What `tcgen05.mma.kind::f16` adds up, after the findings of MMA-Sim on Blackwell hardware (arXiv 2511.10909).
//!
//! One operation adds the sixteen products of its depth and the accumulator in a single step: each addend is brought to
//! the largest exponent among them, as it stands before products are normalised, and cut off towards zero below 25 bits
//! of fraction; the sum of what is left is exact, and is cut off towards zero at f32, or rounded to nearest even where
//! accumulators are f16. If an addend or the sum is not finite, the result is the sum's infinity or the canonical NaN.

use crate::inst::{MmaType, Rnd};
use crate::scalar::{half, round};

/// Steps along k of one operation.
pub(super) const DEPTH: usize = 16;

/// Bits of fraction that survive beside the largest addend.
const FRACTION_BITS: i16 = 25;

/// 2^128: no f32 is as large.
const TOO_LARGE: f64 = 2.0 * (1u128 << 127) as f64;

/// The exponent of zero, and the least of f32 and bf16.
const LEAST_EXPONENT: i16 = -126;

/// Sixteen lanes' rows of A, or one column of B again and again, as significands and exponents: (k, lane).
#[derive(Debug, Clone, Copy)]
pub(super) struct Split<const LANES: usize> {
    significands: [[f32; LANES]; DEPTH],
    exponents: [[i16; LANES]; DEPTH],
    finite: bool,
}

/// Significand from 1 to 2, less for subnormal numbers, and exponent of a number; what is not finite stays as it is.
#[inline(always)]
fn split(x: f32, least: i16) -> (f32, i16) {
    let raw = (x.to_bits() >> 23 & 0xff) as i16;
    let exponent = match raw {
        255 => 0,
        _ if x == 0.0 => LEAST_EXPONENT,
        _ => (raw - 127).max(least),
    };
    // In two steps, since 2^-127 is no normal number.
    let half = exponent / 2;
    (x * power(-half) * power(half - exponent), exponent)
}

/// 2 to the power of `exponent`, from -126 to 127; zero below.
#[inline(always)]
fn power(exponent: i16) -> f32 {
    f32::from_bits((exponent.wrapping_add(127).max(0) as u32) << 23)
}

/// The least exponent of normal numbers.
fn least_exponent(ty: MmaType) -> i16 {
    if ty == MmaType::F16 { -14 } else { LEAST_EXPONENT }
}

impl<const LANES: usize> Split<LANES> {
    /// Of elements by k and lane.
    pub(super) fn of(elements: &[[f32; LANES]; DEPTH], ty: MmaType, negate: bool) -> Self {
        let (mut significands, mut exponents) = ([[0.0; LANES]; DEPTH], [[0; LANES]; DEPTH]);
        let mut finite = true;
        for k in 0..DEPTH {
            for lane in 0..LANES {
                let x = if negate { -elements[k][lane] } else { elements[k][lane] };
                finite &= x.is_finite();
                (significands[k][lane], exponents[k][lane]) = split(x, least_exponent(ty));
            }
        }
        Self { significands, exponents, finite }
    }

    fn element(&self, k: usize, lane: usize) -> f64 {
        f64::from(self.significands[k][lane]) * f64::from(self.exponents[k][lane]).exp2()
    }
}

/// Sixteen accumulators of a column plus the products of their rows with that column, the `column`th of `b`; `half`:
/// accumulators are f16, in the low half of a word.
pub(super) fn accumulate(c: [u32; 16], a: &Split<16>, b: &Split<8>, column: usize, half: bool) -> [u32; 16] {
    let value = |bits: u32| if half { half::f16_to_f32(bits & 0xffff) } else { f32::from_bits(bits) };
    let c = c.map(value);
    let sums = fused(&c, a, b, column, half);
    if a.finite && b.finite && c.iter().all(|x| x.is_finite()) {
        return sums;
    }
    std::array::from_fn(|lane| {
        let products = (0..DEPTH).map(|k| a.element(k, lane) * b.element(k, column));
        let sum = products.sum::<f64>() + f64::from(c[lane]);
        // Rows without such numbers may lie next to one with them.
        if sum.is_finite() { sums[lane] } else { rounded(sum, half) }
    })
}

/// Where all addends are finite; lanes with others get some number. Sums that cannot overflow are written as ones that may,
/// since checks for that keep the compiler from working on several lanes at once.
#[inline]
fn fused(c: &[f32; 16], a: &Split<16>, b: &Split<8>, column: usize, half: bool) -> [u32; 16] {
    let least = if half { least_exponent(MmaType::F16) } else { LEAST_EXPONENT };
    let (mut significands, mut largest) = ([0f32; 16], [0i16; 16]);
    for lane in 0..16 {
        (significands[lane], largest[lane]) = split(c[lane], least);
    }
    let exponents = largest;
    for k in 0..DEPTH {
        let of_b = b.exponents[k][column];
        for lane in 0..16 {
            largest[lane] = largest[lane].max(a.exponents[k][lane].wrapping_add(of_b));
        }
    }
    // Eight products below 4 with 25 bits of fraction just fit 32 bits.
    let mut halves = [[0i32; 16]; 2];
    for (half, sums) in halves.iter_mut().enumerate() {
        for k in 8 * half..8 * half + 8 {
            let of_b = b.significands[k][column];
            let exponent = b.exponents[k][column] + FRACTION_BITS;
            for lane in 0..16 {
                let shift = a.exponents[k][lane].wrapping_add(exponent).wrapping_sub(largest[lane]);
                let addend = (a.significands[k][lane] * of_b * power(shift)) as i32;
                sums[lane] = sums[lane].wrapping_add(addend);
            }
        }
    }
    std::array::from_fn(|lane| {
        let accumulator = significands[lane] * power(FRACTION_BITS + exponents[lane] - largest[lane]);
        let products = i64::from(halves[0][lane]) + i64::from(halves[1][lane]);
        let sum = products.wrapping_add(accumulator as i64);
        // From -126 times two, less the bits of fraction, to 127 times two: a normal number of 64 bits.
        let unit = f64::from_bits(((1023 + largest[lane] - FRACTION_BITS) as u64) << 52);
        rounded(sum as f64 * unit, half)
    })
}

/// An exact sum in the accumulator's type.
fn rounded(sum: f64, half: bool) -> u32 {
    if half {
        return round::round(sum, round::F16, Rnd::Rn);
    }
    if sum.is_nan() {
        return 0x7fff_ffff;
    }
    // The nearest number, or the one before it if that is further from zero. From 2^128 on there is only infinity.
    let nearest = sum as f32;
    let beyond = f64::from(nearest).abs() > sum.abs() && sum.abs() < TOO_LARGE;
    nearest.to_bits() - u32::from(beyond)
}
