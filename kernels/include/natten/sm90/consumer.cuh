// SPDX-License-Identifier: MIT OR Apache-2.0
// A consumer warpgroup of the Hopper kernel: 64 queries against every key tile of the item.
#pragma once
#include "../softmax.cuh"
#include "config.cuh"
#include "mask.cuh"
#include "rows.cuh"

namespace natten {
namespace sm90 {

template <class C>
struct Consumer {
  typedef typename C::Type Type;
  enum {
    SCORES = C::KEYS / 2,
    OUTS = C::HEAD_DIM / 2,
    STEPS = C::KEYS / 16             // of 16 keys, in P V
  };
  enum { OUT = 0, LSE = 1 };         // a row's results
  typedef RowChunks<C::HEAD_DIM> Chunks;
  typedef arch::Wgmma<typename Type::Inputs, C::KEYS> ScoreProduct;
  typedef arch::Wgmma<typename Type::Inputs, C::HEAD_DIM> OutProduct;

  const ForwardParamsSm90& p;
  unsigned shared;
  int group;          // this warpgroup
  int warp;           // of the warpgroup
  int lane;
  RingPlace key;      // of the next tile of keys
  RingPlace value;    // of the next tile of values
  unsigned query;     // this warpgroup's queries of the item, and its result
  float scores[SCORES];           // (64 queries, KEYS), then the weights in place
  float out[OUTS];                // (64 queries, HEAD_DIM)
  unsigned weights[STEPS][4];     // (64 queries, KEYS) as pairs
  FragmentSoftmax softmax;
  unsigned is_far;    // whether its references are: not 0
  unsigned line;               // of the last masked tile
  unsigned seen_in_line[2];    // columns of its tiles that rows see along all axes but the line's

  // What is noted of a row of this warp's 16.
  __device__ __forceinline__ RowNote row_note(int row) const {
    return {shared + C::ROWS_AT + (group * 64 + warp * 16 + row) * RowNote::BYTES};
  }

  // Works out the windows and addresses of this warp's rows, one row a lane. Other lanes read them behind the next wait for
  // the warp or warpgroup; those that read the last item's have waited at its end.
  __device__ __forceinline__ void describe_rows(const WorkItem& item) {
    if (lane < 16) {
      const WorkItem::Head head = item.head();
      const Strides* strides[2] = {&p.out_strides, &p.lse_strides};
      long long offsets[2] = {head_offset(p.out_strides, head), head_offset(p.lse_strides, head)};
      const bool exists = describe_row<false>(p.geometry.axes, p.query_box_log2, p.query_side, item,
                                              {group, warp * 16 + lane}, row_note(lane), strides, offsets);
      row_note(lane).set_result(OUT, exists ? offsets[OUT] : RowNote::ABSENT);
      row_note(lane).set_result(LSE, exists ? offsets[LSE] : RowNote::ABSENT);
    }
  }

  // Warpgroups take turns at issuing the products of tiles without a mask, which all of them work on, so that one does its softmax
  // while another's run.
  __device__ __forceinline__ void take_turn() const { arch::named_barrier_sync(1 + group, 256); }
  __device__ __forceinline__ void pass_turn() const {
    arch::named_barrier_arrive(group + 1 == C::WARPGROUPS ? 1 : 2 + group, 256);
  }

  __device__ __forceinline__ void arrive(unsigned barrier) const {
    if (lane == 0) arch::barrier_arrive(shared + barrier);
  }

  // scores = Q K^T of the next tile of keys.
  __device__ __forceinline__ void issue_scores() {
    const arch::Swizzle swizzle = (arch::Swizzle)C::SWIZZLE;
    const unsigned eight_rows = 8 * C::SLAB_ROW_BYTES;
    const unsigned long long a = arch::describe(query, swizzle, eight_rows, 0);
    const unsigned long long b =
        arch::describe(shared + C::KEY_AT + key.stage * C::KEY_TILE_BYTES, swizzle, eight_rows, 0);
    arch::wgmma_fence();
#pragma unroll
    for (int k = 0; k < C::HEAD_DIM; k += 16) {
      const int slab = k / C::SLAB;
      const int within = k % C::SLAB * 2;
      const unsigned long long a_step = (slab * C::QUERY_SLAB_BYTES + within) >> 4;
      const unsigned long long b_step = (slab * C::KEY_SLAB_BYTES + within) >> 4;
      if (k == 0) ScoreProduct::multiply(scores, a, b);
      else ScoreProduct::multiply_add(scores, a + a_step, b + b_step);
    }
    arch::wgmma_commit();
  }

  // out += P V of the next tile of values. The fence before the scores' product would do, but ptxas wants one of its own.
  __device__ __forceinline__ void issue_out() {
    const unsigned long long b =
        arch::describe(shared + C::VALUE_AT + value.stage * C::KEY_TILE_BYTES, (arch::Swizzle)C::SWIZZLE,
                       8 * C::SLAB_ROW_BYTES, C::KEY_SLAB_BYTES);
    arch::wgmma_fence();
#pragma unroll
    for (int step = 0; step < STEPS; ++step)
      OutProduct::accumulate(out, weights[step], b + (step * 16 * C::SLAB_ROW_BYTES >> 4));
    arch::wgmma_commit();
  }

  // Which scores of the next tile of keys are seen. Its keys are there, its scores need not be.
  __device__ __forceinline__ void find_seen(unsigned (&seen)[2]) {
    const unsigned note = shared + C::TILES_AT + KeyTile::BYTES * key.stage;
    const KeyTile tile = KeyTile::load(note);
    const unsigned number = KeyTile::line(note);
    // Lane 0 will say that this place may be overwritten: all lanes have read it by then, and noted down their rows.
    arch::sync_warp();
    if (tile.additional > 0) {
      seen[0] = seen[1] = column_mask(tile.additional);
      return;
    }
    const RowNote rows[2] = {row_note(lane / 4), row_note(lane / 4 + 8)};
    const int side = p.query_side;
    if (number != line) {
      line = number;
      seen_in_line[0] = seen_in_line[1] = 0xffffffffu;
#pragma unroll
      for (int a = 0; a < 3; ++a) {
        if (a != side) meet_along(a, AnyBox{p.key_sides}, shared + C::BITS_AT, rows, tile.first[a], seen_in_line);
      }
    }
    seen[0] = seen_in_line[0];
    seen[1] = seen_in_line[1];
    meet_along(side, AnyBox{p.key_sides}, shared + C::BITS_AT, rows, pick(tile.first, side), seen);
  }

  // Turns scores into weights in place. Their sums are the tile's alone, so that a row's bits do not depend on whether the tile was
  // resumed with because of another row.
  template <bool MAY_BE_FAR>
  __device__ __forceinline__ void weigh(float (&sums)[2]) {
    FragmentSoftmax tile = {{softmax.reference[0], softmax.reference[1]}, {0.0f, 0.0f}};
    if (MAY_BE_FAR && is_far != 0) {
#pragma unroll
      for (int i = 0; i < SCORES; ++i) scores[i] = tile.weigh_far(i / 2 % 2, scores[i], p.geometry.scale_log2);
    } else {
#pragma unroll
      for (int i = 0; i < SCORES; ++i) scores[i] = tile.weigh(i / 2 % 2, scores[i], p.geometry.scale_log2);
    }
    sums[0] = tile.sum[0];
    sums[1] = tile.sum[1];
  }

  __device__ __forceinline__ void count(const float (&sums)[2]) {
    softmax.sum[0] += sums[0];
    softmax.sum[1] += sums[1];
  }

  // Moves the references if some score of the warp is more than so many powers of two above its row's. Returns whether; then factor
  // is what the result must be multiplied by.
  __device__ __forceinline__ bool move_beyond(float powers, float (&factor)[2]) {
    const float scale_log2 = p.geometry.scale_log2;
    float top[2] = {scores[0], scores[2]};
#pragma unroll
    for (int i = 0; i < SCORES; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], scores[i]);
    bool must = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) must |= top[half] * scale_log2 > softmax.reference[half] + powers;
    const bool moves = (arch::ballot(must) | is_far) != 0;
    if (moves) move(top, factor);
    return moves;
  }

  // Moves the references to the largest scores of the rows, and from near to far where one of them would be lost.
  __device__ __forceinline__ void move(const float (&top)[2], float (&factor)[2]) {
    const float scale_log2 = p.geometry.scale_log2;
    const float tops[2] = {quad_maximum(top[0]), quad_maximum(top[1])};
    if (is_far == 0) {
      FragmentSoftmax moved = softmax;
      bool lost = false;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        factor[half] = moved.template move<false>(half, tops[half] * scale_log2);
        lost |= moved.is_lost(half);
      }
      is_far = arch::ballot(lost);
      if (is_far == 0) {
        softmax = moved;
        return;
      }
      softmax.go_far(scale_log2);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) factor[half] = softmax.move_far(half, tops[half], scale_log2);
  }

  __device__ __forceinline__ void pack_weights() {
#pragma unroll
    for (int i = 0; i < SCORES; i += 2) weights[i / 8][i / 2 % 4] = Type::pack_pair(scores[i], scores[i + 1]);
  }

  __device__ __forceinline__ void rescale(const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < OUTS; ++i) out[i] *= factor[i / 2 % 2];
  }

  // Once the scores of a tile are there, its keys may go.
  __device__ __forceinline__ void release_keys() {
    arrive(C::KEY_EMPTY + 8 * key.stage);
    key.template advance<C::STAGES>();
  }

  // Once its values have been multiplied, they may go.
  __device__ __forceinline__ void release_values() {
    arrive(C::VALUE_EMPTY + 8 * value.stage);
    value.template advance<C::STAGES>();
  }

  __device__ __forceinline__ void await_values() const {
    arch::barrier_wait(shared + C::VALUE_FULL + 8 * value.stage, value.parity);
  }
  __device__ __forceinline__ void await_keys() const { arch::barrier_wait(shared + C::KEY_FULL + 8 * key.stage, key.parity); }

  // Whether this warpgroup's queries see nothing of the next tile of keys, which are there. Lane 0 alone looks, and later says
  // that the place may be overwritten.
  __device__ __forceinline__ bool leaves_out() const {
    const unsigned boxes = lane == 0 ? KeyTile::left_out(shared + C::TILES_AT + KeyTile::BYTES * key.stage) : 0;
    return (arch::shuffle_from(boxes, 0) >> group & 1) != 0;
  }

  // Hands the next tile back as it is. Its values have to be there: a phase that nobody waited for could be taken for another.
  __device__ __forceinline__ void leave_out() {
    release_keys();
    await_values();
    release_values();
  }

  // The scores of one tile while the tile before it is multiplied with its values. A careful warpgroup moves references to scores far
  // above them first. Otherwise weights are taken relative to the references as they are, without looking at the scores; false where
  // that will not do, and then the tile is to be resumed with.
  template <bool MASKED, bool CAREFUL>
  __device__ __forceinline__ bool step() {
    if (!MASKED) await_keys();
    if (!MASKED) take_turn();
    issue_scores();
    await_values();
    issue_out();
    if (!MASKED) pass_turn();
    unsigned seen[2];
    if (MASKED) find_seen(seen);
    arch::wgmma_wait<1>();
    arch::settle(scores);
    if (CAREFUL) release_keys();
    if (MASKED) hide(scores, seen);
    float factor[2];
    const bool moves = CAREFUL && move_beyond(NATTEN_LAZY_MAXIMUM, factor);
    float sums[2];
    weigh<CAREFUL>(sums);
    arch::wgmma_wait<0>();
    arch::settle(out);
    release_values();
    if (CAREFUL && moves) rescale(factor);
    if (!CAREFUL) {
      // A sum is as large as its largest weight. One that is NaN will do: so is its row's result.
      const bool fails = is_far != 0 || sums[0] > NATTEN_LARGEST_WEIGHT || sums[1] > NATTEN_LARGEST_WEIGHT;
      if (arch::ballot(arch::named_barrier_any(8 + group, 128, fails)) != 0) return false;
      release_keys();
    }
    count(sums);
    pack_weights();
    return true;
  }

  // A tile while no weights wait for their values: the first one, one behind a tile that was left out, or one for which the references
  // have to move.
  __device__ __forceinline__ void resume(bool masked, bool has_turn) {
    if (has_turn) take_turn();
    issue_scores();
    if (has_turn) pass_turn();
    unsigned seen[2] = {0xffffffffu, 0xffffffffu};
    if (masked) find_seen(seen);
    arch::wgmma_wait<0>();
    arch::settle(scores);
    release_keys();
    hide(scores, seen);
    float factor[2];
    if (move_beyond(C::LAZY_MAXIMUM, factor)) rescale(factor);
    float sums[2];
    weigh<true>(sums);
    count(sums);
    pack_weights();
  }

  __device__ __forceinline__ void last_values() {
    await_values();
    issue_out();
    arch::wgmma_wait<0>();
    arch::settle(out);
    release_values();
  }

  // The tiles behind `tile`, those without a mask first, up to one that is left out or a step that fails. Whether it did not.
  template <bool CAREFUL>
  __device__ __forceinline__ bool steps(const WorkItem::Head& head, int& tile) {
#pragma unroll 1
    for (; tile < head.full; ++tile) {
      if (!step<false, CAREFUL>()) return false;
    }
#pragma unroll 1
    for (; tile < head.tiles; ++tile) {
      await_keys();
      if (leaves_out()) break;
      if (!step<true, CAREFUL>()) return false;
    }
    return true;
  }

  // All tiles of an item, those without a mask first.
  __device__ __forceinline__ void walk(const WorkItem::Head& head) {
#pragma unroll
    for (int i = 0; i < OUTS; ++i) out[i] = 0.0f;
    softmax.clear();
    // Such scales leave near no score of note.
    is_far = p.geometry.scale_log2 > NATTEN_FAR;
    // Where all tiles are masked, rows see their first key in one tile or another, and then references move.
    bool is_careful = head.full == 0;
    bool waits = true;  // weights for their values
#pragma unroll 1
    for (int tile = 0; tile < head.tiles;) {
      await_keys();
      if (leaves_out()) {
        leave_out();
        ++tile;
        continue;
      }
      // A step that failed has had the turn.
      resume(tile >= head.full, tile < head.full && waits);
      ++tile;
      if (is_careful) waits = steps<true>(head, tile);
      else waits = steps<false>(head, tile);
      if (waits) last_values();
      else is_careful = true;
    }
  }

  // Divides by the sums; writes the log-sum-exp, and the result through shared memory in rows of 16-byte chunks.
  __device__ __forceinline__ void store() {
    const int lane = arch::opaque(this->lane);
    const unsigned rows = query + warp * 16 * C::HEAD_DIM * 2;
    sync_warpgroup();  // all of it has been reading the queries that these rows lie over
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = quad_sum(softmax.sum[half]);
      const float inverse = inverse_of(total);
      const int row = lane / 4 + 8 * half;
#pragma unroll
      for (int chunk = 0; chunk < Chunks::CHUNKS; ++chunk) {
        const unsigned pair = Type::pack_pair(out[4 * chunk + 2 * half] * inverse, out[4 * chunk + 2 * half + 1] * inverse);
        arch::store_shared(rows + Chunks::at(row, chunk) + lane % 4 * 4, pair);
      }
      if (p.lse != nullptr && lane % 4 == 0) {
        const long long at = row_note(row).result(LSE);
        if (at != RowNote::ABSENT) p.lse[at] = softmax.log_sum_exp(half, total, is_far != 0, fabsf(p.geometry.scale));
      }
    }
    arch::sync_warp();
    Chunks::copy_out(rows, row_note(0), OUT, p.out, p.geometry.head_dim_v, lane);
    arch::fence_async_proxy();  // the copy engine writes queries there next
    arch::sync_warp();
  }

  __device__ __forceinline__ void sync_warpgroup() const { arch::named_barrier_sync(8 + group, 128); }

  // The largest score must have the largest weight, so a negative scale's sign goes to the queries.
  __device__ __forceinline__ void negate_queries() const {
    const int lane = arch::opaque(this->lane);
#pragma unroll 1
    for (int at = (warp * 32 + lane) * 16; at < C::QUERY_BOX_BYTES; at += 128 * 16) {
      int words[4];
      arch::load_shared(words, query + at);
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] ^= (int)PAIR_SIGNS;
      arch::store_shared(query + at, words[0], words[1], words[2], words[3]);
    }
    arch::fence_async_proxy();  // products read them next
    sync_warpgroup();
  }

  __device__ __forceinline__ void run() {
    key = {0, 0};
    value = {0, 0};
    line = 0xffffffffu;  // none
    if (group == C::WARPGROUPS - 1) pass_turn();  // the first turn is warpgroup 0's
    for (RingPlace place = {0, 0};; place.template advance<C::ITEMS>()) {
      const WorkItem item = {shared + C::ITEM_AT + place.stage * WorkItem::BYTES};
      query = shared + C::QUERY_AT + place.stage * C::QUERY_TILE_BYTES + group * C::QUERY_BOX_BYTES;
      arch::barrier_wait(shared + C::ITEM_READY + 8 * place.stage, place.parity);
      const WorkItem::Head head = item.head();
      if (head.tiles == 0) break;
      describe_rows(item);
      arch::barrier_wait(shared + C::QUERY_FULL + 8 * place.stage, place.parity);
      if (p.geometry.scale < 0.0f) negate_queries();
      walk(head);
      store();
      arrive(C::QUERY_EMPTY + 8 * place.stage);
    }
  }
};

}  // namespace sm90
}  // namespace natten
