// SPDX-License-Identifier: MIT OR Apache-2.0
// Boxes of queries and the boxes of keys that they visit: what every kernel on tiles shares, whatever its copies.
//
// A box has power-of-two sides, any of them, given at run time; row r of it has its coordinates in bit fields of r. The
// keys that a box of queries sees are a box too (both ends of a window are monotone); it is cut into key tiles from its
// own first key on. Tiles that every query sees whole need no mask, and they are a box of the grid of tiles.
#pragma once
#include "window.cuh"

namespace natten {

// Coordinate along axis a of row r of a box; axis 2 is in the lowest bits.
NATTEN_DEVICE int coordinate(const int (&log2)[3], int row, int a) {
  if (a < 2) row >>= log2[2];
  if (a < 1) row >>= log2[1];
  return row & ((1 << log2[a]) - 1);
}

// x[a] of an array in registers.
NATTEN_DEVICE int pick(const int (&x)[3], int a) { return a == 0 ? x[0] : a == 1 ? x[1] : x[2]; }

// A box of queries: of one batch item, one head and one residue per axis.
struct QueryTile {
  int batch;
  int head;
  int residue[3];
  int base[3];  // position of row 0

  // False if the residue ends before the box. Along a causal axis the last boxes, which see most keys, come first.
  __device__ __forceinline__ bool place(const Geometry& geometry, const TilePlan& plan, int tile) {
    bool any = true;
#pragma unroll
    for (int a = 2; a >= 0; --a) {
      const Axis& axis = geometry.axes[a];
      const int rest = divide(tile, plan.tiles[a]);
      int along = tile - rest * (int)plan.tiles[a].value;
      if (axis.is_causal) along = (int)plan.tiles[a].value - 1 - along;
      const int box = divide(along, axis.dilation);
      residue[a] = along - box * (int)axis.dilation.value;
      base[a] = box << plan.query_log2[a];
      any &= base[a] < query_count(axis, residue[a]);
      tile = rest;
    }
    batch = divide(tile, plan.heads);
    head = tile - batch * (int)plan.heads.value;
    return any;
  }

  __device__ __forceinline__ bool exists(const Geometry& geometry, const TilePlan& plan, int row) const {
    bool inside = true;
#pragma unroll
    for (int a = 0; a < 3; ++a)
      inside &= base[a] + coordinate(plan.query_log2, row, a) < query_count(geometry.axes[a], residue[a]);
    return inside;
  }

  // What the query of `row` (clamped into the residue) sees along axis a.
  __device__ __forceinline__ Range sees(const Geometry& geometry, const TilePlan& plan, int row, int a) const {
    const int queries = query_count(geometry.axes[a], residue[a]);
    const int position = minimum(base[a] + coordinate(plan.query_log2, row, a), queries - 1);
    return window(geometry.axes[a], queries, key_count(geometry.axes[a], residue[a]), position);
  }

  // What the first and the last query see along axis `a`, which need not be known to the compiler.
  __device__ __forceinline__ void ends_see(const Geometry& geometry, const TilePlan& plan, int a, Range& by_first,
                                           Range& by_last) const {
    const Axis& axis = geometry.axes[a];
    const int here = pick(residue, a), first = pick(base, a);
    const int queries = query_count(axis, here), keys = key_count(axis, here);
    by_first = window(axis, queries, keys, first);
    by_last = window(axis, queries, keys, minimum(first + (1 << plan.query_log2[a]), queries) - 1);
  }

  // Offset in elements of the tensor row of `row`.
  __device__ __forceinline__ long long offset(const Geometry& geometry, const TilePlan& plan, const Strides& strides,
                                              int row) const {
    long long at = batch * strides.batch + head * strides.head;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const long long position = base[a] + coordinate(plan.query_log2, row, a);
      at += (residue[a] + position * (int)geometry.axes[a].dilation.value) * strides.axis[a];
    }
    return at;
  }
};

// The key tiles of a query tile: a grid, and inside it the box of tiles without a mask.
struct KeyGrid {
  int log2[3];        // sides of a tile
  int count[3];       // keys from the first to the last one seen
  int tiles[3];
  int last[3];        // where the last tile begins, counted from the first key
  int full_begin[3];
  int full_end[3];    // not before full_begin

  // Cuts axis a into tiles of 2^side_log2 keys, given what the first and the last query of the box see along it.
  __device__ __forceinline__ void cut(int a, int side_log2, const Range& by_first, const Range& by_last) {
    const int side = 1 << side_log2;
    const int keys = maximum(by_last.end - by_first.start, 0);
    // Keys begin .. end, counted from the first, are seen by all queries of the box.
    const int begin = maximum(by_last.start - by_first.start, 0);
    const int end = maximum(by_first.end - by_first.start, 0);
    const int full_from = (begin + side - 1) >> side_log2;
    log2[a] = side_log2;
    count[a] = keys;
    tiles[a] = (keys + side - 1) >> side_log2;
    last[a] = maximum(keys - side, 0);
    full_begin[a] = full_from;
    full_end[a] = maximum(end >> side_log2, full_from);
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
