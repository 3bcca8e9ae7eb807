//! AVX-512, with and without bfloat16 dot products.
//!
//! Lanes are in 256-bit registers: a group of eight queries wastes less of a small window than sixteen, and
//! machines that split 512-bit operations in two (Zen 4) lose nothing by it (`avx512_long` is for those that do). What AVX-512 brings is 32 registers
//! and masks. Components are in 512-bit registers.

use std::arch::x86_64::*;

use natten_core::Element;

use super::avx2::{load_8, load_8_wider, narrow, prefetch, store_8, transpose_rows, widen};
use super::sixteen::{dot_16, keep_weighted_16};
use super::{Kernel, Simd};
use crate::isa::Isa;

/// Proof that the machine has AVX-512 F, BW, DQ and VL, and BF16 if `BF16`.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// The token, where the machine has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        let isa = if BF16 { Isa::Avx512Bf16 } else { Isa::Avx512 };
        isa.is_available().then_some(Avx512(()))
    }
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    const LANES: usize = 8;
    const WIDE: usize = 16;
    const MANY_REGISTERS: bool = true;
    const ANY_POWER: bool = true;
    const BF16_DOT: bool = BF16;
    type V = __m256;
    type W = __m512;
    type D = __m512;
    const D_REGISTERS: usize = 1;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn plain<K: Kernel>(token: Avx512<false>, kernel: K) -> K::Output {
            kernel.run(token)
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
        fn with_dots<K: Kernel>(token: Avx512<true>, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: `self` exists only where the features were detected, those of BF16 included if so.
        unsafe { if BF16 { with_dots(Avx512(()), kernel) } else { plain(Avx512(()), kernel) } }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        load_8(from)
    }
    #[inline(always)]
    fn store(self, to: &mut [f32], x: __m256) {
        store_8(to, x);
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn round(self, x: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    fn select(self, bits: u32, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_mask_blend_ps(bits as __mmask8, b, a) }
    }
    #[inline(always)]
    fn times_power_of_two(self, x: __m256, n: __m256) -> __m256 {
        // SAFETY: token. Not-less-than holds for NaN, which must come through.
        unsafe {
            // Lanes that see nothing are far below. Results under the normal numbers, zero included, cost some processors
            // more than a hundred clocks; lanes that are masked off do not.
            let normal = _mm256_cmp_ps_mask::<_CMP_NLT_UQ>(n, _mm256_set1_ps(-126.0));
            _mm256_maskz_scalef_ps(normal, x, n)
        }
    }
    #[inline(always)]
    fn transpose<E: Element>(self, rows: &[&[E]], to: (&mut [f32], usize)) {
        transpose_rows(rows, to);
    }
    #[inline(always)]
    fn load_wider<E: Element>(self, from: &[E]) -> __m256 {
        load_8_wider(from)
    }
    #[inline(always)]
    fn dot(self, acc: __m256, a: __m256, b: __m256) -> __m256 {
        if !BF16 {
            return acc;
        }
        // SAFETY: token of the BF16 kind; both types are 32 bytes of plain data.
        unsafe {
            let pairs = |x: __m256| std::mem::transmute::<__m256, __m256bh>(x);
            _mm256_dpbf16_ps(acc, pairs(a), pairs(b))
        }
    }
    #[inline(always)]
    fn pair(self, a: __m256, b: __m256) -> __m256 {
        if !BF16 {
            return a;
        }
        // SAFETY: token of the BF16 kind; both types are 32 bytes of plain data.
        unsafe {
            let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm256_cvtne2ps_pbh(b, a));
            // All of `a`, then all of `b`: word `i` is number `i` of each.
            let words = _mm256_set_epi16(15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0);
            _mm256_castsi256_ps(_mm256_permutexvar_epi16(words, rounded))
        }
    }
    #[inline(always)]
    fn splat_wide(self, x: f32) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn fma_wide(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn dot_wide(self, acc: __m512, a: __m512, b: __m512) -> __m512 {
        if BF16 { dot_16(acc, a, b) } else { acc }
    }
    #[inline(always)]
    fn keep_weighted(self, rows: __m512, weights: f32) -> __m512 {
        keep_weighted_16(rows, weights)
    }
    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> __m256 {
        // SAFETY: token; the caller vouches for eight readable numbers.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_wide(self, from: *const f32) -> __m512 {
        // SAFETY: token; the caller vouches for sixteen readable numbers.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store_wide(self, to: *mut f32, x: __m512) {
        // SAFETY: token; the caller vouches for sixteen writable numbers.
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    fn splat_double(self, x: f32) -> __m512 {
        self.splat_wide(x)
    }
    #[inline(always)]
    fn load_double(self, from: &[f32]) -> __m512 {
        // SAFETY: sixteen numbers are there.
        unsafe { self.load_wide(from[..16].as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_double_at(self, from: *const f32) -> __m512 {
        // SAFETY: passed on.
        unsafe { self.load_wide(from) }
    }
    #[inline(always)]
    fn store_double(self, to: &mut [f32], x: __m512) {
        // SAFETY: sixteen numbers are there.
        unsafe { self.store_wide(to[..16].as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn fma_double(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        self.fma_wide(a, b, c)
    }
    #[inline(always)]
    fn dot_double(self, acc: __m512, a: __m512, b: __m512) -> __m512 {
        self.dot_wide(acc, a, b)
    }
    #[inline(always)]
    fn mul_double(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn max_double(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn select_double(self, bits: u32, a: __m512, b: __m512) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_mask_blend_ps(bits as __mmask16, b, a) }
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
}
