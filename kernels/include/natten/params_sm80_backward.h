// SPDX-License-Identifier: MIT OR Apache-2.0
// The parameters of the Ampere backward kernels, field by field; natten-cuda/src/families/sm80/backward/params.rs mirrors
// this file.
#pragma once
#include "params.h"

namespace natten {

// One pass: rows are what it writes gradients of, columns what these meet. In the pass over queries rows are q and d_out,
// columns k and v; in the pass over keys rows are k and v, columns q and d_out. Bases, strides and rows are multiples of 16
// bytes. Boxes have power-of-two sides; row r of one has its coordinates in bit fields of r, axis 2 lowest.
struct BackwardTileParams {
  const void* row[2];
  const void* column[2];
  const void* additional[2];  // keys and values that every query sees, in the pass over queries; null without
  void* d_row[2];             // d_query; or d_key and d_value, or their partial sums in f32
  const float* statistics;    // pairs of every query: log-sum-exp times log2(e), +inf for -inf; rowsum(d_out * out) - d_lse
  Strides row_strides[2];
  Strides column_strides[2];
  Strides d_row_strides[2];
  Strides statistics_strides;  // in pairs
  ListStrides additional_strides[2];
  long long partial_strides[2];  // elements between two splits' partial sums
  Geometry geometry;
  Divisor tiles[3];    // per axis: dilation * boxes of rows of one residue; axis 2 varies fastest over the grid
  Divisor heads;       // then the rows' heads, then batch
  int row_log2[3];     // box of rows along each axis, log2
  int column_log2[3];  // box of columns along each axis, log2; at least 1 along axis 2
  int splits;          // ctas (blockIdx.y) that share the columns of a box of rows, each with sums of its own; 1: no partial sums
  int split_axis;      // the axis along which they share them
  int padding;
};

static_assert(sizeof(BackwardTileParams) == 760, "");
NATTEN_OFFSET(BackwardTileParams, d_row, 48);
NATTEN_OFFSET(BackwardTileParams, statistics, 64);
NATTEN_OFFSET(BackwardTileParams, statistics_strides, 312);
NATTEN_OFFSET(BackwardTileParams, partial_strides, 400);
NATTEN_OFFSET(BackwardTileParams, geometry, 416);
NATTEN_OFFSET(BackwardTileParams, tiles, 676);
NATTEN_OFFSET(BackwardTileParams, column_log2, 736);
NATTEN_OFFSET(BackwardTileParams, splits, 748);

}  // namespace natten
