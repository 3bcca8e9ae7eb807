// SPDX-License-Identifier: MIT OR Apache-2.0
// Scores of a tile to weights: the policy of ../softmax.cuh on a warp's rows, and O after it.
#pragma once
#include "../softmax.cuh"
#include "products.cuh"

namespace natten {
namespace sm80 {

template <class C>
struct RowSoftmax {
  enum { COUNT = 4 * C::N };

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
    float top_log2[C::M][2];
    bool must = false;
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
      must |= rows[m].template find_tops<COUNT>(&score[m][0][0], scale_log2, top_log2[m]);
    }
    if (arch::any(must)) {
#pragma unroll
      for (int m = 0; m < C::M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          products.rescale(m, half, rows[m].template move<true>(half, top_log2[m][half]));
        }
      }
    }
#pragma unroll
    for (int m = 0; m < C::M; ++m) rows[m].template weigh<COUNT>(&score[m][0][0], scale_log2);
  }
};

}  // namespace sm80
}  // namespace natten
