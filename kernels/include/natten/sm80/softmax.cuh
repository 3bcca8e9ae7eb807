// SPDX-License-Identifier: MIT OR Apache-2.0
// Scores of a tile to weights: the policy of ../softmax.cuh on a warp's rows, and O after it.
#pragma once
#include "../softmax.cuh"
#include "products.cuh"

namespace natten {
namespace sm80 {

template <class C>
struct RowSoftmax {
  FragmentSoftmax rows[C::M];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < C::M; ++m) rows[m].clear();
  }

  // The size of the scale; not 0, so that -inf times it is -inf. Scores times the smallest number are as good as 0.
  NATTEN_DEVICE float scale(const TileForwardParams& p) { return fmaxf(fabsf(p.geometry.scale_log2), 1.17549435e-38f); }

  // Scores to weights, 0 for -inf; adds them to the sums.
  __device__ __forceinline__ void weigh(const TileForwardParams& p, typename Products<C>::Scores& score,
                                        Products<C>& products) {
    const float scale_log2 = scale(p);
    float tops[C::M][2];
    bool must = false;
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = score[m][0][half * 2];
#pragma unroll
        for (int n = 0; n < C::N; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) top = fmaxf(top, score[m][n][half * 2 + e]);
        }
        tops[m][half] = top;
        must |= top * scale_log2 > rows[m].limit(half);
      }
    }
    if (arch::any(must)) move(p, tops, products);
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int n = 0; n < C::N; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& s = score[m][n][half * 2 + e];
            s = rows[m].weigh(half, s, scale_log2);
          }
        }
      }
    }
  }

  // Moves the references of rows whose greatest score is far above them.
  __device__ __forceinline__ void move(const TileForwardParams& p, const float (&tops)[C::M][2], Products<C>& products) {
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float top_log2 = quad_maximum(tops[m][half]) * scale(p);
        products.rescale(m, half, rows[m].template move<true>(half, top_log2));
      }
    }
  }
};

}  // namespace sm80
}  // namespace natten
