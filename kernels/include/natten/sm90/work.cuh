// SPDX-License-Identifier: MIT OR Apache-2.0
// A work item of the Hopper kernel: one tile of queries and the grid of key tiles that it sees.
#pragma once
#include "../window.cuh"
#include "config.cuh"

namespace natten {
namespace sm90 {

// The producer describes an item to itself and to the consumers in 24 words of shared memory: it has few registers.
//   0 key tiles that every query of the item sees whole | 1 all key tiles; 0: no further item | 2 batch | 3 head
//   4 + 4 a, for each axis a: position of the first query | residue | coordinate of the first key seen | key tiles
//  16 + 2 a, for each axis a: the box of full tiles among them, from .. to
//  22 outermost coordinate of the keys | 23 of the values
enum { ITEM_AXES = 16, ITEM_FULL_BOX = 64, ITEM_OUTER = 88 };

// Queries of a tile along an axis.
template <int WARPGROUPS>
NATTEN_DEVICE int query_side(const ForwardParamsSm90& p, int axis) {
  return (axis == p.query_side ? WARPGROUPS : 1) << p.query_box_log2[axis];
}

// Notes down which query tile of which residue item `index` is along each axis, as one number; returns the rest of the
// index, heads and batch. Ctas work on neighbouring items at the same time, so neighbours should see the same
// keys: the grid of tiles is cut into slabs along axis 0, those along axis 1, those along axis 2.
NATTEN_DEVICE int find_tiles(const ForwardParamsSm90& p, int index, unsigned at) {
  const unsigned all[3] = {p.tiles[0].value, p.tiles[1].value, p.tiles[2].value};
  unsigned rest = (unsigned)index / (all[0] * all[1] * all[2]);
  unsigned left = (unsigned)index - rest * (all[0] * all[1] * all[2]);
  unsigned side[3] = {all[0], all[1], all[2]};  // of what has been cut so far
  unsigned first[3];
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const unsigned width = (unsigned)p.neighbours[a];
    side[a] = width;
    const unsigned slab = side[0] * side[1] * side[2];
    first[a] = left / slab * width;
    left %= slab;
    side[a] = width < all[a] - first[a] ? width : all[a] - first[a];
  }
#pragma unroll
  for (int a = 2; a >= 0; --a) {
    arch::store_shared(at + ITEM_AXES + 16 * a, first[a] + left % side[a]);
    left /= side[a];
  }
  return (int)rest;
}

// Describes item `index` at `at`; false, and nothing useful there, if its residue has no queries in this tile.
template <class C>
NATTEN_DEVICE bool describe_item(const ForwardParamsSm90& p, int index, unsigned at) {
  const int rest = find_tiles(p, index, at);
  const int batch = divide(rest, p.heads);
  const int head = rest - batch * (int)p.heads.value;
  const int head_kv = divide(head, p.geometry.heads_per_kv);
  int key_outer = batch * p.key_steps.batch + head_kv * p.key_steps.head;
  int value_outer = batch * p.value_steps.batch + head_kv * p.value_steps.head;
  bool exists = true;
  int full = 1;
  int tiles = 1;
#pragma unroll 1
  for (int a = 2; a >= 0; --a) {
    const Axis& axis = p.geometry.axes[a];
    int along = (int)arch::load_shared(at + ITEM_AXES + 16 * a);
    // Items that see most keys come first.
    if (axis.is_causal) along = (int)p.tiles[a].value - 1 - along;
    const int tile = divide(along, p.residues[a]);
    const int residue = along - tile * (int)p.residues[a].value;
    const int side = query_side<C::WARPGROUPS>(p, a);
    const int base = tile * side;
    const int queries = query_count(axis, residue);
    const int keys = key_count(axis, residue);
    exists &= base < queries;

    const int log2 = p.key_box_log2[a];
    const Range first = window(axis, queries, keys, base);
    const Range last = window(axis, queries, keys, minimum(base + side, queries) - 1);
    const int count = (last.end - first.start + (1 << log2) - 1) >> log2;
    const int from = (last.start - first.start + (1 << log2) - 1) >> log2;
    const int to = maximum(maximum(first.end - first.start, 0) >> log2, from);
    tiles *= count;
    full *= to - from;
    key_outer += residue * p.key_steps.residue[a];
    value_outer += residue * p.value_steps.residue[a];
    arch::store_shared(at + ITEM_AXES + 16 * a, base, residue, first.start, count);
    arch::store_shared(at + ITEM_FULL_BOX + 8 * a, from, to);
  }
  const int additional = p.geometry.additional_keys;
  arch::store_shared(at, full + additional / C::KEYS, tiles + (additional + C::KEYS - 1) / C::KEYS, batch, head);
  arch::store_shared(at + ITEM_OUTER, key_outer, value_outer);
  return exists;
}

}  // namespace sm90
}  // namespace natten
