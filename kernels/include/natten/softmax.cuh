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
#define NATTEN_HIGHEST 3.402823466e38f
#define NATTEN_SMALLEST __int_as_float(1)
// A reference this far from 0, in powers of two, is no longer exact enough to be one: it is 2^-8 to the next number.
#define NATTEN_FAR 65536.0f
#define NATTEN_INFINITY __int_as_float(0x7f800000)
#define NATTEN_NAN __int_as_float(0x7fffffff)
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

// scale_log2 as a factor on rows and a power of two on scores, so that a large scale takes no row out of f32.
struct SplitScale {
  float of_rows;
  float of_scores;  // 1 for scales below 2

  // Of large scales from `scale` itself: scale_log2 ends where f32 does.
  NATTEN_DEVICE SplitScale of(float scale_log2, float scale) {
    if ((__float_as_int(scale_log2) & 0x7f800000) <= 0x3f800000) return {scale_log2, 1.0f};
    const int bits = __float_as_int(scale);
    return {__int_as_float(bits & 0x807fffff | 0x3f800000) * NATTEN_LOG2_E, __int_as_float(bits & 0x7f800000)};
  }
};

// For the items that a lane owns. Scores and references are in units of `unit` powers of two.
template <int OWNED>
struct Softmax {
  float reference[OWNED];  // weights are relative to 2^(unit * reference)
  float sum[OWNED];
  float unit;

  __device__ __forceinline__ void clear(float of_scores) {
    unit = of_scores;
#pragma unroll
    for (int i = 0; i < OWNED; ++i) {
      reference[i] = NATTEN_LOWEST;
      sum[i] = 0.0f;
    }
  }

  // A score beyond this moves the item's reference. The inverse of a power of two is exact.
  __device__ __forceinline__ float limit(int i) const {
    return reference[i] + NATTEN_LAZY_MAXIMUM * arch::reciprocal_approx(unit);
  }

  __device__ __forceinline__ bool must_rescale(const float (&score)[OWNED], const bool (&visible)[OWNED]) const {
    bool must = false;
#pragma unroll
    for (int i = 0; i < OWNED; ++i) must |= visible[i] && score[i] > limit(i);
    return must;
  }

  // Moves the reference to scores far above it; factor[i] is what the accumulators must be multiplied by.
  __device__ __forceinline__ void rescale(const float (&score)[OWNED], const bool (&visible)[OWNED],
                                          float (&factor)[OWNED]) {
#pragma unroll
    for (int i = 0; i < OWNED; ++i) {
      const bool must = visible[i] && score[i] > limit(i);
      factor[i] = must ? arch::exp2_approx((reference[i] - score[i]) * unit) : 1.0f;
      reference[i] = must ? score[i] : reference[i];
      sum[i] *= factor[i];
    }
  }

  // Turns scores into weights, 0 where invisible.
  __device__ __forceinline__ void push(const float (&score)[OWNED], const bool (&visible)[OWNED], float (&weight)[OWNED]) {
#pragma unroll
    for (int i = 0; i < OWNED; ++i) {
      weight[i] = visible[i] ? arch::exp2_approx((score[i] - reference[i]) * unit) : 0.0f;
      sum[i] += weight[i];
    }
  }

  __device__ __forceinline__ float log_sum_exp(int i) const {
    const float near = natten::log_sum_exp(reference[i] * unit, sum[i]);
    // A reference may leave f32 in powers of two where the natural one does not.
    const float far = fmaf(reference[i], unit * NATTEN_LN_2, arch::log2_approx(sum[i]) * NATTEN_LN_2);
    return fabsf(reference[i] * unit) > NATTEN_HIGHEST && sum[i] != 0.0f ? far : near;
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

// A log-sum-exp in powers of two beyond this is known no better than to some powers, and so are weights relative to it.
#define NATTEN_COARSE 67108864.0f

// In powers of two, as statistics hold it for backward passes. Of a row without keys, or with none but scores of -inf, it is +inf:
// weights are 2^(score - inf), never 2^(-inf - -inf). Coarse ones are lowered by what rounding may have made of them and of
// scores; weights end at 1 there, so that the largest score of a row has its weight.
NATTEN_DEVICE float statistic_of(float lse) {
  const float log2 = fminf(fmaxf(lse * NATTEN_LOG2_E, NATTEN_LOWEST), NATTEN_HIGHEST);
  if (lse == -NATTEN_INFINITY) return NATTEN_INFINITY;
  if (lse != lse) return lse;
  return fabsf(log2) < NATTEN_COARSE ? log2 : log2 - fabsf(log2) * 2.384185791015625e-7f;
}

// The weight of a score in units of so many powers of two, a power of two itself. Their product is exact. No weight is above 1,
// but for rounding; and where the log-sum-exp is coarse, rounding may be many powers of two. NaN stays NaN.
NATTEN_DEVICE float backward_weight(float score, float unit, float lse_log2) {
  const float exponent = fmaf(score, unit, -lse_log2);
  return arch::exp2_approx(exponent > 0.0f ? 0.0f : exponent);
}

// For the rows that a lane holds, or holds a part of, as tensor cores leave their scores.
//
// References are near 0 or far. Near ones are in powers of two, and a weight is 2^(score * scale_log2 - reference), one
// multiply-add. Far from 0 numbers are further apart than weights may differ, and then leave f32. So a far reference is a
// score as products leave it, and a weight is 2^((score - reference) * scale_log2), which is right for any. Whether references
// are far the warp agrees on.
template <int ROWS>
struct RowSoftmax {
  float reference[ROWS];  // weights are relative to 2^reference, or to the weight of the score that it is
  float sum[ROWS];        // of this lane's columns

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      reference[row] = NATTEN_LOWEST;
      sum[row] = 0.0f;
    }
  }

  // A score of the row beyond this moves its near reference.
  __device__ __forceinline__ float limit(int row) const { return move_limit(reference[row]); }

  // Once some row of the warp must: moves the reference of a row to its largest score; what the row's result must be
  // multiplied by. ALONE: only a row that must itself, otherwise every row whose score is larger, which is one comparison
  // less.
  template <bool ALONE>
  __device__ __forceinline__ float move(int row, const float& top_log2) {
    const float old = reference[row];
    const bool moves = !ALONE || top_log2 > move_limit(old);
    const float to = ALONE ? top_log2 : fmaxf(top_log2, old);
    const float factor = moves ? arch::exp2_approx(old - to) : 1.0f;
    reference[row] = moves ? to : old;
    sum[row] *= factor;
    return factor;
  }

  // The weight of a score, 0 for -inf; counts it.
  __device__ __forceinline__ float weigh(int row, float score, float scale_log2) {
    const float weight = arch::exp2_approx(fmaf(score, scale_log2, -reference[row]));
    sum[row] += weight;
    return weight;
  }

  // Whether a near reference is too far by now, of a row that has seen keys.
  __device__ __forceinline__ bool is_lost(int row) const {
    return fabsf(reference[row]) > NATTEN_FAR && reference[row] > NATTEN_LOWEST;
  }

  // Makes near references far, as exactly as their distance from 0 allows.
  __device__ __forceinline__ void go_far(float scale_log2) {
    const float inverse = arch::reciprocal_approx(scale_log2);
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      const float near = reference[row], close = near * inverse;
      const float far = fmaf(fmaf(-close, scale_log2, near), inverse, close);
      // Of a row that has seen no key the lowest stays, or becomes NaN on the way.
      reference[row] = near > NATTEN_LOWEST ? far : NATTEN_LOWEST;
    }
  }

  // move and weigh for far references.
  __device__ __forceinline__ float move_far(int row, float top, float scale_log2) {
    const float to = fmaxf(top, reference[row]);
    const float factor = arch::exp2_approx((reference[row] - to) * scale_log2);
    reference[row] = to;
    sum[row] *= factor;
    return factor;
  }

  __device__ __forceinline__ float weigh_far(int row, float score, float scale_log2) {
    const float weight = arch::exp2_approx((score - reference[row]) * scale_log2);
    sum[row] += weight;
    return weight;
  }

  // The log-sum-exp of a row whose weights sum up to `total`.
  __device__ __forceinline__ float log_sum_exp(int row, float total, bool is_far, float scale) const {
    const float near = natten::log_sum_exp(reference[row], total);
    // Not in powers of two: the natural one may be the largest number there is.
    const float far = fmaf(reference[row], scale, arch::log2_approx(total) * NATTEN_LN_2);
    return is_far && total != 0.0f ? far : near;
  }
};

// The two rows of a fragment of 16: scores[4 n + 2 half + e] is column 8 n + 2 (lane % 4) + e of row lane / 4 + 8 half.
typedef RowSoftmax<2> FragmentSoftmax;

}  // namespace natten
