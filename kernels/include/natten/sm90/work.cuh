// SPDX-License-Identifier: MIT OR Apache-2.0
// A work item of the Hopper kernel: one tile of queries and the grid of key tiles that it sees.
#pragma once
#include "../window.cuh"
#include "config.cuh"

namespace natten {
namespace sm90 {

// The producer describes an item to itself and to the consumers in 20 words of shared memory: it has few registers.
//   0 key tiles that every query of the item sees whole | 1 all key tiles; 0: no further item | 2 batch | 3 head
//   4 + 4 a, for each axis a: position of the first query | residue | first key seen | key tiles
//  16 + 2 a, for each axis a: the box of full tiles among them, from .. to
enum { ITEM_AXES = 16, ITEM_FULL_BOX = 64 };

// The key tiles along one axis, counted from the first key seen.
struct TileRange {
  int start;       // position of the first key
  int count;
  int full_start;  // tiles full_start .. full_end - 1 are seen whole by every query
  int full_end;
};

// Queries of a tile along an axis.
template <int WARPGROUPS>
NATTEN_DEVICE int query_side(const ForwardParamsSm90& p, int axis) {
  return (axis == p.query_side ? WARPGROUPS : 1) << p.query_box_log2[axis];
}

// Describes item `index` at `at`; false, and nothing useful there, if its residue has no queries in this tile.
template <class C>
NATTEN_DEVICE bool describe_item(const ForwardParamsSm90& p, int index, unsigned at) {
  bool exists = true;
  int full = 1;
  int tiles = 1;
#pragma unroll 1
  for (int a = 2; a >= 0; --a) {
    const Axis& axis = p.geometry.axes[a];
    const int rest = divide(index, p.tiles[a]);
    const int along = index - rest * (int)p.tiles[a].value;
    const int tile = divide(along, axis.dilation);
    const int residue = along - tile * (int)axis.dilation.value;
    const int side = query_side<C::WARPGROUPS>(p, a);
    const int base = tile * side;
    const int queries = query_count(axis, residue);
    const int keys = key_count(axis, residue);
    index = rest;
    exists &= base < queries;

    const int log2 = p.key_box_log2[a];
    const Range first = window(axis, queries, keys, base);
    const Range last = window(axis, queries, keys, minimum(base + side, queries) - 1);
    const int count = (last.end - first.start + (1 << log2) - 1) >> log2;
    const int from = (last.start - first.start + (1 << log2) - 1) >> log2;
    const int to = maximum(maximum(first.end - first.start, 0) >> log2, from);
    tiles *= count;
    full *= to - from;
    arch::store_shared(at + ITEM_AXES + 16 * a, base, residue, first.start, count);
    arch::store_shared(at + ITEM_FULL_BOX + 8 * a, from, to);
  }
  const int additional = p.geometry.additional_keys;
  const int batch = divide(index, p.heads);
  arch::store_shared(at, full + additional / C::KEYS, tiles + (additional + C::KEYS - 1) / C::KEYS, batch,
                     index - batch * (int)p.heads.value);
  return exists;
}

}  // namespace sm90
}  // namespace natten
