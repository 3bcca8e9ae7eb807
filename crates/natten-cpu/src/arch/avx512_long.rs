//! AVX-512 with sixteen lanes, with and without bfloat16 dot products: for processors that begin two 512-bit multiply-adds a clock
//! (processor.rs). There a vector of eight lanes takes as long as one of sixteen, in scores and powers alike, and one broadcast a
//! multiply-add is more than is loaded; so a group has sixteen queries, and a pair shares each broadcast between two registers.

use std::arch::x86_64::*;

use natten_core::Element;

use super::avx2::{load_8_wider, narrow, prefetch, transpose_rows, widen};
use super::sixteen::{dot_16, keep_weighted_16, pair_16, sixteen_lanes};
use super::{Kernel, Simd};
use crate::isa::Isa;

/// Proof that the machine has AVX-512 F, BW, DQ and VL, and BF16 if `BF16`.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Long<const BF16: bool>(());

impl<const BF16: bool> Avx512Long<BF16> {
    /// The token, where the machine has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        let isa = if BF16 { Isa::Avx512Bf16 } else { Isa::Avx512 };
        isa.is_available().then_some(Avx512Long(()))
    }
}

impl<const BF16: bool> Simd for Avx512Long<BF16> {
    const BF16_DOT: bool = BF16;
    sixteen_lanes!();

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn plain<K: Kernel>(token: Avx512Long<false>, kernel: K) -> K::Output {
            kernel.run(token)
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
        fn with_dots<K: Kernel>(token: Avx512Long<true>, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: `self` exists only where the features were detected, those of BF16 included if so.
        unsafe { if BF16 { with_dots(Avx512Long(()), kernel) } else { plain(Avx512Long(()), kernel) } }
    }

    #[inline(always)]
    fn dot(self, acc: __m512, a: __m512, b: __m512) -> __m512 {
        if BF16 { dot_16(acc, a, b) } else { acc }
    }
    #[inline(always)]
    fn pair(self, a: __m512, b: __m512) -> __m512 {
        if BF16 { pair_16(a, b) } else { a }
    }
    #[inline(always)]
    fn dot_wide(self, acc: __m512, a: __m512, b: __m512) -> __m512 {
        self.dot(acc, a, b)
    }
    #[inline(always)]
    fn keep_weighted(self, rows: __m512, weights: f32) -> __m512 {
        keep_weighted_16(rows, weights)
    }
}
