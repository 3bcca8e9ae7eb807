// SPDX-License-Identifier: MIT OR Apache-2.0
// The parameters of the forward kernels that have boxes copied, Hopper's and Blackwell's, field by field;
// natten-cuda/src/families/boxes/params.rs mirrors this file.
#pragma once
#include "arch/tma.cuh"
#include "params.h"

namespace natten {

// What the outermost axis of a tensor map holds. The axes are, innermost first: head_dim, the positions along token axes
// 2, 1, 0, and one for all the rest, whose coordinate is the sum of these steps times batch item, head and residues.
//
// What lies past a residue's end must arrive as zeros, so it must end where the map's axis ends: all residues of a launch
// have the same length. Where a dilation does not divide its axis they are not all that there are, and the tensors begin
// at the first of them.
struct MapSteps {
  int batch;
  int head;
  int residue[3];
};

// In which order a head's tiles come: in boxes of neighbours, which meet the same columns; axis 2 fastest inside and among them. Boxes at
// the end of an axis may be shorter. Of two divisors the second is for those, and of four those are first by axis 0, then by axis 1.
struct TileOrder {
  Divisor all;         // tiles of a head,
  Divisor slab;        // of the boxes that stand side by side along axes 1 and 2,
  Divisor line[2];     // of those along axis 2,
  Divisor box[4];      // of one,
  Divisor side[3][2];  // and of one along an axis
};

struct ForwardParamsSm90 {
  arch::TensorMap query;
  arch::TensorMap key;
  arch::TensorMap value;
  arch::TensorMap additional_key;    // unused without additional keys
  arch::TensorMap additional_value;  // unused without additional keys
  arch::TensorMap out_map;           // unused where rows are stored alone
  void* out;
  float* lse;  // natural log; null where nobody asked
  Strides out_strides;
  Strides lse_strides;
  Geometry geometry;
  Divisor tiles[3];       // per axis: residues * query tiles of one residue
  Divisor residues[3];    // residues of each axis that this launch works on, from 0; at most the dilation
  TileOrder order;        // of items; then come heads, then batch
  Divisor heads;
  int items;              // query tiles of all heads and batch items
  int query_box_log2[3];  // queries of one warpgroup along each axis, log2; 64 in all, or 128 on Blackwell
  int query_side;         // the axis along which the warpgroups' boxes stand side by side
  Divisor key_sides[3];   // keys of one tile along each axis, any box that has room in a tile
  MapSteps query_steps;
  MapSteps key_steps;
  MapSteps value_steps;
  MapSteps additional_key_steps;
  MapSteps additional_value_steps;
  MapSteps out_steps;
  int rows_alone;         // not 0 where the copy engine cannot write the output as it lies
  // What a lane's weights of a tile may sum to before its row's reference moves, and what a row's must sum to that begin behind its
  // warpgroup's first tile.
  float most_weight;
  float least_weight;
};

static_assert(sizeof(MapSteps) == 20 && sizeof(ForwardParamsSm90) == 1600, "");
NATTEN_OFFSET(ForwardParamsSm90, out, 768);
NATTEN_OFFSET(ForwardParamsSm90, geometry, 864);
NATTEN_OFFSET(ForwardParamsSm90, tiles, 1124);
NATTEN_OFFSET(ForwardParamsSm90, residues, 1160);
NATTEN_OFFSET(ForwardParamsSm90, order, 1196);
NATTEN_OFFSET(ForwardParamsSm90, items, 1376);
NATTEN_OFFSET(ForwardParamsSm90, query_steps, 1432);
NATTEN_OFFSET(ForwardParamsSm90, most_weight, 1556);

}  // namespace natten
