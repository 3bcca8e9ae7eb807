// SPDX-License-Identifier: MIT OR Apache-2.0
// A softmax warpgroup of a Blackwell backward pass: 128 rows, one a thread, against its half of every column tile of the item.
//
//   P = 2^(scale_log2 S - lse_log2), over S in the pass over keys; dS = P (dP - delta), over dP
#pragma once
#include "../../arch/math.cuh"
#include "../../sm90/backward/results.cuh"
#include "../../sm90/rows.cuh"
#include "../mask.cuh"
#include "config.cuh"

namespace natten {
namespace sm100 {

template <class C>
struct Differentiator {
  typedef typename C::Type Type;
  enum { SHARE = C::SHARE, MASK_WORDS = SHARE / 32 };
  typedef sm90::RowChunks<C::WRITTEN, 32> Chunks;

  const BackwardParamsSm90& p;
  unsigned shared;
  unsigned tensor;        // this warp's lanes of tensor memory
  int group;              // this warpgroup
  int warp;               // of the warpgroup
  int lane;
  unsigned tile;          // of the whole run, counted over all items
  float weights[SHARE];       // of this thread's row: scores, then the weights in place
  unsigned pairs[SHARE / 2];  // of weights, then of the gradients of scores
  float lse_log2, delta;      // of this thread's row, where rows are queries

  // What is noted of a row of this warp's 32.
  __device__ __forceinline__ RowNote row_note(int row) const {
    return {shared + C::ROWS_AT + (group * C::BOX_ROWS + warp * 32 + row) * RowNote::BYTES};
  }

  __device__ __forceinline__ unsigned stage() const { return tile % C::STAGES; }

  // Works out what this thread's row meets and its addresses, and reads its statistics.
  __device__ __forceinline__ void describe_row(const WorkItem& item, const WorkItem::Head& head) {
    const sm90::RowPlace lies = sm90::describe_row<C::OF_KEYS>(p.geometry.axes, p.row_box_log2, p.row_side, item,
                                                               {0, warp * 32 + lane}, row_note(lane));
#pragma unroll
    for (int i = 0; i < C::OUTPUTS; ++i)
      row_note(lane).set_result(i, lies.exists ? sm90::row_offset(p.d_row_strides[i], head, lies) : RowNote::ABSENT);
    if (!C::OF_KEYS)
      arch::load_pair(lse_log2, delta, p.statistics + 2 * sm90::row_offset(p.statistics_strides, head, lies));
  }

  // For the whole warp, once all its lanes have come here.
  __device__ __forceinline__ void arrive(unsigned barrier) const {
    arch::sync_warp();
    if (lane == 0) arch::barrier_arrive(shared + barrier);
  }

  // Which columns of its half of the tile this thread's row meets.
  __device__ __forceinline__ void find_seen(unsigned (&seen)[MASK_WORDS]) const {
    const ColumnTile place = ColumnTile::load(shared + C::TILES_AT + ColumnTile::BYTES * stage());
    if (!C::OF_KEYS && place.additional > 0) {
      column_mask(place.additional - group * SHARE, seen);
    } else {
      const unsigned bits = shared + C::BITS_AT + group * MASK_WORDS * 4;
      row_mask(Log2Box{p.column_box_log2}, bits, row_note(lane), place.first, seen);
    }
  }

  // The statistics `which` (0: lse_log2, 1: delta) of four columns.
  __device__ __forceinline__ void load_statistics(float (&of)[4], int which, int column) const {
    if (C::OF_KEYS) {
      int words[4];
      arch::load_shared(words, shared + C::STATISTICS_AT + stage() * C::STATISTICS_BYTES +
                                   (which * C::COLUMNS + group * SHARE + column) * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) of[i] = __int_as_float(words[i]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) of[i] = which == 0 ? lse_log2 : delta;
    }
  }

  // For a product of the tile at hand.
  __device__ __forceinline__ void await(unsigned full) const {
    arch::barrier_wait(shared + full, tile & 1);
    arch::tensor_fence_after();
  }

  // Stores the pairs over this warpgroup's half of a product, and says so.
  __device__ __forceinline__ void hand_on(unsigned product, unsigned barrier) const {
    arch::tensor_store<0>(product + group * SHARE, pairs);
    arch::tensor_wait_stores();
    arch::tensor_fence_before();
    arrive(barrier);
  }

  __device__ __forceinline__ void load_scores() {
    await(C::SCORES_FULL);
    arch::tensor_load<0>(weights, C::scores(tensor) + group * SHARE);
    arch::tensor_load<32>(weights, C::scores(tensor) + group * SHARE + 32);
    arch::tensor_wait_loads();
    arch::settle(weights);
  }

  template <bool MASKED>
  __device__ __forceinline__ void weigh(const unsigned (&seen)[MASK_WORDS]) {
#pragma unroll
    for (int column = 0; column < SHARE; column += 4) {
      float references[4];
      load_statistics(references, 0, column);
#pragma unroll
      for (int i = column; i < column + 4; ++i) {
        // No weight is above 1, but for rounding; and where the log-sum-exp is coarse, rounding may be many powers of two.
        const float above = fmaf(weights[i], p.geometry.scale_log2, -references[i - column]);
        weights[i] = arch::minimum_or_nan(above, 0.0f);
      }
    }
    // Bit after bit of a word apart from all else: the assembler cuts seven conditions at a time.
    if (MASKED) hide(weights, seen, -NATTEN_INFINITY);
#pragma unroll
    for (int i = 0; i < SHARE; ++i) weights[i] = arch::exp2_approx(weights[i]);
  }

  // Gradients of weights become those of scores, as pairs; 32 at a time, since registers are few.
  template <bool MASKED>
  __device__ __forceinline__ void differentiate(const unsigned (&seen)[MASK_WORDS]) {
    await(C::D_WEIGHTS_FULL);
#pragma unroll
    for (int first = 0; first < SHARE; first += 32) {
      float d_weights[32];
      arch::tensor_load<0>(d_weights, C::d_weights(tensor) + group * SHARE + first);
      arch::tensor_wait_loads();
      arch::settle(d_weights);
#pragma unroll
      for (int column = 0; column < 32; column += 4) {
        float deltas[4];
        load_statistics(deltas, 1, first + column);
#pragma unroll
        for (int i = column; i < column + 4; ++i) {
          d_weights[i] = weights[first + i] * (d_weights[i] - deltas[i - column]);
        }
      }
      // What is not seen has weight 0, and may hold an infinity.
      const unsigned seen_here[1] = {seen[first / 32]};
      if (MASKED) hide(d_weights, seen_here, 0.0f);
#pragma unroll
      for (int i = 0; i < 32; i += 2) pairs[(first + i) / 2] = Type::pack_pair(d_weights[i], d_weights[i + 1]);
    }
  }

  template <bool MASKED>
  __device__ __forceinline__ void step() {
    unsigned seen[MASK_WORDS];
    // For the place of the tile, and the statistics of its queries.
    if (MASKED || C::OF_KEYS) arch::barrier_wait(shared + C::COLUMN_FULL + 8 * stage(), tile / C::STAGES & 1);
    if (MASKED) find_seen(seen);
    load_scores();
    if (!C::OF_KEYS) {
      arch::tensor_fence_before();
      arrive(C::SCORES_TAKEN);
    }
    weigh<MASKED>(seen);
    if (C::OF_KEYS) {
#pragma unroll
      for (int i = 0; i < SHARE / 2; ++i) pairs[i] = Type::pack_pair(weights[2 * i], weights[2 * i + 1]);
      hand_on(C::scores(tensor), C::SCORES_TAKEN);
    }
    differentiate<MASKED>(seen);
    hand_on(C::d_weights(tensor), C::D_SCORES_FULL);
    if (lane == 0) arch::barrier_arrive(shared + C::COLUMN_EMPTY + 8 * stage());
    ++tile;
  }

  // The output that this warpgroup writes, and from which element of a row on.
  __device__ __forceinline__ int output() const { return C::OF_KEYS ? group : 0; }
  __device__ __forceinline__ int first() const { return C::OF_KEYS ? 0 : group * C::WRITTEN; }

  __device__ __forceinline__ sm90::BackwardResults results() const { return {p}; }

  // 32 elements of this thread's row of a gradient, from `element` of this warpgroup's on.
  __device__ __forceinline__ void load_sums(float (&sums)[32], int element, bool is_none) const {
    // A query whose every score is minus infinity: its gradient is 0, where the products say NaN, having multiplied the infinite
    // keys by weights of 0.
    const bool is_silent = !C::OF_KEYS && lse_log2 == NATTEN_INFINITY;
    const float factor = results().factor_of(output());
#pragma unroll
    for (int i = 0; i < 32; ++i) sums[i] = 0.0f;
    if (!is_none) {
      arch::tensor_load<0>(sums, C::sums(tensor, output()) + first() + element);
      arch::tensor_wait_loads();
      arch::settle(sums);
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) sums[i] = is_silent ? 0.0f : sums[i] * factor;
  }

  // Writes this warpgroup's part of the gradients through shared memory, over the item's rows of an operand.
  __device__ __forceinline__ void store(unsigned rows, bool is_none) const {
    const unsigned to = rows + group * C::ROW_TILE_BYTES + warp * 32 * C::WRITTEN * 2;
#pragma unroll
    for (int element = 0; element < C::WRITTEN; element += 32) {
      float sums[32];
      load_sums(sums, element, is_none);
#pragma unroll
      for (int i = 0; i < 32; i += 8) {
        unsigned words[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) words[w] = Type::pack_pair(sums[i + 2 * w], sums[i + 2 * w + 1]);
        arch::store_shared(to + Chunks::at(lane, (element + i) / 8), (int)words[0], (int)words[1], (int)words[2],
                           (int)words[3]);
      }
    }
    arch::sync_warp();
    char* out = (char*)results().address_of(output()) + first() * 2;
    Chunks::copy_out(to, row_note(0), output(), out, results().length_of(output()) - first(), lane);
  }

  // Writes the partial sums of a split, each thread its row's.
  __device__ __forceinline__ void store_partial(int split, bool is_none) const {
    const long long at = row_note(lane).result(output());
    float* to = (float*)results().address_of(output()) + split * results().split_stride_of(output()) + at + first();
    const int length = results().length_of(output()) - first();
#pragma unroll 1
    for (int element = 0; element < C::WRITTEN; element += 32) {
      float sums[32];
      load_sums(sums, element, is_none);
#pragma unroll
      for (int i = 0; i < 32; i += 4) {
        const unsigned words[4] = {__float_as_uint(sums[i]), __float_as_uint(sums[i + 1]), __float_as_uint(sums[i + 2]),
                                   __float_as_uint(sums[i + 3])};
        if (at != RowNote::ABSENT && element + i < length) arch::store_16_bytes(to + element + i, words);
      }
    }
  }

  // `is_none`: no tile meets the rows, so nothing has been summed.
  __device__ __forceinline__ void store_results(const ItemPart& part, unsigned rows, bool is_none) const {
    if (!is_none) {
      arch::barrier_wait(shared + C::SUMS_FULL, (tile - 1) & 1);
      arch::tensor_fence_after();
    }
    if (first() < C::HEAD_DIM) {
      if (p.splits > 1) store_partial(part.split, is_none);
      else store(rows, is_none);
    }
    arch::tensor_fence_before();  // the next item's first sums overwrite these
    arch::fence_async_proxy();    // the copy engine writes rows there next
  }

  __device__ __forceinline__ void run() {
    tile = 0;
#pragma unroll 1
    for (unsigned count = 0;; ++count) {
      const RingPlace place = RingPlace::template of<C::ITEMS>(count);
      const WorkItem item = {shared + C::ITEM_AT + place.stage * WorkItem::BYTES};
      arch::barrier_wait(shared + C::ROW_FULL + 8 * place.stage, place.parity);
      const WorkItem::Head head = item.head();
      if (head.tiles < 0) break;
      describe_row(item, head);
      const ItemPart part = ItemPart::load(shared + C::PARTS_AT + ItemPart::BYTES * place.stage);
      int at = 0;
#pragma unroll 1
      for (; at < head.full; ++at) step<false>();
#pragma unroll 1
      for (; at < head.tiles; ++at) step<true>();
      store_results(part, shared + C::ROW_AT + place.stage * 2 * C::ROW_TILE_BYTES, head.tiles == 0);
      arrive(C::ROW_EMPTY + 8 * place.stage);
    }
  }
};

}  // namespace sm100
}  // namespace natten
