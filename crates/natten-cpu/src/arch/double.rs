//! Twice the lanes where no register has them: two registers.

/// [`Simd::D`] as two vectors, where there is no longer one.
macro_rules! double_of_two {
    () => {
        type D = [Self::V; 2];
        const D_REGISTERS: usize = 2;
        #[inline(always)]
        fn splat_double(self, x: f32) -> Self::D {
            [self.splat(x); 2]
        }
        #[inline(always)]
        fn load_double(self, from: &[f32]) -> Self::D {
            [self.load(from), self.load(&from[Self::LANES..])]
        }
        #[inline(always)]
        unsafe fn load_double_at(self, from: *const f32) -> Self::D {
            // SAFETY: the caller vouches for both.
            unsafe { [self.load_at(from), self.load_at(from.add(Self::LANES))] }
        }
        #[inline(always)]
        fn store_double(self, to: &mut [f32], x: Self::D) {
            self.store(to, x[0]);
            self.store(&mut to[Self::LANES..], x[1]);
        }
        #[inline(always)]
        fn fma_double(self, a: Self::D, b: Self::D, c: Self::D) -> Self::D {
            [self.fma(a[0], b[0], c[0]), self.fma(a[1], b[1], c[1])]
        }
        #[inline(always)]
        fn dot_double(self, acc: Self::D, a: Self::D, b: Self::D) -> Self::D {
            [self.dot(acc[0], a[0], b[0]), self.dot(acc[1], a[1], b[1])]
        }
        #[inline(always)]
        fn mul_double(self, a: Self::D, b: Self::D) -> Self::D {
            [self.mul(a[0], b[0]), self.mul(a[1], b[1])]
        }
        #[inline(always)]
        fn max_double(self, a: Self::D, b: Self::D) -> Self::D {
            [self.max(a[0], b[0]), self.max(a[1], b[1])]
        }
        #[inline(always)]
        fn select_double(self, bits: u32, a: Self::D, b: Self::D) -> Self::D {
            [self.select(bits, a[0], b[0]), self.select(bits >> Self::LANES, a[1], b[1])]
        }
    };
}
pub(super) use double_of_two;
