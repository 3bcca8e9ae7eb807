//! f32 and f64 arithmetic with PTX's rounding, flushing, saturation and NaN rules.

use super::round::{self, add_to_odd, fma_to_odd};
use super::{Lanes, Wides, map, map2, map3};
use crate::inst::{Float1, Float2, FloatMode, Rnd};

/// The NaN the hardware produces.
pub(crate) const NAN: u32 = 0x7fff_ffff;

#[inline(always)]
fn f(x: u32) -> f32 {
    f32::from_bits(x)
}

/// Bits of a result, NaN made canonical.
#[inline(always)]
fn bits(x: f32) -> u32 {
    if x.is_nan() { NAN } else { x.to_bits() }
}

/// Subnormals to zero of the same sign.
#[inline(always)]
pub(crate) fn flush(x: u32) -> u32 {
    if x & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x }
}

#[inline(always)]
fn flush_if(ftz: bool, x: u32) -> u32 {
    if ftz { flush(x) } else { x }
}

/// Clamps to [0, 1]; NaN becomes 0.
fn saturate(x: u32) -> u32 {
    let v = f(x);
    if v > 0.0 { if v > 1.0 { 1f32.to_bits() } else { x } } else { 0 }
}

fn finish(mode: FloatMode, x: u32) -> u32 {
    let x = flush_if(mode.ftz, x);
    if mode.sat { saturate(x) } else { x }
}

/// Binary operation on f32.
pub(crate) fn binary(op: Float2, mode: FloatMode, a: &Lanes, b: &Lanes) -> Lanes {
    if mode.rnd == Rnd::Rn && !mode.sat {
        return if mode.ftz {
            let r = nearest(op, &map(a, flush), &map(b, flush));
            map(&r, flush)
        } else {
            nearest(op, a, b)
        };
    }
    map2(a, b, |x, y| finish(mode, directed(op, mode.rnd, flush_if(mode.ftz, x), flush_if(mode.ftz, y))))
}

/// Round to nearest even, the case that has to be fast.
fn nearest(op: Float2, a: &Lanes, b: &Lanes) -> Lanes {
    match op {
        Float2::Add => map2(a, b, |x, y| bits(f(x) + f(y))),
        Float2::Sub => map2(a, b, |x, y| bits(f(x) - f(y))),
        Float2::Mul => map2(a, b, |x, y| bits(f(x) * f(y))),
        Float2::Div => map2(a, b, |x, y| bits(f(x) / f(y))),
        Float2::Min => map2(a, b, min),
        Float2::Max => map2(a, b, max),
        Float2::MinNan => map2(a, b, |x, y| if f(x).is_nan() || f(y).is_nan() { NAN } else { min(x, y) }),
        Float2::MaxNan => map2(a, b, |x, y| if f(x).is_nan() || f(y).is_nan() { NAN } else { max(x, y) }),
        // The sign of the first, the magnitude of the second.
        Float2::Copysign => map2(a, b, |x, y| x & 0x8000_0000 | y & 0x7fff_ffff),
    }
}

/// The smaller; a NaN loses against a number, and -0 is below +0.
#[inline(always)]
fn min(x: u32, y: u32) -> u32 {
    let (u, v) = (f(x), f(y));
    let equal = x | y; // of equal values only zeros differ, in their sign
    let r = if u < v {
        x
    } else if v < u {
        y
    } else if u == v {
        equal
    } else if u.is_nan() {
        y
    } else {
        x
    };
    bits(f(r))
}

#[inline(always)]
fn max(x: u32, y: u32) -> u32 {
    let (u, v) = (f(x), f(y));
    let r = if u > v {
        x
    } else if v > u {
        y
    } else if u == v {
        x & y
    } else if u.is_nan() {
        y
    } else {
        x
    };
    bits(f(r))
}

/// Any rounding, through f64 rounded to odd.
fn directed(op: Float2, rnd: Rnd, x: u32, y: u32) -> u32 {
    let (u, v) = (f64::from(f(x)), f64::from(f(y)));
    let exact = match op {
        Float2::Add => sum(u, v, rnd),
        Float2::Sub => sum(u, -v, rnd),
        Float2::Mul => u * v,
        Float2::Div => quotient(u, v),
        _ => return nearest(op, &[x; 32], &[y; 32])[0],
    };
    round::round(exact, round::F32, rnd)
}

/// A sum to odd, with the zero that the direction asks for: x - x is -0 when rounding down.
fn sum(u: f64, v: f64, rnd: Rnd) -> f64 {
    let r = add_to_odd(u, v);
    let opposite = u.is_sign_negative() != v.is_sign_negative();
    if r == 0.0 && opposite && rnd == Rnd::Rm { -0.0 } else { r }
}

/// A quotient of two f32 values rounded to odd.
fn quotient(u: f64, v: f64) -> f64 {
    let q = u / v;
    if !q.is_finite() || q == 0.0 || q.to_bits() & 1 == 1 {
        return q;
    }
    // The remainder's sign tells on which side of q the exact quotient lies; q has 53 bits and v 24,
    // so split q to form the product exactly.
    let high = f64::from_bits(q.to_bits() & !((1 << 27) - 1));
    let remainder = (u - high * v) - (q - high) * v;
    if remainder == 0.0 {
        return q;
    }
    let away = (remainder > 0.0) == ((v > 0.0) == (q > 0.0));
    f64::from_bits(if away { q.to_bits() + 1 } else { q.to_bits() - 1 })
}

/// Fused multiply-add on f32: rounded once.
pub(crate) fn fma(mode: FloatMode, a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes {
    if mode.rnd == Rnd::Rn && !mode.sat {
        return if mode.ftz {
            let r = fma_nearest(&map(a, flush), &map(b, flush), &map(c, flush));
            map(&r, flush)
        } else {
            fma_nearest(a, b, c)
        };
    }
    map3(a, b, c, |x, y, z| {
        let wide = |v: u32| f64::from(f(flush_if(mode.ftz, v)));
        let product = wide(x) * wide(y);
        finish(mode, round::round(sum(product, wide(z), mode.rnd), round::F32, mode.rnd))
    })
}

/// The f64 sum of the exact product is right once narrowed unless it fell on a tie between two f32,
/// or below their normal range, where the tie lies elsewhere. Those lanes are done again exactly.
fn fma_nearest(a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes {
    let mut r = [0; 32];
    let mut doubtful = 0u32;
    for lane in 0..32 {
        let s = f64::from(f(a[lane])) * f64::from(f(b[lane])) + f64::from(f(c[lane]));
        let tie = s.to_bits() & 0x1fff_ffff == 0x1000_0000;
        let small = s.abs() < f64::from(f32::MIN_POSITIVE);
        doubtful |= u32::from(tie | small);
        r[lane] = bits(s as f32);
    }
    if doubtful != 0 {
        for lane in 0..32 {
            let s = fma_to_odd(f64::from(f(a[lane])), f64::from(f(b[lane])), f64::from(f(c[lane])));
            r[lane] = bits(s as f32);
        }
    }
    r
}

/// Unary operation on f32. Approximations are computed accurately: the hardware's error is bounded,
/// not specified.
pub(crate) fn unary(op: Float1, mode: FloatMode, a: &Lanes) -> Lanes {
    let a = if mode.ftz { &map(a, flush) } else { a };
    let r = match op {
        // A NaN becomes the canonical one here too, as seen on hardware.
        Float1::Neg => map(a, |x| bits(f(x ^ 0x8000_0000))),
        Float1::Abs => map(a, |x| bits(f(x & 0x7fff_ffff))),
        Float1::Rcp if mode.rnd == Rnd::Rn => map(a, |x| bits(1.0 / f(x))),
        Float1::Rcp => map(a, |x| round::round(quotient(1.0, f64::from(f(x))), round::F32, mode.rnd)),
        Float1::Sqrt if mode.rnd == Rnd::Rn => map(a, |x| bits(f(x).sqrt())),
        Float1::Sqrt => map(a, |x| round::round(root(f64::from(f(x))), round::F32, mode.rnd)),
        Float1::Rsqrt => map(a, |x| bits((1.0 / f64::from(f(x)).sqrt()) as f32)),
        Float1::Ex2 => map(a, |x| bits(exp2(f(x)))),
        Float1::Lg2 => map(a, |x| bits(f(x).log2())),
        Float1::Sin => map(a, |x| bits(f(x).sin())),
        Float1::Cos => map(a, |x| bits(f(x).cos())),
        Float1::Tanh => map(a, |x| bits(f(x).tanh())),
    };
    if mode.ftz { map(&r, flush) } else { r }
}

/// A square root rounded to odd; f64 holds twice the bits of an f32 root, so a tie is exact.
fn root(x: f64) -> f64 {
    let r = x.sqrt();
    if !r.is_finite() || r == 0.0 || r.to_bits() & 1 == 1 {
        return r;
    }
    let high = f64::from_bits(r.to_bits() & !((1 << 27) - 1));
    let low = r - high;
    let remainder = ((x - high * high) - 2.0 * high * low) - low * low;
    match remainder.partial_cmp(&0.0) {
        Some(std::cmp::Ordering::Greater) => f64::from_bits(r.to_bits() + 1),
        Some(std::cmp::Ordering::Less) => f64::from_bits(r.to_bits() - 1),
        _ => r,
    }
}

/// 2^x by range reduction and a polynomial, good to one unit in the last place; branch-free so that
/// the lane loop vectorises.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    let clamped = f64::from(x.clamp(-200.0, 200.0));
    const SHIFT: f64 = 6755399441055744.0; // 1.5 * 2^52 rounds to an integer when added
    let shifted = clamped + SHIFT;
    let t = (clamped - (shifted - SHIFT)) * std::f64::consts::LN_2;
    let p = 1.0 + t * (1.0 + t * (0.5 + t * (1.0 / 6.0 + t * (1.0 / 24.0 + t * (1.0 / 120.0 + t / 720.0)))));
    // The low bits of the shifted value are the integer part; add it to the exponent.
    let scale = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    let r = (p * scale) as f32;
    if x.is_nan() { x } else { r }
}

/// Unary operation on f64.
pub(crate) fn double_unary(op: Float1, a: &Wides) -> Wides {
    let d = f64::from_bits;
    match op {
        Float1::Neg => map(a, |x| x ^ 1 << 63),
        Float1::Abs => map(a, |x| x & !(1 << 63)),
        Float1::Rcp => map(a, |x| (1.0 / d(x)).to_bits()),
        Float1::Sqrt => map(a, |x| d(x).sqrt().to_bits()),
        Float1::Rsqrt => map(a, |x| (1.0 / d(x).sqrt()).to_bits()),
        Float1::Ex2 => map(a, |x| d(x).exp2().to_bits()),
        Float1::Lg2 => map(a, |x| d(x).log2().to_bits()),
        Float1::Sin => map(a, |x| d(x).sin().to_bits()),
        Float1::Cos => map(a, |x| d(x).cos().to_bits()),
        Float1::Tanh => map(a, |x| d(x).tanh().to_bits()),
    }
}

/// Binary operation on f64.
pub(crate) fn double_binary(op: Float2, a: &Wides, b: &Wides) -> Wides {
    let d = f64::from_bits;
    match op {
        Float2::Add => map2(a, b, |x, y| (d(x) + d(y)).to_bits()),
        Float2::Sub => map2(a, b, |x, y| (d(x) - d(y)).to_bits()),
        Float2::Mul => map2(a, b, |x, y| (d(x) * d(y)).to_bits()),
        Float2::Div => map2(a, b, |x, y| (d(x) / d(y)).to_bits()),
        Float2::Min | Float2::MinNan => {
            map2(
                a,
                b,
                |x, y| {
                    if d(x) < d(y) || d(y).is_nan() || d(x) == d(y) && x >> 63 == 1 { x } else { y }
                },
            )
        }
        Float2::Max | Float2::MaxNan => {
            map2(
                a,
                b,
                |x, y| {
                    if d(x) > d(y) || d(y).is_nan() || d(x) == d(y) && x >> 63 == 0 { x } else { y }
                },
            )
        }
        Float2::Copysign => map2(a, b, |x, y| x & 1 << 63 | y & !(1 << 63)),
    }
}

/// Fused multiply-add on f64.
pub(crate) fn double_fma(a: &Wides, b: &Wides, c: &Wides) -> Wides {
    let d = f64::from_bits;
    map3(a, b, c, |x, y, z| d(x).mul_add(d(y), d(z)).to_bits())
}
