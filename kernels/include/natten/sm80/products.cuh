// SPDX-License-Identifier: MIT OR Apache-2.0
// The two products of a tile, warp by warp, and the fragments that they keep: S = Q K^T and O += P V.
#pragma once
#include "config.cuh"

namespace natten {
namespace sm80 {

template <class C>
struct Products {
  typedef typename C::Type Type;
  typedef arch::Mma<typename Type::Inputs> Mma;
  typedef typename C::QueryLayout QueryLayout;
  typedef typename C::KeyLayout KeyLayout;
  typedef float Scores[C::M][C::N][4];  // (WARP_ROWS, KEYS)

  // Shared addresses, or offsets in a slot, of what this lane reads.
  unsigned query_at;  // matrix row of Q, chunk lane / 16
  unsigned key_at;    // matrix row of K, chunk lane / 8 % 2
  unsigned value_at;  // matrix row of V, chunk lane / 16
  unsigned query[C::HOLDS_QUERY ? C::M : 1][C::HOLDS_QUERY ? C::D / 16 : 1][4];
  float out[C::M][C::D / 8][4];  // (WARP_ROWS, D)

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int d = 0; d < C::D / 8; ++d) {
#pragma unroll
        for (int e = 0; e < 4; ++e) out[m][d][e] = 0.0f;
      }
    }
  }

  // Waits for Q. The kernel wants a positive scale, so that the greatest score before scaling is the greatest after: the
  // sign moves to Q, unless it has been received before. HELD: registers hold it from now on, where they can.
  template <bool HELD>
  __device__ __forceinline__ void receive_query(const TileForwardParams& p, const Shared<C>& shared) {
    arch::wait_for_copies<2>();
    if (p.geometry.scale_log2 < 0.0f && shared.segment().far < 2) {
      __syncthreads();
      for (int i = thread_index(); i < QueryLayout::BYTES / 4; i += C::THREADS) ((unsigned*)shared.base)[i] ^= PAIR_SIGNS;
    }
    __syncthreads();
    const unsigned lane = lane_index();
    query_at = shared.address() + QueryLayout::offset(warp_row<C>() + lane % 16, lane / 16);
    key_at = KeyLayout::offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    value_at = KeyLayout::offset(lane % 16, lane / 16);
    if (C::HOLDS_QUERY && HELD) {
#pragma unroll
      for (int m = 0; m < C::M; ++m) {
#pragma unroll
        for (int k = 0; k < C::D / 16; ++k) load_query(query[m][k], m, k);
      }
    }
  }

  __device__ __forceinline__ void load_query(unsigned (&a)[4], int m, int k) const {
    arch::load_matrices(a, QueryLayout::step(query_at, k) + m * 16 * QueryLayout::PITCH);
  }

  // S += Q K^T, K in `slot`.
  template <bool HELD>
  __device__ __forceinline__ void multiply_query_key(Scores& score, unsigned slot) const {
    const unsigned key = slot + key_at;
#pragma unroll
    for (int k = 0; k < C::D / 16; ++k) {
      unsigned a[C::M][4];
#pragma unroll
      for (int m = 0; m < C::M; ++m) {
        if (!C::HOLDS_QUERY || !HELD) {
          load_query(a[m], m, k);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) a[m][i] = query[C::HOLDS_QUERY ? m : 0][C::HOLDS_QUERY ? k : 0][i];
        }
      }
#pragma unroll
      for (int n = 0; n < C::N; n += 2) {
        unsigned b[4];
        arch::load_matrices(b, KeyLayout::step(key, k) + n * 8 * KeyLayout::PITCH);
#pragma unroll
        for (int m = 0; m < C::M; ++m) {
          Mma::add(score[m][n], a[m], b[0], b[1]);
          Mma::add(score[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // O += P V, V in `slot`; the C fragment of S is the A fragment of P.
  __device__ __forceinline__ void multiply_weight_value(const Scores& weight, unsigned slot) {
    const unsigned value = slot + value_at;
#pragma unroll
    for (int k = 0; k < C::KEYS / 16; ++k) {
      unsigned a[C::M][4];
#pragma unroll
      for (int m = 0; m < C::M; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = &weight[m][2 * k + i / 2][i % 2 * 2];
          a[m][i] = Type::pack_pair(pair[0], pair[1]);
        }
      }
#pragma unroll
      for (int d = 0; d < C::D / 16; ++d) {
        unsigned b[4];
        arch::load_matrices_transposed(b, KeyLayout::step(value, d) + k * 16 * KeyLayout::PITCH);
#pragma unroll
        for (int m = 0; m < C::M; ++m) {
          Mma::add(out[m][2 * d], a[m], b[0], b[1]);
          Mma::add(out[m][2 * d + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // Rows of O times their factors.
  __device__ __forceinline__ void rescale(int m, int half, float factor) {
#pragma unroll
    for (int d = 0; d < C::D / 8; ++d) {
#pragma unroll
      for (int e = 0; e < 2; ++e) out[m][d][half * 2 + e] *= factor;
    }
  }
};

}  // namespace sm80
}  // namespace natten
