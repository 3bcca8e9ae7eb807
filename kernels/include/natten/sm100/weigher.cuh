// SPDX-License-Identifier: MIT OR Apache-2.0
// A softmax warpgroup of the Blackwell kernel: 128 queries, one a thread, against every key tile of the item.
#pragma once
#include "../sm90/copies.cuh"
#include "../sm90/rows.cuh"
#include "../sm90/work.cuh"
#include "config.cuh"
#include "mask.cuh"

namespace natten {
namespace sm100 {

template <class C>
struct Weigher {
  typedef typename C::Type Type;
  enum { MASK_WORDS = C::KEYS / 32 };

  const ForwardParamsSm90& p;
  unsigned shared;
  unsigned scores_at;  // this warp's lanes of tensor memory: scores, then weights
  unsigned sums_at;
  int group;           // this warpgroup
  int warp;            // of the warpgroup
  int lane;
  unsigned tile;       // of the whole run, counted over all items
  int place;           // of the item
  float scores[C::KEYS];    // of this thread's query, then the weights in place
  RowSoftmax<1> softmax;
  unsigned is_far;     // whether its reference is: not 0, and for all of the warp

  // Which of the item's rows this thread has, and what is noted of it.
  __device__ __forceinline__ int row() const { return group * C::BOX_ROWS + warp * 32 + lane; }
  __device__ __forceinline__ RowNote row_note() const { return C::row_note(shared, place, row()); }

  // Works out the window and addresses of this thread's row.
  __device__ __forceinline__ void describe_row(const WorkItem& item, const WorkItem::Head& head) const {
    const sm90::RowPlace lies = sm90::describe_row<false>(p.geometry.axes, p.query_box_log2, p.query_side, item,
                                                          {group, warp * 32 + lane}, row_note());
    row_note().set_result(RowNote::LSE, lies.exists ? sm90::row_offset(p.lse_strides, head, lies) : RowNote::ABSENT);
    if (!sm90::stores_rows_alone(p, item)) return;  // the copy engine finds the way of rows
    row_note().set_result(RowNote::OUT, lies.exists ? sm90::row_offset(p.out_strides, head, lies) : RowNote::ABSENT);
  }

  // For the whole warp, once all its lanes have come here.
  __device__ __forceinline__ void arrive(unsigned barrier) const {
    arch::sync_warp();
    if (lane == 0) arch::barrier_arrive(shared + barrier);
  }

  // Which keys of the tile this thread's query sees. The tile's keys are there, its scores need not be.
  __device__ __forceinline__ void find_seen(unsigned (&seen)[MASK_WORDS]) const {
    const unsigned stage = tile % C::STAGES;
    arch::barrier_wait(shared + C::KEY_FULL + 8 * stage, tile / C::STAGES & 1);
    const KeyTile tile_place = KeyTile::load(shared + C::TILES_AT + KeyTile::BYTES * stage);
    if (tile_place.additional > 0) column_mask(tile_place.additional, seen);
    else row_mask(AnyBox{p.key_sides}, shared + C::BITS_AT, row_note(), tile_place.first, seen);
  }

  __device__ __forceinline__ void load_scores() {
    arch::barrier_wait(shared + C::SCORES_FULL + 8 * group, tile & 1);
    arch::tensor_fence_after();
    arch::tensor_load<0>(scores, scores_at);
    arch::tensor_load<32>(scores, scores_at + 32);
    arch::tensor_load<64>(scores, scores_at + 64);
    arch::tensor_load<96>(scores, scores_at + 96);
    arch::tensor_wait_loads();
    arch::settle(scores);
  }

  // Turns scores into weights in place. Moves the references before if some score of the warp is far above its row's. Returns
  // whether; then factor is what the row's result must be multiplied by.
  __device__ __forceinline__ bool weigh(float& factor) {
    const float scale_log2 = p.geometry.scale_log2;
    float top = scores[0];
#pragma unroll
    for (int i = 1; i < C::KEYS; ++i) top = fmaxf(top, scores[i]);
    const bool must = top * scale_log2 > softmax.limit(0);
    const bool moves = (arch::ballot(must) | is_far) != 0;
    if (moves) {
      factor = move(top);
      if (is_far != 0) {
#pragma unroll
        for (int i = 0; i < C::KEYS; ++i) scores[i] = softmax.weigh_far(0, scores[i], scale_log2);
        return true;
      }
    }
#pragma unroll
    for (int i = 0; i < C::KEYS; ++i) scores[i] = softmax.weigh(0, scores[i], scale_log2);
    return moves;
  }

  // Moves the references to the largest scores of the rows, and from near to far where one of them would be lost.
  __device__ __forceinline__ float move(float top) {
    const float scale_log2 = p.geometry.scale_log2;
    if (is_far == 0) {
      RowSoftmax<1> moved = softmax;
      const float factor = moved.template move<false>(0, top * scale_log2);
      is_far = arch::ballot(moved.is_lost(0));
      if (is_far == 0) {
        softmax = moved;
        return factor;
      }
      softmax.go_far(scale_log2);
    }
    return softmax.move_far(0, top, scale_log2);
  }

  // Over the scores, as pairs.
  __device__ __forceinline__ void store_weights() const {
    unsigned pairs[C::KEYS / 2];
#pragma unroll
    for (int i = 0; i < C::KEYS / 2; ++i) pairs[i] = Type::pack_pair(scores[2 * i], scores[2 * i + 1]);
    arch::tensor_store<0>(scores_at, pairs);
    arch::tensor_store<32>(scores_at + 32, pairs);
  }

  // The sums of all tiles so far: the scores' commit came behind them. The next are added once these weights are there.
  __device__ __forceinline__ void rescale(float factor) const {
#pragma unroll 1
    for (int column = 0; column < C::HEAD_DIM; column += 32) {
      float sums[32];
      arch::tensor_load<0>(sums, sums_at + column);
      arch::tensor_wait_loads();
      arch::settle(sums);
#pragma unroll
      for (int i = 0; i < 32; ++i) sums[i] *= factor;
      arch::tensor_store<0>(sums_at + column, sums);
    }
  }

  template <bool MASKED>
  __device__ __forceinline__ void step(bool is_first) {
    unsigned seen[MASK_WORDS];
    if (MASKED) find_seen(seen);
    load_scores();
    arrive(C::KEY_EMPTY + 8 * (tile % C::STAGES));
    if (MASKED) hide(scores, seen, -NATTEN_INFINITY);
    float factor;
    const bool moved = weigh(factor);
    store_weights();
    if (moved && !is_first) rescale(factor);
    arch::tensor_wait_stores();
    arch::tensor_fence_before();
    arrive(C::WEIGHTS_FULL + 8 * group);
    ++tile;
  }

  // Divides by the sums of weights; writes the log-sum-exp, and leaves the result in shared memory to be sent off.
  __device__ __forceinline__ void store() {
    const unsigned to = C::queries(shared, place, group);
    arch::barrier_wait(shared + C::SUMS_FULL + 8 * group, (tile - 1) & 1);
    arch::tensor_fence_after();
    const float inverse = inverse_of(softmax.sum[0]);
#pragma unroll
    for (int column = 0; column < C::HEAD_DIM; column += 32) {
      float sums[32];
      arch::tensor_load<0>(sums, sums_at + column);
      arch::tensor_wait_loads();
      arch::settle(sums);
#pragma unroll
      for (int i = 0; i < 32; i += 8) {
        unsigned words[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) words[w] = Type::pack_pair(sums[i + 2 * w] * inverse, sums[i + 2 * w + 1] * inverse);
        arch::store_shared(to + sm90::chunk_at<C>(warp * 32 + lane, (column + i) / 8), (int)words[0], (int)words[1], (int)words[2], (int)words[3]);
      }
    }
    arch::tensor_fence_before();  // the next item's first sums overwrite these
    if (p.lse != nullptr) {
      const long long at = row_note().result(RowNote::LSE);
      if (at != RowNote::ABSENT)
        p.lse[at] = softmax.log_sum_exp(0, softmax.sum[0], is_far != 0, fabsf(p.geometry.scale));
    }
    arch::fence_async_proxy();  // the copy engine reads it
  }

  __device__ __forceinline__ void run() {
    tile = 0;
#pragma unroll 1
    for (unsigned count = 0;; ++count) {
      const RingPlace in_ring = RingPlace::template of<C::ITEMS>(count);
      place = in_ring.stage;
      const WorkItem item = {shared + C::ITEM_AT + place * WorkItem::BYTES};
      arch::barrier_wait(shared + C::QUERY_FULL + 8 * place, in_ring.parity);
      const WorkItem::Head head = item.head();
      if (head.tiles == 0) break;
      describe_row(item, head);
      softmax.clear();
      // Such scales leave near no score of note.
      is_far = p.geometry.scale_log2 > NATTEN_FAR;
      int at = 0;
#pragma unroll 1
      for (; at < head.full; ++at) step<false>(at == 0);
#pragma unroll 1
      for (; at < head.tiles; ++at) step<true>(at == 0);
      store();
      arrive(C::QUERY_EMPTY + 8 * place);
    }
  }
};

}  // namespace sm100
}  // namespace natten
