// SPDX-License-Identifier: MIT OR Apache-2.0
// A consumer warpgroup of the Hopper kernel: 64 queries against every key tile of the item.
#pragma once
#include "config.cuh"
#include "copies.cuh"
#include "mask.cuh"
#include "rows.cuh"
#include "weights.cuh"

namespace natten {
namespace sm90 {

template <class C>
struct Consumer : RowWeights<C> {
  typedef RowWeights<C> Rows;
  using Rows::p, Rows::lane, Rows::scores, Rows::out, Rows::softmax, Rows::is_far;
  using Rows::SCORES, Rows::OUTS;
  typedef typename C::Type Type;
  enum {
    STEPS = C::KEYS / 16,      // of 16 keys, in P V
    SLAB_CHUNKS = C::SLAB / 8  // of 16 bytes
  };
  typedef arch::Wgmma<typename Type::Inputs, C::KEYS> ScoreProduct;
  typedef arch::Wgmma<typename Type::Inputs, C::HEAD_DIM> OutProduct;

  unsigned shared;
  int group;          // this warpgroup
  int warp;           // of the warpgroup
  RingPlace key;      // of the next tile of keys
  RingPlace value;    // of the values that weights wait for
  RingPlace owed;     // of the last tile that was left out, whose values are to be handed back; stage -1: none
  unsigned query;     // this warpgroup's queries of the item, and its result
  int place;          // of the item
  unsigned weights[STEPS][4];     // (64 queries, KEYS) as pairs
  unsigned line;               // of the last masked tile
  unsigned seen_in_line[2];    // columns of its tiles that rows see along all axes but the line's

  // What is noted of a row of this warp's 16.
  __device__ __forceinline__ RowNote row_note(int row) const {
    return C::row_note(shared, place, (group * 4 + warp) * 16 + row);
  }

  // Warpgroups take turns at issuing the products of tiles that all of them work on, so that one does its softmax while another's run.
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

  // out += P V of the values that weights wait for. The fence before the scores' product would do, but ptxas wants one of its own.
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
    // Lane 0 will say that this place may be overwritten: all lanes have read it by then.
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

  // Counts a tile's weights and leaves them to wait for its values.
  __device__ __forceinline__ void leave_weights(const float (&sums)[2]) {
    softmax.sum[0] += sums[0];
    softmax.sum[1] += sums[1];
    key.template advance<C::STAGES>();
    value = key.template before<C::STAGES>();
#pragma unroll
    for (int i = 0; i < SCORES; i += 2) weights[i / 8][i / 2 % 4] = Type::pack_pair(scores[i], scores[i + 1]);
  }

  // Once the scores of a tile are there, its keys may go.
  __device__ __forceinline__ void release_keys() const { arrive(C::KEY_EMPTY + 8 * key.stage); }

  // Once values have been multiplied, they may go.
  __device__ __forceinline__ void release_values(const RingPlace& place) const { arrive(C::VALUE_EMPTY + 8 * place.stage); }

  __device__ __forceinline__ void await_values(const RingPlace& place) const {
    arch::barrier_wait(shared + C::VALUE_FULL + 8 * place.stage, place.parity);
  }
  __device__ __forceinline__ void await_keys() const { arch::barrier_wait(shared + C::KEY_FULL + 8 * key.stage, key.parity); }

  // Which warpgroups' queries see nothing of the next tile of keys, which are there, a bit each. Lane 0 alone looks, and later says that the
  // place may be overwritten.
  __device__ __forceinline__ unsigned left_out() const {
    const unsigned boxes = lane == 0 ? KeyTile::left_out(shared + C::TILES_AT + KeyTile::BYTES * key.stage) : 0;
    return arch::shuffle_from(boxes, 0);
  }
  __device__ __forceinline__ bool is_out(unsigned boxes) const { return (boxes >> group & 1) != 0; }

  // Hands the next tile back as it is, its values when there is time to wait for them: they have to be there, since a phase that nobody
  // waited for could be taken for another. The next tile but one may lie in the same place.
  __device__ __forceinline__ void leave_out() {
    release_owed();
    owed = {key.stage, key.parity};
    release_keys();
    key.template advance<C::STAGES>();
  }
  __device__ __forceinline__ void release_owed() {
    if (owed.stage < 0) return;
    await_values(owed);
    arch::sync_warp();  // lane 0 says that all lanes have waited
    release_values(owed);
    owed.stage = -1;
  }

  // Where this warp notes down the rows whose weights left f32.
  __device__ __forceinline__ LostRows lost_rows() const { return C::lost_rows(shared, place, group * 4 + warp); }

  // Rows that saw no key in the first tile, and whose weights turn out to be small altogether: they may be less exact than they should.
  __device__ __forceinline__ void judge_totals() const {
    bool lost[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      lost[half] = softmax.reference[half] == NATTEN_UNKNOWN && softmax.sum[half] < p.least_weight;
    }
    if (arch::ballot(lost[0] || lost[1]) == 0) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const RowNote row = row_note(lane / 4 + 8 * half);
      bool sees = true;
#pragma unroll
      for (int a = 0; a < 3; ++a) {
        const Range window = row.window(a);
        sees &= window.start < window.end;
      }
      lost[half] &= row.is_due() && (sees || p.geometry.additional_keys > 0);
    }
    lost_rows().add(lane, lost);
  }

  // The scores of one tile while the tile before it is multiplied with its values.
  template <bool MASKED>
  __device__ __forceinline__ void step(bool has_turn) {
    if (!MASKED) await_keys();
    if (has_turn) take_turn();
    issue_scores();
    await_values(value);
    issue_out();
    if (has_turn) pass_turn();
    unsigned seen[2] = {0xffffffffu, 0xffffffffu};
    if (MASKED) {
      find_seen(seen);
      release_owed();
    }
    arch::wgmma_wait<1>();
    arch::settle(scores);
    release_keys();
    if (MASKED) hide(scores, seen);
    float sums[2];
    this->template weigh<false>(sums);
    arch::wgmma_wait<0>();
    arch::settle(out);
    release_values(value);
    this->adjust_large(sums, lost_rows());
    leave_weights(sums);
  }

  // A tile while no weights wait for their values: the first one, or one behind many that were left out.
  template <bool CAREFUL>
  __device__ __forceinline__ void begin(bool masked, bool has_turn, bool is_first) {
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
    if (!CAREFUL && is_first) this->refer_to_scores();
    if (CAREFUL && this->move_beyond(NATTEN_LAZY_MAXIMUM, factor)) this->rescale(factor);
    float sums[2];
    this->template weigh<CAREFUL>(sums);
    if (!CAREFUL) this->adjust_large(sums, lost_rows());
    release_owed();
    leave_weights(sums);
  }

  __device__ __forceinline__ void last_values() {
    await_values(value);
    issue_out();
    arch::wgmma_wait<0>();
    arch::settle(out);
    release_values(value);
  }

  // The tiles behind `tile`, those without a mask first, as long as one waits for its values.
  __device__ __forceinline__ void steps(const WorkItem::Head& head, int& tile) {
#pragma unroll 1
    for (; tile < head.full; ++tile) step<false>(true);
#pragma unroll 1
    for (; tile < head.tiles; ++tile) {
      await_keys();
      const unsigned boxes = left_out();
      if (!is_out(boxes)) {
        step<true>(boxes == 0);
      } else if (key.stage == value.stage) {
        return;  // the values that weights wait for are in the place of this tile's
      } else {
        leave_out();
      }
    }
  }

  // All tiles of an item, those without a mask first.
  template <bool CAREFUL>
  __device__ __forceinline__ void walk(const WorkItem::Head& head) {
#pragma unroll
    for (int i = 0; i < OUTS; ++i) out[i] = 0.0f;
    softmax.clear();
    if (!CAREFUL) softmax.reference[0] = softmax.reference[1] = NATTEN_UNKNOWN;
    // Such scales leave near no score of note.
    is_far = CAREFUL && p.geometry.scale_log2 > NATTEN_FAR;
    if (!CAREFUL && lane == 0) lost_rows().clear();
    bool is_first = true;
#pragma unroll 1
    for (int tile = 0; tile < head.tiles;) {
      await_keys();
      const unsigned boxes = left_out();
      if (is_out(boxes)) {
        leave_out();
        ++tile;
        continue;
      }
      begin<CAREFUL>(tile >= head.full, boxes == 0, is_first);
      is_first = false;
      ++tile;
      if (!CAREFUL) steps(head, tile);
      last_values();
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) softmax.sum[half] = quad_sum(softmax.sum[half]);
    release_owed();
    if (!CAREFUL) judge_totals();
  }

  // Of each quad of lanes, which share two rows, one writes that of either.
  __device__ __forceinline__ void store_lse(int lane) const {
    const int half = lane % 4;
    if (half >= 2) return;
    const long long at = row_note(lane / 4 + 8 * half).result(RowNote::LSE);
    const float total = half == 0 ? softmax.sum[0] : softmax.sum[1];
    const RowSoftmax<1> row = {{half == 0 ? softmax.reference[0] : softmax.reference[1]}, {total}};
    if (at != RowNote::ABSENT) p.lse[at] = row.log_sum_exp(0, total, is_far != 0, fabsf(p.geometry.scale));
  }

  // Divides by the sums; writes the log-sum-exp, and leaves the result in shared memory to be sent off.
  __device__ __forceinline__ void store() {
    const int lane = arch::opaque(this->lane);
    const unsigned to = query + chunk_at<C>(warp * 16 + lane % 16, lane / 16);
    const float inverse[2] = {inverse_of(softmax.sum[0]), inverse_of(softmax.sum[1])};
    sync_warpgroup();  // all of it has been reading the queries that these rows lie over
#pragma unroll
    for (int chunk = 0; chunk < C::HEAD_DIM / 8; chunk += 2) {
      unsigned pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* values = &out[4 * chunk + 2 * i];
        pairs[i] = Type::pack_pair(values[0] * inverse[i % 2], values[1] * inverse[i % 2]);
      }
      arch::store_matrices((to ^ chunk % SLAB_CHUNKS * 16) + chunk / SLAB_CHUNKS * C::QUERY_SLAB_BYTES, pairs);
    }
    if (p.lse != nullptr) store_lse(lane);
    arch::fence_async_proxy();  // the copy engine reads it
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
    line = 0xffffffffu;  // none
    owed = {-1, 0};
    if (group == C::WARPGROUPS - 1) pass_turn();  // the first turn is warpgroup 0's
    RingPlace in_ring = {0, 0};  // the item's
    for (RingPlace at = {0, 0};; at.template advance<C::QUERIES>()) {
      place = in_ring.stage;
      const WorkItem item = {shared + C::ITEM_AT + place * WorkItem::BYTES};
      query = C::queries(shared, at.stage, group);
      arch::barrier_wait(shared + C::ROWS_READY + 8 * place, in_ring.parity);
      in_ring.template advance<C::ITEMS>();
      const WorkItem::Head head = item.head();
      if (head.tiles == 0) break;
      arch::barrier_wait(shared + C::QUERY_FULL + 8 * at.stage, at.parity);
      if (p.geometry.scale < 0.0f) negate_queries();
      const bool is_careful = arch::ballot(item.is_careful()) != 0;
      if (is_careful) walk<true>(head);
      else walk<false>(head);
      store();
      if (is_careful && lane == 0) lost_rows().clear();
      arrive(C::QUERY_EMPTY + 8 * at.stage);
    }
  }
};

}  // namespace sm90
}  // namespace natten
