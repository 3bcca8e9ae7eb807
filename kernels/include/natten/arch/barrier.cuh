// SPDX-License-Identifier: MIT OR Apache-2.0
// Barriers of a cta, and what else makes its warps play different parts (sm_90a).
#pragma once

namespace natten {
namespace arch {

// Barrier objects (mbarrier) by their address in shared memory. A phase is over once `arrivals` threads have arrived
// and every byte they announced has been copied; phases alternate in parity, the first has parity 0.
static __device__ __forceinline__ void barrier_init(unsigned barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(arrivals) : "memory");
}

static __device__ __forceinline__ void barrier_arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
}

// Arrives, and announces `bytes` of asynchronous copies.
static __device__ __forceinline__ void barrier_arrive_expect(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes) : "memory");
}

// Whether the phase of this parity is over. The hardware may suspend the thread for a while before it says no.
static __device__ __forceinline__ bool barrier_try_wait(unsigned barrier, unsigned parity) {
  unsigned over;
  asm volatile("{ .reg .pred over; mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2; selp.u32 %0, 1, 0, over; }"
               : "=r"(over) : "r"(barrier), "r"(parity) : "memory");
  return over != 0;
}

static __device__ __forceinline__ void barrier_wait(unsigned barrier, unsigned parity) {
  while (!barrier_try_wait(barrier, parity)) {
  }
}

// Orders ordinary accesses to shared memory before later asynchronous ones.
static __device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Barrier `id` of the sixteen that every cta has: waits until `threads` have synchronised or arrived.
static __device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("barrier.cta.sync.aligned %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

// The same, and whether any of the threads says so.
static __device__ __forceinline__ bool named_barrier_any(int id, int threads, bool says) {
  unsigned any;
  asm volatile("{ .reg .pred says, any; setp.ne.u32 says, %3, 0; barrier.cta.red.or.aligned.pred any, %1, %2, says; "
               "selp.u32 %0, 1, 0, any; }"
               : "=r"(any) : "r"(id), "r"(threads), "r"((unsigned)says) : "memory");
  return any != 0;
}

static __device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("barrier.cta.arrive.aligned %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

// True for one lane of a converged warp.
static __device__ __forceinline__ bool elect_one() {
  unsigned elected;
  asm volatile("{ .reg .pred elected; elect.sync _|elected, 0xffffffff; selp.u32 %0, 1, 0, elected; }" : "=r"(elected));
  return elected != 0;
}

// All warps of a warpgroup change their registers per thread; raising waits until others have given up enough.
template <int COUNT>
static __device__ __forceinline__ void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(COUNT));
}

template <int COUNT>
static __device__ __forceinline__ void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(COUNT));
}

}  // namespace arch
}  // namespace natten
