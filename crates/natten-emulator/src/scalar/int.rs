//! Integer, logic and bit operations on 32- and 64-bit lanes; 16-bit types widen, compute and narrow.

use super::{Lanes, Wides, map, map2, map3};
use crate::inst::{Int1, Int2, Int3, IntTy, PrmtMode};

/// Defines unary and binary operations for one width.
macro_rules! width {
    ($unary:ident, $binary:ident, $ternary:ident, $lanes:ty, $u:ty, $s:ty, $double_u:ty, $double_s:ty) => {
        pub(crate) fn $unary(op: Int1, a: &$lanes) -> $lanes {
            const BITS: u32 = <$u>::BITS;
            let find = |x: $u| if x == 0 { !0 } else { <$u>::from(BITS - 1 - x.leading_zeros()) };
            let shift = |x: $u| if x == 0 { !0 } else { <$u>::from(x.leading_zeros()) };
            let magnitude = |x: $u| if (x as $s) < 0 { !x } else { x };
            match op {
                Int1::Not => map(a, |x| !x),
                Int1::Cnot => map(a, |x| <$u>::from(x == 0)),
                Int1::Neg => map(a, |x| x.wrapping_neg()),
                Int1::Abs => map(a, |x| (x as $s).wrapping_abs() as $u),
                Int1::Popc => map(a, |x| <$u>::from(x.count_ones())),
                Int1::Clz => map(a, |x| <$u>::from(x.leading_zeros())),
                Int1::Brev => map(a, |x| x.reverse_bits()),
                Int1::BfindU => map(a, find),
                Int1::BfindS => map(a, |x| find(magnitude(x))),
                Int1::BfindShiftU => map(a, shift),
                Int1::BfindShiftS => map(a, |x| shift(magnitude(x))),
            }
        }

        pub(crate) fn $binary(op: Int2, a: &$lanes, b: &$lanes) -> $lanes {
            const BITS: u32 = <$u>::BITS;
            const TOP: $u = BITS as $u - 1;
            match op {
                Int2::Add => map2(a, b, <$u>::wrapping_add),
                Int2::Sub => map2(a, b, <$u>::wrapping_sub),
                Int2::AddSatS => map2(a, b, |x, y| (x as $s).saturating_add(y as $s) as $u),
                Int2::SubSatS => map2(a, b, |x, y| (x as $s).saturating_sub(y as $s) as $u),
                Int2::MulLo => map2(a, b, <$u>::wrapping_mul),
                Int2::MulHiU => map2(a, b, |x, y| ((x as $double_u * y as $double_u) >> BITS) as $u),
                Int2::MulHiS => {
                    map2(a, b, |x, y| (((x as $s) as $double_s * (y as $s) as $double_s) >> BITS) as $u)
                }
                Int2::Mul24U => map2(a, b, |x, y| (x & 0xff_ffff).wrapping_mul(y & 0xff_ffff)),
                Int2::Mul24S => map2(a, b, |x, y| {
                    let extend = |v: $u| ((v << (BITS - 24)) as $s >> (BITS - 24)) as $u;
                    extend(x).wrapping_mul(extend(y))
                }),
                Int2::And => map2(a, b, |x, y| x & y),
                Int2::Or => map2(a, b, |x, y| x | y),
                Int2::Xor => map2(a, b, |x, y| x ^ y),
                // Shift amounts clamp at the width instead of wrapping.
                Int2::Shl => map2(a, b, |x, y| if y > TOP { 0 } else { x << y }),
                Int2::ShrU => map2(a, b, |x, y| if y > TOP { 0 } else { x >> y }),
                Int2::ShrS => map2(a, b, |x, y| ((x as $s) >> y.min(TOP)) as $u),
                Int2::MinU => map2(a, b, |x, y| x.min(y)),
                Int2::MinS => map2(a, b, |x, y| (x as $s).min(y as $s) as $u),
                Int2::MaxU => map2(a, b, |x, y| x.max(y)),
                Int2::MaxS => map2(a, b, |x, y| (x as $s).max(y as $s) as $u),
                // Division by zero is unspecified; an H100 gives all ones, for quotient and remainder (seen in 32 bits).
                Int2::DivU => map2(a, b, |x, y| x.checked_div(y).unwrap_or(!0)),
                Int2::DivS => {
                    map2(a, b, |x, y| if y == 0 { !0 } else { (x as $s).wrapping_div(y as $s) as $u })
                }
                Int2::RemU => map2(a, b, |x, y| x.checked_rem(y).unwrap_or(!0)),
                Int2::RemS => {
                    map2(a, b, |x, y| if y == 0 { !0 } else { (x as $s).wrapping_rem(y as $s) as $u })
                }
            }
        }

        fn $ternary(op: Int3, a: &$lanes, b: &$lanes, c: &$lanes) -> Option<$lanes> {
            const BITS: u32 = <$u>::BITS;
            Some(match op {
                Int3::MadLo => map3(a, b, c, |x, y, z| x.wrapping_mul(y).wrapping_add(z)),
                Int3::MadHiU => map3(a, b, c, |x, y, z| {
                    (((x as $double_u * y as $double_u) >> BITS) as $u).wrapping_add(z)
                }),
                Int3::MadHiS => map3(a, b, c, |x, y, z| {
                    ((((x as $s) as $double_s * (y as $s) as $double_s) >> BITS) as $u).wrapping_add(z)
                }),
                Int3::SadU => map3(a, b, c, |x, y, z| x.abs_diff(y).wrapping_add(z)),
                Int3::SadS => map3(a, b, c, |x, y, z| (x as $s).abs_diff(y as $s).wrapping_add(z)),
                _ => return None,
            })
        }
    };
}

width!(unary32, binary32, common32, Lanes, u32, i32, u64, i64);
width!(unary64, binary64, common64, Wides, u64, i64, u128, i128);

/// Brings a 16-bit value to 32 bits as its type says.
fn extend(ty: IntTy, a: &Lanes) -> Lanes {
    match ty {
        IntTy::S16 => map(a, |x| x as u16 as i16 as i32 as u32),
        IntTy::U16 => map(a, |x| x & 0xffff),
        IntTy::W32 | IntTy::W64 => *a,
    }
}

/// Unary operation on 16 or 32 bits.
pub(crate) fn unary(op: Int1, ty: IntTy, a: &Lanes) -> Lanes {
    if ty == IntTy::W32 {
        return unary32(op, a);
    }
    let a = extend(ty, a);
    let r = unary32(op, &a);
    match op {
        // Counts and positions refer to the upper bits of the 16.
        Int1::Clz => map(&r, |x| x.wrapping_sub(16)),
        Int1::Brev => map(&r, |x| x >> 16),
        _ => map(&r, |x| x & 0xffff),
    }
}

/// Binary operation on 16 or 32 bits. `wide_amount` keeps a shift amount from being narrowed.
pub(crate) fn binary(op: Int2, ty: IntTy, a: &Lanes, b: &Lanes, wide_amount: bool) -> Lanes {
    if ty == IntTy::W32 {
        return binary32(op, a, b);
    }
    let (a, b) = (extend(ty, a), if wide_amount { *b } else { extend(ty, b) });
    let r = match op {
        Int2::MulHiU | Int2::MulHiS => map2(&a, &b, |x, y| x.wrapping_mul(y) >> 16),
        _ => binary32(op, &a, &b),
    };
    map(&r, |x| x & 0xffff)
}

/// Ternary operation on 16 or 32 bits.
pub(crate) fn ternary(op: Int3, ty: IntTy, a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes {
    if ty != IntTy::W32 {
        let (a, b, c) = (extend(ty, a), extend(ty, b), extend(ty, c));
        let r = match op {
            Int3::MadHiU | Int3::MadHiS => {
                map3(&a, &b, &c, |x, y, z| (x.wrapping_mul(y) >> 16).wrapping_add(z))
            }
            _ => common32(op, &a, &b, &c).unwrap_or(a),
        };
        return map(&r, |x| x & 0xffff);
    }
    match op {
        Int3::Lop3(table) => lop3(table, a, b, c),
        Int3::Prmt => map3(a, b, c, prmt),
        Int3::PrmtMode(mode) => map3(a, b, c, |x, y, z| prmt_mode(mode, x, y, z)),
        Int3::ShfL { wrap } => map3(a, b, c, |lo, hi, n| {
            let n = if wrap { n & 31 } else { n.min(32) };
            ((u64::from(hi) << 32 | u64::from(lo)) << n >> 32) as u32
        }),
        Int3::ShfR { wrap } => map3(a, b, c, |lo, hi, n| {
            let n = if wrap { n & 31 } else { n.min(32) };
            ((u64::from(hi) << 32 | u64::from(lo)) >> n) as u32
        }),
        Int3::Mad24U => map3(a, b, c, |x, y, z| (x & 0xff_ffff).wrapping_mul(y & 0xff_ffff).wrapping_add(z)),
        Int3::Mad24S => {
            let p = binary32(Int2::Mul24S, a, b);
            map2(&p, c, u32::wrapping_add)
        }
        Int3::Dp4aU => map3(a, b, c, |x, y, z| {
            let dot: u32 = (0..4).map(|i| (x >> (8 * i) & 0xff) * (y >> (8 * i) & 0xff)).sum();
            z.wrapping_add(dot)
        }),
        Int3::Dp4aS => map3(a, b, c, |x, y, z| {
            let byte = |v: u32, i: u32| i32::from((v >> (8 * i)) as u8 as i8);
            let dot: i32 = (0..4).map(|i| byte(x, i) * byte(y, i)).sum();
            z.wrapping_add(dot as u32)
        }),
        _ => common32(op, a, b, c).unwrap_or(*a),
    }
}

/// Ternary operation on 64 bits.
pub(crate) fn ternary64(op: Int3, a: &Wides, b: &Wides, c: &Wides) -> Wides {
    common64(op, a, b, c).unwrap_or(*a)
}

/// Any boolean function of three inputs: bit i of the table is its value at (a, b, c) = the bits of i.
fn lop3(table: u8, a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes {
    map3(a, b, c, |x, y, z| {
        let mut r = 0;
        for i in 0..8u32 {
            if table >> i & 1 == 1 {
                let pick = |v: u32, bit: u32| if i >> bit & 1 == 1 { v } else { !v };
                r |= pick(x, 2) & pick(y, 1) & pick(z, 0);
            }
        }
        r
    })
}

/// Byte permutation: each nibble of `selector` picks one of eight bytes, or its sign.
fn prmt(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    let mut r = 0;
    for i in 0..4 {
        let nibble = selector >> (4 * i) & 15;
        let byte = (bytes >> (8 * (nibble & 7))) as u8;
        let byte = if nibble & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        r |= u32::from(byte) << (8 * i);
    }
    r
}

fn prmt_mode(mode: PrmtMode, a: u32, b: u32, selector: u32) -> u32 {
    let s = selector & 3;
    let nibbles = match mode {
        PrmtMode::F4e => [s, s + 1, s + 2, s + 3],
        PrmtMode::B4e => [s, (s + 7) & 7, (s + 6) & 7, (s + 5) & 7],
        PrmtMode::Rc8 => [s; 4],
        PrmtMode::Ecl => [s, s.max(1), s.max(2), 3],
        PrmtMode::Ecr => [0, s.min(1), s.min(2), s],
        PrmtMode::Rc16 => [2 * (s & 1), 2 * (s & 1) + 1, 2 * (s & 1), 2 * (s & 1) + 1],
    };
    prmt(a, b, nibbles[0] | nibbles[1] << 4 | nibbles[2] << 8 | nibbles[3] << 12)
}

/// Shifts of 64 bits by a 32-bit amount.
pub(crate) fn shift64(op: Int2, a: &Wides, b: &Lanes) -> Wides {
    let amounts = map(b, u64::from);
    binary64(op, a, &amounts)
}

/// Product of two 32-bit factors in 64 bits.
pub(crate) fn mul_wide(signed: bool, a: &Lanes, b: &Lanes) -> Wides {
    if signed {
        map2(a, b, |x, y| (i64::from(x as i32) * i64::from(y as i32)) as u64)
    } else {
        map2(a, b, |x, y| u64::from(x) * u64::from(y))
    }
}

/// Product of two 16-bit factors in 32 bits.
pub(crate) fn mul_wide16(ty: IntTy, a: &Lanes, b: &Lanes) -> Lanes {
    map2(&extend(ty, a), &extend(ty, b), u32::wrapping_mul)
}

/// Extracts `length` bits from `position`; the sign bit of a field beyond the top is the operand's.
pub(crate) fn bfe(signed: bool, bits: u32, a: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let top = bits - 1;
    if length == 0 {
        return 0;
    }
    let sign_at = (position + length - 1).min(top);
    let fill = if signed && a >> sign_at & 1 == 1 { !0u64 } else { 0 };
    let mut r = fill;
    for i in 0..length.min(bits) {
        let source = position + i;
        let bit = if source <= top { a >> source & 1 } else { fill & 1 };
        r = r & !(1 << i) | bit << i;
    }
    if bits == 32 { r & 0xffff_ffff } else { r }
}

/// Inserts the low `length` bits of `a` into `b` at `position`.
pub(crate) fn bfi(bits: u32, a: u64, b: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 0xff, (length & 0xff).min(bits));
    if position >= bits || length == 0 {
        return b;
    }
    let mask = if length >= 64 { !0 } else { (1u64 << length) - 1 } << position;
    let mask = if bits == 32 { mask & 0xffff_ffff } else { mask };
    b & !mask | (a << position) & mask
}

/// `b` ones from bit `a` up.
pub(crate) fn bmsk(wrap: bool, a: u32, b: u32) -> u32 {
    let (a, b) = if wrap { (a & 31, b & 31) } else { (a.min(32), b.min(32)) };
    (((1u64 << b) - 1) << a) as u32
}
