// SPDX-License-Identifier: MIT OR Apache-2.0
// Masks of partial tiles in the Ampere backward passes: which columns of the tile at hand each of a lane's rows meets.
//
// A row's columns are looked up in the table of the forward pass (../mask.cuh) by the ends of what it meets; a lane does this for one
// row, two axes once a line of tiles and the third for each tile, and hands the words to the lanes that hold the row's scores.
#pragma once
#include "work.cuh"

namespace natten {
namespace sm80 {

// What a lane's rows meet of a tile: bit 4 n of a word is column 8 n + 2 (lane % 4) + e.
template <int M>
struct TileMask {
  unsigned words[M][2][2];  // of row block m, row lane / 4 + 8 half, parity e

  // Element i of the fragment (m, n) of scores.
  __device__ __forceinline__ bool meets(int m, int n, int i) const { return words[m][i / 2][i % 2] & 1u << 4 * n; }
};

// What a lane keeps in the loop with masks.
template <class C>
struct PartialTiles {
  unsigned line;  // what this lane's row meets of the tiles at hand along axes 0 and 1
  int stop;       // where axis 2 leaves this line or comes to the full tiles

  // From the first partial tile, `at`, on.
  __device__ __forceinline__ void begin(const BackwardTileParams& p, const BackwardShared<C>& shared, const int (&at)[3]) {
    stop = shared.segment().grid.next_stop(at);
    enter_line(p, shared, at);
  }

  // Goes to another line of tiles.
  __device__ __forceinline__ void enter_line(const BackwardTileParams& p, const BackwardShared<C>& shared, const int (&at)[3]) {
    const KeyGrid& grid = shared.segment().grid;
    line = ~0u;
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      const Range met = inside(p, shared, at, a);
      line &= shared.table()[C::Table::at(grid.log2, a, met.end)] & ~shared.table()[C::Table::at(grid.log2, a, met.start)];
    }
  }

  // Of the tile at `at` in this line.
  __device__ __forceinline__ void find(TileMask<C::M>& mask, const BackwardTileParams& p, const BackwardShared<C>& shared,
                                       const int (&at)[3]) const {
    const Range met = inside(p, shared, at, 2);
    int before_end[2], before_start[2];
    arch::load_shared(before_end, arch::shared_address(shared.table()) + met.end * 8);
    arch::load_shared(before_start, arch::shared_address(shared.table()) + met.start * 8);
    const unsigned lane = Thread::lane(), quad = lane % 4;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const unsigned word = line & before_end[e] & ~before_start[e];
#pragma unroll
      for (int m = 0; m < C::M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
          mask.words[m][half][e] = arch::shuffle_from(word, m * 16 + half * 8 + lane / 4) >> (quad ^ quad >> 1);
      }
    }
  }

  // The coordinates of the tile at `at` that this lane's row meets along axis a. A tile that was moved back does not show again
  // what the tile before it has shown.
  __device__ __forceinline__ Range inside(const BackwardTileParams& p, const BackwardShared<C>& shared, const int (&at)[3],
                                          int a) const {
    const ColumnSegment& s = shared.segment();
    const KeyGrid& grid = s.grid;
    const int side = 1 << grid.log2[a], origin = grid.origin(a, at[a]);
    int start = at[a] << grid.log2[a], end = grid.count[a];
    if (C::OF_KEYS || !s.is_additional()) {
      const int row = Thread::row<C>() + Thread::lane() % C::WARP_ROWS;
      const Range met = shared.windows(p, a)[coordinate(p.row_log2, row, a)];
      start = maximum(met.start - s.first[a], start);
      end = minimum(met.end - s.first[a], end);
    }
    return {minimum(start - origin, side), clamp(end - origin, 0, side)};
  }
};

}  // namespace sm80
}  // namespace natten
