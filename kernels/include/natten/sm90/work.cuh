// SPDX-License-Identifier: MIT OR Apache-2.0
// How the producer of the Hopper kernel finds a work item: its place in the grid, and the key tiles that it sees.
#pragma once
#include "../grid.cuh"
#include "../params_sm90.h"
#include "../softmax.cuh"
#include "item.cuh"

namespace natten {
namespace sm90 {

// Boxes of queries side by side in a tile along an axis.
template <int BOXES>
NATTEN_DEVICE int query_boxes(const ForwardParamsSm90& p, int axis) {
  return axis == p.query_side ? BOXES : 1;
}

// Takes the slowest of several indices off a number that holds them all, of which each step is so many.
NATTEN_DEVICE int take_slowest(int& number, const Divisor& step) {
  const int index = divide(number, step);
  number -= index * (int)step.value;
  return index;
}

// Tells which tile of which residue item `index` is along each axis, as one number; returns the rest of the index, heads and batch.
// Ctas work on neighbouring items at the same time.
NATTEN_DEVICE int find_tiles(const Divisor (&tiles)[3], const TileOrder& order, int index, int (&at)[3]) {
  const int rest = take_slowest(index, order.all);
  int first[3], is_short[3];
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const Divisor& step = a == 0 ? order.slab : a == 1 ? order.line[is_short[0]] : order.box[2 * is_short[0] + is_short[1]];
    const int side = (int)order.side[a][0].value;
    first[a] = take_slowest(index, step) * side;
    is_short[a] = side > (int)tiles[a].value - first[a];
  }
#pragma unroll
  for (int a = 2; a > 0; --a) at[a] = first[a] + take_index(index, order.side[a][is_short[a]]);
  at[0] = first[0] + index;
  return rest;
}

// Which tiles along the axis on which boxes stand side by side one of them meets: none, if it has no query or these see no key. Tiles
// are counted from `first_key` on.
NATTEN_DEVICE Range meet_tiles(const ForwardParamsSm90& p, int base, int first_key, int box) {
  const Axis& axis = p.geometry.axes[p.query_side];
  const AnySide tile = AnyBox{p.key_sides}.along(p.query_side);
  const Residue of = any_residue(axis);
  const int side = 1 << p.query_box_log2[p.query_side];
  const int first = base + box * side;
  if (first >= of.queries) return {0, 0};
  const int begin = window(axis, of, first).start - first_key;
  const int end = window(axis, of, minimum(first + side, of.queries) - 1).end - first_key;
  return begin < end ? Range{tile.whole(begin), tile.whole(end + tile.length() - 1)} : Range{0, 0};
}

// Scales in powers of two beyond this leave near no score of note: each item is done carefully from the start.
NATTEN_DEVICE bool is_always_careful(const ForwardParamsSm90& p) { return p.geometry.scale_log2 > NATTEN_FAR; }

// Whether an item's rows are stored one by one: no map does for the output, or the item comes again for some of them.
NATTEN_DEVICE bool stores_rows_alone(const ForwardParamsSm90& p, const WorkItem& item) {
  return p.rows_alone != 0 || (item.is_careful() && !is_always_careful(p));
}

// What another lane holds.
NATTEN_DEVICE int of_lane(int value, int lane) { return (int)arch::shuffle_from((unsigned)value, lane); }

// The product and the sum of what the first three lanes hold.
NATTEN_DEVICE int product_of_axes(int value) { return of_lane(value, 0) * of_lane(value, 1) * of_lane(value, 2); }
NATTEN_DEVICE int sum_of_axes(int value) { return of_lane(value, 0) + of_lane(value, 1) + of_lane(value, 2); }

// A warp describes item `index`, a lane an axis; false, and nothing useful there, if its residue has no queries in this tile.
template <class C>
NATTEN_DEVICE bool describe_item(const ForwardParamsSm90& p, int index, const WorkItem& item, int lane) {
  int tile[3];
  int batch = find_tiles(p.tiles, p.order, index, tile);
  const int head = take_index(batch, p.heads);
  if (lane == 0) item.set({0, 0, batch, head});  // few registers are left to keep them in
  const int a = minimum(lane, 2);                // the other lanes do as lane 2 does
  const Axis& axis = p.geometry.axes[a];
  const Place here = find_place(longest_first(axis, pick(tile, a), p.tiles[a]), p.residues[a]);
  const int boxes = query_boxes<C::BOXES>(p, a);
  const int base = here.box * (boxes << p.query_box_log2[a]);
  const Residue of = any_residue(axis);
  const bool exists = arch::ballot(base >= of.queries) == 0;
  Range by_first, by_last;
  ends_see(axis, of, base, boxes, p.query_box_log2[a], by_first, by_last);
  const AxisTiles<AnySide> cut = cut_axis(AnyBox{p.key_sides}.along(a), by_first, by_last);
  // Rows of a tile that hold no key are hidden as those are that no query sees, so such tiles are all masked.
  const bool is_filled = AnyBox{p.key_sides}.rows() == C::KEYS;
  const Range full_box = is_filled ? Range{cut.full_begin, cut.full_end()} : Range{0, 0};
  // There is a tile in any item: where no query sees a key, one that is all hidden.
  const int tiles = maximum(cut.tiles(), 1);
  if (lane < 3) {
    item.set(a, {base, here.residue, by_first.start, tiles});
    item.set_full(a, full_box);
  }
  const int full = product_of_axes(full_box.end - full_box.start), all = product_of_axes(tiles);
  const int key_outer = sum_of_axes(here.residue * p.key_steps.residue[a]);
  const int value_outer = sum_of_axes(here.residue * p.value_steps.residue[a]);
  if (C::LEAVES_OUT) {
    const int side = p.query_side;
    const int from = of_lane(base, side), first_key = of_lane(by_first.start, side);
    if (lane < C::WARPGROUPS) item.set_met(lane, meet_tiles(p, from, first_key, lane));
  }
  if (lane == 0) {
    const WorkItem::Head of = item.head();
    const int head_kv = divide(of.head, p.geometry.heads_per_kv);
    item.set_outer(key_outer + of.batch * p.key_steps.batch + head_kv * p.key_steps.head,
                   value_outer + of.batch * p.value_steps.batch + head_kv * p.value_steps.head);
    const int additional = p.geometry.additional_keys;
    item.set({full + additional / C::KEYS, all + (additional + C::KEYS - 1) / C::KEYS, of.batch, of.head});
  }
  return exists;
}

}  // namespace sm90
}  // namespace natten
