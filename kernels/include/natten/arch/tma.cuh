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

}  // namespace arch
}  // namespace natten
