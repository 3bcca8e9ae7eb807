// SPDX-License-Identifier: MIT OR Apache-2.0
// Hardware approximations and the conditional multiply-add, any architecture from sm_50.
#pragma once

namespace natten {
namespace arch {

// 2^x.
static __device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// log2(x).
static __device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x.
static __device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The smaller one; NaN if either is. From sm_80 on.
static __device__ __forceinline__ float minimum_or_nan(float a, float b) {
  float y;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

// sum += weight * value, but only where weight is not zero: an invisible key (weight 0) may hold NaN or infinity.
// A NaN weight does count. ptxas keeps one comparison for all elements of a row.
static __device__ __forceinline__ void accumulate_where_nonzero(float& sum, float weight, float value) {
  asm("{ .reg .pred visible; setp.neu.f32 visible, %1, 0f00000000; @visible fma.rn.f32 %0, %1, %2, %0; }"
      : "+f"(sum) : "f"(weight), "f"(value));
}

}  // namespace arch
}  // namespace natten
