// SPDX-License-Identifier: MIT OR Apache-2.0
// The keys that a box of queries sees, cut into tiles: what every kernel on tiles shares, whatever its copies.
//
// They are a box too (both ends of a window are monotone), cut from its own first key on. Tiles that every query sees whole
// need no mask, and they are a box of the grid of tiles.
#pragma once
#include "place.cuh"

namespace natten {

// What the first and the last query of a tile see along an axis: the tile is so many boxes of 2^box_log2 queries, the first
// of them at position `base`.
NATTEN_DEVICE void ends_see(const Axis& axis, const Residue& of, int base, int boxes, const int& box_log2, Range& by_first,
                            Range& by_last) {
  by_first = window(axis, of, base);
  by_last = window(axis, of, minimum(base + (boxes << box_log2), of.queries) - 1);
}

// The key tiles along one axis, and the box of those without a mask among them.
template <class Side>
struct AxisTiles {
  Side side;
  int keys;         // from the first to the last one seen
  int seen_by_all;  // so many of the first keys are not beyond what the first query sees
  int full_begin;

  __device__ __forceinline__ int tiles() const { return reaching(keys); }
  // Not before full_begin.
  __device__ __forceinline__ int full_end() const { return maximum(side.whole(seen_by_all), full_begin); }
  // So many tiles hold the first n keys.
  __device__ __forceinline__ int reaching(int n) const { return side.whole(n + side.length() - 1); }
};

// Cuts an axis into tiles, given what the first and the last query of the box see along it.
template <class Side>
NATTEN_DEVICE AxisTiles<Side> cut_axis(const Side& side, const Range& by_first, const Range& by_last) {
  const int length = side.length();
  const int keys = maximum(by_last.end - by_first.start, 0);
  // Keys begin .. end, counted from the first, are seen by all queries of the box.
  const int begin = maximum(by_last.start - by_first.start, 0);
  const int end = maximum(by_first.end - by_first.start, 0);
  return {side, keys, end, side.whole(begin + length - 1)};
}

// The key tiles of a query tile: a grid, and inside it the box of tiles without a mask.
struct KeyGrid {
  int log2[3];        // sides of a tile
  int count[3];       // keys from the first to the last one seen
  int tiles[3];
  int last[3];        // where the last tile begins, counted from the first key
  int full_begin[3];
  int full_end[3];    // not before full_begin

  // Cuts axis a.
  __device__ __forceinline__ void cut(int a, int side_log2, const Range& by_first, const Range& by_last) {
    const AxisTiles<Log2Side> axis = cut_axis(Log2Side{side_log2}, by_first, by_last);
    log2[a] = side_log2;
    count[a] = axis.keys;
    tiles[a] = axis.tiles();
    last[a] = maximum(axis.keys - (1 << side_log2), 0);
    full_begin[a] = axis.full_begin;
    full_end[a] = axis.full_end();
  }

  // Where tile i along axis a begins. A last tile that would reach beyond the keys is moved back to end with them, so that
  // only a tile longer than all the keys has rows without one.
  __device__ __forceinline__ int origin(int a, int i) const { return minimum(i << log2[a], last[a]); }

  // Whether row r of the tiles is a key.
  __device__ __forceinline__ bool exists(int row) const {
    bool inside = true;
#pragma unroll
    for (int a = 0; a < 3; ++a) inside &= coordinate(log2, row, a) < count[a];
    return inside;
  }

  // Whether all tiles are behind.
  __device__ __forceinline__ bool is_done(const int (&at)[3]) const { return at[0] == tiles[0]; }

  __device__ __forceinline__ int total() const { return tiles[0] * tiles[1] * tiles[2]; }

  __device__ __forceinline__ int full() const {
    return (full_end[0] - full_begin[0]) * (full_end[1] - full_begin[1]) * (full_end[2] - full_begin[2]);
  }

  // Goes to the first tile that is not full, or nowhere.
  __device__ __forceinline__ void to_first_partial(int (&at)[3]) const {
    at[0] = total() == full() ? tiles[0] : 0;
    at[1] = at[2] = 0;
    if (is_done(at)) return;
    int stop = first_stop(at);
    if (stop == 0) pass(at, stop);
  }

  // Where, from `at` on, the tiles that are not full pause along its line.
  __device__ __forceinline__ int next_stop(const int (&at)[3]) const {
    const int stop = first_stop(at);
    return at[2] < stop ? stop : tiles[2];
  }

  // Where they do from the line's start on: before the full ones, or at the line's end.
  __device__ __forceinline__ int first_stop(const int (&at)[3]) const {
    // Few branches: the loads behind them would wait for each other.
    const bool meets_full = inside_full(at, 0) & inside_full(at, 1) && full_begin[2] < full_end[2];
    return meets_full ? full_begin[2] : tiles[2];
  }

  // Goes on where at[2] has reached `stop`: behind the full tiles, or with the next line, or nowhere behind the last.
  __device__ __forceinline__ void pass(int (&at)[3], int& stop) const {
    while (true) {
      if (stop < tiles[2]) {
        at[2] = full_end[2];
        stop = tiles[2];
      }
      if (at[2] < tiles[2]) return;
      at[2] = 0;
      if (++at[1] == tiles[1]) {
        at[1] = 0;
        ++at[0];
        if (is_done(at)) return;
      }
      stop = first_stop(at);
      if (stop > 0) return;
    }
  }

  __device__ __forceinline__ bool inside_full(const int (&at)[3], int a) const {
    return (at[a] >= full_begin[a]) & (at[a] < full_end[a]);
  }
};

}  // namespace natten
