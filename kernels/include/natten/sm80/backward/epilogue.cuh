// SPDX-License-Identifier: MIT OR Apache-2.0
// The end of a box of rows in an Ampere backward pass: its gradients in whole chunks of rows, or a split's sums in f32.
#pragma once
#include "products.cuh"

namespace natten {
namespace sm80 {

template <class C>
struct BackwardEpilogue {
  typedef typename C::Type Type;
  typedef typename C::RowLayout Layout;
  typedef RowPasses<C> Passes;
  enum { PART_PANELS = Layout::PANELS / C::GROUPS };
  typedef float Result[C::M][C::PART / 8][4];

  const BackwardTileParams& p;
  const BackwardShared<C>& shared;

  // Once no warp reads rows any more.
  __device__ __forceinline__ void store(const BackwardProducts<C>& products) const {
    const RowTile tile = shared.segment().tile;
#pragma unroll
    for (int i = 0; i < C::RESULTS; ++i) {
      const float factor = i == 0 ? p.geometry.scale : 1.0f;
      const RowsOfWarp rows = RowsOfWarp::find<C>(p, tile, p.d_row_strides[i]);
      if (C::OF_KEYS && p.splits > 1) store_partial(products.d_row[i], i, factor, rows);
      else store_rows(products.d_row[i], i, factor, rows);
    }
  }

  // Whether a row is a query whose every score is minus infinity. Its gradient is 0, where the products say NaN: they multiply the
  // infinite keys by weights of 0.
  __device__ __forceinline__ bool has_no_score(int row) const {
    if (C::OF_KEYS) return false;
    return __int_as_float((int)arch::load_shared(shared.row_statistics() + row * STATISTICS_BYTES)) == NATTEN_INFINITY;
  }

  // Rows go through the warp's own part of shared memory, under the rows of their operand, so that whole chunks leave.
  __device__ __forceinline__ void store_rows(const Result& d_row, int i, float factor, const RowsOfWarp& rows) const {
    const unsigned lane = Thread::lane();
    const int first_panel = Thread::group<C>() * PART_PANELS;
    const unsigned part = shared.rows(i) + first_panel * Layout::PANEL_BYTES;
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = Thread::row<C>() + m * 16 + half * 8 + lane / 4;
        const unsigned to = part + Layout::offset(row, 0);
        const bool is_silent = has_no_score(row);
#pragma unroll
        for (int d = 0; d < C::PART / 8; ++d) {
          const float* pair = &d_row[m][d][half * 2];
          const unsigned packed = Type::pack_pair(pair[0] * factor, pair[1] * factor);
          arch::store_shared((Layout::step(to, d / 2) ^ (d % 2 << 4)) + lane % 4 * 4, is_silent ? 0 : packed);
        }
      }
    }
    arch::sync_warp();
    // All reads before the first write: under its condition each would wait alone.
    int words[Passes::PASSES][PART_PANELS][4];
#pragma unroll
    for (int pass = 0; pass < Passes::PASSES; ++pass) {
      const int row = Thread::row<C>() + Passes::first() + pass * Passes::STRIDE;
#pragma unroll
      for (int panel = 0; panel < PART_PANELS; ++panel)
        arch::load_shared(words[pass][panel], part + Layout::offset(row, Passes::chunk()) + panel * Layout::PANEL_BYTES);
    }
#pragma unroll
    for (int pass = 0; pass < Passes::PASSES; ++pass) {
      const int row = Passes::first() + pass * Passes::STRIDE;
      char* to = (char*)p.d_row[i] + rows.offset(row) * 2;
#pragma unroll
      for (int panel = 0; panel < PART_PANELS; ++panel) {
        const int chunk = (first_panel + panel) * Layout::CHUNKS + Passes::chunk();
        const int(&w)[4] = words[pass][panel];
        const unsigned parts[4] = {(unsigned)w[0], (unsigned)w[1], (unsigned)w[2], (unsigned)w[3]};
        if ((chunk * 8 < row_length(p, i)) & (rows.exist >> row & 1)) arch::store_16_bytes(to + chunk * 16, parts);
      }
    }
  }

  // As they are, a pair a lane.
  __device__ __forceinline__ void store_partial(const Result& d_row, int i, float factor, const RowsOfWarp& rows) const {
    const unsigned lane = Thread::lane();
    float* sums = (float*)p.d_row[i] + (int)blockIdx.y * p.partial_strides[i];
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = m * 16 + half * 8 + lane / 4;
        const int first = Thread::group<C>() * C::PART + lane % 4 * 2;
        float* to = sums + rows.offset(row) + first;
#pragma unroll
        for (int d = 0; d < C::PART / 8; ++d) {
          const float* pair = &d_row[m][d][half * 2];
          if ((first + 8 * d < row_length(p, i)) & (rows.exist >> row & 1))
            arch::store_pair(to + 8 * d, pair[0] * factor, pair[1] * factor);
        }
      }
    }
  }
};

}  // namespace sm80
}  // namespace natten
