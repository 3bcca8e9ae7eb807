// SPDX-License-Identifier: MIT OR Apache-2.0
// The walk of a backward: as that of a forward (block.cuh), with rows loaded a trip ahead.
//
// A backward waits for its rows: registers hold three or four rows of an item, so few warps fit a multiprocessor. In a trip a row
// is needed for a while, and then its registers take that of the next trip. Nothing is read that is not seen: where a group has
// no token, it loads nothing and keeps what it has, invisible.
#pragma once
#include "block.cuh"
#include "row.cuh"

namespace natten {

// This lane's first chunks of the rows of a trip, in the order in which the lane holds tokens (Pairs).
template <int TOKENS, int STREAMS>
struct Next {
  const char* at[TOKENS][STREAMS];
  long long step[STREAMS];  // bytes to the next trip's
  bool there[TOKENS];       // nothing may be read where not

  // To the rows of the next trip, for which `there` is by then.
  __device__ __forceinline__ void advance(int stream) { move(stream, step[stream]); }

  __device__ __forceinline__ void move(int stream, long long bytes) {
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) at[t][stream] += bytes;
  }
};

// Whether all rows fill the lanes of a group: they are loaded with no more questions.
template <int LANES, int ELEMS, bool ALIGNED>
NATTEN_DEVICE bool fills_lanes(const Geometry& geometry) {
  return ALIGNED && geometry.head_dim == LANES * ELEMS && geometry.head_dim_v == LANES * ELEMS;
}

// The rows of one tensor for the tokens of a trip.
template <class T, int LANES, int ELEMS, int TOKENS, bool ALIGNED>
struct Rows {
  Row<T, LANES, ELEMS, ALIGNED> row[TOKENS];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) row[t].clear();
  }

  template <bool WHOLE, int STREAMS>
  __device__ __forceinline__ void load(const Next<TOKENS, STREAMS>& next, int stream, int length, int lane) {
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) row[t].template load_if<WHOLE>(next.there[t], next.at[t][stream], length, lane);
  }

  // Of the trip that begins: where all lanes of a warp walk together there always is a token.
  template <bool WHOLE, int STREAMS>
  __device__ __forceinline__ void load_now(const Next<TOKENS, STREAMS>& next, int stream, int length, int lane) {
    static_assert(LANES == WARP, "no group stays on while others walk");
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) row[t].template load_if<WHOLE>(true, next.at[t][stream], length, lane);
  }

  template <bool WHOLE, int STREAMS>
  __device__ __forceinline__ void load_next(Next<TOKENS, STREAMS>& next, int stream, int length, int lane) {
    next.advance(stream);
    load<WHOLE>(next, stream, length, lane);
  }

  __device__ __forceinline__ void unpack(float (&values)[TOKENS][ELEMS]) const {
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) row[t].unpack(values[t]);
  }
};

// As Streams (block.cuh), with steps along axes computed where they are needed.
template <int STREAMS>
struct Paths {
  const char* first[STREAMS];  // this lane's first chunk of the row at seen[].start
  const Strides* strides[STREAMS];
  int element_bytes[STREAMS];

  // `lane` is 0 where all lanes read the same.
  __device__ __forceinline__ void set(int stream, const void* base, long long row, const Strides& of, int bytes, int lane) {
    first[stream] = (const char*)base + row * bytes + lane * 16;
    strides[stream] = &of;
    element_bytes[stream] = bytes;
  }

  __device__ __forceinline__ long long step(int stream, int a, unsigned dilation) const {
    return strides[stream]->axis[a] * dilation * element_bytes[stream];
  }
};

// Calls body.begin(next) at the start of each given row (run along axis 2) in the union of the block's windows and then of
// `always`, and for every TOKENS of its tokens body.step(visible, next), which may load what `next` says in place of what it
// has used; visible[slot] says whether the item of an owned pair sees its token. WHOLE: rows fill the lanes.
template <bool WHOLE, int TOKENS, int LANES, int ITEMS, int STREAMS, class Body>
NATTEN_DEVICE void walk_ahead(const Block<LANES, ITEMS>& block, const Geometry& geometry, RowRange range,
                              const Paths<STREAMS>& paths, const AlwaysSeen<STREAMS>& always, Body& body) {
  typedef Pairs<LANES, ITEMS, TOKENS> Owned;
  enum { OWNED = Block<LANES, ITEMS>::OWNED };
  int left = minimum(range.end, block.window_rows()) - range.begin;
  int lines = block.most[1], most = block.most[2];
  int always_left = always.count;
  int x = 0, y = range.begin;
  if (y > 0) {
    x = y / lines;
    y -= x * lines;
  }
  Span seen[3], own[OWNED][3];
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    seen[a] = block.seen[a];
#pragma unroll
    for (int slot = 0; slot < OWNED; ++slot) own[slot][a] = block.own[slot][a];
  }
  Next<TOKENS, STREAMS> next;
  long long to_row[STREAMS];
#pragma unroll
  for (int s = 0; s < STREAMS; ++s) {
    long long along[3];
#pragma unroll
    for (int a = 0; a < 3; ++a) along[a] = paths.step(s, a, geometry.axes[a].dilation.value);
    next.step[s] = TOKENS * along[2];
    to_row[s] = along[1] - (most + TOKENS - 1) / TOKENS * next.step[s];
    // To ptxas such a number is the warp's. It takes pointers apart that it adds one to, and in the pass over keys copies them
    // together for each load.
    if (STREAMS == 3) next.step[s] = arch::of_this_lane(next.step[s]);
#pragma unroll
    for (int t = 0; t < TOKENS; ++t)
      next.at[t][s] = paths.first[s] + x * along[0] + y * along[1] + Owned::token_at(block.lane, t) * along[2];
  }
#pragma unroll 1
  while (true) {
#pragma unroll 1
    for (; left > 0; ++x, y = 0) {
      const int until = minimum(lines, y + left);
      left -= until - y;
      int in_plane[OWNED];
#pragma unroll
      for (int slot = 0; slot < OWNED; ++slot)
        in_plane[slot] = (unsigned)(x - own[slot][0].start) < (unsigned)own[slot][0].count ? own[slot][2].count : 0;
      const int seen_in_plane = x < seen[0].count ? seen[2].count : 0;
#pragma unroll 1
      do {
        int from[Owned::OWNED], count[Owned::OWNED];
#pragma unroll
        for (int slot = 0; slot < Owned::OWNED; ++slot) {
          const int item = Owned::item_slot(slot);
          from[slot] = own[item][2].start - Owned::token(block.lane, slot);
          count[slot] = (unsigned)(y - own[item][1].start) < (unsigned)own[item][1].count ? in_plane[item] : 0;
        }
        int end[TOKENS];  // where z ends for the token of a place
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
          end[t] = (y < seen[1].count ? seen_in_plane : 0) - Owned::token_at(block.lane, t);
          next.there[t] = end[t] > 0;
        }
        body.template begin<WHOLE>(next);
        int z = 0;
#pragma unroll 1
        do {
          bool visible[Owned::OWNED];
#pragma unroll
          for (int slot = 0; slot < Owned::OWNED; ++slot) visible[slot] = (unsigned)(z - from[slot]) < (unsigned)count[slot];
#pragma unroll
          for (int t = 0; t < TOKENS; ++t) next.there[t] = z + TOKENS < end[t];
          body.template step<WHOLE>(visible, next);
          z += TOKENS;
        } while (z < most);
#pragma unroll
        for (int s = 0; s < STREAMS; ++s) next.move(s, to_row[s]);
      } while (++y < until);
      // The pass over keys has no registers for these steps: it computes them anew.
      unsigned x_dilation = geometry.axes[0].dilation.value, y_dilation = geometry.axes[1].dilation.value;
      if (STREAMS == 3) {
        x_dilation = arch::anew(x_dilation);
        y_dilation = arch::anew(y_dilation);
      }
#pragma unroll
      for (int s = 0; s < STREAMS; ++s) next.move(s, paths.step(s, 0, x_dilation) - lines * paths.step(s, 1, y_dilation));
    }
    if (always_left == 0) break;
    // The tokens of `always` are a row, and then all is done.
    x = y = 0;
    left = lines = 1;
    most = always_left;
    always_left = 0;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      seen[a] = {0, a == 2 ? most : 1};
#pragma unroll
      for (int slot = 0; slot < OWNED; ++slot) own[slot][a] = {0, block.owns[slot] ? seen[a].count : 0};
    }
#pragma unroll
    for (int s = 0; s < STREAMS; ++s) {
      next.step[s] = TOKENS * always.step[s];
#pragma unroll
      for (int t = 0; t < TOKENS; ++t)
        next.at[t][s] = always.first[s] + Owned::token_at(block.lane, t) * always.step[s];
    }
  }
}

}  // namespace natten
