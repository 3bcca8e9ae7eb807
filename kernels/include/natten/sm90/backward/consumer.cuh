// SPDX-License-Identifier: MIT OR Apache-2.0
// A consumer warpgroup of a Hopper backward pass: 64 rows against every column tile of the item.
//
//   S = R0 C0^T; dP = R1 C1^T                        (R0, R1: q, d_out over columns k, v; or k, v over columns q, d_out)
//   P = 2^(scale_log2 S - lse_log2); dS = P (dP - delta)
//   d_row0 += dS C0; in the pass over keys d_row1 += P C1
#pragma once
#include "../../arch/math.cuh"
#include "../../arch/memory.cuh"
#include "../../arch/warp.cuh"
#include "../mask.cuh"
#include "work.cuh"

namespace natten {
namespace sm90 {

template <class C>
struct BackwardConsumer {
  typedef typename C::Type Type;
  enum {
    SCORES = C::COLUMNS / 2,
    OUTS = C::HEAD_DIM / 2,
    STEPS = C::COLUMNS / 16,  // of 16 columns, in the products that sum over columns
    CHUNKS = C::HEAD_DIM / 8,  // of 16 bytes, in a row of a result
    CHUNK_XOR = CHUNKS < 8 ? CHUNKS - 1 : 7
  };
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

  // What is noted of a row of this warp's 16.
  __device__ __forceinline__ RowNote row_note(int row) const {
    return {shared + C::ROWS_AT + (group * 64 + warp * 16 + row) * RowNote::BYTES};
  }

  // Works out the windows and addresses of this warp's rows, one row a lane, and reads the statistics of this thread's two.
  __device__ __forceinline__ void describe_rows(const WorkItem& item) {
    float pair[2] = {0.0f, 0.0f};
    if (lane < 16) {
      const WorkItem::Head head = item.head();
      int index = warp * 16 + lane;
      // In 64 bits: a batch item of a large tensor is far away.
      long long results[C::RESULTS];
#pragma unroll
      for (int i = 0; i < C::RESULTS; ++i)
        results[i] = head.batch * p.d_row_strides[i].batch + head.head * p.d_row_strides[i].head;
      long long statistics = head.batch * p.statistics_strides.batch + head.head * p.statistics_strides.head;
      bool exists = true;
#pragma unroll
      for (int a = 2; a >= 0; --a) {
        const Axis& axis = p.geometry.axes[a];
        const int log2 = p.row_box_log2[a];
        const WorkItem::Along along = item.along(a);
        const int box = a == p.row_side ? group << log2 : 0;
        int position = along.base + box + low_bits(index, log2);
        index >>= log2;
        const int count = row_count<C::OF_KEYS>(axis, along.residue);
        exists &= position < count;
        position = minimum(position, count - 1);
        const Range met = meets<C::OF_KEYS>(axis, along.residue, position);
        row_note(lane).set_window(a, {met.start * BITS_ENTRY_BYTES, met.end * BITS_ENTRY_BYTES});
        const long long token = token_at(axis, along.residue, position);
#pragma unroll
        for (int i = 0; i < C::RESULTS; ++i) results[i] += token * p.d_row_strides[i].axis[a];
        statistics += token * p.statistics_strides.axis[a];
      }
#pragma unroll
      for (int i = 0; i < C::RESULTS; ++i) row_note(lane).set_result(i, exists ? results[i] : -1);
      if (!C::OF_KEYS) arch::load_pair(pair[0], pair[1], p.statistics + 2 * statistics);
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
      row_masks(p.column_box_log2, shared + C::BITS_AT, notes, tile.first, seen);
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

  // Whether some log-sum-exp of the tile is coarse, so that exponents end at 0. Each lane looks at its two rows, or at two columns.
  __device__ __forceinline__ bool is_coarse() const {
    float of[2] = {lse_log2[0], lse_log2[1]};
    if (C::OF_KEYS) {
      int words[2];
      arch::load_shared(words, shared + C::STATISTICS_AT + column.stage * C::STATISTICS_BYTES + lane * 8);
      of[0] = __int_as_float(words[0]);
      of[1] = __int_as_float(words[1]);
    }
    return arch::any(fmaxf(fabsf(of[0]), fabsf(of[1])) >= NATTEN_COARSE);
  }

  template <bool MASKED>
  __device__ __forceinline__ void weigh(const unsigned (&seen)[2]) {
    if (is_coarse()) weigh_all<MASKED, true>(seen);
    else weigh_all<MASKED, false>(seen);
  }

  template <bool MASKED, bool COARSE>
  __device__ __forceinline__ void weigh_all(const unsigned (&seen)[2]) {
#pragma unroll
    for (int eight = 0; eight < C::COLUMNS / 8; ++eight) {
      float lse[2];
      load_statistics(lse, 0, eight);
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const int i = 4 * eight + part;
        const float reference = C::OF_KEYS ? lse[part % 2] : lse_log2[part / 2];
        float exponent = fmaf(scores[i], p.geometry.scale_log2, -reference);
        if (COARSE) exponent = fminf(exponent, highest_exponent(reference));
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

  template <bool MASKED>
  __device__ __forceinline__ void step() {
    arch::barrier_wait(shared + C::COLUMN_FULL + 8 * column.stage, column.parity);
    arch::wgmma_fence();
    issue_scores(scores, 0);
    issue_scores(d_scores, 1);
    unsigned seen[2] = {0xffffffffu, 0xffffffffu};
    if (MASKED) find_seen(seen);
    arch::wgmma_wait<1>();
    arch::settle(scores);
    weigh<MASKED>(seen);
    if (C::OF_KEYS) pack(weights, scores);
    arch::wgmma_wait<0>();
    arch::settle(d_scores);
    differentiate<MASKED>(seen);
    pack(d_pairs, d_scores);
    arch::wgmma_fence();
    if (C::OF_KEYS) issue_sum(d_row[C::RESULTS - 1], weights, 1);
    issue_sum(d_row[0], d_pairs, 0);
    arch::wgmma_commit();
    arch::wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < C::RESULTS; ++i) arch::settle(d_row[i]);
    // Lane 0 says that this place may be overwritten: all lanes have read it by then.
    arch::sync_warp();
    arrive(C::COLUMN_EMPTY + 8 * column.stage);
    column.template advance<C::STAGES>();
  }

  // Writes a result through shared memory, over the rows of the operand that it is the gradient of.
  __device__ __forceinline__ void store(int result, float factor, int length) {
    const int lane = arch::opaque(this->lane);
    const unsigned to = rows + result * C::ROW_TILE_BYTES + warp * 16 * C::HEAD_DIM * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + 8 * half;
#pragma unroll
      for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        const float* values = &d_row[result][4 * chunk + 2 * half];
        const unsigned pair = Type::pack_pair(values[0] * factor, values[1] * factor);
        // The exclusive or spreads the eight rows that are written together over all banks.
        arch::store_shared(to + (row * CHUNKS + (chunk ^ (row & CHUNK_XOR))) * 16 + lane % 4 * 4, pair);
      }
    }
    arch::sync_warp();
    for (int index = lane; index < 16 * CHUNKS; index += 32) {
      const int row = index / CHUNKS;
      const int chunk = index % CHUNKS;
      const long long at = row_note(row).result(result);
      int words[4];
      arch::load_shared(words, to + (row * CHUNKS + (chunk ^ (row & CHUNK_XOR))) * 16);
      if (at >= 0 && chunk * 8 < length) {
        const unsigned bits[4] = {(unsigned)words[0], (unsigned)words[1], (unsigned)words[2], (unsigned)words[3]};
        arch::store_16_bytes((char*)p.d_row[result] + (at + chunk * 8) * 2, bits);
      }
    }
  }

  __device__ __forceinline__ void store_results() {
    arch::named_barrier_sync(8 + group, 128);  // all of the warpgroup has been reading the rows that results lie over
    store(0, p.geometry.scale, p.geometry.head_dim);
    if (C::OF_KEYS) store(C::RESULTS - 1, 1.0f, p.geometry.head_dim_v);
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
      int tile = 0;
      for (; tile < head.full; ++tile) step<false>();
      for (; tile < head.tiles; ++tile) step<true>();
      store_results();
      arrive(C::ROW_EMPTY + 8 * place.stage);
    }
  }
};

}  // namespace sm90
}  // namespace natten
