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
  NATTEN_DEVICE float scale(const TileForwardParams& p) { return fmaxf(fabsf(p.geometry.scale_log2), NATTEN_SMALLEST); }

  // Scores to weights, 0 for -inf; adds them to the sums. FAR: relative to far references; else a row whose reference becomes
  // too far is lost.
  template <bool FAR>
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
        must |= FAR ? top > rows[m].reference[half] : top * scale_log2 > rows[m].limit(half);
      }
    }
    if (arch::any(must)) {
      if (FAR) move_far(scale_log2, tops, products);
      else move(p, tops, products);
    }
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int n = 0; n < C::N; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& s = score[m][n][half * 2 + e];
            s = FAR ? rows[m].weigh_far(half, s, scale_log2) : rows[m].weigh(half, s, scale_log2);
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

  // Moves all references to the greatest scores.
  __device__ __forceinline__ void move_far(float scale_log2, const float (&tops)[C::M][2], Products<C>& products) {
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        products.rescale(m, half, rows[m].move_far(half, quad_maximum(tops[m][half]), scale_log2));
      }
    }
  }

  // Whether the reference of a row that this lane holds is too far for its weights. One that was so on the way is not: all that was
  // summed relative to it has no weight any more. A row of NaN has no reference, and leaves its neighbours their bits.
  __device__ __forceinline__ bool is_lost() const {
    bool lost = false;
#pragma unroll
    for (int m = 0; m < C::M; ++m) lost |= rows[m].is_lost(0) | rows[m].is_lost(1);
    return lost;
  }
};

}  // namespace sm80
}  // namespace natten
