// SPDX-License-Identifier: MIT OR Apache-2.0
// The parameters of every kernel, field by field; natten-cuda/src/params.rs mirrors this file.
#pragma once

namespace natten {

// Division by a run-time constant: n / value for 0 <= n < 2^31. The host fills it, since ptxas never
// strength-reduces a division, not even by a literal 1.
struct Divisor {
  unsigned value;  // at least 1
  unsigned magic;  // ceil(2^(31 + ceil(log2 value)) / value), 0 for value 1
  unsigned shift;  // ceil(log2 value) - 1, 0 for value 1
};

// So many tokens of an axis from its beginning on: of each residue `quotient`, and one more of the first `remainder`.
struct Tokens {
  int quotient;   // tokens / dilation
  int remainder;  // tokens % dilation
};

// One token axis, and the part of it that a call holds. Inside a residue class (token mod dilation) windows are plain intervals.
struct Axis {
  Tokens whole;        // all of its tokens
  Tokens query_begin;  // those before the first query,
  Tokens query_end;    // and up to the last one
  Tokens key_begin;
  Tokens key_end;
  int window;       // kernel_size, tokens
  int reach;        // where the window of a stride block begins, from the block's beginning on: stride / 2 - window / 2, causal: stride - window
  int is_causal;    // 0 or 1
  Divisor stride;   // window stride, tokens
  Divisor dilation; // tokens
};

// Strides in elements of a tensor [batch, X, Y, Z, heads, head_dim] whose last axis is contiguous.
struct Strides {
  long long batch;
  long long axis[3];
  long long head;
};

// Strides in elements of a tensor [batch, token, heads, head_dim] whose last axis is contiguous.
struct ListStrides {
  long long batch;
  long long token;
  long long head;
};

// How items (queries, or keys in the pass over keys) are dealt to ctas. A lane group owns a block of
// 2^sum(block_log2) neighbouring items; a cta holds 2^(sum(cta_log2) + cta_heads_log2) lane groups.
struct Decomposition {
  Divisor tiles[3];    // per axis: dilation * boxes of one residue; axis 2 varies fastest over the grid
  Divisor head_tiles;  // then heads, then batch
  int block_log2[3];   // items of one lane group along each axis, log2
  int cta_log2[3];     // lane groups of one cta along each axis, log2
  int cta_heads_log2;  // lane groups of one cta along the heads, log2
  int heads;           // items' head count: query heads, or key heads in the pass over keys
};

// The problem itself, shared by every pass.
struct Geometry {
  Axis axes[3];
  Divisor heads_per_kv;  // query heads that share one key head
  int head_dim;          // elements of a query and key row
  int head_dim_v;        // elements of a value and out row
  int additional_keys;   // keys that every query sees, after those of its window
  float scale;           // natural softmax scale
  float scale_log2;      // scale * log2(e)
};

struct ForwardParams {
  const void* query;
  const void* key;
  const void* value;
  const void* additional_key;    // null without additional keys
  const void* additional_value;  // null without additional keys
  void* out;
  float* lse;  // natural log; null where nobody asked
  Strides query_strides;
  Strides key_strides;
  Strides value_strides;
  Strides out_strides;
  Strides lse_strides;
  ListStrides additional_key_strides;
  ListStrides additional_value_strides;
  Geometry geometry;
  Decomposition decomposition;
};

// How a tensor-core kernel cuts the work: a cta has one box of queries and walks over boxes of keys. Row r of a box has
// its coordinates in bit fields of r, axis 2 lowest.
struct TilePlan {
  Divisor tiles[3];   // per axis: dilation * boxes of one residue; axis 2 varies fastest over the grid
  Divisor heads;      // then query heads, then batch
  int query_log2[3];  // box of queries along each axis, log2
  int key_log2[3];    // box of keys along each axis, log2
};

// As ForwardParams, for kernels on tiles. Bases, strides and rows are multiples of 16 bytes.
struct TileForwardParams {
  const void* query;
  const void* key;
  const void* value;
  const void* additional_key;    // null without additional keys
  const void* additional_value;  // null without additional keys
  void* out;
  float* lse;  // natural log; null where nobody asked
  Strides query_strides;
  Strides key_strides;
  Strides value_strides;
  Strides out_strides;
  Strides lse_strides;
  ListStrides additional_key_strides;
  ListStrides additional_value_strides;
  Geometry geometry;
  TilePlan plan;
};

// The passes over queries (d_query), over keys (d_key, d_value), and over additional keys. The last runs the
// code of the pass over keys on a geometry whose keys are the additional ones, all windows open, and leaves partial sums.
struct BackwardParams {
  const void* query;
  const void* key;
  const void* value;
  const void* additional_key;    // pass over queries only
  const void* additional_value;  // pass over queries only
  const void* d_out;
  const float* statistics;  // pairs: log-sum-exp times log2(e), +inf for -inf; rowsum(d_out * out) - d_lse
  void* d_query;
  void* d_key;
  void* d_value;
  Strides query_strides;
  Strides key_strides;
  Strides value_strides;
  Strides d_out_strides;
  Strides statistics_strides;  // in pairs
  Strides d_query_strides;
  Strides d_key_strides;
  Strides d_value_strides;
  ListStrides additional_key_strides;
  ListStrides additional_value_strides;
  long long partial_key_stride;    // elements between two splits' partial sums of d_key
  long long partial_value_stride;  // likewise of d_value
  Geometry geometry;
  Decomposition decomposition;
  int rows_per_split;  // rows of queries (runs along axis 2) that one split (blockIdx.y) covers; 0: no splits
};

// Rows of a tensor [batch, X, Y, Z, heads, row], numbered with the head fastest.
struct RowCount {
  Divisor heads;
  Divisor axis[3];
  int rows;    // all of them
  int length;  // elements of one row
};

// Fills BackwardParams::statistics.
struct DeltaParams {
  const void* out;
  const void* d_out;
  const float* lse;    // natural log, from the forward pass
  const float* d_lse;  // null where the loss does not use the log-sum-exp
  float* statistics;
  Strides out_strides;
  Strides d_out_strides;
  Strides lse_strides;
  Strides d_lse_strides;
  Strides statistics_strides;  // in pairs
  RowCount count;
};

// Adds the splits' partial sums of one additional gradient in their order: sum[i] = partial[0][i] + partial[1][i] + ...
struct SumParams {
  const float* partial;    // [split] x rows through partial_strides
  void* sum;
  long long split_stride;  // elements
  Strides partial_strides;
  Strides sum_strides;
  RowCount count;
  int splits;
};

// Copies rows whose elements are from_step elements apart to where they are contiguous.
struct CopyParams {
  const void* from;
  void* to;
  long long from_step;
  Strides from_strides;
  Strides to_strides;
  RowCount count;
};

enum { MERGE_BRANCHES = 12 };

// One partial result over a set of keys of its own.
struct Branch {
  const void* out;
  const float* lse;
  Strides out_strides;
  Strides lse_strides;
};

// lse = log sum exp(branch lse); out = sum exp(branch lse - lse) * branch out.
struct MergeParams {
  void* out;
  float* lse;  // null where nobody asked
  Strides out_strides;
  Strides lse_strides;
  RowCount count;
  int branches;
  Branch branch[MERGE_BRANCHES];
};

// A partial result and where its gradient goes.
struct GradientBranch {
  const void* out;
  const float* lse;
  void* d_out;
  float* d_lse;
  Strides out_strides;
  Strides lse_strides;
  Strides d_out_strides;
  Strides d_lse_strides;
};

// The gradient of each partial result from that of what they merge into.
struct MergeBackwardParams {
  const void* d_out;
  const float* d_lse;  // null where it is not used
  Strides d_out_strides;
  Strides d_lse_strides;
  RowCount count;
  int branches;
  GradientBranch branch[MERGE_BRANCHES];
};

// Dumps the window formula so that a test can hold it against the host's.
struct WindowDumpParams {
  int* ranges;  // [extent][4]: window start, window end, inverse start, inverse end, in positions of the residue from the first held
  Axis axis;
  int extent;   // tokens of the whole; ranges of what is not held are empty
};

// offsetof without a header: the front end's own spelling of it.
#define NATTEN_OFFSET(type, field, offset) \
  static_assert(__INTADDR__(&((type*)0)->field) == (offset), "params.rs mirrors " #type "::" #field)

static_assert(sizeof(Divisor) == 12 && sizeof(Tokens) == 8 && sizeof(Axis) == 76 && sizeof(Strides) == 40 && sizeof(ListStrides) == 24, "");
static_assert(sizeof(Decomposition) == 80 && sizeof(Geometry) == 260 && sizeof(RowCount) == 56, "");
static_assert(sizeof(ForwardParams) == 648 && sizeof(BackwardParams) == 808, "");
static_assert(sizeof(TilePlan) == 72 && sizeof(TileForwardParams) == 640, "");
static_assert(sizeof(DeltaParams) == 296 && sizeof(SumParams) == 168, "");
static_assert(sizeof(Branch) == 96 && sizeof(MergeParams) == 1312 && sizeof(WindowDumpParams) == 88, "");
static_assert(sizeof(CopyParams) == 160, "");
static_assert(sizeof(GradientBranch) == 192 && sizeof(MergeBackwardParams) == 2464, "");
NATTEN_OFFSET(Axis, query_begin, 8);
NATTEN_OFFSET(Axis, window, 40);
NATTEN_OFFSET(Axis, is_causal, 48);
NATTEN_OFFSET(Axis, stride, 52);
NATTEN_OFFSET(Axis, dilation, 64);
NATTEN_OFFSET(Geometry, heads_per_kv, 228);
NATTEN_OFFSET(Geometry, scale, 252);
NATTEN_OFFSET(Decomposition, head_tiles, 36);
NATTEN_OFFSET(Decomposition, heads, 76);
NATTEN_OFFSET(RowCount, rows, 48);
NATTEN_OFFSET(ForwardParams, lse, 48);
NATTEN_OFFSET(ForwardParams, lse_strides, 216);
NATTEN_OFFSET(ForwardParams, geometry, 304);
NATTEN_OFFSET(ForwardParams, decomposition, 564);
NATTEN_OFFSET(TilePlan, query_log2, 48);
NATTEN_OFFSET(TileForwardParams, geometry, 304);
NATTEN_OFFSET(TileForwardParams, plan, 564);
NATTEN_OFFSET(BackwardParams, statistics, 48);
NATTEN_OFFSET(BackwardParams, query_strides, 80);
NATTEN_OFFSET(BackwardParams, additional_key_strides, 400);
NATTEN_OFFSET(BackwardParams, partial_key_stride, 448);
NATTEN_OFFSET(BackwardParams, geometry, 464);
NATTEN_OFFSET(BackwardParams, decomposition, 724);
NATTEN_OFFSET(BackwardParams, rows_per_split, 804);
NATTEN_OFFSET(DeltaParams, count, 240);
NATTEN_OFFSET(SumParams, count, 104);
NATTEN_OFFSET(SumParams, splits, 160);
NATTEN_OFFSET(CopyParams, count, 104);
NATTEN_OFFSET(MergeParams, count, 96);
NATTEN_OFFSET(MergeParams, branch, 160);
NATTEN_OFFSET(GradientBranch, d_out_strides, 112);
NATTEN_OFFSET(MergeBackwardParams, count, 96);
NATTEN_OFFSET(MergeBackwardParams, branch, 160);
NATTEN_OFFSET(WindowDumpParams, extent, 84);

}  // namespace natten
