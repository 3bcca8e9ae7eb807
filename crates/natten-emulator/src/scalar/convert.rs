//! `cvt` between all scalar types, and to packed pairs.

use super::half::{self, to_f32};
use super::round::{self, BF16, F16, F32, TF32, to_integral};
use super::{Lanes, float, map, map2};
use crate::inst::{Convert, Rnd, Ty};

/// The conversions worth a loop of their own: 32 bits to 32 bits.
pub(crate) fn words(c: Convert, a: &Lanes) -> Lanes {
    if !c.ftz && !c.sat && !c.relu {
        match (c.to, c.from, c.rnd) {
            (Ty::F32, Ty::S32, Some(Rnd::Rn)) => return map(a, |x| (x as i32 as f32).to_bits()),
            (Ty::F32, Ty::U32, Some(Rnd::Rn)) => return map(a, |x| (x as f32).to_bits()),
            (Ty::S32, Ty::F32, Some(Rnd::Rzi)) => return map(a, |x| f32::from_bits(x) as i32 as u32),
            (Ty::F32, Ty::F16, None) => return map(a, |x| half::f16_to_f32(x & 0xffff).to_bits()),
            (Ty::F32, Ty::Bf16, None) => return map(a, |x| half::bf16_to_f32(x & 0xffff).to_bits()),
            (Ty::Bf16, Ty::F32, Some(Rnd::Rn)) => return map(a, |x| half::f32_to_bf16(f32::from_bits(x))),
            (Ty::F16, Ty::F32, Some(Rnd::Rn)) => return map(a, |x| half::f32_to_f16(f32::from_bits(x))),
            _ => {}
        }
    }
    map(a, |x| scalar(c, u64::from(x)) as u32)
}

/// One value of any width.
pub(crate) fn scalar(c: Convert, bits: u64) -> u64 {
    match (c.to.is_float(), c.from.is_float()) {
        (false, false) => int_to_int(c, bits),
        (true, false) => int_to_float(c, bits),
        (false, true) => float_to_int(c, bits),
        (true, true) => float_to_float(c, bits),
    }
}

/// The value of an integer type, sign-extended.
fn int_value(ty: Ty, bits: u64) -> i128 {
    let width = ty.bytes() * 8;
    let value = bits & if width == 64 { !0 } else { (1 << width) - 1 };
    if ty.is_signed() && value >> (width - 1) & 1 == 1 {
        i128::from(value) - (1i128 << width)
    } else {
        i128::from(value)
    }
}

fn int_range(ty: Ty) -> (i128, i128) {
    let width = ty.bytes() * 8;
    if ty.is_signed() {
        (-(1i128 << (width - 1)), (1i128 << (width - 1)) - 1)
    } else {
        (0, (1i128 << width) - 1)
    }
}

/// Sign-extends results of signed types, since the register may be wider than the type.
fn int_to_int(c: Convert, bits: u64) -> u64 {
    let value = int_value(c.from, bits);
    let value = if c.sat {
        let (low, high) = int_range(c.to);
        value.clamp(low, high)
    } else {
        value
    };
    int_value(c.to, value as u64) as u64
}

fn int_to_float(c: Convert, bits: u64) -> u64 {
    let value = int_value(c.from, bits);
    let rnd = c.rnd.unwrap_or(Rnd::Rn);
    if c.to == Ty::F64 {
        return (value as f64).to_bits();
    }
    // 64-bit integers do not fit f64: fold what is lost into a sticky last bit (round to odd).
    let nearest = value as f64;
    let exact = if nearest as i128 == value || nearest.to_bits() & 1 == 1 {
        nearest
    } else {
        let away = (nearest as i128).abs() < value.abs();
        f64::from_bits(if away { nearest.to_bits() + 1 } else { nearest.to_bits() - 1 })
    };
    finish_float(
        c,
        u64::from(match c.to {
            Ty::F16 => round::round(exact, F16, rnd),
            Ty::Bf16 => round::round(exact, BF16, rnd),
            _ => round::round(exact, F32, rnd),
        }),
    )
}

fn float_value(c: Convert, bits: u64) -> f64 {
    match c.from {
        Ty::F16 => f64::from(to_f32(false, bits as u32)),
        Ty::Bf16 => f64::from(to_f32(true, bits as u32)),
        Ty::F64 => f64::from_bits(bits),
        _ => f64::from(f32::from_bits(if c.ftz { float::flush(bits as u32) } else { bits as u32 })),
    }
}

/// Out of range clamps, as on the hardware; NaN gives 0, or the integer indefinite in 64 bits.
fn float_to_int(c: Convert, bits: u64) -> u64 {
    let value = float_value(c, bits);
    if value.is_nan() {
        return if c.to.bytes() == 8 || c.from == Ty::F64 && c.to.bytes() == 4 {
            1 << (c.to.bytes() * 8 - 1)
        } else {
            0
        };
    }
    let (low, high) = int_range(c.to);
    let rounded = to_integral(value, c.rnd.unwrap_or(Rnd::Rzi));
    // `as` saturates, so infinities and huge values are safe here.
    (rounded as i128).clamp(low, high) as u64
}

fn float_to_float(c: Convert, bits: u64) -> u64 {
    let mut value = float_value(c, bits);
    let rnd = c.rnd.unwrap_or(Rnd::Rn);
    if matches!(rnd, Rnd::Rni | Rnd::Rzi | Rnd::Rmi | Rnd::Rpi) {
        value = to_integral(value, rnd);
    }
    let result = match c.to {
        Ty::F64 => {
            let saturated = if c.sat { if value > 0.0 { value.min(1.0) } else { 0.0 } } else { value };
            return saturated.to_bits();
        }
        Ty::F16 => u64::from(round::round(value, F16, rnd)),
        Ty::Bf16 => u64::from(round::round(value, BF16, rnd)),
        // `.rna` works on the bits: a NaN keeps its upper payload, as seen on hardware.
        Ty::Tf32 if rnd == Rnd::Rna => {
            let bits = bits as u32;
            let finite = bits & 0x7f80_0000 != 0x7f80_0000;
            u64::from(if finite { bits.wrapping_add(0x1000) } else { bits } & 0xffff_e000)
        }
        // Encoded in the upper 19 bits of a word.
        Ty::Tf32 => u64::from(round::round(value, TF32, rnd)) << 13,
        _ => u64::from(round::round(value, F32, rnd)),
    };
    finish_float(c, result)
}

/// `.ftz`, `.sat` and `.relu` of a result.
fn finish_float(c: Convert, bits: u64) -> u64 {
    let bits = if c.ftz && c.to == Ty::F32 { u64::from(float::flush(bits as u32)) } else { bits };
    let value = float_value(Convert { from: c.to, ftz: false, ..c }, bits);
    if c.relu && value <= 0.0 {
        return 0;
    }
    if !c.sat || (0.0..=1.0).contains(&value) && value.is_sign_positive() {
        return bits;
    }
    let one = match c.to {
        Ty::F16 => 0x3c00,
        Ty::Bf16 => 0x3f80,
        _ => u64::from(1f32.to_bits()),
    };
    if value > 1.0 { one } else { 0 }
}

/// Two f32 to a pair of halves, the first in the upper half.
pub(crate) fn pair(bf16: bool, rnd: Rnd, relu: bool, upper: &Lanes, lower: &Lanes) -> Lanes {
    let one = |x: u32| {
        let value = f32::from_bits(x);
        if relu && value.is_sign_negative() && !value.is_nan() {
            return 0;
        }
        match (bf16, rnd) {
            (true, Rnd::Rn) => half::f32_to_bf16(value),
            (true, _) => round::round(f64::from(value), BF16, rnd),
            (false, _) => round::round(f64::from(value), F16, rnd),
        }
    };
    map2(upper, lower, |u, l| one(u) << 16 | one(l))
}
