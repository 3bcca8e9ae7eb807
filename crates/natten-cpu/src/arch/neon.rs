//! NEON: four lanes, thirty-two registers.

use std::arch::aarch64::*;

use super::double::double_of_two;
use super::{Kernel, Simd};
use crate::isa::Isa;

/// Proof that the machine has NEON.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// The token, where the machine has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        Isa::Neon.is_available().then_some(Neon(()))
    }
}

/// One bit a lane: all ones in the lanes whose bit is set.
#[inline(always)]
fn lane_mask(bits: u32) -> uint32x4_t {
    const LANES: [u32; 4] = [1, 2, 4, 8];
    // SAFETY: called with the token's feature only; the array has four numbers.
    unsafe { vtstq_u32(vdupq_n_u32(bits), vld1q_u32(LANES.as_ptr())) }
}

impl Simd for Neon {
    const LANES: usize = 4;
    const WIDE: usize = 4;
    const MANY_REGISTERS: bool = true;
    type V = float32x4_t;
    type W = float32x4_t;
    double_of_two!();

    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        fn inner<K: Kernel>(token: Neon, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: `self` exists only where the feature was detected.
        unsafe { inner(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: token.
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> float32x4_t {
        // SAFETY: token; the slice has four numbers.
        unsafe { vld1q_f32(from[..4].as_ptr()) }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32], x: float32x4_t) {
        // SAFETY: token; the slice has four numbers.
        unsafe { vst1q_f32(to[..4].as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: token. The accumulator comes first here.
        unsafe { vfmaq_f32(c, a, b) }
    }
    /// NEON's own maximum would give NaN; a comparison with NaN is false and picks `b`.
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
    }
    #[inline(always)]
    fn round(self, x: float32x4_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vrndnq_f32(x) }
    }
    #[inline(always)]
    fn select(self, bits: u32, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vbslq_f32(lane_mask(bits), a, b) }
    }
    #[inline(always)]
    fn times_power_of_two(self, x: float32x4_t, n: float32x4_t) -> float32x4_t {
        // SAFETY: token. A comparison with NaN is false, and `x` is NaN then and stays so.
        unsafe {
            let exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
            let power = vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent));
            vbslq_f32(vcltq_f32(n, vdupq_n_f32(-126.0)), vdupq_n_f32(0.0), vmulq_f32(x, power))
        }
    }
    #[inline(always)]
    fn splat_wide(self, x: f32) -> float32x4_t {
        self.splat(x)
    }
    #[inline(always)]
    fn fma_wide(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        self.fma(a, b, c)
    }
    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> float32x4_t {
        // SAFETY: token; the caller vouches for four readable numbers.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn load_wide(self, from: *const f32) -> float32x4_t {
        // SAFETY: token; the caller vouches for four readable numbers.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn store_wide(self, to: *mut f32, x: float32x4_t) {
        // SAFETY: token; the caller vouches for four writable numbers.
        unsafe { vst1q_f32(to, x) }
    }
}
