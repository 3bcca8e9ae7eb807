// SPDX-License-Identifier: MIT OR Apache-2.0
// Half precision conversions that every architecture has; bf16 needs none (element.cuh does it with shifts).
#pragma once

namespace natten {
namespace arch {

static __device__ __forceinline__ float half_to_float(unsigned short half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
}

static __device__ __forceinline__ unsigned short float_to_half(float value) {
  unsigned short half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
  return half;
}

}  // namespace arch
}  // namespace natten
