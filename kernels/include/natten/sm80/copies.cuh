// SPDX-License-Identifier: MIT OR Apache-2.0
// Copies from global to shared memory: Q once, then K and V of one tile after another, each a whole tile ahead.
#pragma once
#include "work.cuh"

namespace natten {
namespace sm80 {

// Starts copying the rows of the box of queries, zeros where there are none.
template <class C>
NATTEN_DEVICE void copy_query(const TileForwardParams& p, const Shared<C>& shared, const QueryTile& tile) {
  typedef RowCopier<C> Copier;
  typedef typename C::QueryLayout Layout;
  const WarpRows rows = WarpRows::find<C>(p, tile, p.query_strides);
  const int first = lane_index() / Layout::CHUNKS, chunk = lane_index() % Layout::CHUNKS;
#pragma unroll
  for (int pass = 0; pass < Copier::PASSES; ++pass) {
    const int row = first + pass * Copier::STRIDE;
    const char* from = (const char*)p.query + (rows.offset(row) + chunk * 8) * 2;
    const unsigned to = shared.address() + Layout::offset(warp_row<C>() + row, chunk);
#pragma unroll
    for (int panel = 0; panel < Layout::PANELS; ++panel) {
      const bool in_row = panel * Layout::CHUNKS + chunk < p.geometry.head_dim / 8;
      arch::copy_16_bytes_or_zero(to + panel * Layout::PANEL_BYTES, from + panel * Layout::PITCH, in_row ? rows.exist : 0,
                                  1u << row);
    }
  }
  arch::commit_copies();
}

// The walk over the keys at hand, tile by tile: which one is copied next, from where and to which slot.
template <class C>
struct KeyCopies {
  typedef typename C::KeyCopier Copier;
  typedef typename C::KeyLayout Layout;

  unsigned slots[3];    // shared addresses: of this K, this V and the next K
  unsigned copy_at;     // in a slot: the first row that this thread copies, its chunk
  const char* next[2];  // this thread's chunk of K, V in the first of its rows of the tile to be copied next
  int at[3];            // that tile
  unsigned copied;      // bit (side * PANELS + panel) * PASSES + pass: whether this thread's chunk is more than zeros

  // To the first full tile, or where none is, to the first one.
  __device__ __forceinline__ void start(const TileForwardParams& p, const Shared<C>& shared) {
    const KeyGrid& grid = shared.segment().grid;
    const bool any_full = grid.full() > 0;
    const int row = Copier::row(thread_index()), chunk = Copier::chunk(thread_index());
    copy_at = Copier::offset(thread_index());
#pragma unroll
    for (int s = 0; s < 3; ++s) slots[s] = shared.slot(s);
#pragma unroll
    for (int side = 0; side < 2; ++side) next[side] = (const char*)shared.origins()[3][side] + chunk * 16;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      at[a] = any_full ? grid.full_begin[a] : 0;
      const int key = (at[a] << grid.log2[a]) + coordinate(grid.log2, row, a);
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        next[side] += shared.origins()[a][side] + key * shared.segment().token_step[a][side];
      }
    }
    unsigned rows = 0;
#pragma unroll
    for (int pass = 0; pass < Copier::PASSES; ++pass) rows |= (unsigned)grid.exists(row + pass * Copier::STRIDE) << pass;
    copied = 0;
#pragma unroll
    for (int i = 0; i < 2 * Layout::PANELS; ++i) {
      const int length = i < Layout::PANELS ? p.geometry.head_dim : p.geometry.head_dim_v;
      const bool in_row = i % Layout::PANELS * Layout::CHUNKS + chunk < length / 8;
      copied |= in_row ? rows << i * Copier::PASSES : 0;
    }
    if (grid.total() == 0) copied = 0;
  }

  // Starts copying K (side 0) or V (side 1) of the next tile and closes the group. A tile without a mask has all rows.
  template <bool MASKED>
  __device__ __forceinline__ void copy(const Segment& segment, int side, unsigned slot) const {
    const unsigned to = slot + copy_at;
    // All addresses first: a load from shared memory between two copies makes ptxas guard each of them.
    const char* from[Copier::PASSES];
    const long long* step = segment.row_step[side];
#pragma unroll
    for (int pass = 0; pass < Copier::PASSES; ++pass) {
      from[pass] = pass == 0 ? next[side] : from[pass & 1 ? pass - 1 : 0] + step[pass & 1 ? 0 : 1];
    }
#pragma unroll
    for (int pass = 0; pass < Copier::PASSES; ++pass) {
#pragma unroll
      for (int panel = 0; panel < Layout::PANELS; ++panel) {
        const int bit = (side * Layout::PANELS + panel) * Copier::PASSES + (MASKED ? pass : 0);
        Copier::copy(to, from[pass], pass, panel, copied, 1u << bit);
      }
    }
    arch::commit_copies();
  }

  // This tile's slots are free: the next K becomes this one.
  __device__ __forceinline__ void turn_slots() {
    const unsigned key = slots[0];
    slots[0] = slots[2];
    slots[2] = slots[1];
    slots[1] = key;
  }

  // To the next full tile; from the last one to the first partial one.
  __device__ __forceinline__ void advance_full(const Segment& segment) {
    const KeyGrid& grid = segment.grid;
    if (__builtin_expect(++at[2] < grid.full_end[2], 1)) return move(segment.near_step);
    at[2] = grid.full_begin[2];
    if (++at[1] < grid.full_end[1]) return move(segment.line_step);
    const int x = at[0] << grid.log2[0], y = (at[1] - 1) << grid.log2[1], z = (grid.full_end[2] - 1) << grid.log2[2];
    at[1] = grid.full_begin[1];
    if (++at[0] == grid.full_end[0]) grid.to_first_partial(at);
    if (grid.is_done(at)) copied = 0;
    move(segment, grid.origin(0, at[0]) - x, grid.origin(1, at[1]) - y, grid.origin(2, at[2]) - z);
  }

  // To the next tile with a mask.
  __device__ __forceinline__ void advance_partial(const Shared<C>& shared, Partial<C>& partial) {
    const Segment& segment = shared.segment();
    const KeyGrid& grid = segment.grid;
    if (__builtin_expect(++at[2] < partial.stop, 1)) {
      move(segment.near_step);
      const int back = (at[2] << grid.log2[2]) - grid.last[2];
      if (__builtin_expect(back > 0, 0)) move(segment, 0, 0, -back);
    } else {
      const int x = grid.origin(0, at[0]), y = grid.origin(1, at[1]), z = grid.origin(2, at[2] - 1);
      grid.pass(at, partial.stop);
      if (grid.is_done(at)) copied = 0;
      move(segment, grid.origin(0, at[0]) - x, grid.origin(1, at[1]) - y, grid.origin(2, at[2]) - z);
      partial.mask.enter_line(shared.table(), grid, at);
    }
  }

  // Moves `next` by so many bytes of K and V.
  __device__ __forceinline__ void move(const long long (&step)[2]) {
#pragma unroll
    for (int side = 0; side < 2; ++side) next[side] += step[side];
  }

  // Moves it by so many keys along each axis.
  __device__ __forceinline__ void move(const Segment& segment, int x, int y, int z) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const long long(&step)[3][2] = segment.token_step;
      next[side] += x * step[0][side] + y * step[1][side] + z * step[2][side];
    }
  }
};

}  // namespace sm80
}  // namespace natten
