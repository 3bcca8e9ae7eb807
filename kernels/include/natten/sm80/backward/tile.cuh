// SPDX-License-Identifier: MIT OR Apache-2.0
// The box of rows that a cta of an Ampere backward pass works on: queries, or keys.
#pragma once
#include "../../grid.cuh"
#include "../../params_sm80_backward.h"

namespace natten {
namespace sm80 {

template <bool OF_KEYS>
NATTEN_DEVICE int row_count(const Axis& axis, int residue) {
  return OF_KEYS ? key_count(axis, residue) : query_count(axis, residue);
}

// What the row at a position meets along an axis; a key may meet nothing.
template <bool OF_KEYS>
NATTEN_DEVICE Range meets(const Axis& axis, int residue, int position) {
  const Residue of = residue_of(axis, residue);
  return OF_KEYS ? inverse_window(axis, of, position) : window(axis, of, position);
}

// A box of rows: of one batch item, one head of theirs and one residue per axis.
struct RowTile {
  int batch;
  int head;
  int residue[3];
  int base[3];  // position of row 0

  // False if the residue ends before the box.
  template <bool OF_KEYS>
  __device__ __forceinline__ bool place(const BackwardTileParams& p, int tile) {
    bool any = true;
#pragma unroll
    for (int a = 2; a >= 0; --a) {
      const Axis& axis = p.geometry.axes[a];
      const int index = take_index(tile, p.tiles[a]);
      // Of keys along a causal axis, the first are met by most queries.
      const Place here = find_place(OF_KEYS ? index : longest_first(axis, index, p.tiles[a]), axis.dilation);
      residue[a] = here.residue;
      base[a] = here.box << p.row_log2[a];
      any &= base[a] < row_count<OF_KEYS>(axis, residue[a]);
    }
    head = take_index(tile, p.heads);
    batch = tile;
    return any;
  }

  template <bool OF_KEYS>
  __device__ __forceinline__ bool exists(const BackwardTileParams& p, int row) const {
    bool inside = true;
#pragma unroll
    for (int a = 0; a < 3; ++a)
      inside &= base[a] + coordinate(p.row_log2, row, a) < row_count<OF_KEYS>(p.geometry.axes[a], residue[a]);
    return inside;
  }

  // What rows at a coordinate (clamped into the residue) of the box meet along axis a.
  template <bool OF_KEYS>
  __device__ __forceinline__ Range meets(const BackwardTileParams& p, int a, int along) const {
    const Axis& axis = p.geometry.axes[a];
    const int last = row_count<OF_KEYS>(axis, residue[a]) - 1;
    return sm80::meets<OF_KEYS>(axis, residue[a], minimum(base[a] + along, last));
  }

  // What the first and the last row meet along axis `a`, which need not be known to the compiler.
  template <bool OF_KEYS>
  __device__ __forceinline__ void ends_meet(const BackwardTileParams& p, int a, Range& by_first, Range& by_last) const {
    const Axis& axis = p.geometry.axes[a];
    const int of = pick(residue, a), from = pick(base, a);
    const int to = minimum(from + (1 << p.row_log2[a]), row_count<OF_KEYS>(axis, of));
    by_first = sm80::meets<OF_KEYS>(axis, of, from);
    by_last = sm80::meets<OF_KEYS>(axis, of, to - 1);
  }

  // Offset of `row` in a tensor with these strides.
  template <bool OF_KEYS>
  __device__ __forceinline__ long long offset(const BackwardTileParams& p, const Strides& strides, int row) const {
    long long at = batch * strides.batch + head * strides.head;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const Axis& axis = p.geometry.axes[a];
      const int first = OF_KEYS ? first_key(axis, residue[a]) : first_query(axis, residue[a]);
      at += token_at(axis, first, base[a] + coordinate(p.row_log2, row, a)) * strides.axis[a];
    }
    return at;
  }
};

}  // namespace sm80
}  // namespace natten
