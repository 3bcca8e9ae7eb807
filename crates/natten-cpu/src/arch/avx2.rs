//! AVX2, FMA and F16C: eight lanes, sixteen registers.

use std::arch::x86_64::*;

use natten_core::{Element, ElementType};

use super::double::double_of_two;
use super::{Kernel, Simd, narrow_plain, widen_plain};
use crate::isa::Isa;

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The token, where the machine has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        Isa::Avx2.is_available().then_some(Avx2(()))
    }
}

/// One bit a lane: lane i is kept where bit i is set.
#[inline(always)]
fn lane_mask(bits: u32) -> __m256 {
    // SAFETY: called with the token's features only; operands are values.
    unsafe {
        let lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        let picked = _mm256_and_si256(_mm256_set1_epi32(bits as i32), lanes);
        _mm256_castsi256_ps(_mm256_cmpeq_epi32(picked, lanes))
    }
}

/// An 8x8 block: `rows[i]` lane j becomes lane i of result j.
#[inline(always)]
pub(super) fn transpose_8x8(r: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: called with AVX only; operands are values.
    unsafe {
        let lo = |a, b| _mm256_unpacklo_ps(a, b);
        let hi = |a, b| _mm256_unpackhi_ps(a, b);
        let t = [
            lo(r[0], r[1]),
            hi(r[0], r[1]),
            lo(r[2], r[3]),
            hi(r[2], r[3]),
            lo(r[4], r[5]),
            hi(r[4], r[5]),
            lo(r[6], r[7]),
            hi(r[6], r[7]),
        ];
        let even = |a, b| _mm256_shuffle_ps::<0x44>(a, b);
        let odd = |a, b| _mm256_shuffle_ps::<0xEE>(a, b);
        let u = [
            even(t[0], t[2]),
            odd(t[0], t[2]),
            even(t[1], t[3]),
            odd(t[1], t[3]),
            even(t[4], t[6]),
            odd(t[4], t[6]),
            even(t[5], t[7]),
            odd(t[5], t[7]),
        ];
        let low = |a, b| _mm256_permute2f128_ps::<0x20>(a, b);
        let high = |a, b| _mm256_permute2f128_ps::<0x31>(a, b);
        [
            low(u[0], u[4]),
            low(u[1], u[5]),
            low(u[2], u[6]),
            low(u[3], u[7]),
            high(u[0], u[4]),
            high(u[1], u[5]),
            high(u[2], u[6]),
            high(u[3], u[7]),
        ]
    }
}

/// [`Simd::transpose`] for eight lanes.
#[inline(always)]
pub(super) fn transpose_rows<E: Element>(rows: &[&[E]], (to, pitch): (&mut [f32], usize)) {
    let rows: &[&[E]; 8] = rows.try_into().expect("eight lanes");
    let width = rows[0].len();
    for d in 0..width / 8 {
        let mut of_lanes = [load_8_wider(&rows[0][d * 8..]); 8];
        for (lane, row) in of_lanes.iter_mut().zip(rows) {
            *lane = load_8_wider(&row[d * 8..]);
        }
        for (column, x) in transpose_8x8(of_lanes).into_iter().enumerate() {
            store_8(&mut to[(d * 8 + column) * pitch..], x);
        }
    }
    for (lane, row) in rows.iter().enumerate() {
        for d in width / 8 * 8..width {
            to[d * pitch + lane] = row[d].to_f32();
        }
    }
}

/// Eight numbers of any type.
#[inline(always)]
pub(super) fn load_8_wider<E: Element>(from: &[E]) -> __m256 {
    let from = &from[..8];
    // SAFETY: called with AVX2 and F16C only; the types say that eight numbers of four or of two bytes are there.
    unsafe {
        match E::TYPE {
            ElementType::F32 => _mm256_loadu_ps(from.as_ptr().cast()),
            ElementType::F16 => _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
            ElementType::Bf16 => {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            }
            _ => {
                let mut numbers = [0.0; 8];
                numbers.iter_mut().zip(from).for_each(|(number, from)| *number = from.to_f32());
                _mm256_loadu_ps(numbers.as_ptr())
            }
        }
    }
}

#[inline(always)]
pub(super) fn load_8(from: &[f32]) -> __m256 {
    let from: &[f32; 8] = from[..8].try_into().expect("eight of eight");
    // SAFETY: called with AVX only; the array has eight numbers.
    unsafe { _mm256_loadu_ps(from.as_ptr()) }
}

#[inline(always)]
pub(super) fn store_8(to: &mut [f32], x: __m256) {
    let to: &mut [f32; 8] = (&mut to[..8]).try_into().expect("eight of eight");
    // SAFETY: called with AVX only; the array has eight numbers.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), x) }
}

/// [`Simd::prefetch`]
#[inline(always)]
pub(super) fn prefetch(address: usize) {
    // SAFETY: a prefetch has no effect that a program can see, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::without_provenance(address)) };
}

/// [`Simd::widen`]: f16 through F16C, the rest as the compiler likes.
#[inline(always)]
pub(super) fn widen<E: Element>(from: &[E], to: &mut [f32]) {
    if E::TYPE != ElementType::F16 {
        return widen_plain(from, to);
    }
    let bits: &[u16] = bytemuck::cast_slice(from);
    let whole = to.len() / 8 * 8;
    for (to, from) in to.chunks_exact_mut(8).zip(bits.chunks_exact(8)) {
        // SAFETY: called with F16C only; eight numbers of two bytes each are read.
        store_8(to, unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) });
    }
    widen_plain(&from[whole..], &mut to[whole..]);
}

/// [`Simd::narrow`]: f16 through F16C, the rest as the compiler likes.
#[inline(always)]
pub(super) fn narrow<E: Element>(from: &[f32], to: &mut [E]) {
    if E::TYPE != ElementType::F16 {
        return narrow_plain(from, to);
    }
    let whole = from.len() / 8 * 8;
    let bits: &mut [u16] = bytemuck::cast_slice_mut(to);
    for (to, from) in bits.chunks_exact_mut(8).zip(from.chunks_exact(8)) {
        // SAFETY: called with F16C only; eight numbers of two bytes each are written.
        unsafe {
            let rounded = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(load_8(from));
            _mm_storeu_si128(to.as_mut_ptr().cast(), rounded);
        }
    }
    narrow_plain(&from[whole..], &mut to[whole..]);
}

// SAFETY of every block in this impl: a token exists, so the machine has the instructions; operands are values
// unless the block says otherwise.
impl Simd for Avx2 {
    const LANES: usize = 8;
    const WIDE: usize = 8;
    const MANY_REGISTERS: bool = false;
    type V = __m256;
    type W = __m256;
    double_of_two!();

    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<K: Kernel>(token: Avx2, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: `self` exists only where the features were detected.
        unsafe { inner(self, kernel) }
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
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    fn select(self, bits: u32, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_blendv_ps(b, a, lane_mask(bits)) }
    }
    #[inline(always)]
    fn times_power_of_two(self, x: __m256, n: __m256) -> __m256 {
        // SAFETY: token. A NaN converts to the lowest integer, but `x` is NaN then and stays so: not-less-than holds.
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            let normal = _mm256_cmp_ps::<_CMP_NLT_UQ>(n, _mm256_set1_ps(-126.0));
            _mm256_and_ps(normal, _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))))
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
    fn splat_wide(self, x: f32) -> __m256 {
        self.splat(x)
    }
    #[inline(always)]
    fn fma_wide(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        self.fma(a, b, c)
    }
    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> __m256 {
        // SAFETY: token; the caller vouches for eight readable numbers.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_wide(self, from: *const f32) -> __m256 {
        // SAFETY: token; the caller vouches for eight readable numbers.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store_wide(self, to: *mut f32, x: __m256) {
        // SAFETY: token; the caller vouches for eight writable numbers.
        unsafe { _mm256_storeu_ps(to, x) }
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
