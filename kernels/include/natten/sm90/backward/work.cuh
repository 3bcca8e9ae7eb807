// SPDX-License-Identifier: MIT OR Apache-2.0
// How the producer of a Hopper backward pass finds a work item: a tile of rows, and the column tiles that it meets.
//
// The columns that a row meets are the keys that a query sees, or the queries that see a key. Both ends of either are monotone
// along an axis, so what a box of rows meets is a box, and so is what all of its rows meet.
#pragma once
#include "../../grid.cuh"
#include "../work.cuh"
#include "config.cuh"

namespace natten {
namespace sm90 {

template <bool OF_KEYS>
NATTEN_DEVICE int row_count(const Axis& axis, int residue) {
  return OF_KEYS ? key_count(axis, residue) : query_count(axis, residue);
}

// What the row at a position meets along an axis; a key may meet nothing.
template <bool OF_KEYS>
NATTEN_DEVICE Range meets(const Axis& axis, int residue, int position) {
  const int queries = query_count(axis, residue), keys = key_count(axis, residue);
  return OF_KEYS ? inverse_window(axis, queries, keys, position) : window(axis, queries, keys, position);
}

// Describes item `index`; false, and nothing useful there, if its residue has no rows in this tile.
template <class C>
NATTEN_DEVICE bool describe_item(const BackwardParamsSm90& p, int index, const WorkItem& item) {
  int batch = find_tiles(p.tiles, p.neighbours, index, item);
  const int head = take_index(batch, p.heads);
  const int sharing = (int)p.geometry.heads_per_kv.value;
  // In the pass over keys the first of the query heads that share them.
  const int column_head = C::OF_KEYS ? head * sharing : divide(head, p.geometry.heads_per_kv);
  int outer[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) outer[i] = batch * p.column_steps[i].batch + column_head * p.column_steps[i].head;
  bool exists = true;
  int full = 1;
  int tiles = 1;
#pragma unroll 1
  for (int a = 2; a >= 0; --a) {
    const Axis& axis = p.geometry.axes[a];
    // Of keys along a causal axis, the first are met by most queries.
    const int along = C::OF_KEYS ? item.tile(a) : longest_first(axis, item.tile(a), p.tiles[a]);
    const Place here = find_place(along, p.residues[a]);
    const int side = (a == p.row_side ? C::WARPGROUPS : 1) << p.row_box_log2[a];
    const int base = here.box * side;
    const int rows = row_count<C::OF_KEYS>(axis, here.residue);
    exists &= base < rows;

    const Range by_first = meets<C::OF_KEYS>(axis, here.residue, base);
    const Range by_last = meets<C::OF_KEYS>(axis, here.residue, minimum(base + side, rows) - 1);
    const AxisTiles cut = cut_axis(p.column_box_log2[a], by_first, by_last);
    const Range full_box = {cut.full_begin, cut.full_end()};
    tiles *= cut.tiles();
    full *= full_box.end - full_box.start;
#pragma unroll
    for (int i = 0; i < 2; ++i) outer[i] += here.residue * p.column_steps[i].residue[a];
    item.set(a, {base, here.residue, by_first.start, cut.tiles()});
    item.set_full(a, full_box);
  }
  if (C::OF_KEYS) {
    full *= sharing;
    tiles *= sharing;
  } else {
    full += p.geometry.additional_keys / C::COLUMNS;
    tiles += (p.geometry.additional_keys + C::COLUMNS - 1) / C::COLUMNS;
  }
  item.set({full, tiles, batch, head});
  item.set_outer(outer[0], outer[1]);
  return exists;
}

}  // namespace sm90
}  // namespace natten
