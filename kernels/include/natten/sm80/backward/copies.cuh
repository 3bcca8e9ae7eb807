// SPDX-License-Identifier: MIT OR Apache-2.0
// Copies of columns from global to shared memory, a whole tile ahead: both operands, and in the pass over keys the statistics
// of their queries.
#pragma once
#include "mask.cuh"

namespace natten {
namespace sm80 {

// The walk over the columns at hand, tile by tile: which one is copied next, and from where.
template <class C>
struct ColumnCopies {
  typedef typename C::ColumnCopier Copier;
  typedef typename C::ColumnLayout Layout;
  enum { OWN = C::OPERANDS + (C::OF_KEYS ? 1 : 0), STATISTICS_BIT = 31 };

  const char* next[OWN];  // this thread's chunk of its operands in the first of its columns of the tile to be copied next; its pair
  unsigned kept;          // place()
  int at[3];              // that tile
  unsigned copied;        // bit (i * PANELS + panel) * PASSES + pass: whether this thread's chunk is more than zeros

  // The side of what this thread copies.
  NATTEN_DEVICE int side(int i) { return i == C::OPERANDS ? (int)STATISTICS : C::GROUPS == 1 ? i : Thread::group<C>(); }
  // In an operand of a stage: the first column that this thread copies, its chunk.
  __device__ __forceinline__ unsigned place() const { return C::FENCED ? Copier::offset(index()) : kept; }
  NATTEN_DEVICE unsigned index() { return Thread::index() % (32 * C::WARPS); }

  // To the first full tile, or where none is, to the first one.
  __device__ __forceinline__ void start(const BackwardTileParams& p, const BackwardShared<C>& shared) {
    const ColumnSegment& s = shared.segment();
    const KeyGrid& grid = s.grid;
    const bool any_full = grid.full() > 0;
    const int chunk = Copier::chunk(index());
    kept = Copier::offset(index());
#pragma unroll
    for (int a = 0; a < 3; ++a) at[a] = any_full ? grid.full_begin[a] : 0;
    copied = 0;
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      const bool is_operand = i < C::OPERANDS;
      const int column = is_operand ? Copier::row(index()) : Thread::index() % C::COLUMNS;
      next[i] = (const char*)s.origin[3][side(i)] + (is_operand ? chunk * 16 : 0);
#pragma unroll
      for (int a = 0; a < 3; ++a) {
        const int along = (at[a] << grid.log2[a]) + coordinate(grid.log2, column, a);
        next[i] += s.origin[a][side(i)] + along * s.token_step[a][side(i)];
      }
      if (!is_operand) {
        copied |= (unsigned)grid.exists(column) << STATISTICS_BIT;
        continue;
      }
#pragma unroll
      for (int panel = 0; panel < Layout::PANELS; ++panel) {
        const bool in_row = panel * Layout::CHUNKS + chunk < row_length(p, side(i)) / 8;
#pragma unroll
        for (int pass = 0; pass < Copier::PASSES; ++pass) {
          const bool exists = in_row && grid.exists(column + pass * Copier::STRIDE);
          copied |= (unsigned)exists << (i * Layout::PANELS + panel) * Copier::PASSES + pass;
        }
      }
    }
    if (grid.total() == 0) copied = 0;
  }

  // Starts copying the next tile and closes the group. A tile without a mask has all columns.
  template <bool MASKED>
  __device__ __forceinline__ void copy(const ColumnSegment& segment, unsigned stage) const {
    // All addresses first: a load from shared memory between two copies makes ptxas guard each of them.
    const char* from[C::OPERANDS][Copier::PASSES];
#pragma unroll
    for (int i = 0; i < C::OPERANDS; ++i) {
      const long long* step = segment.pass_step[side(i)];
#pragma unroll
      for (int pass = 0; pass < Copier::PASSES; ++pass)
        from[i][pass] = pass == 0 ? next[i] : from[i][pass & 1 ? pass - 1 : 0] + step[pass & 1 ? 0 : 1];
    }
#pragma unroll
    for (int i = 0; i < C::OPERANDS; ++i) {
      const unsigned to = stage + side(i) * Layout::BYTES + place();
#pragma unroll
      for (int pass = 0; pass < Copier::PASSES; ++pass) {
#pragma unroll
        for (int panel = 0; panel < Layout::PANELS; ++panel) {
          const int bit = (i * Layout::PANELS + panel) * Copier::PASSES + (MASKED ? pass : 0);
          Copier::copy(to, from[i][pass], pass, panel, copied, 1u << bit);
        }
      }
    }
    if (C::OF_KEYS && Thread::index() < C::COLUMNS) {
      const unsigned to = stage + C::STAGE_STATISTICS_AT + Thread::index() * STATISTICS_BYTES;
      arch::copy_8_bytes_or_zero(to, next[OWN - 1], copied >> STATISTICS_BIT);
    }
    arch::commit_copies();
  }

  // To the next full tile; from the last one to the first partial one.
  __device__ __forceinline__ void advance_full(const ColumnSegment& segment) {
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
  __device__ __forceinline__ void advance_partial(const BackwardTileParams& p, const BackwardShared<C>& shared,
                                                  PartialTiles<C>& partial) {
    const ColumnSegment& segment = shared.segment();
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
      partial.enter_line(p, shared, at);
    }
  }

  // Moves `next` by so many bytes of each side.
  __device__ __forceinline__ void move(const long long (&step)[SIDES]) {
#pragma unroll
    for (int i = 0; i < OWN; ++i) next[i] += step[side(i)];
  }

  // Moves it by so many columns along each axis.
  __device__ __forceinline__ void move(const ColumnSegment& segment, int x, int y, int z) {
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      const long long(&step)[3][SIDES] = segment.token_step;
      next[i] += x * step[0][side(i)] + y * step[1][side(i)] + z * step[2][side(i)];
    }
  }
};

}  // namespace sm80
}  // namespace natten
