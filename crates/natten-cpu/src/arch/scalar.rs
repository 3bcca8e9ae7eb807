//! Portable vectors: arrays, which the compiler turns into whatever the target's baseline has.

use super::double::double_of_two;
use super::{Kernel, Simd, tiles};

/// Needs nothing. Four lanes are as many as an SSE register has; sixteen stand in for a machine with tiles.
#[derive(Clone, Copy)]
pub(crate) struct Scalar<const N: usize>;

/// Lane by lane.
#[inline(always)]
fn each<const N: usize>(f: impl Fn(usize) -> f32) -> [f32; N] {
    std::array::from_fn(f)
}

impl<const N: usize> Simd for Scalar<N> {
    const LANES: usize = N;
    const WIDE: usize = N;
    const MANY_REGISTERS: bool = false;
    const TILES: bool = N == tiles::SIDE;
    type V = [f32; N];
    type W = [f32; N];
    double_of_two!();

    #[inline(never)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> [f32; N] {
        [x; N]
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> [f32; N] {
        each(|i| from[i])
    }
    #[inline(always)]
    fn store(self, to: &mut [f32], x: [f32; N]) {
        to[..N].copy_from_slice(&x);
    }
    #[inline(always)]
    fn add(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(|i| a[i] * b[i])
    }
    /// Rounded twice: a fused one without the instruction is a call into the C library.
    #[inline(always)]
    fn fma(self, a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    /// Adding and taking away 1.5 * 2^23 leaves no room for a fraction; good for numbers below 2^22.
    #[inline(always)]
    fn round(self, x: [f32; N]) -> [f32; N] {
        const MAGIC: f32 = 12_582_912.0;
        each(|i| (x[i] + MAGIC) - MAGIC)
    }
    #[inline(always)]
    fn select(self, bits: u32, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(|i| if bits >> i & 1 == 1 { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn times_power_of_two(self, x: [f32; N], n: [f32; N]) -> [f32; N] {
        // A NaN casts to 0, and `x` is NaN then.
        let power = |n: f32| f32::from_bits((n as i32).wrapping_add(127).cast_unsigned() << 23);
        each(|i| if n[i] < -126.0 { 0.0 } else { x[i] * power(n[i]) })
    }
    #[inline(always)]
    fn pair(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        let word = |i: usize| u32::from(tiles::weight_bits(a[i])) | u32::from(tiles::weight_bits(b[i])) << 16;
        each(|i| f32::from_bits(word(i)))
    }
    #[inline(always)]
    fn add_to_exponent(self, x: [f32; N], n: [f32; N]) -> [f32; N] {
        each(|i| f32::from_bits(x[i].to_bits().wrapping_add(n[i].to_bits() << 23)))
    }
    #[inline(always)]
    unsafe fn multiply_scores(self, block: &tiles::ScoreBlock) {
        // SAFETY: passed on.
        unsafe { tiles::model::multiply_scores(block) }
    }
    #[inline(always)]
    unsafe fn multiply_sums(self, block: &tiles::SumBlock) {
        // SAFETY: passed on.
        unsafe { tiles::model::multiply_sums(block) }
    }
    #[inline(always)]
    fn splat_wide(self, x: f32) -> [f32; N] {
        [x; N]
    }
    #[inline(always)]
    fn fma_wide(self, a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        self.fma(a, b, c)
    }
    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> [f32; N] {
        // SAFETY: the caller vouches for N readable numbers; an array of f32 is aligned as f32 is.
        unsafe { from.cast::<[f32; N]>().read() }
    }
    #[inline(always)]
    unsafe fn load_wide(self, from: *const f32) -> [f32; N] {
        // SAFETY: as `load_at`.
        unsafe { from.cast::<[f32; N]>().read() }
    }
    #[inline(always)]
    unsafe fn store_wide(self, to: *mut f32, x: [f32; N]) {
        // SAFETY: the caller vouches for N writable numbers.
        unsafe { to.cast::<[f32; N]>().write(x) }
    }
}
