// SPDX-License-Identifier: MIT OR Apache-2.0
// What a cta of an Ampere backward pass works on: its rows, and the columns at hand, described in shared memory.
#pragma once
#include "../../arch/memory.cuh"
#include "../../softmax.cuh"
#include "config.cuh"

namespace natten {
namespace sm80 {

// What lane l knows of row l of its warp, and tells the others.
struct RowsOfWarp {
  long long at;    // offset in a tensor
  unsigned exist;  // a bit a row

  __device__ __forceinline__ long long offset(int row) const {
    const unsigned low = arch::shuffle_from((unsigned)at, row);
    return (long long)arch::shuffle_from((unsigned)(at >> 32), row) << 32 | low;
  }

  // Of the tensor with these strides.
  template <class C>
  NATTEN_DEVICE RowsOfWarp find(const BackwardTileParams& p, const RowTile& tile, const Strides& strides) {
    const int row = Thread::row<C>() + Thread::lane() % C::WARP_ROWS;
    const bool exists = tile.exists<C::OF_KEYS>(p, row);
    return {exists ? tile.offset<C::OF_KEYS>(p, strides, row) : 0, arch::ballot(exists)};
  }
};

// How a warp copies its own rows and results: a lane has one chunk column and every STRIDE-th row.
template <class C>
struct RowPasses {
  typedef typename C::RowLayout Layout;
  enum { STRIDE = 32 / Layout::CHUNKS, PASSES = C::WARP_ROWS / STRIDE };

  NATTEN_DEVICE int first() { return Thread::lane() / Layout::CHUNKS; }
  NATTEN_DEVICE int chunk() { return Thread::lane() % Layout::CHUNKS; }
};

NATTEN_DEVICE int row_length(const BackwardTileParams& p, int operand) {
  return operand == 0 ? p.geometry.head_dim : p.geometry.head_dim_v;
}

// Starts copying both operands of the rows, zeros where there are none. Of two groups of warps either copies one.
template <class C>
NATTEN_DEVICE void copy_rows(const BackwardTileParams& p, const BackwardShared<C>& shared, const RowTile& tile) {
  typedef RowPasses<C> Passes;
  typedef typename C::RowLayout Layout;
#pragma unroll
  for (int operand = 0; operand < 2; ++operand) {
    if (C::GROUPS > 1 && operand != Thread::group<C>()) continue;
    const RowsOfWarp rows = RowsOfWarp::find<C>(p, tile, p.row_strides[operand]);
#pragma unroll
    for (int pass = 0; pass < Passes::PASSES; ++pass) {
      const int row = Passes::first() + pass * Passes::STRIDE;
      const char* from = (const char*)p.row[operand] + (rows.offset(row) + Passes::chunk() * 8) * 2;
      const unsigned to = shared.rows(operand) + Layout::offset(Thread::row<C>() + row, Passes::chunk());
#pragma unroll
      for (int panel = 0; panel < Layout::PANELS; ++panel) {
        const bool in_row = panel * Layout::CHUNKS + Passes::chunk() < row_length(p, operand) / 8;
        arch::copy_16_bytes_or_zero(to + panel * Layout::PANEL_BYTES, from + panel * Layout::PITCH,
                                    in_row ? rows.exist : 0, 1u << row);
      }
    }
  }
  arch::commit_copies();
}

// Notes what rows meet along each axis.
template <class C>
NATTEN_DEVICE void note_windows(const BackwardTileParams& p, const BackwardShared<C>& shared, const RowTile& tile) {
  const int along = Thread::index();
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    if (along < 1 << p.row_log2[a]) shared.windows(p, a)[along] = tile.meets<C::OF_KEYS>(p, a, along);
  }
}

// Notes the statistics of the queries that are rows; one that does not exist gets no weights.
template <class C>
NATTEN_DEVICE void note_statistics(const BackwardTileParams& p, const BackwardShared<C>& shared, const RowTile& tile) {
  const int row = Thread::index();
  if (C::OF_KEYS || row >= C::ROWS) return;
  float pair[2] = {NATTEN_INFINITY, 0.0f};
  if (tile.exists<C::OF_KEYS>(p, row))
    arch::load_pair(pair[0], pair[1], p.statistics + 2 * tile.offset<C::OF_KEYS>(p, p.statistics_strides, row));
  arch::store_shared(shared.row_statistics() + row * STATISTICS_BYTES, __float_as_int(pair[0]), __float_as_int(pair[1]));
}

// Where the first column is, axes aside: the tensors, batch item and head. `part`: of the query heads that share the rows' keys,
// or 1 for the additional keys.
template <class C>
NATTEN_DEVICE void describe_tensors(const BackwardTileParams& p, const BackwardShared<C>& shared, const RowTile& tile,
                                    int part) {
  const bool additional = !C::OF_KEYS && part > 0;
  const int sharing = (int)p.geometry.heads_per_kv.value;
  const long long head = C::OF_KEYS ? tile.head * sharing + part : divide(tile.head, p.geometry.heads_per_kv);
  const long long batch = tile.batch;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const Strides& strides = p.column_strides[side];
    const ListStrides& list = p.additional_strides[side];
    const long long at = additional ? batch * list.batch + head * list.head : batch * strides.batch + head * strides.head;
    const void* base = additional ? p.additional[side] : p.column[side];
    shared.segment().origin[3][side] = (long long)base + at * 2;
  }
  if (C::OF_KEYS) {
    const long long at = batch * p.statistics_strides.batch + head * p.statistics_strides.head;
    shared.segment().origin[3][STATISTICS] = (long long)p.statistics + at * STATISTICS_BYTES;
  }
  shared.segment().is_last = C::OF_KEYS ? part + 1 == sharing : additional || p.geometry.additional_keys == 0;
}

// The share of the columns from `from.start` to `from.end` that a split works on, in whole tiles.
NATTEN_DEVICE Range share_of_split(const BackwardTileParams& p, const Range& from, int side_log2) {
  const int count = maximum(from.end - from.start, 0);
  const int tiles = (count + (1 << side_log2) - 1) >> side_log2;
  const int split = (int)blockIdx.y, each = tiles / p.splits, more = tiles - each * p.splits;
  const int begin = split * each + minimum(split, more);
  const int end = begin + each + (split < more ? 1 : 0);
  return {from.start + minimum(begin << side_log2, count), from.start + minimum(end << side_log2, count)};
}

// Axis a, along which columns that rows meet are a grid of tiles and the additional keys a line of tiles along axis 2.
template <class C>
NATTEN_DEVICE void describe_axis(const BackwardTileParams& p, const BackwardShared<C>& shared, const RowTile& tile, int part,
                                 int a) {
  ColumnSegment& s = shared.segment();
  const bool additional = !C::OF_KEYS && part > 0;
  const int list_log2 = C::COLUMNS == 64 ? 6 : C::COLUMNS == 32 ? 5 : 4;
  // The axis' bits of a column's number: so many, above so many of later axes.
  const int side_log2 = additional ? a == 2 ? list_log2 : 0 : p.column_log2[a];
  const int below_log2 = a == 2 ? 0 : additional ? list_log2 : bits_below(p.column_log2, a);
  Range by_first = {0, a == 2 ? p.geometry.additional_keys : 1};
  Range by_last = by_first;
  if (!additional) tile.ends_meet<C::OF_KEYS>(p, a, by_first, by_last);
  if (C::OF_KEYS && p.splits > 1 && a == p.split_axis) {
    const Range share = share_of_split(p, {by_first.start, by_last.end}, side_log2);
    by_first = {share.start, clamp(by_first.end, share.start, share.end)};
    by_last = {clamp(by_last.start, share.start, share.end), share.end};
  }
  s.grid.cut(a, side_log2, by_first, by_last);
  s.first[a] = additional ? -1 : by_first.start;
  const Axis& axis = p.geometry.axes[a];
  const int dilation = (int)axis.dilation.value, residue = pick(tile.residue, a);
  const int first = C::OF_KEYS ? first_query(axis, residue) : first_key(axis, residue);
#pragma unroll
  for (int side = 0; side < (C::OF_KEYS ? SIDES : 2); ++side) {
    const bool is_operand = side < 2;
    const Strides& strides = is_operand ? p.column_strides[is_operand ? side : 0] : p.statistics_strides;
    const long long stride = strides.axis[a] * (is_operand ? 2 : STATISTICS_BYTES);
    const long long of_list = a == 2 ? p.additional_strides[is_operand ? side : 0].token * 2 : 0;
    const long long step = additional ? of_list : stride * dilation;
    s.origin[a][side] = additional ? 0 : step * by_first.start + stride * first;
    s.token_step[a][side] = step;
    if (a == 2) s.near_step[side] = step << side_log2;
    if (!is_operand) continue;
    // A column number's bit for STRIDE columns is one axis' own.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int along = (C::ColumnCopier::STRIDE << i) % C::COLUMNS >> below_log2 & ((1 << side_log2) - 1);
      if (along != 0) s.pass_step[side][i] = along * step;
    }
  }
}

// Describes the columns of a part: each warp one axis, another one what no axis knows. A cta has few tiles of columns where windows are
// small, so what comes before them counts.
template <class C>
NATTEN_DEVICE void describe_columns(const BackwardTileParams& p, const BackwardShared<C>& shared, const RowTile& tile,
                                    int part) {
  if (Thread::lane() != 0) return;
  const int a = Thread::index() / 32;
  if (a == 3) describe_tensors(p, shared, tile, part);
  // Heads that share keys differ in their tensors alone.
  else if (a < 3 && (part == 0 || !C::OF_KEYS)) describe_axis(p, shared, tile, part, a);
}

// While the first copies are under way: what the loops need besides. A barrier follows.
template <class C>
NATTEN_DEVICE void prepare_loops(const BackwardShared<C>& shared, int part) {
  ColumnSegment& s = shared.segment();
  const KeyGrid& grid = s.grid;
  if (C::OF_KEYS && part > 0) return;
  if (Thread::index() == 0) {
#pragma unroll
    for (int side = 0; side < (C::OF_KEYS ? SIDES : 2); ++side) {
      const int near = grid.full_end[2] - grid.full_begin[2] - 1;
      s.line_step[side] = (s.token_step[1][side] << grid.log2[1]) - near * s.near_step[side];
    }
  }
  if (grid.total() == grid.full()) return;
  if (C::GROUPS == 1 || Thread::index() < 128) C::Table::build(shared.table(), grid.log2, Thread::index());
}

}  // namespace sm80
}  // namespace natten
