// SPDX-License-Identifier: MIT OR Apache-2.0
// Warp-wide exchange and votes, any architecture from sm_50. Every lane of the warp takes part.
#pragma once

namespace natten {
namespace arch {

// threadIdx.x, read anew: what depends on it is computed where it is needed instead of being kept in registers.
static __device__ __forceinline__ unsigned thread_index() {
  unsigned thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// blockIdx.x, likewise.
static __device__ __forceinline__ unsigned cta_index() {
  unsigned cta;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(cta));
  return cta;
}

// The same number, of which the compiler does not know that: what is computed from it is not computed ahead.
static __device__ __forceinline__ unsigned anew(unsigned value) {
  unsigned same;
  asm volatile("mov.b32 %0, %1;" : "=r"(same) : "r"(value));
  return same;
}

static __device__ __forceinline__ float shuffle_xor(float value, int lanes) {
  float result;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=f"(result) : "f"(value), "r"(lanes));
  return result;
}

static __device__ __forceinline__ int shuffle_xor(int value, int lanes) {
  int result;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=r"(result) : "r"(value), "r"(lanes));
  return result;
}

static __device__ __forceinline__ float shuffle_from(float value, int lane) {
  float result;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=f"(result) : "f"(value), "r"(lane));
  return result;
}

// From a lane of this lane's group of WIDTH, by its place in the group: a constant where it is known, unlike its place in the warp.
template <int WIDTH>
static __device__ __forceinline__ float shuffle_within(float value, int lane) {
  float result;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, %3, 0xffffffff;"
               : "=f"(result) : "f"(value), "r"(lane), "n"((32 - WIDTH) << 8 | 0x1f));
  return result;
}

static __device__ __forceinline__ unsigned shuffle_from(unsigned value, int lane) {
  unsigned result;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=r"(result) : "r"(value), "r"(lane));
  return result;
}

static __device__ __forceinline__ int of_first_lane(int value) {
  int result;
  asm volatile("shfl.sync.idx.b32 %0, %1, 0, 0x1f, 0xffffffff;" : "=r"(result) : "r"(value));
  return result;
}

// The lane's own value, of which ptxas takes from here on that other lanes may have another.
static __device__ __forceinline__ long long of_this_lane(long long value) {
  long long result;
  asm volatile("{ .reg .b32 low, high; mov.b64 {low, high}, %1; shfl.sync.bfly.b32 low, low, 0, 0x1f, 0xffffffff; "
               "shfl.sync.bfly.b32 high, high, 0, 0x1f, 0xffffffff; mov.b64 %0, {low, high}; }"
               : "=l"(result) : "l"(value));
  return result;
}

// One bit per lane: whether its condition holds.
static __device__ __forceinline__ unsigned ballot(bool condition) {
  unsigned lanes;
  asm volatile("{ .reg .pred holds; setp.ne.u32 holds, %1, 0; vote.sync.ballot.b32 %0, holds, 0xffffffff; }"
               : "=r"(lanes) : "r"((unsigned)condition));
  return lanes;
}

// Whether the condition holds in any lane.
static __device__ __forceinline__ bool any(bool condition) { return ballot(condition) != 0; }

}  // namespace arch
}  // namespace natten
