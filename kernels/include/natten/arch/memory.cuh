// SPDX-License-Identifier: MIT OR Apache-2.0
// Global loads and stores by width. Loads are for data that no thread writes during the kernel.
#pragma once

namespace natten {
namespace arch {

static __device__ __forceinline__ void load_16_bytes(unsigned (&words)[4], const void* from) {
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "l"(from));
}

// Where `there` holds; otherwise the words stay as they were.
static __device__ __forceinline__ void load_16_bytes_if(bool there, unsigned (&words)[4], const void* from) {
  asm("{ .reg .pred there; setp.ne.u32 there, %5, 0; @there ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3]) : "l"(from), "r"((unsigned)there));
}

static __device__ __forceinline__ void load_pair_if(bool there, float& first, float& second, const float* from) {
  asm("{ .reg .pred there; setp.ne.u32 there, %3, 0; @there ld.global.nc.v2.f32 {%0, %1}, [%2]; }"
      : "+f"(first), "+f"(second) : "l"(from), "r"((unsigned)there));
}

static __device__ __forceinline__ unsigned load_4_bytes(const void* from) {
  unsigned word;
  asm("ld.global.nc.u32 %0, [%1];" : "=r"(word) : "l"(from));
  return word;
}

static __device__ __forceinline__ float load_float(const float* from) {
  float value;
  asm("ld.global.nc.f32 %0, [%1];" : "=f"(value) : "l"(from));
  return value;
}

static __device__ __forceinline__ void load_pair(float& first, float& second, const float* from) {
  asm("ld.global.nc.v2.f32 {%0, %1}, [%2];" : "=f"(first), "=f"(second) : "l"(from));
}

static __device__ __forceinline__ unsigned load_2_bytes(const void* from) {
  unsigned short half_word;
  asm("ld.global.nc.u16 %0, [%1];" : "=h"(half_word) : "l"(from));
  return half_word;
}

static __device__ __forceinline__ void store_16_bytes(void* to, const unsigned (&words)[4]) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :: "l"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
}

static __device__ __forceinline__ void store_4_bytes(void* to, unsigned word) {
  asm volatile("st.global.u32 [%0], %1;" :: "l"(to), "r"(word) : "memory");
}

// 8-byte aligned.
static __device__ __forceinline__ void store_pair(float* to, float first, float second) {
  asm volatile("st.global.v2.f32 [%0], {%1, %2};" :: "l"(to), "f"(first), "f"(second) : "memory");
}

static __device__ __forceinline__ void store_2_bytes(void* to, unsigned half_word) {
  asm volatile("st.global.u16 [%0], %1;" :: "l"(to), "h"((unsigned short)half_word) : "memory");
}

}  // namespace arch
}  // namespace natten
