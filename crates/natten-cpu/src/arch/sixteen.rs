//! What tokens with AVX-512 and sixteen lanes share: lanes and components are in 512-bit registers alike.

use std::arch::x86_64::*;

/// All of [`super::Simd`] that sixteen lanes decide, but for what tokens differ in.
macro_rules! sixteen_lanes {
    () => {
        const LANES: usize = 16;
        const WIDE: usize = 16;
        const MANY_REGISTERS: bool = true;
        const ANY_POWER: bool = true;
        type V = __m512;
        type W = __m512;
        $crate::arch::double::double_of_two!();

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            // SAFETY: token.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn load(self, from: &[f32]) -> __m512 {
            // SAFETY: token; sixteen numbers are there.
            unsafe { _mm512_loadu_ps(from[..16].as_ptr()) }
        }
        #[inline(always)]
        fn store(self, to: &mut [f32], x: __m512) {
            // SAFETY: token; sixteen numbers are there.
            unsafe { _mm512_storeu_ps(to[..16].as_mut_ptr(), x) }
        }
        $crate::arch::sixteen::of_two!(
            add _mm512_add_ps, sub _mm512_sub_ps, mul _mm512_mul_ps, max _mm512_max_ps, min _mm512_min_ps
        );
        #[inline(always)]
        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: token.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn round(self, x: __m512) -> __m512 {
            // SAFETY: token.
            unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
        }
        #[inline(always)]
        fn select(self, bits: u32, a: __m512, b: __m512) -> __m512 {
            // SAFETY: token.
            unsafe { _mm512_mask_blend_ps(bits as __mmask16, b, a) }
        }
        #[inline(always)]
        fn times_power_of_two(self, x: __m512, n: __m512) -> __m512 {
            // SAFETY: token. Not-less-than holds for NaN, which must come through; why lanes far below are masked off is said where
            // there are eight lanes.
            unsafe {
                let normal = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(n, _mm512_set1_ps(-126.0));
                _mm512_maskz_scalef_ps(normal, x, n)
            }
        }
        #[inline(always)]
        fn transpose<E: Element>(self, rows: &[&[E]], (to, pitch): (&mut [f32], usize)) {
            transpose_rows(&rows[..8], (&mut *to, pitch));
            transpose_rows(&rows[8..], (&mut to[8..], pitch));
        }
        #[inline(always)]
        fn load_wider<E: Element>(self, from: &[E]) -> __m512 {
            let (low, high) = (load_8_wider(&from[..8]), load_8_wider(&from[8..]));
            // SAFETY: token.
            unsafe { _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high) }
        }
        #[inline(always)]
        fn splat_wide(self, x: f32) -> __m512 {
            self.splat(x)
        }
        #[inline(always)]
        fn fma_wide(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            self.fma(a, b, c)
        }
        #[inline(always)]
        unsafe fn load_at(self, from: *const f32) -> __m512 {
            // SAFETY: token; the caller vouches for sixteen readable numbers.
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_wide(self, from: *const f32) -> __m512 {
            // SAFETY: as `load_at`.
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store_wide(self, to: *mut f32, x: __m512) {
            // SAFETY: token; the caller vouches for sixteen writable numbers.
            unsafe { _mm512_storeu_ps(to, x) }
        }
        #[inline(always)]
        fn prefetch(self, address: usize) {
            prefetch(address);
        }
        #[inline(always)]
        fn widen<E: Element>(self, from: &[E], to: &mut [f32]) {
            widen(from, to);
        }
        #[inline(always)]
        fn narrow<E: Element>(self, from: &[f32], to: &mut [E]) {
            narrow(from, to);
        }
    };
}
pub(super) use sixteen_lanes;

/// Operations of two vectors that are one instruction.
macro_rules! of_two {
    ($($name:ident $instruction:ident),*) => {
        $(
            #[inline(always)]
            fn $name(self, a: __m512, b: __m512) -> __m512 {
                // SAFETY: token.
                unsafe { $instruction(a, b) }
            }
        )*
    };
}
pub(super) use of_two;

/// Lanes of `a` and `b` rounded to `bf16`, `a` in the low half of each word. Called with BF16 only.
#[inline(always)]
pub(super) fn pair_16(a: __m512, b: __m512) -> __m512 {
    // SAFETY: called with BF16 only; all types are 64 bytes of plain data.
    unsafe {
        let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a));
        // All of `a`, then all of `b`: word `i` is number `i` of each.
        let words = _mm512_set_epi16(
            31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3,
            18, 2, 17, 1, 16, 0,
        );
        _mm512_castsi512_ps(_mm512_permutexvar_epi16(words, rounded))
    }
}

/// Two products of `bf16` pairs added to each number of `acc`. Called with BF16 only.
#[inline(always)]
pub(super) fn dot_16(acc: __m512, a: __m512, b: __m512) -> __m512 {
    // SAFETY: called with BF16 only; both types are 64 bytes of plain data.
    unsafe {
        let pairs = |x: __m512| std::mem::transmute::<__m512, __m512bh>(x);
        _mm512_dpbf16_ps(acc, pairs(a), pairs(b))
    }
}

/// The `bf16` pairs of `rows`, those halves set to 0 whose weight in the word `weights` is 0. Called with AVX-512 only.
#[inline(always)]
pub(super) fn keep_weighted_16(rows: __m512, weights: f32) -> __m512 {
    let word = weights.to_bits();
    let low = if word & 0x7fff == 0 { 0 } else { 0xffff };
    let high = if word & 0x7fff_0000 == 0 { 0 } else { 0xffff_0000u32 };
    // SAFETY: called with AVX-512 only.
    unsafe {
        let kept = _mm512_set1_epi32((low | high).cast_signed());
        _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(rows), kept))
    }
}
