//! f16 and bf16: conversion to and from f32, and arithmetic on single and packed values.

use super::round::{self, BF16, F16, fma_to_odd};
use super::{Lanes, map, map2, map3};
use crate::inst::{Float1, Float2, HalfMode, Rnd};

/// f16 to f32, exactly.
#[inline(always)]
pub(crate) fn f16_to_f32(h: u32) -> f32 {
    // Moving the fraction up and scaling by 2^112 treats normals and subnormals alike.
    let magnitude = f32::from_bits((h & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = h & 0x7c00 == 0x7c00;
    let bits = if special { 0x7f80_0000 | (h & 0x3ff) << 13 } else { magnitude.to_bits() };
    f32::from_bits(bits | (h & 0x8000) << 16)
}

/// bf16 to f32, exactly.
#[inline(always)]
pub(crate) fn bf16_to_f32(h: u32) -> f32 {
    f32::from_bits(h << 16)
}

/// f32 to f16, to nearest even.
#[inline]
pub(crate) fn f32_to_f16(x: f32) -> u32 {
    round::round(f64::from(x), F16, Rnd::Rn)
}

/// f32 to bf16, to nearest even.
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { 0x7fff } else { rounded }
}

#[inline(always)]
pub(crate) fn to_f32(bf16: bool, h: u32) -> f32 {
    if bf16 { bf16_to_f32(h & 0xffff) } else { f16_to_f32(h & 0xffff) }
}

#[inline(always)]
pub(crate) fn from_f32(bf16: bool, x: f32) -> u32 {
    if bf16 { f32_to_bf16(x) } else { f32_to_f16(x) }
}

/// Applies an operation on single halves to one or both halves of each lane.
fn halves1(packed: bool, a: &Lanes, f: impl Fn(u32) -> u32) -> Lanes {
    if packed { map(a, |x| f(x & 0xffff) | f(x >> 16) << 16) } else { map(a, |x| f(x & 0xffff)) }
}

/// Flushes, saturates or clamps a result as the mode says.
fn finish(mode: HalfMode, x: u32) -> u32 {
    let flushed = if mode.ftz && !mode.bf16 && x & 0x7c00 == 0 { x & 0x8000 } else { x };
    let value = to_f32(mode.bf16, flushed);
    if mode.sat {
        let one = from_f32(mode.bf16, 1.0);
        return if value > 1.0 {
            one
        } else if value > 0.0 {
            flushed
        } else {
            0
        };
    }
    // A negative zero is clamped as well; a NaN is not.
    if mode.relu && flushed & 0x8000 != 0 && !value.is_nan() { 0 } else { flushed }
}

fn input(mode: HalfMode, x: u32) -> u32 {
    if mode.ftz && !mode.bf16 && x & 0x7c00 == 0 { x & 0x8000 } else { x }
}

pub(crate) fn unary(op: Float1, mode: HalfMode, a: &Lanes) -> Lanes {
    let one = |x: u32| match op {
        _ if to_f32(mode.bf16, x).is_nan() => 0x7fff,
        Float1::Neg => x ^ 0x8000,
        Float1::Abs => x & 0x7fff,
        Float1::Ex2 => from_f32(mode.bf16, to_f32(mode.bf16, x).exp2()),
        Float1::Tanh => from_f32(mode.bf16, to_f32(mode.bf16, x).tanh()),
        // The decoder lets no other operation through.
        _ => x,
    };
    halves1(mode.packed, a, |x| finish(mode, one(input(mode, x))))
}

/// Sums and products of halves are exact enough in f32 that rounding twice equals rounding once.
pub(crate) fn binary(op: Float2, mode: HalfMode, a: &Lanes, b: &Lanes) -> Lanes {
    let one = |x: u32, y: u32| {
        let (x, y) = (input(mode, x), input(mode, y));
        let (u, v) = (to_f32(mode.bf16, x), to_f32(mode.bf16, y));
        let r = match op {
            Float2::Add => from_f32(mode.bf16, u + v),
            Float2::Sub => from_f32(mode.bf16, u - v),
            Float2::Mul => from_f32(mode.bf16, u * v),
            Float2::Div => from_f32(mode.bf16, u / v),
            Float2::Copysign => x & 0x8000 | y & 0x7fff,
            Float2::Min | Float2::Max | Float2::MinNan | Float2::MaxNan => extremum(op, x, y, u, v),
        };
        finish(mode, r)
    };
    if mode.packed {
        map2(a, b, |x, y| one(x & 0xffff, y & 0xffff) | one(x >> 16, y >> 16) << 16)
    } else {
        map2(a, b, |x, y| one(x & 0xffff, y & 0xffff))
    }
}

/// Minimum or maximum of two halves by their values.
fn extremum(op: Float2, x: u32, y: u32, u: f32, v: f32) -> u32 {
    let keeps_nan = matches!(op, Float2::MinNan | Float2::MaxNan);
    match (u.is_nan(), v.is_nan()) {
        (true, true) => return 0x7fff,
        (true, false) => return if keeps_nan { 0x7fff } else { y },
        (false, true) => return if keeps_nan { 0x7fff } else { x },
        (false, false) => {}
    }
    let smaller = matches!(op, Float2::Min | Float2::MinNan);
    if u == v {
        return if smaller { x | y } else { x & y };
    }
    if (u < v) == smaller { x } else { y }
}

/// Fused multiply-add of halves, rounded once.
pub(crate) fn fma(mode: HalfMode, a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes {
    let format = if mode.bf16 { BF16 } else { F16 };
    let one = |x: u32, y: u32, z: u32| {
        let wide = |h: u32| f64::from(to_f32(mode.bf16, input(mode, h)));
        finish(mode, round::round(fma_to_odd(wide(x), wide(y), wide(z)), format, Rnd::Rn))
    };
    if mode.packed {
        map3(a, b, c, |x, y, z| {
            one(x & 0xffff, y & 0xffff, z & 0xffff) | one(x >> 16, y >> 16, z >> 16) << 16
        })
    } else {
        map3(a, b, c, |x, y, z| one(x & 0xffff, y & 0xffff, z & 0xffff))
    }
}
