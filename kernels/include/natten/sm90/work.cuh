// SPDX-License-Identifier: MIT OR Apache-2.0
// How the producer of the Hopper kernel finds a work item: its place in the grid, and the key tiles that it sees.
#pragma once
#include "../grid.cuh"
#include "../params_sm90.h"
#include "item.cuh"

namespace natten {
namespace sm90 {

// Where the rows of an item begin along an axis.
struct RowStart {
  int base;  // position
  int residue;
};

// Boxes of queries side by side in a tile along an axis.
template <int BOXES>
NATTEN_DEVICE int query_boxes(const ForwardParamsSm90& p, int axis) {
  return axis == p.query_side ? BOXES : 1;
}

// Notes down which tile of which residue item `index` is along each axis, as one number; returns the rest of the
// index, heads and batch. Ctas work on neighbouring items at the same time, so neighbours should meet the same
// columns: the grid of tiles is cut into slabs along axis 0, those along axis 1, those along axis 2.
NATTEN_DEVICE int find_tiles(const Divisor (&tiles)[3], const int (&neighbours)[3], int index, const WorkItem& item) {
  const unsigned all[3] = {tiles[0].value, tiles[1].value, tiles[2].value};
  unsigned rest = (unsigned)index / (all[0] * all[1] * all[2]);
  unsigned left = (unsigned)index - rest * (all[0] * all[1] * all[2]);
  unsigned side[3] = {all[0], all[1], all[2]};  // of what has been cut so far
  unsigned first[3];
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const unsigned width = (unsigned)neighbours[a];
    side[a] = width;
    const unsigned slab = side[0] * side[1] * side[2];
    first[a] = left / slab * width;
    left %= slab;
    side[a] = width < all[a] - first[a] ? width : all[a] - first[a];
  }
#pragma unroll
  for (int a = 2; a >= 0; --a) {
    item.set_tile(a, first[a] + left % side[a]);
    left /= side[a];
  }
  return (int)rest;
}

// Notes down which tiles along the axis on which boxes stand side by side each of them meets: none, if it has no query or these
// see no key.
template <class C>
NATTEN_DEVICE void note_met(const ForwardParamsSm90& p, const Axis& axis, const RowStart& start, const AxisTiles<AnySide>& cut,
                            int first_key, const WorkItem& item) {
  const int queries = query_count(axis, start.residue), keys = key_count(axis, start.residue);
  const int side = 1 << p.query_box_log2[p.query_side];
#pragma unroll 1
  for (int box = 0; box < C::WARPGROUPS; ++box) {
    const int first = start.base + box * side;
    Range met = {0, 0};
    if (first < queries) {
      const int begin = window(axis, queries, keys, first).start - first_key;
      const int end = window(axis, queries, keys, minimum(first + side, queries) - 1).end - first_key;
      if (begin < end) met = {cut.side.whole(begin), cut.reaching(end)};
    }
    item.set_met(box, met);
  }
}

// Describes item `index`; false, and nothing useful there, if its residue has no queries in this tile.
template <class C>
NATTEN_DEVICE bool describe_item(const ForwardParamsSm90& p, int index, const WorkItem& item) {
  int batch = find_tiles(p.tiles, p.neighbours, index, item);
  const int head = take_index(batch, p.heads);
  const int head_kv = divide(head, p.geometry.heads_per_kv);
  int key_outer = batch * p.key_steps.batch + head_kv * p.key_steps.head;
  int value_outer = batch * p.value_steps.batch + head_kv * p.value_steps.head;
  const bool is_filled = AnyBox{p.key_sides}.rows() == C::KEYS;
  bool exists = true;
  int full = 1;
  int tiles = 1;
#pragma unroll 1
  for (int a = 2; a >= 0; --a) {
    const Axis& axis = p.geometry.axes[a];
    const int along = longest_first(axis, item.tile(a), p.tiles[a]);
    const Place here = find_place(along, p.residues[a]);
    const int boxes = query_boxes<C::BOXES>(p, a);
    const int base = here.box * (boxes << p.query_box_log2[a]);
    exists &= base < query_count(axis, here.residue);

    Range by_first, by_last;
    ends_see(axis, here.residue, base, boxes, p.query_box_log2[a], by_first, by_last);
    const AxisTiles<AnySide> cut = cut_axis(AnyBox{p.key_sides}.along(a), by_first, by_last);
    // Rows of a tile that hold no key are hidden as those are that no query sees, so such tiles are all masked.
    const Range full_box = is_filled ? Range{cut.full_begin, cut.full_end()} : Range{0, 0};
    // There is a tile in any item: where no query sees a key, one that is all hidden.
    const int along_axis = maximum(cut.tiles(), 1);
    if (C::LEAVES_OUT && a == p.query_side) note_met<C>(p, axis, {base, here.residue}, cut, by_first.start, item);
    tiles *= along_axis;
    full *= full_box.end - full_box.start;
    key_outer += here.residue * p.key_steps.residue[a];
    value_outer += here.residue * p.value_steps.residue[a];
    item.set(a, {base, here.residue, by_first.start, along_axis});
    item.set_full(a, full_box);
  }
  const int additional = p.geometry.additional_keys;
  item.set({full + additional / C::KEYS, tiles + (additional + C::KEYS - 1) / C::KEYS, batch, head});
  item.set_outer(key_outer, value_outer);
  return exists;
}

}  // namespace sm90
}  // namespace natten
