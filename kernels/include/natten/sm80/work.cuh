// SPDX-License-Identifier: MIT OR Apache-2.0
// What a cta works on: the rows of its box of queries, and the keys at hand, described in shared memory.
#pragma once
#include "config.cuh"

namespace natten {
namespace sm80 {

// What lane l knows of row l of its warp, and tells the others.
struct WarpRows {
  long long at;    // offset in a tensor, in elements
  unsigned exist;  // a bit a row

  __device__ __forceinline__ long long offset(int row) const {
    const unsigned low = arch::shuffle_from((unsigned)at, row);
    return (long long)arch::shuffle_from((unsigned)(at >> 32), row) << 32 | low;
  }

  // Of the tensor with these strides.
  template <class C>
  NATTEN_DEVICE WarpRows find(const TileForwardParams& p, const QueryTile& tile, const Strides& strides) {
    const int row = warp_row<C>() + lane_index() % C::WARP_ROWS;
    const bool exists = tile.exists(p.geometry, p.plan, row);
    return {exists ? tile.offset(p.geometry, p.plan, strides, row) : 0, arch::ballot(exists)};
  }
};

// How a warp copies its own rows of Q and O: a lane has one chunk column and every STRIDE-th row.
template <class C>
struct RowCopier {
  typedef typename C::QueryLayout Layout;
  enum { STRIDE = 32 / Layout::CHUNKS, PASSES = C::WARP_ROWS / STRIDE };
};

// Where the first key is, axes aside: the tensors, batch item and head.
template <class C>
NATTEN_DEVICE void describe_tensors(const TileForwardParams& p, const Shared<C>& shared, const QueryTile& tile,
                                    bool additional) {
  const int head_kv = divide(tile.head, p.geometry.heads_per_kv);
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const Strides& strides = side == 0 ? p.key_strides : p.value_strides;
    const ListStrides& list = side == 0 ? p.additional_key_strides : p.additional_value_strides;
    const void* base = side == 0 ? additional ? p.additional_key : p.key : additional ? p.additional_value : p.value;
    const long long at = additional ? tile.batch * list.batch + head_kv * list.head
                                    : tile.batch * strides.batch + head_kv * strides.head;
    shared.origins()[3][side] = (long long)base + at * 2;
  }
}

// Axis a, along which keys of the windows are a grid of tiles and the additional ones a line of tiles along axis 2. No tile
// counts as full where all are to be `masked`.
template <class C>
NATTEN_DEVICE void describe_axis(const TileForwardParams& p, const Shared<C>& shared, const QueryTile& tile, bool additional,
                                 bool masked, int a) {
  Segment& s = shared.segment();
  const int list_log2 = C::KEYS == 64 ? 6 : 5;
  // The axis' bits of a row number: so many, above so many of later axes.
  const int side_log2 = additional ? a == 2 ? list_log2 : 0 : p.plan.key_log2[a];
  const int below_log2 = a == 2 ? 0 : additional ? list_log2 : bits_below(p.plan.key_log2, a);
  Range by_first = {0, a == 2 ? p.geometry.additional_keys : 1};
  Range by_last = by_first;
  if (!additional) tile.ends_see(p.geometry, p.plan, a, by_first, by_last);
  const int first = first_key(p.geometry.axes[a], pick(tile.residue, a));
  s.grid.cut(a, side_log2, by_first, by_last);
  if (masked) s.grid.full_end[a] = s.grid.full_begin[a];
  s.first[a] = additional ? -1 : by_first.start;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const long long stride = (side == 0 ? p.key_strides : p.value_strides).axis[a] * 2;
    const ListStrides& list = side == 0 ? p.additional_key_strides : p.additional_value_strides;
    const long long step = additional ? a == 2 ? list.token * 2 : 0 : stride * (int)p.geometry.axes[a].dilation.value;
    shared.origins()[a][side] = additional ? 0 : step * by_first.start + stride * first;
    s.token_step[a][side] = step;
    if (a == 2) s.near_step[side] = step << side_log2;
    // A row number's bit for STRIDE rows is one axis' own.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int along = (C::KeyCopier::STRIDE << i) % C::KEYS >> below_log2 & ((1 << side_log2) - 1);
      if (along != 0) s.row_step[side][i] = along * step;
    }
  }
}

// Describes the keys of the windows, or the additional ones: each warp one axis, the last one what no axis knows. A cta has
// few tiles of keys where windows are small, so what comes before them counts.
template <class C>
NATTEN_DEVICE void describe_keys(const TileForwardParams& p, const Shared<C>& shared, const QueryTile& tile,
                                 bool additional, bool masked) {
  if (lane_index() != 0) return;
  const int a = warp_index();
  if (a == 3) describe_tensors(p, shared, tile, additional);
  else describe_axis(p, shared, tile, additional, masked, a);
}

// While the first copies are under way: what the loops need besides. A barrier follows.
template <class C>
NATTEN_DEVICE void prepare_loops(const TileForwardParams& p, const Shared<C>& shared) {
  Segment& s = shared.segment();
  const KeyGrid& grid = s.grid;
  if (thread_index() == 0) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int near = grid.full_end[2] - grid.full_begin[2] - 1;
      s.line_step[side] = (s.token_step[1][side] << grid.log2[1]) - near * s.near_step[side];
    }
    s.is_last = s.is_additional() || p.geometry.additional_keys == 0;
  }
  if (grid.total() == grid.full()) return;
  C::Table::build(shared.table(), grid.log2, thread_index());
  C::Starts::build(shared.starts(), thread_index());
}

// What a lane keeps in the loop with masks.
template <class C>
struct Partial {
  RowMask<C::KEYS> mask;  // of this lane's row
  Start<C::M, C::KEYS, C::SPREAD> start;
  int stop;               // where axis 2 leaves this line or comes to the full tiles

  // From the first partial tile, `at`, on.
  __device__ __forceinline__ void begin(const TileForwardParams& p, const Shared<C>& shared, const int (&at)[3]) {
    const Segment& s = shared.segment();
    const KeyGrid& grid = s.grid;
    start.set(lane_index());
    const int row = warp_row<C>() + (C::M > 1 ? lane_index() : start.row(lane_index()));
    const bool additional = s.is_additional();
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const int first = s.first[a];
      const Range seen = s.tile.sees(p.geometry, p.plan, row, a);
      mask.set(a, additional ? 0 : seen.start - first, additional ? 0 : first + grid.count[a] - seen.end);
    }
    stop = grid.next_stop(at);
    mask.enter_line(shared.table(), grid, at);
    mask.enter_tile(shared.table(), grid, at);
  }
};

}  // namespace sm80
}  // namespace natten
