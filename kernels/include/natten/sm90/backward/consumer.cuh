// SPDX-License-Identifier: MIT OR Apache-2.0
// A consumer warpgroup of a Hopper backward pass: 64 rows against every column tile of the item.
//
//   S = R0 C0^T; dP = R1 C1^T                        (R0, R1: q, d_out over columns k, v; or k, v over columns q, d_out)
//   P = 2^(scale_log2 S - lse_log2); dS = P (dP - delta)
//   d_row0 += dS C0; in the pass over keys d_row1 += P C1, by items of their own where rows are long
#pragma once
#include "../../arch/math.cuh"
#include "../../arch/warp.cuh"
#include "../mask.cuh"
#include "../rows.cuh"
#include "config.cuh"
#include "results.cuh"

namespace natten {
namespace sm90 {

template <class C>
struct BackwardConsumer {
  typedef typename C::Type Type;
  enum {
    SCORES = C::COLUMNS / 2,
    OUTS = C::HEAD_DIM / 2,
    STEPS = C::COLUMNS / 16  // of 16 columns, in the products that sum over columns
  };
  // Which sums a tile adds to: d_row0, d_row1 or both.
  enum { OF_SCORES = 1, OF_WEIGHTS = 2 };
  typedef RowChunks<C::HEAD_DIM> Chunks;
  typedef arch::Wgmma<typename Type::Inputs, C::COLUMNS> ScoreProduct;
  typedef arch::Wgmma<typename Type::Inputs, C::HEAD_DIM> OutProduct;

  const BackwardParamsSm90& p;
  unsigned shared;
  int group;          // this warpgroup
  int warp;           // of the warpgroup
  int lane;
  RingPlace column;   // of the next tile of columns
  unsigned rows;      // this warpgroup's rows of operand 0 of the item, and its first result
  float scores[SCORES];          // (64 rows, COLUMNS), then the weights in place
  float d_scores[SCORES];        // gradients of the weights, then of the scores
  unsigned weights[STEPS][4];    // (64 rows, COLUMNS) as pairs
  unsigned d_pairs[STEPS][4];    // likewise of d_scores
  float d_row[C::RESULTS][OUTS];  // (64 rows, HEAD_DIM)
  float lse_log2[2], delta[2];   // of this thread's rows, where rows are queries

  // What is noted of a row of this warp's 16; behind them of the first and of the last row of the warpgroup's box.
  __device__ __forceinline__ RowNote row_note(int row) const {
    return {shared + C::ROWS_AT + ((group * 4 + warp) * C::WARP_NOTES + row) * RowNote::BYTES};
  }

  // Works out the windows and addresses of this warp's rows, one row a lane, and reads the statistics of this thread's two.
  __device__ __forceinline__ void describe_rows(const WorkItem& item) {
    float pair[2] = {0.0f, 0.0f};
    if (lane < C::WARP_NOTES) {
      const WorkItem::Head head = item.head();
      const int index = lane < 16 ? warp * 16 + lane : lane == 16 ? 0 : 63;
      const RowPlace lies = describe_row<C::OF_KEYS>(p.geometry.axes, p.row_box_log2, p.row_side, item, {group, index},
                                                     row_note(lane));
#pragma unroll
      for (int i = 0; i < C::OUTPUTS; ++i)
        row_note(lane).set_result(i, lies.exists ? row_offset(p.d_row_strides[i], head, lies) : RowNote::ABSENT);
      if (lane == 16 && !lies.exists) row_note(lane).set_window(p.row_side, {0x7fffffff, 0x7fffffff});  // nor does any other
      if (!C::OF_KEYS) arch::load_pair(pair[0], pair[1], p.statistics + 2 * row_offset(p.statistics_strides, head, lies));
    }
    if (!C::OF_KEYS) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        lse_log2[half] = arch::shuffle_from(pair[0], lane / 4 + 8 * half);
        delta[half] = arch::shuffle_from(pair[1], lane / 4 + 8 * half);
      }
    }
    arch::sync_warp();
  }

  __device__ __forceinline__ void arrive(unsigned barrier) const {
    if (lane == 0) arch::barrier_arrive(shared + barrier);
  }

  __device__ __forceinline__ unsigned columns(int operand) const {
    return shared + C::COLUMN_AT + (column.stage * 2 + operand) * C::COLUMN_TILE_BYTES;
  }

  // to = rows of an operand times the columns of the same.
  __device__ __forceinline__ void issue_scores(float (&to)[SCORES], int operand) {
    const arch::Swizzle swizzle = (arch::Swizzle)C::SWIZZLE;
    const unsigned eight_rows = 8 * C::SLAB_ROW_BYTES;
    const unsigned long long a = arch::describe(rows + operand * C::ROW_TILE_BYTES, swizzle, eight_rows, 0);
    const unsigned long long b = arch::describe(columns(operand), swizzle, eight_rows, 0);
#pragma unroll
    for (int k = 0; k < C::HEAD_DIM; k += 16) {
      const int slab = k / C::SLAB;
      const int within = k % C::SLAB * 2;
      const unsigned long long a_step = (slab * C::ROW_SLAB_BYTES + within) >> 4;
      const unsigned long long b_step = (slab * C::COLUMN_SLAB_BYTES + within) >> 4;
      if (k == 0) ScoreProduct::multiply(to, a, b);
      else ScoreProduct::multiply_add(to, a + a_step, b + b_step);
    }
    arch::wgmma_commit();
  }

  // to += pairs times the columns of an operand.
  __device__ __forceinline__ void issue_sum(float (&to)[OUTS], const unsigned (&pairs)[STEPS][4], int operand) {
    const unsigned long long b = arch::describe(columns(operand), (arch::Swizzle)C::SWIZZLE, 8 * C::SLAB_ROW_BYTES,
                                                C::COLUMN_SLAB_BYTES);
#pragma unroll
    for (int step = 0; step < STEPS; ++step)
      OutProduct::accumulate(to, pairs[step], b + (step * 16 * C::SLAB_ROW_BYTES >> 4));
  }

  // Which scores of the tile at hand count.
  __device__ __forceinline__ void find_seen(unsigned (&seen)[2]) {
    const ColumnTile tile = ColumnTile::load(shared + C::TILES_AT + ColumnTile::BYTES * column.stage);
    if (!C::OF_KEYS && tile.additional > 0) {
      seen[0] = seen[1] = column_mask(tile.additional);
    } else {
      const RowNote notes[2] = {row_note(lane / 4), row_note(lane / 4 + 8)};
      row_masks(Log2Box{p.column_box_log2}, shared + C::BITS_AT, notes, tile.first, seen);
    }
  }

  // The pair of statistics `which` (0: lse_log2, 1: delta) of this thread's two columns of every eight.
  __device__ __forceinline__ void load_statistics(float (&of)[2], int which, int eight) const {
    if (C::OF_KEYS) {
      int words[2];
      arch::load_shared(words, shared + C::STATISTICS_AT + column.stage * C::STATISTICS_BYTES + which * 4 * C::COLUMNS +
                                   eight * 32 + lane % 4 * 8);
      of[0] = __int_as_float(words[0]);
      of[1] = __int_as_float(words[1]);
    }
  }

  template <bool MASKED>
  __device__ __forceinline__ void weigh(const unsigned (&seen)[2]) {
#pragma unroll
    for (int eight = 0; eight < C::COLUMNS / 8; ++eight) {
      float lse[2];
      load_statistics(lse, 0, eight);
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const int i = 4 * eight + part;
        const float reference = C::OF_KEYS ? lse[part % 2] : lse_log2[part / 2];
        // No weight is above 1, but for rounding; and where the log-sum-exp is coarse, rounding may be many powers of two.
        float exponent = arch::minimum_or_nan(fmaf(scores[i], p.geometry.scale_log2, -reference), 0.0f);
        if (MASKED && !(seen[part / 2] & 1u << (2 * eight + part % 2))) exponent = -NATTEN_INFINITY;
        scores[i] = arch::exp2_approx(exponent);
      }
    }
  }

  template <bool MASKED>
  __device__ __forceinline__ void differentiate(const unsigned (&seen)[2]) {
#pragma unroll
    for (int eight = 0; eight < C::COLUMNS / 8; ++eight) {
      float deltas[2];
      load_statistics(deltas, 1, eight);
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const int i = 4 * eight + part;
        const float along = C::OF_KEYS ? deltas[part % 2] : delta[part / 2];
        d_scores[i] = scores[i] * (d_scores[i] - along);
        // What is not seen has weight 0, and may hold an infinity.
        if (MASKED && !(seen[part / 2] & 1u << (2 * eight + part % 2))) d_scores[i] = 0.0f;
      }
    }
  }

  static __device__ __forceinline__ void pack(unsigned (&pairs)[STEPS][4], const float (&from)[SCORES]) {
#pragma unroll
    for (int i = 0; i < SCORES; i += 2) pairs[i / 8][i / 2 % 4] = Type::pack_pair(from[i], from[i + 1]);
  }

  // Whether the box of this warpgroup's rows meets the tile at hand. Boxes differ along the axis that they stand side by side
  // on alone; what one meets there lies between what its first and its last row do.
  __device__ __forceinline__ bool meets_tile() const {
    const int side = p.row_side;
    const unsigned tile = shared + C::TILES_AT + ColumnTile::BYTES * column.stage;
    const int first = (int)arch::load_shared(tile + 4 * side) * BITS_ENTRY_BYTES;
    const int end = first + (BITS_ENTRY_BYTES << pick(p.column_box_log2, side));
    const bool additional = !C::OF_KEYS && ColumnTile::load(tile).additional > 0;
    return additional || (first < row_note(17).window(side).end && end > row_note(16).window(side).start);
  }

  // The products and sums of the tile at hand.
  template <bool MASKED, int SUMS>
  __device__ __forceinline__ void work() {
    arch::wgmma_fence();
    issue_scores(scores, 0);
    if (SUMS & OF_SCORES) issue_scores(d_scores, 1);
    unsigned seen[2] = {0xffffffffu, 0xffffffffu};
    if (MASKED) find_seen(seen);
    arch::wgmma_wait<SUMS & OF_SCORES ? 1 : 0>();
    arch::settle(scores);
    weigh<MASKED>(seen);
    if (SUMS & OF_WEIGHTS) pack(weights, scores);
    if (SUMS & OF_SCORES) {
      arch::wgmma_wait<0>();
      arch::settle(d_scores);
      differentiate<MASKED>(seen);
      pack(d_pairs, d_scores);
    }
    arch::wgmma_fence();
    if (SUMS & OF_WEIGHTS) issue_sum(d_row[C::RESULTS - 1], weights, 1);
    if (SUMS & OF_SCORES) issue_sum(d_row[0], d_pairs, 0);
    arch::wgmma_commit();
    arch::wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < C::RESULTS; ++i) arch::settle(d_row[i]);
  }

  template <bool MASKED, int SUMS>
  __device__ __forceinline__ void step() {
    arch::barrier_wait(shared + C::COLUMN_FULL + 8 * column.stage, column.parity);
    if (!MASKED || meets_tile()) work<MASKED, SUMS>();
    // Lane 0 says that this place may be overwritten: all lanes have read it by then.
    arch::sync_warp();
    arrive(C::COLUMN_EMPTY + 8 * column.stage);
    column.template advance<C::STAGES>();
  }

  template <int SUMS>
  __device__ __forceinline__ void walk(const WorkItem::Head& head) {
    int tile = 0;
    for (; tile < head.full; ++tile) step<false, SUMS>();
    for (; tile < head.tiles; ++tile) step<true, SUMS>();
  }

  __device__ __forceinline__ BackwardResults results() const { return {p}; }

  // Writes a gradient through shared memory, over the item's rows of operand `over`.
  __device__ __forceinline__ void store(const float (&sum)[OUTS], int output, int over) {
    const int lane = arch::opaque(this->lane);
    const unsigned to = rows + over * C::ROW_TILE_BYTES + warp * 16 * C::HEAD_DIM * 2;
    const float factor = results().factor_of(output);
    // A query whose every score is minus infinity: its gradient is 0, where the products say NaN, having multiplied the infinite
    // keys by weights of 0.
    bool is_silent[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) is_silent[half] = !C::OF_KEYS && lse_log2[half] == NATTEN_INFINITY;
#pragma unroll
    for (int chunk = 0; chunk < Chunks::CHUNKS; chunk += 2) {
      unsigned pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* values = &sum[4 * chunk + 2 * i];
        pairs[i] = is_silent[i % 2] ? 0 : Type::pack_pair(values[0] * factor, values[1] * factor);
      }
      Chunks::put(to, lane, chunk, pairs);
    }
    arch::sync_warp();
    Chunks::copy_out(to, row_note(0), output, results().address_of(output), results().length_of(output), lane);
  }

  // Writes the partial sums of a split, each lane its own.
  __device__ __forceinline__ void store_partial(const float (&sum)[OUTS], int output, int split) {
    const int lane = arch::opaque(this->lane);
    const float factor = results().factor_of(output);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const long long at = row_note(lane / 4 + 8 * half).result(output);
      if (at == RowNote::ABSENT) continue;
      float* to = (float*)results().address_of(output) + split * results().split_stride_of(output) + at + lane % 4 * 2;
#pragma unroll
      for (int chunk = 0; chunk < Chunks::CHUNKS; ++chunk) {
        const float* values = &sum[4 * chunk + 2 * half];
        if (chunk * 8 < results().length_of(output)) arch::store_pair(to + chunk * 8, values[0] * factor, values[1] * factor);
      }
    }
  }

  __device__ __forceinline__ void store_results(const ItemPart& part) {
    if (p.splits > 1) {
#pragma unroll
      for (int i = 0; i < C::RESULTS; ++i)
        store_partial(d_row[i], C::GRADIENTS > 1 ? part.gradient : i, part.split);
      arch::sync_warp();  // the next item's rows are noted down over those that have been read
      return;
    }
    arch::named_barrier_sync(8 + group, 128);  // all of the warpgroup has been reading the rows that results lie over
#pragma unroll
    for (int i = 0; i < C::RESULTS; ++i) store(d_row[i], C::GRADIENTS > 1 ? part.gradient : i, i);
    arch::fence_async_proxy();  // the copy engine writes rows there next
    arch::sync_warp();
  }

  __device__ __forceinline__ void run() {
    column = {0, 0};
    for (unsigned count = 0;; ++count) {
      const RingPlace place = RingPlace::of<C::ITEMS>(count);
      const WorkItem item = {shared + C::ITEM_AT + place.stage * WorkItem::BYTES};
      rows = shared + C::ROW_AT + place.stage * 2 * C::ROW_TILE_BYTES + group * C::ROW_BOX_BYTES;
      arch::barrier_wait(shared + C::ROW_FULL + 8 * place.stage, place.parity);
      const WorkItem::Head head = item.head();
      if (head.tiles < 0) break;
      describe_rows(item);
#pragma unroll
      for (int i = 0; i < C::RESULTS; ++i) {
#pragma unroll
        for (int j = 0; j < OUTS; ++j) d_row[i][j] = 0.0f;
      }
      const ItemPart part = ItemPart::load(shared + C::PARTS_AT + ItemPart::BYTES * place.stage);
      if (C::GRADIENTS == 1) walk<C::OF_KEYS ? OF_SCORES | OF_WEIGHTS : OF_SCORES>(head);
      else if (part.gradient == ItemPart::KEYS) walk<OF_SCORES>(head);
      else walk<OF_WEIGHTS>(head);
      store_results(part);
      arrive(C::ROW_EMPTY + 8 * place.stage);
    }
  }
};

}  // namespace sm90
}  // namespace natten
