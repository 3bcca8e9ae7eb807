// SPDX-License-Identifier: MIT OR Apache-2.0
// Shared memory by address.
#pragma once

namespace natten {
namespace arch {

static __device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return (unsigned)__cvta_generic_to_shared(pointer);
}

static __device__ __forceinline__ unsigned load_shared(unsigned address) {
  unsigned word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
  return word;
}

static __device__ __forceinline__ void load_shared(int (&words)[2], unsigned address) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "r"(address) : "memory");
}

static __device__ __forceinline__ void load_shared(int (&words)[4], unsigned address) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(address) : "memory");
}

static __device__ __forceinline__ long long load_shared_long(unsigned address) {
  long long value;
  asm volatile("ld.shared.s64 %0, [%1];" : "=l"(value) : "r"(address) : "memory");
  return value;
}

static __device__ __forceinline__ void store_shared(unsigned address, unsigned word) {
  asm volatile("st.shared.u32 [%0], %1;" :: "r"(address), "r"(word) : "memory");
}

static __device__ __forceinline__ void store_shared(unsigned address, int first, int second) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" :: "r"(address), "r"(first), "r"(second) : "memory");
}

static __device__ __forceinline__ void store_shared(unsigned address, int w0, int w1, int w2, int w3) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" :: "r"(address), "r"(w0), "r"(w1), "r"(w2), "r"(w3) : "memory");
}

// Four 8 x 8 matrices of 16 bits, of which a lane holds two neighbours each: row lane / 4, columns lane % 4 * 2 and the next. Lane l points
// at 16 bytes for row l % 8 of matrix l / 8.
static __device__ __forceinline__ void store_matrices(unsigned address, const unsigned (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
               :: "r"(address), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
}

static __device__ __forceinline__ void store_shared_long(unsigned address, long long value) {
  asm volatile("st.shared.s64 [%0], %1;" :: "r"(address), "l"(value) : "memory");
}

// A copy of the value that the compiler knows nothing about: what is computed from it stays where it is written, rather
// than in registers across a whole loop.
static __device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// All lanes of the warp see each other's earlier accesses to memory.
static __device__ __forceinline__ void sync_warp() { asm volatile("bar.warp.sync 0xffffffff;" ::: "memory"); }

}  // namespace arch
}  // namespace natten
