//! Comparisons and tests of numbers, as lane masks.

use super::half::to_f32;
use super::{Lanes, Wides, float, mask_of};
use crate::inst::{Cmp, Logic, Testp, Ty};

/// Compares values that are totally ordered.
#[inline(always)]
fn ordered<T: PartialOrd>(cmp: Cmp, get: impl Fn(usize) -> (T, T)) -> u32 {
    match cmp {
        Cmp::Eq | Cmp::Equ => mask_of(|l| get(l).0 == get(l).1),
        Cmp::Ne | Cmp::Neu => mask_of(|l| get(l).0 != get(l).1),
        Cmp::Lt | Cmp::Ltu => mask_of(|l| get(l).0 < get(l).1),
        Cmp::Le | Cmp::Leu => mask_of(|l| get(l).0 <= get(l).1),
        Cmp::Gt | Cmp::Gtu => mask_of(|l| get(l).0 > get(l).1),
        Cmp::Ge | Cmp::Geu => mask_of(|l| get(l).0 >= get(l).1),
        Cmp::Num => !0,
        Cmp::Nan => 0,
    }
}

/// Compares floats: the plain comparisons are false on NaN, those with `u` are true.
#[inline(always)]
fn floats<T: PartialOrd>(cmp: Cmp, get: impl Fn(usize) -> (T, T)) -> u32 {
    match cmp {
        Cmp::Eq => mask_of(|l| get(l).0 == get(l).1),
        Cmp::Ne => mask_of(|l| get(l).0 < get(l).1 || get(l).0 > get(l).1),
        Cmp::Lt => mask_of(|l| get(l).0 < get(l).1),
        Cmp::Le => mask_of(|l| get(l).0 <= get(l).1),
        Cmp::Gt => mask_of(|l| get(l).0 > get(l).1),
        Cmp::Ge => mask_of(|l| get(l).0 >= get(l).1),
        Cmp::Equ => !floats(Cmp::Ne, get),
        Cmp::Neu => !floats(Cmp::Eq, get),
        Cmp::Ltu => !floats(Cmp::Ge, get),
        Cmp::Leu => !floats(Cmp::Gt, get),
        Cmp::Gtu => !floats(Cmp::Le, get),
        Cmp::Geu => !floats(Cmp::Lt, get),
        Cmp::Num => mask_of(|l| get(l).0.partial_cmp(&get(l).1).is_some()),
        Cmp::Nan => mask_of(|l| get(l).0.partial_cmp(&get(l).1).is_none()),
    }
}

/// Compares registers of up to 32 bits.
pub(crate) fn words(cmp: Cmp, ty: Ty, ftz: bool, a: &Lanes, b: &Lanes) -> u32 {
    match ty {
        Ty::F32 if ftz => {
            let value = |x: u32| f32::from_bits(float::flush(x));
            floats(cmp, |l| (value(a[l]), value(b[l])))
        }
        Ty::F32 => floats(cmp, |l| (f32::from_bits(a[l]), f32::from_bits(b[l]))),
        Ty::F16 | Ty::Bf16 => {
            let bf16 = ty == Ty::Bf16;
            floats(cmp, |l| (to_f32(bf16, a[l]), to_f32(bf16, b[l])))
        }
        Ty::S16 => ordered(cmp, |l| (a[l] as u16 as i16, b[l] as u16 as i16)),
        Ty::U16 | Ty::B16 => ordered(cmp, |l| (a[l] as u16, b[l] as u16)),
        Ty::S32 => ordered(cmp, |l| (a[l] as i32, b[l] as i32)),
        _ => ordered(cmp, |l| (a[l], b[l])),
    }
}

/// Compares 64-bit registers.
pub(crate) fn wides(cmp: Cmp, ty: Ty, a: &Wides, b: &Wides) -> u32 {
    match ty {
        Ty::F64 => floats(cmp, |l| (f64::from_bits(a[l]), f64::from_bits(b[l]))),
        Ty::S64 => ordered(cmp, |l| (a[l] as i64, b[l] as i64)),
        _ => ordered(cmp, |l| (a[l], b[l])),
    }
}

pub(crate) fn logic(op: Logic, a: u32, b: u32) -> u32 {
    match op {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}

/// `testp` on values already widened to f64; subnormal and normal refer to the source's range.
pub(crate) fn testp(test: Testp, value: impl Fn(usize) -> f64, smallest_normal: f64) -> u32 {
    mask_of(|l| {
        let x = value(l);
        match test {
            Testp::Finite => x.is_finite(),
            Testp::Infinite => x.is_infinite(),
            Testp::Number => !x.is_nan(),
            Testp::NotANumber => x.is_nan(),
            Testp::Normal => x.is_finite() && x.abs() >= smallest_normal,
            Testp::Subnormal => x != 0.0 && x.abs() < smallest_normal,
        }
    })
}
