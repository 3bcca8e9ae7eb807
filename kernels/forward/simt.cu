// SPDX-License-Identifier: MIT OR Apache-2.0
// Forward pass on CUDA cores, any GPU from sm_50: exact windows, no tensor cores, no shared memory.
//
//   q[ITEMS] = rows of ITEMS neighbouring queries, times scale * log2(e) / unit, a power of two that is 1 for usual scales
//   for each key in the union of their windows, then each additional key:
//     k, v = its rows                              (loaded once for all ITEMS queries)
//     s[i] = q[i] . k                              (thrown away where the query does not see the key)
//     one owner per s[i]: w[i] = visible ? 2^((s[i] - reference[i]) * unit) : 0; sum[i] += w[i]
//     out[i] += w[i] * v                           (only where w[i] != 0)
//   out[i] /= sum[i];  lse[i] = ln 2 * (reference[i] * unit + log2 sum[i])
//
// Warps: 4, all alike, never synchronised. A lane group of LANES lanes holds ELEMS elements a lane of every row.
// Shared memory: none; neighbouring lane groups share their loads through L1.
// Registers: 2 * ITEMS * ELEMS for q and out, 2 * ELEMS for k and v, about 50 for the rest.
#include <natten/block.cuh>
#include <natten/row.cuh>
#include <natten/softmax.cuh>

namespace natten {

template <class T, int LANES, int ELEMS, int ITEMS, bool ALIGNED>
struct ForwardBody {
  typedef Lanes<LANES, ITEMS> Group;
  enum { OWNED = Group::OWNED };

  const Geometry& geometry;
  int lane;
  int group_lane;
  float query[ITEMS][ELEMS];  // (ITEMS, this lane's part of head_dim)
  float out[ITEMS][ELEMS];    // (ITEMS, this lane's part of head_dim_v)
  Softmax<OWNED> softmax;

  __device__ __forceinline__ void operator()(const char* const (&token)[2], const bool (&visible)[OWNED]) {
    float key[ELEMS], value[ELEMS];
    load_row<T, LANES, ELEMS, ALIGNED>(key, token[0], geometry.head_dim, lane);
    load_row<T, LANES, ELEMS, ALIGNED>(value, token[1], geometry.head_dim_v, lane);

    // Scores of invisible pairs are thrown away: skipping them by a branch an item made ptxas convert the key anew in
    // each branch, which cost more than the scores.
    float partial[ITEMS];
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
      partial[item] = query[item][0] * key[0];
#pragma unroll
      for (int e = 1; e < ELEMS; ++e) partial[item] = fmaf(query[item][e], key[e], partial[item]);
    }
    float score[OWNED], weight[OWNED];
    Group::reduce(partial, score, lane);

    if (arch::any(softmax.must_rescale(score, visible))) rescale(score, visible);
    softmax.push(score, visible, weight);

#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
      const float w = Group::broadcast(weight, item, group_lane);
#pragma unroll
      for (int e = 0; e < ELEMS; ++e) arch::accumulate_where_nonzero(out[item][e], w, value[e]);
    }
  }

  __device__ __forceinline__ void rescale(const float (&score)[OWNED], const bool (&visible)[OWNED]) {
    float factor[OWNED];
    softmax.rescale(score, visible, factor);
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
      const float f = Group::broadcast(factor, item, group_lane);
#pragma unroll
      for (int e = 0; e < ELEMS; ++e) out[item][e] *= f;
    }
  }
};

template <class T, int LANES, int ELEMS, int ITEMS, bool ALIGNED>
NATTEN_DEVICE void forward(const ForwardParams& p) {
  typedef Lanes<LANES, ITEMS> Group;
  const Geometry& geometry = p.geometry;
  const Decomposition& plan = p.decomposition;
  Block<LANES, ITEMS> block;
  if (!block.template place<QUERY_ITEMS>(geometry, plan)) return;
  const int lane = block.lane;
  const int head_kv = divide(block.head, geometry.heads_per_kv);

  const SplitScale scale = SplitScale::of(geometry.scale_log2, geometry.scale);
  ForwardBody<T, LANES, ELEMS, ITEMS, ALIGNED> body = {geometry, lane, block.group_lane};
#pragma unroll
  for (int item = 0; item < ITEMS; ++item) {
    const void* row = (const char*)p.query + block.item_row<QUERY_ITEMS>(geometry, plan, p.query_strides, item) * T::BYTES;
    load_row<T, LANES, ELEMS, ALIGNED>(body.query[item], row, geometry.head_dim, lane);
#pragma unroll
    for (int e = 0; e < ELEMS; ++e) {
      body.query[item][e] *= scale.of_rows;
      body.out[item][e] = 0.0f;
    }
  }
  body.softmax.clear(scale.of_scores);

  Streams<2> keys;
  keys.set(0, p.key, block.seen_row<QUERY_ITEMS>(geometry, p.key_strides, head_kv), p.key_strides, geometry, T::BYTES);
  keys.set(1, p.value, block.seen_row<QUERY_ITEMS>(geometry, p.value_strides, head_kv), p.value_strides, geometry, T::BYTES);
  AlwaysSeen<2> always;
  always.count = geometry.additional_keys;
  always.set(0, p.additional_key, p.additional_key_strides, block.batch, head_kv, T::BYTES);
  always.set(1, p.additional_value, p.additional_value_strides, block.batch, head_kv, T::BYTES);
  walk(block, {0, block.window_rows()}, keys, always, body);

  float inverse_sum[Group::OWNED];
#pragma unroll
  for (int slot = 0; slot < Group::OWNED; ++slot)
    inverse_sum[slot] = inverse_of(body.softmax.sum[slot]);
#pragma unroll
  for (int item = 0; item < ITEMS; ++item) {
    const float factor = Group::broadcast(inverse_sum, item, block.group_lane);
    if (!block.exists(plan, item)) continue;
    store_row<T, LANES, ALIGNED>((char*)p.out + block.item_row<QUERY_ITEMS>(geometry, plan, p.out_strides, item) * T::BYTES, body.out[item],
                        factor, geometry.head_dim_v, lane);
  }
  // Lanes that agree in their low bits own the same item: one of them writes.
  if (p.lse == nullptr || lane >> Group::SPLITS != 0) return;
#pragma unroll
  for (int slot = 0; slot < Group::OWNED; ++slot) {
    if (!block.owns[slot]) continue;
    p.lse[block.item_row<QUERY_ITEMS>(geometry, plan, p.lse_strides, Group::first_item(lane) + slot)] = body.softmax.log_sum_exp(slot);
  }
}

}  // namespace natten

// The macros come from the compile matrix (crates/xtask). One cta a multiprocessor is asked for, so that ptxas does not
// spill for the sake of a third; what it needs leaves room for two.
extern "C" __global__ void __launch_bounds__(128, 1) NATTEN_ENTRY(natten::ForwardParams p) {
  natten::forward<natten::NATTEN_TYPE, NATTEN_LANES, NATTEN_ELEMS, NATTEN_ITEMS, NATTEN_ALIGNED>(p);
}
