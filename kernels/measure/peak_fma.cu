// SPDX-License-Identifier: MIT OR Apache-2.0
// The limit of the CUDA cores: f32 multiply-adds on registers and nothing else. Each thread has CHAINS independent ones,
// which covers their latency; a thread's sum says that all of them ran.

struct PeakParams {
  float* sums;  // one a thread
  int rounds;
};

enum { CHAINS = 16, STEPS = 8 };  // FLOPs of a thread's round: 2 * CHAINS * STEPS

extern "C" __global__ void __launch_bounds__(256, 2) NATTEN_ENTRY(PeakParams p) {
  const unsigned thread = blockIdx.x * 256u + threadIdx.x;
  float chains[CHAINS];
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) chains[i] = (float)((threadIdx.x + i) & 63u);
  for (int round = 0; round < p.rounds; ++round) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
#pragma unroll
      for (int i = 0; i < CHAINS; ++i) chains[i] = __fmaf_rn(chains[i], 0.9375f, 0.625f);
    }
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) sum += chains[i];
  p.sums[thread] = sum;
}
