// SPDX-License-Identifier: MIT OR Apache-2.0
// The end of a box of queries: out = O / sum and the log-sum-exp, in whole chunks of rows.
#pragma once
#include "../arch/memory.cuh"
#include "softmax.cuh"
#include "work.cuh"

namespace natten {
namespace sm80 {

template <class C>
struct Epilogue {
  typedef typename C::Type Type;
  typedef typename C::QueryLayout Layout;
  typedef RowCopier<C> Copier;

  const TileForwardParams& p;
  const Shared<C>& shared;

  // Writes out and lse. Rows go through the warp's own part of Q's memory, so that whole chunks leave.
  __device__ __forceinline__ void store(const RowSoftmax<C>& softmax, const Products<C>& products) {
    const QueryTile tile = shared.segment().tile;
    const unsigned lane = lane_index();
    float lse[C::M][2];
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float total = quad_sum(softmax.rows[m].sum[half]);
        const float inverse = inverse_of(total);
        const int row = warp_row<C>() + m * 16 + half * 8 + lane / 4;
        const unsigned to = Layout::offset(row, 0);
#pragma unroll
        for (int d = 0; d < C::D / 8; ++d) {
          const float* pair = &products.out[m][d][half * 2];
          const unsigned word = Type::pack_pair(pair[0] * inverse, pair[1] * inverse);
          *(unsigned*)(shared.base + (Layout::step(to, d / 2) ^ (d % 2 << 4)) + lane % 4 * 4) = word;
        }
        lse[m][half] = softmax.rows[m].log_sum_exp(half, total, shared.segment().far != 0, fabsf(p.geometry.scale));
      }
    }
    if (p.lse != nullptr) store_lse(tile, lse);
    store_out(tile, lane);
  }

  // Copies the warp's rows from shared memory to out.
  __device__ __forceinline__ void store_out(const QueryTile& tile, unsigned lane) {
    const WarpRows rows = WarpRows::find<C>(p, tile, p.out_strides);
    __syncwarp();
    const int first = lane / Layout::CHUNKS, chunk = lane % Layout::CHUNKS;
    // All reads before the first write: under its condition each would wait alone.
    int words[Copier::PASSES][Layout::PANELS][4];
#pragma unroll
    for (int pass = 0; pass < Copier::PASSES; ++pass) {
      const unsigned from = shared.address() + Layout::offset(warp_row<C>() + first + pass * Copier::STRIDE, chunk);
#pragma unroll
      for (int panel = 0; panel < Layout::PANELS; ++panel) {
        arch::load_shared(words[pass][panel], from + panel * Layout::PANEL_BYTES);
      }
    }
#pragma unroll
    for (int pass = 0; pass < Copier::PASSES; ++pass) {
      const int row = first + pass * Copier::STRIDE;
      char* to = (char*)p.out + (rows.offset(row) + chunk * 8) * 2;
#pragma unroll
      for (int panel = 0; panel < Layout::PANELS; ++panel) {
        const bool in_row = (panel * Layout::CHUNKS + chunk) * 8 < p.geometry.head_dim_v;
        const int(&w)[4] = words[pass][panel];
        const unsigned parts[4] = {(unsigned)w[0], (unsigned)w[1], (unsigned)w[2], (unsigned)w[3]};
        if (in_row & (rows.exist >> row & 1)) arch::store_16_bytes(to + panel * Layout::PITCH, parts);
      }
    }
  }

  // Writes lse, of which each lane of a quad has that of the quad's rows: lane l that of row l.
  __device__ __forceinline__ void store_lse(const QueryTile& tile, const float (&of_rows)[C::M][2]) {
    const WarpRows rows = WarpRows::find<C>(p, tile, p.lse_strides);
    const unsigned lane = lane_index();
    float lse = 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * C::M; ++i) {
      const float of_eight = arch::shuffle_from(of_rows[i / 2][i % 2], lane % 8 * 4);
      lse = lane / 8 == i ? of_eight : lse;
    }
    if (lane < C::WARP_ROWS && rows.exist >> lane & 1) p.lse[rows.at] = lse;
  }
};

}  // namespace sm80
}  // namespace natten
