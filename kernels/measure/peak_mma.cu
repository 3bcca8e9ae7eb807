// SPDX-License-Identifier: MIT OR Apache-2.0
// The limit of the tensor cores as mma.m16n8k16 reaches them: products of matrices on registers and nothing else. A warp
// multiplies four 16 x 16 matrices with four 16 x 8 ones into 16 independent sums, which covers the latency. The operands
// are without pattern, since zeros would draw less power and run faster than data do.
#include <natten/arch/mma.cuh>
#include <natten/element.cuh>

struct PeakParams {
  float* sums;  // one a thread: of its elements of all 16 products
  int rounds;
};

typedef natten::NATTEN_TYPE Type;
typedef natten::arch::Mma<Type::Inputs> Product;

// An odd multiple of 1/32 between -1 and 1: exact in either type, as are sums of products.
static __device__ __forceinline__ float value(unsigned seed) {
  seed *= 0x9e3779b1u;
  seed ^= seed >> 15;
  seed *= 0x85ebca77u;
  seed ^= seed >> 13;
  return (float)(2 * (int)(seed & 31u) - 31) * 0.03125f;
}

// Word `index` of a lane's operands.
static __device__ __forceinline__ unsigned word(unsigned index, unsigned lane) {
  const unsigned seed = 2u * (32u * index + lane);
  return Type::pack_pair(value(seed), value(seed + 1u));
}

enum { SIDE = 4 };  // FLOPs of a warp's round: SIDE * SIDE * 4096

extern "C" __global__ void __launch_bounds__(256, 2) NATTEN_ENTRY(PeakParams p) {
  const unsigned lane = threadIdx.x & 31u;
  unsigned a[SIDE][4], b[SIDE][2];
  float sums[SIDE][SIDE][4];
#pragma unroll
  for (unsigned i = 0; i < SIDE; ++i) {
#pragma unroll
    for (unsigned r = 0; r < 4; ++r) a[i][r] = word(4u * i + r, lane);
#pragma unroll
    for (unsigned r = 0; r < 2; ++r) b[i][r] = word(4u * SIDE + 2u * i + r, lane);
#pragma unroll
    for (unsigned j = 0; j < SIDE; ++j) {
#pragma unroll
      for (unsigned r = 0; r < 4; ++r) sums[i][j][r] = 0.0f;
    }
  }
  for (int round = 0; round < p.rounds; ++round) {
#pragma unroll
    for (int i = 0; i < SIDE; ++i) {
#pragma unroll
      for (int j = 0; j < SIDE; ++j) Product::add(sums[i][j], a[i], b[j][0], b[j][1]);
    }
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < SIDE; ++i) {
#pragma unroll
    for (int j = 0; j < SIDE; ++j) {
#pragma unroll
      for (int r = 0; r < 4; ++r) sum += sums[i][j][r];
    }
  }
  p.sums[blockIdx.x * 256u + threadIdx.x] = sum;
}
