// SPDX-License-Identifier: MIT OR Apache-2.0
// Conversions between f32 and half precision, and how products name the types of what they multiply.
#pragma once

namespace natten {
namespace arch {

struct HalfInputs;
struct Bfloat16Inputs;

// Every architecture has these two; bf16 needs none (element.cuh does it with shifts).
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

// Two floats as one word, the first in its low half (sm_80).
static __device__ __forceinline__ unsigned pack_f16(float low, float high) {
  unsigned word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

static __device__ __forceinline__ unsigned pack_bf16(float low, float high) {
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

}  // namespace arch
}  // namespace natten
