// SPDX-License-Identifier: MIT OR Apache-2.0
// The parameters of the Hopper forward kernel, field by field; natten-cuda/src/sm90/params.rs mirrors this file.
#pragma once
#include "arch/tma.cuh"
#include "params.h"

namespace natten {

// Where a tensor map has the heads and the batch. Its axes are, innermost first: head_dim, the token axes 2, 1, 0, and
// one for what is left. Heads may share the innermost axis (step head_dim), stand in place of token axis 0 (step 1), or
// be in the last axis; batch items are in the last axis or there is only one.
struct MapSteps {
  int head_inner;  // coordinate 0 of head 1
  int head_axis0;  // coordinate 3 of head 1
  int head_outer;  // coordinate 4 of head 1
  int batch_outer; // coordinate 4 of batch item 1
};

// How many boxes one tile is loaded with: the box of a tensor map spans at most 256 tokens, dilation counted.
struct BoxSplit {
  int axis;    // token axis that is split, the tile's first of more than one position
  int count;   // boxes, 1 where nothing is split
  int tokens;  // step from one box to the next, tokens
};

struct ForwardParamsSm90 {
  arch::TensorMap query;
  arch::TensorMap key;
  arch::TensorMap value;
  arch::TensorMap additional_key;    // unused without additional keys
  arch::TensorMap additional_value;  // unused without additional keys
  void* out;
  float* lse;  // natural log; null where nobody asked
  Strides out_strides;
  Strides lse_strides;
  Geometry geometry;
  Divisor tiles[3];       // per axis: dilation * query tiles of one residue; axis 2 varies fastest, then heads, then batch
  Divisor heads;
  int items;              // query tiles of all heads and batch items
  int query_box_log2[3];  // queries of one warpgroup along each axis, log2; 64 in all
  int query_side;         // the axis along which the warpgroups' boxes stand side by side
  int key_box_log2[3];    // keys of one tile along each axis, log2
  BoxSplit query_split;
  BoxSplit key_split;
  MapSteps query_steps;
  MapSteps key_steps;
  MapSteps value_steps;
  MapSteps additional_key_steps;
  MapSteps additional_value_steps;
};

static_assert(sizeof(MapSteps) == 16 && sizeof(BoxSplit) == 12 && sizeof(ForwardParamsSm90) == 1152, "");
NATTEN_OFFSET(ForwardParamsSm90, out, 640);
NATTEN_OFFSET(ForwardParamsSm90, geometry, 736);
NATTEN_OFFSET(ForwardParamsSm90, tiles, 912);
NATTEN_OFFSET(ForwardParamsSm90, items, 960);
NATTEN_OFFSET(ForwardParamsSm90, query_split, 992);
NATTEN_OFFSET(ForwardParamsSm90, query_steps, 1016);

}  // namespace natten
