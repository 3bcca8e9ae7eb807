// SPDX-License-Identifier: MIT OR Apache-2.0
// The limit of Hopper's tensor cores: the largest warpgroup product (m64n256k16), again and again on operands that stay in
// shared memory. Two warpgroups take turns, so that the tensor cores have work while one waits. The operands are without
// pattern, since zeros would draw less power and run faster than data do.
#include <natten/arch/barrier.cuh>
#include <natten/arch/shared.cuh>
#include <natten/arch/wgmma.cuh>
#include <natten/element.cuh>
#include <natten/launch.cuh>

namespace arch = natten::arch;

typedef natten::NATTEN_TYPE Type;
typedef arch::Wgmma<Type::Inputs, 256> Product;

struct PeakParams {
  float* sums;  // one a thread: of its elements of its warpgroup's product
  int rounds;
};

enum {
  A_ROWS = 64,  // of each warpgroup
  B_ROWS = 256,
  ROW_BYTES = 128,  // 64 elements, as wide as the swizzle
  STEPS = 8,        // products between two waits: twice over the 64 elements. FLOPs of a warpgroup's round: STEPS * 2^19
  B_AT = 2 * A_ROWS * ROW_BYTES,
  SHARED_BYTES = B_AT + B_ROWS * ROW_BYTES
};
NATTEN_DYNAMIC_SHARED(SHARED_BYTES)

// An odd multiple of 1/32 between -1 and 1: exact in either type, as are sums of products.
static __device__ __forceinline__ float value(unsigned seed) {
  seed *= 0x9e3779b1u;
  seed ^= seed >> 15;
  seed *= 0x85ebca77u;
  seed ^= seed >> 13;
  return (float)(2 * (int)(seed & 31u) - 31) * 0.03125f;
}

extern "C" __global__ void __launch_bounds__(256, 1) NATTEN_ENTRY(PeakParams p) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  const unsigned shared = arch::shared_address(bytes);
  for (unsigned pair = threadIdx.x; pair < SHARED_BYTES / 4; pair += 256u) {
    const unsigned row = pair / (ROW_BYTES / 4), at = 4u * (pair % (ROW_BYTES / 4)) ^ (row & 7u) << 4;
    arch::store_shared(shared + row * ROW_BYTES + at, Type::pack_pair(value(2u * pair), value(2u * pair + 1u)));
  }
  arch::fence_async_proxy();
  __syncthreads();

  const unsigned group = threadIdx.x / 128u;
  const unsigned long long a =
      arch::describe(shared + group * A_ROWS * ROW_BYTES, arch::SWIZZLE_128_BYTES, 8 * ROW_BYTES, 0);
  const unsigned long long b = arch::describe(shared + B_AT, arch::SWIZZLE_128_BYTES, 8 * ROW_BYTES, 0);
  float sums[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) sums[i] = 0.0f;
  for (int round = 0; round < p.rounds; ++round) {
    arch::wgmma_fence();
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      const int k = 2 * (step % 4);  // 32 bytes on in units of 16
      Product::multiply_add(sums, a + k, b + k);
    }
    arch::wgmma_commit();
    arch::wgmma_wait<0>();
    arch::settle(sums);
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 128; ++i) sum += sums[i];
  p.sums[blockIdx.x * 256u + threadIdx.x] = sum;
}
