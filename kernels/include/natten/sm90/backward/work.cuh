// SPDX-License-Identifier: MIT OR Apache-2.0
// How the producer of a backward pass finds a work item: a tile of rows, and the column tiles that it meets.
//
// The columns that a row meets are the keys that a query sees, or the queries that see a key. Both ends of either are monotone
// along an axis, so what a box of rows meets is a box, and so is what all of its rows meet.
#pragma once
#include "../../grid.cuh"
#include "../rows.cuh"
#include "../work.cuh"
#include "../../params_sm90_backward.h"
#include "item.cuh"

namespace natten {
namespace sm90 {

// The share of a split among so many things; the last ones may get none.
NATTEN_DEVICE Range share_of(const int& splits, int split, int count) {
  const int most = (count + splits - 1) / splits;
  const int start = minimum(split * most, count);
  return {start, minimum(start + most, count)};
}

// Keys that every query sees come with the last split.
NATTEN_DEVICE int additional_keys(const BackwardParamsSm90& p, int split) {
  return split + 1 == p.splits ? p.geometry.additional_keys : 0;
}

// Describes item `index`; false, and nothing useful there, if its residue has no rows in this tile.
template <class C>
NATTEN_DEVICE bool describe_item(const BackwardParamsSm90& p, int index, const WorkItem& item, ItemPart& part) {
  int tile[3];
  int batch = find_tiles(p.tiles, p.order, index, tile);
#pragma unroll
  for (int a = 0; a < 3; ++a) item.set_tile(a, tile[a]);
  part.split = take_index(batch, p.parts);
  part.gradient = part.split % C::GRADIENTS;
  part.split /= C::GRADIENTS;
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
    const int side = (a == p.row_side ? C::BOXES : 1) << p.row_box_log2[a];
    const int base = here.box * side;
    const int rows = row_count<C::OF_KEYS>(axis);
    exists &= base < rows;

    const Range by_first = meets<C::OF_KEYS>(axis, base);
    const Range by_last = meets<C::OF_KEYS>(axis, minimum(base + side, rows) - 1);
    const AxisTiles<Log2Side> cut = cut_axis(Log2Box{p.column_box_log2}.along(a), by_first, by_last);
    const Range mine = a == p.split_axis ? share_of(p.splits, part.split, cut.tiles()) : Range{0, cut.tiles()};
    const int count = mine.end - mine.start;
    const Range full_box = {clamp(cut.full_begin - mine.start, 0, count), clamp(cut.full_end() - mine.start, 0, count)};
    tiles *= count;
    full *= full_box.end - full_box.start;
#pragma unroll
    for (int i = 0; i < 2; ++i) outer[i] += here.residue * p.column_steps[i].residue[a];
    item.set(a, {base, here.residue, by_first.start + (mine.start << p.column_box_log2[a]), count});
    item.set_full(a, full_box);
  }
  if (C::OF_KEYS) {
    const Range heads = p.split_axis == 3 ? share_of(p.splits, part.split, sharing) : Range{0, sharing};
    part.first_head = heads.start;
    part.heads = heads.end - heads.start;
    full *= part.heads;
    tiles *= part.heads;
  } else {
    part.first_head = 0;
    part.heads = 1;
    const int additional = additional_keys(p, part.split);
    full += additional / C::COLUMNS;
    tiles += (additional + C::COLUMNS - 1) / C::COLUMNS;
  }
  item.set({full, tiles, batch, head});
  item.set_outer(outer[0], outer[1]);
  return exists;
}

}  // namespace sm90
}  // namespace natten
