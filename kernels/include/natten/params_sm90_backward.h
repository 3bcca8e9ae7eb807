// SPDX-License-Identifier: MIT OR Apache-2.0
// The parameters of the Hopper backward kernels, field by field; natten-cuda mirrors this file.
#pragma once
#include "params_sm90.h"

namespace natten {

// A pass has items, which are tiles of rows, and walks over tiles of columns. Over queries (d_query): rows are queries with
// d_out beside them, columns are keys with their values. Over keys (d_key, d_value): rows are keys with their values, columns
// are queries with d_out beside them. Operand 0 is what scores are made of, operand 1 what d_weights are made of.
struct BackwardParamsSm90 {
  arch::TensorMap row[2];
  arch::TensorMap column[2];
  arch::TensorMap additional[2];  // keys and values that every query sees; pass over queries only
  void* d_row[2];                 // d_query, null; or d_key, d_value; partial sums of these in f32 where there are splits
  const float* statistics;        // pairs: log-sum-exp times log2(e), +inf for -inf; rowsum(d_out * out) - d_lse
  Strides d_row_strides[2];
  Strides statistics_strides;     // in pairs
  long long split_strides[2];     // in elements, from the partial sums of one split to the next
  Geometry geometry;
  Divisor tiles[3];         // per axis: residues * row tiles of one residue
  Divisor residues[3];      // residues of each axis that this launch works on, from 0; at most the dilation
  TileOrder order;          // of items; then come heads, then batch
  Divisor parts;            // of an item: its splits, times its gradients where these have items of their own
  Divisor heads;            // of the rows: query heads or key heads
  int items;                // parts of the row tiles of all heads and batch items
  int splits;               // the column tiles of an item are split into so many; 1: results are written as they are
  int split_axis;           // along which; 3: by the heads that share keys
  int row_box_log2[3];      // rows of one warpgroup along each axis, log2; 64 in all
  int row_side;             // the axis along which the warpgroups' boxes stand side by side
  int column_box_log2[3];   // columns of one tile along each axis, log2
  MapSteps row_steps[2];
  MapSteps column_steps[2];
  MapSteps additional_steps[2];
  int padding[13];
};

static_assert(sizeof(BackwardParamsSm90) == 1664, "");
NATTEN_OFFSET(BackwardParamsSm90, d_row, 768);
NATTEN_OFFSET(BackwardParamsSm90, geometry, 928);
NATTEN_OFFSET(BackwardParamsSm90, tiles, 1188);
NATTEN_OFFSET(BackwardParamsSm90, items, 1452);
NATTEN_OFFSET(BackwardParamsSm90, row_steps, 1492);

}  // namespace natten
