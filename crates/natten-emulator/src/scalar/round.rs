//! Rounding to any binary format in any direction, exactly, by integer arithmetic on f64 bits.

use crate::inst::Rnd;

/// A binary format: significand bits with the hidden one, and exponent range of normal numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    pub precision: i32,
    pub min_exponent: i32,
    pub max_exponent: i32,
    /// Bits of the encoding's exponent field.
    pub exponent_bits: u32,
}

pub(crate) const F16: Format =
    Format { precision: 11, min_exponent: -14, max_exponent: 15, exponent_bits: 5 };
pub(crate) const BF16: Format =
    Format { precision: 8, min_exponent: -126, max_exponent: 127, exponent_bits: 8 };
pub(crate) const TF32: Format =
    Format { precision: 11, min_exponent: -126, max_exponent: 127, exponent_bits: 8 };
pub(crate) const F32: Format =
    Format { precision: 24, min_exponent: -126, max_exponent: 127, exponent_bits: 8 };

/// Rounds `x` to `format` and returns its encoding. NaN becomes the canonical NaN of the hardware.
///
/// To round an inexact result once only, pass it rounded to odd: see [`fma_to_odd`].
pub(crate) fn round(x: f64, format: Format, rnd: Rnd) -> u32 {
    let fraction_bits = (format.precision - 1) as u32;
    let width = 1 + format.exponent_bits + fraction_bits;
    let sign = u32::from(x.is_sign_negative()) << (width - 1);
    let infinity = ((1u32 << format.exponent_bits) - 1) << fraction_bits;
    if x.is_nan() {
        return (1 << (width - 1)) - 1;
    }
    if x.is_infinite() {
        return sign | infinity;
    }
    if x == 0.0 {
        return sign;
    }
    // x = significand * 2^(exponent - 52), with the hidden bit set for normal numbers.
    let bits = x.abs().to_bits();
    let raw = (bits >> 52) as i32;
    let fraction = bits & ((1 << 52) - 1);
    let (mut significand, mut exponent) =
        if raw == 0 { (fraction, -1022) } else { (fraction | 1 << 52, raw - 1023) };
    let shift = significand.leading_zeros() as i32 - 11;
    significand <<= shift;
    exponent -= shift;
    // Bits to drop: more of them below the normal range.
    let drop = 53 - format.precision + (format.min_exponent - exponent).max(0);
    let (kept, rest, half) = if drop > 62 {
        (0, 1u64, 2u64)
    } else {
        (significand >> drop, significand & ((1 << drop) - 1), 1u64 << (drop - 1))
    };
    let up = match rnd {
        Rnd::Rn | Rnd::Rni => rest > half || rest == half && kept & 1 == 1,
        Rnd::Rna => rest >= half,
        Rnd::Rz | Rnd::Rzi => false,
        Rnd::Rm | Rnd::Rmi => rest != 0 && sign != 0,
        Rnd::Rp | Rnd::Rpi => rest != 0 && sign == 0,
    };
    let kept = kept + u64::from(up);
    // The encoding is monotonic, so a carry out of the significand lands in the exponent by itself.
    let encoded = if exponent < format.min_exponent {
        kept as u32
    } else {
        let biased = (exponent + format.max_exponent) as u64;
        u32::try_from((biased << fraction_bits) + kept - (1 << fraction_bits)).unwrap_or(infinity)
    };
    if encoded >= infinity {
        let toward_infinity = match rnd {
            Rnd::Rz | Rnd::Rzi => false,
            Rnd::Rm | Rnd::Rmi => sign != 0,
            Rnd::Rp | Rnd::Rpi => sign == 0,
            _ => true,
        };
        return sign | if toward_infinity { infinity } else { infinity - 1 };
    }
    sign | encoded
}

/// `a + b` in f64, rounded to odd: an inexact result gets its last bit set, so that rounding it
/// again to at most 51 bits gives what rounding the exact sum once would.
pub(crate) fn add_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    if !sum.is_finite() {
        return sum;
    }
    // The exact error of the sum (Knuth).
    let b_part = sum - a;
    let error = (a - (sum - b_part)) + (b - b_part);
    if error == 0.0 || sum.to_bits() & 1 == 1 {
        return sum;
    }
    let bits = sum.to_bits();
    let away = (error > 0.0) == (sum > 0.0);
    f64::from_bits(if away { bits + 1 } else { bits - 1 })
}

/// `a * b + c` for factors whose product is exact in f64, rounded to odd.
pub(crate) fn fma_to_odd(a: f64, b: f64, c: f64) -> f64 {
    add_to_odd(a * b, c)
}

/// Rounds to an integral value.
pub(crate) fn to_integral(x: f64, rnd: Rnd) -> f64 {
    match rnd {
        Rnd::Rni | Rnd::Rn | Rnd::Rna => x.round_ties_even(),
        Rnd::Rzi | Rnd::Rz => x.trunc(),
        Rnd::Rmi | Rnd::Rm => x.floor(),
        Rnd::Rpi | Rnd::Rp => x.ceil(),
    }
}
