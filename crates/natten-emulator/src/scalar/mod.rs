//! The scalar core: pure functions over the 32 lanes of a warp. None of them knows about registers,
//! masks or memory, so each can be tested against the manual by itself.

pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod float;
pub(crate) mod half;
pub(crate) mod int;
pub(crate) mod round;

/// Values of a 32-bit register.
pub(crate) type Lanes = [u32; 32];
/// Values of a 64-bit register.
pub(crate) type Wides = [u64; 32];

/// Applies `f` lane by lane.
#[inline(always)]
pub(crate) fn map<A: Copy, R: Copy + Default>(a: &[A; 32], f: impl Fn(A) -> R) -> [R; 32] {
    let mut r = [R::default(); 32];
    for lane in 0..32 {
        r[lane] = f(a[lane]);
    }
    r
}

/// Applies `f` to two operands lane by lane.
#[inline(always)]
pub(crate) fn map2<A: Copy, B: Copy, R: Copy + Default>(
    a: &[A; 32],
    b: &[B; 32],
    f: impl Fn(A, B) -> R,
) -> [R; 32] {
    let mut r = [R::default(); 32];
    for lane in 0..32 {
        r[lane] = f(a[lane], b[lane]);
    }
    r
}

/// Applies `f` to three operands lane by lane.
#[inline(always)]
pub(crate) fn map3<A: Copy, B: Copy, C: Copy, R: Copy + Default>(
    a: &[A; 32],
    b: &[B; 32],
    c: &[C; 32],
    f: impl Fn(A, B, C) -> R,
) -> [R; 32] {
    let mut r = [R::default(); 32];
    for lane in 0..32 {
        r[lane] = f(a[lane], b[lane], c[lane]);
    }
    r
}

/// Lanes for which `f` holds, as a mask.
#[inline(always)]
pub(crate) fn mask_of(f: impl Fn(usize) -> bool) -> u32 {
    let mut mask = 0;
    for lane in 0..32 {
        mask |= u32::from(f(lane)) << lane;
    }
    mask
}
