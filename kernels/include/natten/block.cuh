// SPDX-License-Identifier: MIT OR Apache-2.0
// Where a lane group stands: its block of items, what each item sees, and the walk over the union of that.
//
// Items are queries (they see keys) or, in the pass over keys, keys (queries see them). ITEMS neighbouring items share
// every load of the tokens in the union of their windows; a token outside an item's own window costs it nothing but
// the test. Control flow is the same for all lanes of a warp, so shuffles need no mask: lanes with fewer tokens than
// the warp's longest walk stay on their last one, invisible.
#pragma once
#include "arch/memory.cuh"
#include "lanes.cuh"
#include "place.cuh"

namespace natten {

enum Items { QUERY_ITEMS, KEY_ITEMS };

// The tokens that a block sees along one axis, and the part of them that one owned item sees.
struct Span {
  int start;
  int count;
};

template <int LANES, int ITEMS>
struct Block {
  enum { OWNED = Lanes<LANES, ITEMS>::OWNED };

  int lane;            // within the group
  int group_lane;      // the group's first lane within the warp
  int batch;
  int head;            // clamped to the last one
  bool has_head;       // the group's head exists
  int residue[3];
  int base[3];         // position of the first item
  int count[3];        // items of this residue
  Span seen[3];        // union over the block, in positions of the other side
  int most[3];         // largest seen[].count in the warp
  Span own[OWNED][3];  // start is relative to seen[].start; count 0 for an item beyond the edge
  bool owns[OWNED];    // the owned item is not beyond the edge

  // False if this residue has no items at all: nothing to do for the whole cta. AGAIN: finds once more where the items are, and
  // nothing else, so that no register has to hold it meanwhile.
  template <Items SIDE, bool AGAIN = false>
  __device__ __forceinline__ bool place(const Geometry& geometry, const Decomposition& plan) {
    const int thread = AGAIN ? (int)arch::thread_index() : (int)threadIdx.x;
    int group = thread / LANES;
    lane = thread % LANES;
    group_lane = thread % WARP - lane;

    int tile = AGAIN ? (int)arch::cta_index() : (int)blockIdx.x;
    int box[3];
    bool empty = false;
#pragma unroll
    for (int a = 2; a >= 0; --a) {
      const Axis& axis = geometry.axes[a];
      const Place here = find_place(take_index(tile, plan.tiles[a]), axis.dilation);
      box[a] = here.box;
      residue[a] = here.residue;
      count[a] = SIDE == QUERY_ITEMS ? query_count(axis, residue[a]) : key_count(axis, residue[a]);
      empty |= count[a] <= 0;
    }
    head = (take_index(tile, plan.head_tiles) << plan.cta_heads_log2) + low_bits(group, plan.cta_heads_log2);
    batch = tile;
    has_head = head < plan.heads;
    head = minimum(head, plan.heads - 1);
    group >>= plan.cta_heads_log2;
    if (empty) return false;

#pragma unroll
    for (int a = 2; a >= 0; --a) {
      const int along = (box[a] << plan.cta_log2[a]) + low_bits(group, plan.cta_log2[a]);
      group >>= plan.cta_log2[a];
      base[a] = along << plan.block_log2[a];
      if (AGAIN) continue;
      const Range first = range<SIDE>(geometry.axes[a], a, base[a]);
      const Range last = range<SIDE>(geometry.axes[a], a, base[a] + (1 << plan.block_log2[a]) - 1);
      const int others = other_count<SIDE>(geometry.axes[a], residue[a]);
      seen[a].start = clamp(first.start, 0, maximum(others - 1, 0));
      seen[a].count = maximum(last.end - seen[a].start, 0);
      most[a] = seen[a].count;
#pragma unroll
      for (int lanes = LANES; lanes < WARP; lanes *= 2) most[a] = maximum(most[a], arch::shuffle_xor(most[a], lanes));
    }
    if (AGAIN) return true;
#pragma unroll
    for (int slot = 0; slot < OWNED; ++slot) {
      const int item = Lanes<LANES, ITEMS>::first_item(lane) + slot;
      owns[slot] = exists(plan, item);
#pragma unroll
      for (int a = 0; a < 3; ++a) {
        const Range mine = range<SIDE>(geometry.axes[a], a, base[a] + item_offset(plan, item, a));
        own[slot][a].start = mine.start - seen[a].start;
        own[slot][a].count = owns[slot] ? maximum(mine.end - mine.start, 0) : 0;
      }
    }
    return true;
  }

  // Takes the longest walk from one lane, though all know it: of what comes from such a shuffle ptxas knows that the warp agrees
  // on it. Otherwise it takes lanes for parted after each loop, and puts a branch before the next exchange and moves around it. To
  // be called before anything that may part them.
  __device__ __forceinline__ void agree() {
#pragma unroll
    for (int a = 0; a < 3; ++a) most[a] = arch::of_first_lane(most[a]);
  }

  // Item's distance from the first of the block along axis a.
  NATTEN_DEVICE int item_offset(const Decomposition& plan, int item, int a) { return coordinate(plan.block_log2, item, a); }

  template <Items SIDE>
  NATTEN_DEVICE int other_count(const Axis& axis, int residue) {
    return SIDE == QUERY_ITEMS ? key_count(axis, residue) : query_count(axis, residue);
  }

  // What the item at `position` (clamped into the residue) sees.
  template <Items SIDE>
  __device__ __forceinline__ Range range(const Axis& axis, int a, int position) const {
    position = minimum(position, count[a] - 1);
    const Residue of = residue_of(axis, residue[a]);
    return SIDE == QUERY_ITEMS ? window(axis, of, position) : inverse_window(axis, of, position);
  }

  // Rows (runs along axis 2) of the warp's longest walk.
  __device__ __forceinline__ int window_rows() const { return most[2] > 0 ? most[0] * most[1] : 0; }

  // Whether `item` is not beyond the edge.
  __device__ __forceinline__ bool exists(const Decomposition& plan, int item) const {
    bool inside = has_head;
#pragma unroll
    for (int a = 0; a < 3; ++a) inside &= base[a] + item_offset(plan, item, a) < count[a];
    return inside;
  }

  // Offset in elements of an item's row (clamped to the last item) in a tensor on the items' side.
  template <Items SIDE>
  __device__ __forceinline__ long long item_row(const Geometry& geometry, const Decomposition& plan, const Strides& strides,
                                                int item) const {
    long long row = batch * strides.batch + head * strides.head;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const Axis& axis = geometry.axes[a];
      const int first = SIDE == QUERY_ITEMS ? first_query(axis, residue[a]) : first_key(axis, residue[a]);
      const int position = minimum(base[a] + item_offset(plan, item, a), count[a] - 1);
      row += token_at(axis, first, position) * strides.axis[a];
    }
    return row;
  }

  // Offset in elements of the first token of seen[] in a tensor on the other side.
  template <Items SIDE>
  __device__ __forceinline__ long long seen_row(const Geometry& geometry, const Strides& strides, int other_head) const {
    long long row = batch * strides.batch + other_head * strides.head;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const Axis& axis = geometry.axes[a];
      const int first = SIDE == QUERY_ITEMS ? first_key(axis, residue[a]) : first_query(axis, residue[a]);
      row += token_at(axis, first, seen[a].start) * strides.axis[a];
    }
    return row;
  }
};

// Rows of tokens to read along: STREAMS tensors side by side.
template <int STREAMS>
struct Streams {
  const char* first[STREAMS];   // at seen[].start
  long long step[STREAMS][3];   // bytes to the next position along each axis

  __device__ __forceinline__ void set(int stream, const void* base, long long row, const Strides& strides,
                                      const Geometry& geometry, int element_bytes) {
    first[stream] = (const char*)base + row * element_bytes;
#pragma unroll
    for (int a = 0; a < 3; ++a) step[stream][a] = strides.axis[a] * geometry.axes[a].dilation.value * element_bytes;
  }
};

// Tokens that every item sees, after the window: a single row.
template <int STREAMS>
struct AlwaysSeen {
  int count;
  const char* first[STREAMS];
  long long step[STREAMS];  // bytes

  __device__ __forceinline__ void set(int stream, const void* base, const ListStrides& strides, int batch, int head,
                                      int element_bytes) {
    first[stream] = (const char*)base + (batch * strides.batch + head * strides.head) * element_bytes;
    step[stream] = strides.token * element_bytes;
  }
};

// A part of the walk, in rows (runs along axis 2) of the warp's longest walk.
struct RowRange {
  int begin;
  int end;
};

// Calls body(pointers, visible) for every token of the given rows in the union of the block's windows and then for every
// token of `always`; visible[slot] says whether an owned item sees it.
template <int LANES, int ITEMS, int STREAMS, class Body>
NATTEN_DEVICE void walk(const Block<LANES, ITEMS>& block, RowRange range, const Streams<STREAMS>& streams,
                        const AlwaysSeen<STREAMS>& always, Body& body) {
  enum { OWNED = Block<LANES, ITEMS>::OWNED };
  const int window_rows = minimum(range.end, block.window_rows());
  const int rows = window_rows + (always.count > 0);
  int x = 0, y = range.begin;
  if (y > 0) {
    x = y / block.most[1];
    y -= x * block.most[1];
  }
#pragma unroll 1
  for (int row = range.begin; row < rows; ++row) {
    const char* token[STREAMS];
    long long step[STREAMS];
    int first[OWNED], count[OWNED];
    int last = block.seen[2].count - 1;
    int most = block.most[2];
    if (row < window_rows) {
#pragma unroll
      for (int slot = 0; slot < OWNED; ++slot) {
        const Span(&own)[3] = block.own[slot];
        const bool inside = (unsigned)(x - own[0].start) < (unsigned)own[0].count &&
                            (unsigned)(y - own[1].start) < (unsigned)own[1].count;
        first[slot] = own[2].start;
        count[slot] = inside ? own[2].count : 0;
      }
      const int near_x = maximum(minimum(x, block.seen[0].count - 1), 0);
      const int near_y = maximum(minimum(y, block.seen[1].count - 1), 0);
#pragma unroll
      for (int s = 0; s < STREAMS; ++s) {
        token[s] = streams.first[s] + near_x * streams.step[s][0] + near_y * streams.step[s][1];
        step[s] = streams.step[s][2];
      }
      if (++y == block.most[1]) {
        y = 0;
        ++x;
      }
    } else {
      most = always.count;
      last = most - 1;
#pragma unroll
      for (int slot = 0; slot < OWNED; ++slot) {
        first[slot] = 0;
        count[slot] = block.owns[slot] ? most : 0;
      }
#pragma unroll
      for (int s = 0; s < STREAMS; ++s) {
        token[s] = always.first[s];
        step[s] = always.step[s];
      }
    }
#pragma unroll 1
    for (int z = 0; z < most; ++z) {
      bool visible[OWNED];
#pragma unroll
      for (int slot = 0; slot < OWNED; ++slot) visible[slot] = (unsigned)(z - first[slot]) < (unsigned)count[slot];
      const char* here[STREAMS];
#pragma unroll
      for (int s = 0; s < STREAMS; ++s) here[s] = token[s];
      body(here, visible);
      if (z < last) {
#pragma unroll
        for (int s = 0; s < STREAMS; ++s) token[s] += step[s];
      }
    }
  }
}

}  // namespace natten
