// SPDX-License-Identifier: MIT OR Apache-2.0
// Scores of the Hopper forward become weights: relative to references of their rows, which move where weights say so, or, carefully,
// where scores do.
#pragma once
#include "../params_sm90.h"
#include "../softmax.cuh"
#include "item.cuh"

namespace natten {
namespace sm90 {

// A row's reference before anything is known of its scores, and one as good as it afterwards.
#define NATTEN_UNKNOWN 0.0f
#define NATTEN_KNOWN 9.094947017729282e-13f
// Beyond this sum of a tile, 2^100, weights may have left f32.
#define NATTEN_MOST_TOTAL 1.2676506002282294e30f
// The exponent of an f32, and what it is subtracted from for that of the inverse power of two.
#define NATTEN_EXPONENT 0x7f800000u
#define NATTEN_INVERSE_EXPONENT 0x7f000000u

// What a thread holds of its warp's 16 rows: two of them, in the order of fragments.
template <class C>
struct RowWeights {
  enum {
    SCORES = C::KEYS / 2,
    OUTS = C::HEAD_DIM / 2
  };

  const ForwardParamsSm90& p;
  int lane;
  float scores[SCORES];     // (64 queries, KEYS), then the weights in place
  float out[OUTS];          // (64 queries, HEAD_DIM)
  FragmentSoftmax softmax;
  unsigned is_far;          // whether its references are: not 0

  // Turns scores into weights in place, and sums them up.
  template <bool MAY_BE_FAR>
  __device__ __forceinline__ void weigh(float (&sums)[2]) {
    FragmentSoftmax tile = {{softmax.reference[0], softmax.reference[1]}, {0.0f, 0.0f}};
    if (MAY_BE_FAR && is_far != 0) {
#pragma unroll
      for (int i = 0; i < SCORES; ++i) scores[i] = tile.weigh_far(i / 2 % 2, scores[i], p.geometry.scale_log2);
    } else {
#pragma unroll
      for (int i = 0; i < SCORES; ++i) scores[i] = tile.weigh(i / 2 % 2, scores[i], p.geometry.scale_log2);
    }
    sums[0] = tile.sum[0];
    sums[1] = tile.sum[1];
  }

  // Moves the references if some score of the warp is more than so many powers of two above its row's. Returns whether; then factor
  // is what the result must be multiplied by.
  __device__ __forceinline__ bool move_beyond(float powers, float (&factor)[2]) {
    const float scale_log2 = p.geometry.scale_log2;
    float top[2] = {scores[0], scores[2]};
#pragma unroll
    for (int i = 0; i < SCORES; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], scores[i]);
    bool must = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) must |= top[half] * scale_log2 > softmax.reference[half] + powers;
    const bool moves = (arch::ballot(must) | is_far) != 0;
    if (moves) move(top, factor);
    return moves;
  }

  // Moves the references to the largest scores of the rows, and from near to far where one of them would be lost.
  __device__ __forceinline__ void move(const float (&top)[2], float (&factor)[2]) {
    const float scale_log2 = p.geometry.scale_log2;
    const float tops[2] = {quad_maximum(top[0]), quad_maximum(top[1])};
    if (is_far == 0) {
      FragmentSoftmax moved = softmax;
      bool lost = false;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        factor[half] = moved.template move<false>(half, tops[half] * scale_log2);
        lost |= moved.is_lost(half);
      }
      is_far = arch::ballot(lost);
      if (is_far == 0) {
        softmax = moved;
        return;
      }
      softmax.go_far(scale_log2);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) factor[half] = softmax.move_far(half, tops[half], scale_log2);
  }

  __device__ __forceinline__ void rescale(const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < OUTS; ++i) out[i] *= factor[i / 2 % 2];
  }

  // References become the largest scores of their rows in the warpgroup's first tile. Their weights are 1, so that a query of one key gets that
  // key's value. A
  // row without a score of note stays as it is.
  __device__ __forceinline__ void refer_to_scores() {
    float top[2] = {scores[0], scores[2]};
#pragma unroll
    for (int i = 0; i < SCORES; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], scores[i]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float to = quad_maximum(top[half]) * p.geometry.scale_log2;
      if (fabsf(to) < NATTEN_FAR) softmax.reference[half] = to == NATTEN_UNKNOWN ? NATTEN_KNOWN : to;
    }
  }

  // Behind the first tile, weights are relative to references that nobody compared with the scores. Where a lane says that its row's stands far
  // below, it moves by a power of two, which changes no bit of a weight but its exponent.
  __device__ __forceinline__ void adjust(const bool (&is_off)[2], float (&sums)[2], LostRows lost_rows) {
    if (arch::ballot(is_off[0] || is_off[1]) == 0) return;
    bool lost[2];
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool moves = (arch::ballot(is_off[half]) >> (lane & 28) & 15) != 0;
      const float total = quad_sum(sums[half]);
      const unsigned power = __float_as_uint(total) & NATTEN_EXPONENT;
      factor[half] = moves ? __uint_as_float(NATTEN_INVERSE_EXPONENT - power) : 1.0f;
      const float to = softmax.reference[half] + (float)((int)(power >> 23) - 127);
      lost[half] = moves && (total > NATTEN_MOST_TOTAL || to > NATTEN_FAR);
      if (moves) softmax.reference[half] = to == NATTEN_UNKNOWN ? NATTEN_KNOWN : to;
      sums[half] *= factor[half];
      softmax.sum[half] *= factor[half];
    }
    lost_rows.add(lane, lost);
#pragma unroll
    for (int i = 0; i < SCORES; ++i) scores[i] *= factor[i / 2 % 2];
    rescale(factor);
  }

  // As large as its largest weight is a sum. NaN stays NaN.
  __device__ __forceinline__ void adjust_large(float (&sums)[2], LostRows lost_rows) {
    const bool is_off[2] = {sums[0] > p.most_weight, sums[1] > p.most_weight};
    adjust(is_off, sums, lost_rows);
  }
};

}  // namespace sm90
}  // namespace natten
