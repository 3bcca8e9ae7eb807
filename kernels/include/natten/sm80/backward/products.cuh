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
  unsigned row_at;   // matrix row of rows, chunk lane / 16
  unsigned kept[2];  // score_at(), sum_at()
  unsigned rows[HELD][HELD_M][HELD_K][4];
  float d_row[C::RESULTS][C::M][C::PART / 8][4];            // (WARP_ROWS, PART)

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

  // Matrix row of columns, chunk lane / 8 % 2.
  NATTEN_DEVICE unsigned find_score() {
    return ColumnLayout::offset(Thread::lane() % 8 + Thread::lane() / 16 * 8, Thread::lane() / 8 % 2);
  }
  __device__ __forceinline__ unsigned score_at() const { return C::FENCED ? kept[0] : find_score(); }

  // Matrix row of columns, chunk lane / 16, in this group's part.
  NATTEN_DEVICE unsigned find_sum() {
    return ColumnLayout::offset(Thread::lane() % 16, Thread::lane() / 16) +
           Thread::group<C>() * (ColumnLayout::BYTES / C::GROUPS);
  }
  __device__ __forceinline__ unsigned sum_at() const { return C::FENCED ? kept[1] : find_sum(); }

  // Once rows are in shared memory.
  __device__ __forceinline__ void receive_rows(const BackwardShared<C>& shared) {
    const unsigned lane = Thread::lane();
    row_at = shared.address() + RowLayout::offset(Thread::row<C>() + lane % 16, lane / 16);
    kept[0] = find_score();
    kept[1] = find_sum();
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
        const unsigned columns = stage + operand * ColumnLayout::BYTES + score_at();
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

  // The queries' statistics that a lane needs: of its columns 8 n + 2 (lane % 4) and the next one in the pass over keys,
  // otherwise of its rows lane / 4 and 8 further in row block m.
  enum { LSE_LOG2, DELTA };
  NATTEN_DEVICE void load_statistics(float (&of)[2], int which, unsigned shared_address, int block) {
    int words[4];
    if (C::OF_KEYS) {
      arch::load_shared(words, shared_address + (8 * block + Thread::lane() % 4 * 2) * STATISTICS_BYTES);
      of[0] = __int_as_float(words[which]);
      of[1] = __int_as_float(words[2 + which]);
    } else {
      const unsigned row = Thread::row<C>() + block * 16 + Thread::lane() / 4;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        of[half] = __uint_as_float(arch::load_shared(shared_address + (row + 8 * half) * STATISTICS_BYTES + 4 * which));
    }
  }

  // The same for all of a tile: [n][column] or [m][half].
  struct Statistics {
    enum { BLOCKS = C::OF_KEYS ? (int)C::N : (int)C::M };
    float values[BLOCKS][2];

    __device__ __forceinline__ void load(int which, const BackwardShared<C>& shared, unsigned stage) {
      const unsigned at = C::OF_KEYS ? stage + C::STAGE_STATISTICS_AT : shared.row_statistics();
#pragma unroll
      for (int block = 0; block < BLOCKS; ++block) load_statistics(values[block], which, at, block);
    }
    // Of fragment (m, n), element i.
    __device__ __forceinline__ float of(int m, int n, int i) const {
      return C::OF_KEYS ? values[n % BLOCKS][i % 2] : values[m % BLOCKS][i / 2];
    }
  };

  // S to P in place.
  template <bool MASKED>
  __device__ __forceinline__ void weigh(const BackwardTileParams& p, Scores& scores, const Statistics& lse_log2,
                                        const TileMask<C::M>& mask) const {
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int n = 0; n < C::N; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          // No weight is above 1, but for rounding; and where the log-sum-exp is coarse, rounding may be many powers of two.
          const float exponent = fmaf(scores[m][n][i], p.geometry.scale_log2, -lse_log2.of(m, n, i));
          const float weight = arch::minimum_or_nan(arch::exp2_approx(exponent), 1.0f);
          scores[m][n][i] = !MASKED || mask.meets(m, n, i) ? weight : 0.0f;
        }
      }
    }
  }

  // dP to dS in place. What is not seen has weight 0, and may hold an infinity.
  template <bool MASKED>
  __device__ __forceinline__ void differentiate(Scores& d_scores, const Scores& weights, const Statistics& delta,
                                                const TileMask<C::M>& mask) const {
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int n = 0; n < C::N; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float change = weights[m][n][i] * (d_scores[m][n][i] - delta.of(m, n, i));
          d_scores[m][n][i] = !MASKED || mask.meets(m, n, i) ? change : 0.0f;
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
    const unsigned columns = stage + operand * ColumnLayout::BYTES + sum_at();
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
  __device__ __forceinline__ void step(const BackwardTileParams& p, const BackwardShared<C>& shared, unsigned stage,
                                       const TileMask<C::M>& mask) {
    Scores scores[2];
    Pairs pairs;
    Statistics statistics;
    multiply_rows_columns<0, 1>(scores, stage);
    if (C::FENCED) arch::sync_warp();
    statistics.load(LSE_LOG2, shared, stage);
    weigh<MASKED>(p, scores[0], statistics, mask);
    multiply_rows_columns<1, 2>(scores, stage);
    if (C::OF_KEYS) {
      pack(pairs, scores[0]);
      sum(d_row[C::RESULTS - 1], pairs, stage, 1);
    }
    if (C::FENCED && !C::OF_KEYS) arch::sync_warp();
    statistics.load(DELTA, shared, stage);
    differentiate<MASKED>(scores[1], scores[0], statistics, mask);
    pack(pairs, scores[1]);
    sum(d_row[0], pairs, stage, 0);
  }
};

}  // namespace sm80
}  // namespace natten
