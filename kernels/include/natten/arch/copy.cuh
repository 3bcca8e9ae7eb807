// SPDX-License-Identifier: MIT OR Apache-2.0
// Asynchronous copies from global to shared memory, sm_80 and later.
#pragma once

namespace natten {
namespace arch {

static __device__ __forceinline__ void copy_16_bytes(unsigned to_shared, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to_shared), "l"(from) : "memory");
}

// Zeros instead where `valid` has none of the bits of `mask`; `from` is not read then. The test stands here, since a compiler that sees
// it makes arithmetic of it.
static __device__ __forceinline__ void copy_16_bytes_or_zero(unsigned to_shared, const void* from, unsigned valid,
                                                             unsigned mask) {
  asm volatile("{ .reg .pred is_valid; .reg .b32 bytes; and.b32 bytes, %2, %3; setp.ne.u32 is_valid, bytes, 0;\n"
               "selp.b32 bytes, 16, 0, is_valid; cp.async.cg.shared.global [%0], [%1], 16, bytes; }"
               :: "r"(to_shared), "l"(from), "r"(valid), "r"(mask) : "memory");
}

// Four bytes, or zeros where the source does not exist; `from` is not read then.
static __device__ __forceinline__ void copy_4_bytes_or_zero(unsigned to_shared, const void* from, bool exists) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" :: "r"(to_shared), "l"(from), "r"(exists ? 4 : 0) : "memory");
}

// Eight bytes, likewise.
static __device__ __forceinline__ void copy_8_bytes_or_zero(unsigned to_shared, const void* from, bool exists) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" :: "r"(to_shared), "l"(from), "r"(exists ? 8 : 0) : "memory");
}

// This thread's arrival at a barrier object once all its copies so far are there; the object counts it as one arrival.
static __device__ __forceinline__ void barrier_arrive_on_copies(unsigned barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" :: "r"(barrier) : "memory");
}

// Closes a group of copies.
static __device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's groups are under way.
template <int PENDING>
static __device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}

}  // namespace arch
}  // namespace natten
