// SPDX-License-Identifier: MIT OR Apache-2.0
// The products of a tile in an Ampere backward pass, warp by warp, and the fragments that they keep.
//
//   S = R0 C0^T; dP = R1 C1^T      (R0, R1: q, d_out over columns k, v; or k, v over columns q, d_out)
//   P = 2^(scale_log2 S - lse_log2); dS = P (dP - delta)
//   d_row0 += dS C0; in the pass over keys d_row1 += P C1
//
// S and dP have rows in the lanes of quads whichever pass it is, so that P and dS are first operands of the sums as they are.
#pragma once
#include "../../arch/math.cuh"
#include "../../arch/memory.cuh"
#include "../../softmax.cuh"
#include "mask.cuh"

namespace natten {
namespace sm80 {

template <class C>
struct BackwardProducts {
  typedef typename C::Type Type;
  typedef arch::Mma<typename Type::Inputs> Mma;
  typedef typename C::RowLayout RowLayout;
  typedef typename C::ColumnLayout ColumnLayout;
  typedef float Scores[C::M][C::N][4];                      // (WARP_ROWS, COLUMNS)
  typedef unsigned Pairs[C::M][C::N / 2][4];                // the same as first operands of products
  enum { HELD = C::HOLDS > 0 ? (int)C::HOLDS : 1, HELD_M = C::HOLDS ? (int)C::M : 1, HELD_K = C::HOLDS ? C::D / 16 : 1 };

  // Shared addresses, or offsets in an operand of a stage, of what this lane reads.
  unsigned row_at;     // matrix row of rows, chunk lane / 16
  unsigned score_at;   // matrix row of columns, chunk lane / 8 % 2
  unsigned sum_at;     // matrix row of columns, chunk lane / 16, in this group's part
  unsigned rows[HELD][HELD_M][HELD_K][4];
  float d_row[C::RESULTS][C::M][C::PART / 8][4];            // (WARP_ROWS, PART)
  float lse_log2[C::M][2], delta[C::M][2];                  // of this lane's rows, where rows are queries

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < C::RESULTS; ++i) {
#pragma unroll
      for (int m = 0; m < C::M; ++m) {
#pragma unroll
        for (int d = 0; d < C::PART / 8; ++d) {
#pragma unroll
          for (int e = 0; e < 4; ++e) d_row[i][m][d][e] = 0.0f;
        }
      }
    }
  }

  // Reads the statistics of the queries that are rows; one that does not exist gets no weights.
  __device__ __forceinline__ void read_statistics(const BackwardTileParams& p, const RowTile& tile) {
    if (C::OF_KEYS) return;
    const RowsOfWarp rows = RowsOfWarp::find<C>(p, tile, p.statistics_strides);
    const unsigned lane = Thread::lane();
    float pair[2] = {NATTEN_INFINITY, 0.0f};
    if (rows.exist >> lane % C::WARP_ROWS & 1) arch::load_pair(pair[0], pair[1], p.statistics + 2 * rows.at);
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        lse_log2[m][half] = arch::shuffle_from(pair[0], m * 16 + half * 8 + lane / 4);
        delta[m][half] = arch::shuffle_from(pair[1], m * 16 + half * 8 + lane / 4);
      }
    }
  }

  // Once rows are in shared memory.
  __device__ __forceinline__ void receive_rows(const BackwardShared<C>& shared) {
    const unsigned lane = Thread::lane();
    row_at = shared.address() + RowLayout::offset(Thread::row<C>() + lane % 16, lane / 16);
    score_at = ColumnLayout::offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    sum_at = ColumnLayout::offset(lane % 16, lane / 16) + Thread::group<C>() * (ColumnLayout::BYTES / C::GROUPS);
#pragma unroll
    for (int operand = 0; operand < C::HOLDS; ++operand) {
#pragma unroll
      for (int m = 0; m < HELD_M; ++m) {
#pragma unroll
        for (int k = 0; k < HELD_K; ++k) load_row(rows[operand][m][k], operand, m, k);
      }
    }
  }

  __device__ __forceinline__ void load_row(unsigned (&a)[4], int operand, int m, int k) const {
    arch::load_matrices(a, RowLayout::step(row_at + operand * RowLayout::BYTES, k) + m * 16 * RowLayout::PITCH);
  }

  // Rows of the operands FIRST .. LAST times the columns in `stage`: S, dP, or both in turns.
  template <int FIRST, int LAST>
  __device__ __forceinline__ void multiply_rows_columns(Scores (&to)[2], unsigned stage) const {
#pragma unroll
    for (int operand = FIRST; operand < LAST; ++operand) {
#pragma unroll
      for (int m = 0; m < C::M; ++m) {
#pragma unroll
        for (int n = 0; n < C::N; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) to[operand][m][n][e] = 0.0f;
        }
      }
    }
#pragma unroll
    for (int k = 0; k < C::D / 16; ++k) {
#pragma unroll
      for (int operand = FIRST; operand < LAST; ++operand) {
        unsigned a[C::M][4];
#pragma unroll
        for (int m = 0; m < C::M; ++m) {
          if (operand >= C::HOLDS) {
            load_row(a[m], operand, m, k);
          } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) a[m][i] = rows[operand % HELD][m % HELD_M][k % HELD_K][i];
          }
        }
        const unsigned columns = stage + operand * ColumnLayout::BYTES + score_at;
#pragma unroll
        for (int n = 0; n < C::N; n += 2) {
          unsigned b[4];
          arch::load_matrices(b, ColumnLayout::step(columns, k) + n * 8 * ColumnLayout::PITCH);
#pragma unroll
          for (int m = 0; m < C::M; ++m) {
            Mma::add(to[operand][m][n], a[m], b[0], b[1]);
            Mma::add(to[operand][m][n + 1], a[m], b[2], b[3]);
          }
        }
      }
    }
  }

  // The statistics of this lane's columns 8 n + 2 (lane % 4) and the next one: lse_log2 and delta of either.
  static __device__ __forceinline__ void load_statistics(float (&pairs)[4], unsigned stage, int n) {
    int words[4];
    arch::load_shared(words, stage + C::STAGE_STATISTICS_AT + (8 * n + Thread::lane() % 4 * 2) * STATISTICS_BYTES);
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = __int_as_float(words[i]);
  }

  // S to P in place.
  template <bool MASKED>
  __device__ __forceinline__ void weigh(const BackwardTileParams& p, Scores& scores, unsigned stage,
                                        const TileMask<C::M>& mask) const {
#pragma unroll
    for (int n = 0; n < C::N; ++n) {
      float pairs[4];
      if (C::OF_KEYS) load_statistics(pairs, stage, n);
#pragma unroll
      for (int m = 0; m < C::M; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float reference = C::OF_KEYS ? pairs[2 * (i % 2)] : lse_log2[m][i / 2];
          const float weight = arch::exp2_approx(fmaf(scores[m][n][i], p.geometry.scale_log2, -reference));
          scores[m][n][i] = !MASKED || mask.meets(m, i / 2, n, i % 2) ? weight : 0.0f;
        }
      }
    }
  }

  // dP to dS in place. What is not seen has weight 0, and may hold an infinity.
  template <bool MASKED>
  __device__ __forceinline__ void differentiate(Scores& d_scores, const Scores& weights, unsigned stage,
                                                const TileMask<C::M>& mask) const {
#pragma unroll
    for (int n = 0; n < C::N; ++n) {
      float pairs[4];
      if (C::OF_KEYS) load_statistics(pairs, stage, n);
#pragma unroll
      for (int m = 0; m < C::M; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float along = C::OF_KEYS ? pairs[2 * (i % 2) + 1] : delta[m][i / 2];
          const float change = weights[m][n][i] * (d_scores[m][n][i] - along);
          d_scores[m][n][i] = !MASKED || mask.meets(m, i / 2, n, i % 2) ? change : 0.0f;
        }
      }
    }
  }

  // The C fragments of scores are the A fragments of their products with columns.
  static __device__ __forceinline__ void pack(Pairs& pairs, const Scores& from) {
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int k = 0; k < C::N / 2; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = &from[m][2 * k + i / 2][i % 2 * 2];
          pairs[m][k][i] = Type::pack_pair(pair[0], pair[1]);
        }
      }
    }
  }

  // d_row += pairs times the columns of an operand.
  __device__ __forceinline__ void sum(float (&d_row)[C::M][C::PART / 8][4], const Pairs& pairs, unsigned stage,
                                      int operand) const {
    const unsigned columns = stage + operand * ColumnLayout::BYTES + sum_at;
#pragma unroll
    for (int k = 0; k < C::N / 2; ++k) {
#pragma unroll
      for (int d = 0; d < C::PART / 16; ++d) {
        unsigned b[4];
        arch::load_matrices_transposed(b, ColumnLayout::step(columns, d) + k * 16 * ColumnLayout::PITCH);
#pragma unroll
        for (int m = 0; m < C::M; ++m) {
          Mma::add(d_row[m][2 * d], pairs[m][k], b[0], b[1]);
          Mma::add(d_row[m][2 * d + 1], pairs[m][k], b[2], b[3]);
        }
      }
    }
  }

  // All of a tile's work.
  template <bool MASKED>
  __device__ __forceinline__ void step(const BackwardTileParams& p, unsigned stage, const TileMask<C::M>& mask) {
    Scores scores[2];
    Pairs pairs;
    multiply_rows_columns<0, 2>(scores, stage);
    weigh<MASKED>(p, scores[0], stage, mask);
    if (C::OF_KEYS) {
      pack(pairs, scores[0]);
      sum(d_row[C::RESULTS - 1], pairs, stage, 1);
    }
    differentiate<MASKED>(scores[1], scores[0], stage, mask);
    pack(pairs, scores[1]);
    sum(d_row[0], pairs, stage, 0);
  }
};

}  // namespace sm80
}  // namespace natten
