// SPDX-License-Identifier: MIT OR Apache-2.0
// Online softmax in base 2 with a lazy maximum, for the items that a lane owns.
#pragma once
#include "arch/math.cuh"
#include "lanes.cuh"

namespace natten {

// The reference point of the weights moves only when a score exceeds it by this much (in powers of two). Weights up to
// 2^8 lose no accuracy in f32, and after the first tokens the accumulators are hardly ever rescaled.
#define NATTEN_LAZY_MAXIMUM 8.0f
// Below every finite score, yet finite: -inf - -inf never occurs, so a score of -inf has weight 0 from the start.
#define NATTEN_LOWEST -3.402823466e38f
#define NATTEN_LN_2 0.693147180559945f
#define NATTEN_LOG2_E 1.44269504088896f

template <int OWNED>
struct Softmax {
  float reference_log2[OWNED];  // weights are relative to 2^reference
  float sum[OWNED];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < OWNED; ++i) {
      reference_log2[i] = NATTEN_LOWEST;
      sum[i] = 0.0f;
    }
  }

  __device__ __forceinline__ bool must_rescale(const float (&score_log2)[OWNED], const bool (&visible)[OWNED]) const {
    bool must = false;
#pragma unroll
    for (int i = 0; i < OWNED; ++i) must |= visible[i] && score_log2[i] > reference_log2[i] + NATTEN_LAZY_MAXIMUM;
    return must;
  }

  // Moves the reference to scores far above it; factor[i] is what the accumulators must be multiplied by.
  __device__ __forceinline__ void rescale(const float (&score_log2)[OWNED], const bool (&visible)[OWNED],
                                          float (&factor)[OWNED]) {
#pragma unroll
    for (int i = 0; i < OWNED; ++i) {
      const bool must = visible[i] && score_log2[i] > reference_log2[i] + NATTEN_LAZY_MAXIMUM;
      factor[i] = must ? arch::exp2_approx(reference_log2[i] - score_log2[i]) : 1.0f;
      reference_log2[i] = must ? score_log2[i] : reference_log2[i];
      sum[i] *= factor[i];
    }
  }

  // Turns scores into weights, 0 where invisible.
  __device__ __forceinline__ void push(const float (&score_log2)[OWNED], const bool (&visible)[OWNED],
                                       float (&weight)[OWNED]) {
#pragma unroll
    for (int i = 0; i < OWNED; ++i) {
      weight[i] = visible[i] ? arch::exp2_approx(score_log2[i] - reference_log2[i]) : 0.0f;
      sum[i] += weight[i];
    }
  }
};

}  // namespace natten
