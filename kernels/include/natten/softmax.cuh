// SPDX-License-Identifier: MIT OR Apache-2.0
// Online softmax in base 2 with a lazy reference: the policy once for every kernel, then the SIMT family's items and the rows
// of tensor cores' fragments.
#pragma once
#include "arch/math.cuh"
#include "arch/warp.cuh"
#include "device.cuh"

namespace natten {

// The reference point of the weights moves only when a score exceeds it by this much (in powers of two). Weights up to
// 2^8 lose no accuracy in f32, and after the first tokens the accumulators are hardly ever rescaled.
#define NATTEN_LAZY_MAXIMUM 8.0f
// Below every finite score, yet finite: -inf - -inf never occurs, so a score of -inf has weight 0 from the start.
#define NATTEN_LOWEST -3.402823466e38f
#define NATTEN_INFINITY __int_as_float(0x7f800000)
#define NATTEN_LN_2 0.693147180559945f
#define NATTEN_LOG2_E 1.44269504088896f

// A score beyond this moves its row's reference.
NATTEN_DEVICE float move_limit(float reference_log2) { return reference_log2 + NATTEN_LAZY_MAXIMUM; }

// What a row is multiplied by at its end, and its log-sum-exp. No key at all: sum 0, out 0, lse -inf. A NaN sum stays one.
NATTEN_DEVICE float inverse_of(float sum) { return sum == 0.0f ? 0.0f : arch::reciprocal_approx(sum); }

NATTEN_DEVICE float log_sum_exp(float reference_log2, float sum) {
  const float lse_log2 = reference_log2 + arch::log2_approx(sum);
  return sum == 0.0f ? -NATTEN_INFINITY : lse_log2 * NATTEN_LN_2;
}

// For the items that a lane owns.
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
    for (int i = 0; i < OWNED; ++i) must |= visible[i] && score_log2[i] > move_limit(reference_log2[i]);
    return must;
  }

  // Moves the reference to scores far above it; factor[i] is what the accumulators must be multiplied by.
  __device__ __forceinline__ void rescale(const float (&score_log2)[OWNED], const bool (&visible)[OWNED],
                                          float (&factor)[OWNED]) {
#pragma unroll
    for (int i = 0; i < OWNED; ++i) {
      const bool must = visible[i] && score_log2[i] > move_limit(reference_log2[i]);
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

// The largest and the sum over the lanes of a quad, which share rows of a fragment.
NATTEN_DEVICE float quad_maximum(float x) {
  x = fmaxf(x, arch::shuffle_xor(x, 1));
  return fmaxf(x, arch::shuffle_xor(x, 2));
}

NATTEN_DEVICE float quad_sum(float x) {
  x += arch::shuffle_xor(x, 1);
  return x + arch::shuffle_xor(x, 2);
}

// For the two rows that a lane holds of a fragment of 16 rows, as tensor cores leave it: scores[4 n + 2 half + e] is column
// 8 n + 2 (lane % 4) + e of row lane / 4 + 8 half.
struct FragmentSoftmax {
  float reference_log2[2];  // weights are relative to 2^reference
  float sum[2];             // of this lane's columns

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      reference_log2[half] = NATTEN_LOWEST;
      sum[half] = 0.0f;
    }
  }

  // A score of the row beyond this moves its reference.
  __device__ __forceinline__ float limit(int half) const { return move_limit(reference_log2[half]); }

  // Once some row of the warp must: moves the reference of a row to its largest score; what the row's result must be
  // multiplied by. ALONE: only a row that must itself, otherwise every row whose score is larger, which is one comparison
  // less.
  template <bool ALONE>
  __device__ __forceinline__ float move(int half, const float& top_log2) {
    const float old = reference_log2[half];
    const bool moves = !ALONE || top_log2 > move_limit(old);
    const float to = ALONE ? top_log2 : fmaxf(top_log2, old);
    const float factor = moves ? arch::exp2_approx(old - to) : 1.0f;
    reference_log2[half] = moves ? to : old;
    sum[half] *= factor;
    return factor;
  }

  // The weight of a score, 0 for -inf; counts it.
  __device__ __forceinline__ float weigh(int half, float score, float scale_log2) {
    const float weight = arch::exp2_approx(fmaf(score, scale_log2, -reference_log2[half]));
    sum[half] += weight;
    return weight;
  }
};

}  // namespace natten
