// SPDX-License-Identifier: MIT OR Apache-2.0
// Scores of a tile to weights, with the lazy reference of ../softmax.cuh; two rows in each row block of a lane.
#pragma once
#include "../softmax.cuh"
#include "products.cuh"

namespace natten {
namespace sm80 {

template <class C>
struct RowSoftmax {
  typedef typename Products<C>::Scores Scores;

  float reference_log2[C::M][2];
  float sum[C::M][2];  // of this lane's columns

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        reference_log2[m][half] = NATTEN_LOWEST;
        sum[m][half] = 0.0f;
      }
    }
  }

  // The size of the scale; not 0, so that -inf times it is -inf. Scores times the smallest number are as good as 0.
  NATTEN_DEVICE float scale(const TileForwardParams& p) { return fmaxf(fabsf(p.geometry.scale_log2), 1.17549435e-38f); }

  // Scores to weights, 0 for -inf; adds them to the sums.
  __device__ __forceinline__ void weigh(const TileForwardParams& p, Scores& score, Products<C>& products) {
    const float scale_log2 = scale(p);
    float most[C::M][2];
    bool must = false;
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float most_here = score[m][0][half * 2];
#pragma unroll
        for (int n = 0; n < C::N; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) most_here = fmaxf(most_here, score[m][n][half * 2 + e]);
        }
        most[m][half] = most_here;
        must |= most_here * scale_log2 > reference_log2[m][half] + NATTEN_LAZY_MAXIMUM;
      }
    }
    if (arch::any(must)) rescale(p, most, products);
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float reference = reference_log2[m][half];
#pragma unroll
        for (int n = 0; n < C::N; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& s = score[m][n][half * 2 + e];
            s = arch::exp2_approx(fmaf(s, scale_log2, -reference));
            sum[m][half] += s;
          }
        }
      }
    }
  }

  // Moves the references of rows whose greatest score is far above them.
  __device__ __forceinline__ void rescale(const TileForwardParams& p, const float (&most)[C::M][2], Products<C>& products) {
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = most[m][half];
        top = fmaxf(top, arch::shuffle_xor(top, 1));
        top = fmaxf(top, arch::shuffle_xor(top, 2)) * scale(p);
        const float old = reference_log2[m][half];
        const bool moves = top > old + NATTEN_LAZY_MAXIMUM;
        const float factor = moves ? arch::exp2_approx(old - top) : 1.0f;
        reference_log2[m][half] = moves ? top : old;
        sum[m][half] *= factor;
        products.rescale(m, half, factor);
      }
    }
  }
};

}  // namespace sm80
}  // namespace natten
