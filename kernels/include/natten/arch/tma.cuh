// SPDX-License-Identifier: MIT OR Apache-2.0
// Copies of boxes of a tensor into shared memory by the copy engine (sm_90).
#pragma once

namespace natten {
namespace arch {

// Opaque, made by the host: extents, strides, box and swizzle of a tensor of five axes. A __grid_constant__ parameter.
struct __align__(64) TensorMap {
  unsigned long long words[16];
};

// Fetches a map ahead of the copies that need it.
static __device__ __forceinline__ void prefetch_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" :: "l"(map) : "memory");
}

// Copies the box at the given coordinates, innermost first. What lies outside the tensor arrives as zeros and is
// counted all the same. `barrier` receives the bytes.
static __device__ __forceinline__ void load_box(unsigned destination, const TensorMap* map, unsigned barrier, int c0,
                                                int c1, int c2, int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], "
      "[%2];"
      :: "r"(destination), "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4) : "memory");
}

// Copies a box the other way. What lies outside the tensor is left out. The copy belongs to the thread's next group.
static __device__ __forceinline__ void store_box(unsigned source, const TensorMap* map, int c0, int c1, int c2, int c3, int c4) {
  asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%1, {%2, %3, %4, %5, %6}], [%0];"
               :: "r"(source), "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4) : "memory");
}

// Ends the thread's group of copies to global memory.
static __device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until all that the thread's groups copy has been read.
static __device__ __forceinline__ void await_stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// Waits until it has been written, too.
static __device__ __forceinline__ void await_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

}  // namespace arch
}  // namespace natten
