// SPDX-License-Identifier: MIT OR Apache-2.0
// Backward pass on CUDA cores, any GPU from sm_50: deterministic, exact windows, no shared memory, no atomics.
//
//   weight[i][j] = 2^(scale_log2 * query[i] . key[j] - lse_log2[i])
//   d_score[i][j] = weight[i][j] * (d_out[i] . value[j] - delta[i])
//
//   pass over queries: items are queries. For each key in the union of their windows, then each additional key:
//     d_query[i] += d_score[i][j] * key[j]; at the end d_query *= scale
//   pass over keys: items are keys. For each query head that shares them, for each query in the union of their inverse
//     windows: d_value[j] += weight[i][j] * d_out[i]; d_key[j] += d_score[i][j] * query[i]; at the end d_key *= scale
//   pass over additional keys: the same code, on the part of all queries that blockIdx.y names, into f32 partial sums.
//
// lse_log2 and delta come as pairs from rows.cu; delta carries the gradient of the log-sum-exp, so it needs no place here.
// Warps as in forward/simt.cu. Three or four rows an item are live instead of two, so lanes hold 8 elements of a row where a warp
// has enough of them.
#include <natten/ahead.cuh>
#include <natten/softmax.cuh>

namespace natten {

// This lane's share of the dot product of every pair of an item and a token.
template <int ITEMS, int TOKENS, int ELEMS>
NATTEN_DEVICE void multiply(const float (&items)[ITEMS][ELEMS], const float (&tokens)[TOKENS][ELEMS],
                            float (&partial)[ITEMS * TOKENS]) {
#pragma unroll
  for (int pair = 0; pair < ITEMS * TOKENS; ++pair) {
    const int item = pair / TOKENS, token = pair % TOKENS;
    partial[pair] = items[item][0] * tokens[token][0];
#pragma unroll
    for (int e = 1; e < ELEMS; ++e) partial[pair] = fmaf(items[item][e], tokens[token][e], partial[pair]);
  }
}

template <class T, int LANES, int ELEMS, int ITEMS, int TOKENS, bool ALIGNED>
struct QueryBody {
  typedef Pairs<LANES, ITEMS, TOKENS> Group;
  enum { OWNED = Group::OWNED };
  static constexpr bool AHEAD = ELEMS < 32;  // rows of 32 elements a lane are loaded one after the other, when they are needed

  const Geometry& geometry;
  int lane;
  float query[ITEMS][ELEMS];       // times scale_log2 / unit
  float d_out[ITEMS][ELEMS];
  float d_query[ITEMS][ELEMS];  // without scale
  float lse_log2[OWNED];
  float delta[OWNED];
  float unit;  // of scores, in powers of two: a power of two itself
  Rows<T, LANES, ELEMS, TOKENS, ALIGNED> keys, values;

  template <bool WHOLE>
  __device__ __forceinline__ void begin(const Next<TOKENS, 2>& next) {
    if constexpr (!AHEAD) return;
    values.template load<WHOLE>(next, 1, geometry.head_dim_v, lane);
    keys.template load<WHOLE>(next, 0, geometry.head_dim, lane);
  }

  template <bool WHOLE>
  __device__ __forceinline__ void step(const bool (&visible)[OWNED], Next<TOKENS, 2>& next) {
    float score_partial[Group::COUNT], d_weight_partial[Group::COUNT], score[OWNED], d_weight[OWNED], d_score[OWNED];
    float value[TOKENS][ELEMS], key[TOKENS][ELEMS];
    if constexpr (!AHEAD) values.template load_now<WHOLE>(next, 1, geometry.head_dim_v, lane);
    values.unpack(value);
    multiply(d_out, value, d_weight_partial);
    if constexpr (AHEAD) values.template load_next<WHOLE>(next, 1, geometry.head_dim_v, lane);
    else keys.template load_now<WHOLE>(next, 0, geometry.head_dim, lane);
    keys.unpack(key);
    multiply(query, key, score_partial);
    Group::reduce(d_weight_partial, d_weight);
    Group::reduce(score_partial, score);
#pragma unroll
    for (int slot = 0; slot < OWNED; ++slot) {
      const float weight = backward_weight(score[slot], unit, lse_log2[slot]);
      d_score[slot] = visible[slot] ? weight * (d_weight[slot] - delta[slot]) : 0.0f;
    }
#pragma unroll
    for (int pair = 0; pair < Group::COUNT; ++pair) {
      const float g = Group::share(d_score, pair);
#pragma unroll
      for (int e = 0; e < ELEMS; ++e)
        arch::accumulate_where_nonzero(d_query[pair / TOKENS][e], g, key[pair % TOKENS][e]);
    }
    if constexpr (AHEAD) {
      keys.template load_next<WHOLE>(next, 0, geometry.head_dim, lane);
    } else {
      next.advance(0);
      next.advance(1);
    }
  }
};

template <class T, int LANES, int ELEMS, int ITEMS, bool ALIGNED>
NATTEN_DEVICE void backward_query(const BackwardParams& p) {
  // Two tokens at a time where registers hold their rows: twice as many loads are under way, and the exchange of two is cheaper.
  enum { TOKENS = ELEMS <= 8 ? 2 : 1 };
  typedef Pairs<LANES, ITEMS, TOKENS> Owned;
  const Geometry& geometry = p.geometry;
  const Decomposition& plan = p.decomposition;
  Block<LANES, ITEMS> block;
  if (!block.template place<QUERY_ITEMS>(geometry, plan)) return;
  block.agree();
  const int lane = block.lane;
  const int head_kv = divide(block.head, geometry.heads_per_kv);

  const SplitScale scale = SplitScale::of(geometry.scale_log2, geometry.scale);
  QueryBody<T, LANES, ELEMS, ITEMS, TOKENS, ALIGNED> body = {geometry, lane};
  body.unit = scale.of_scores;
  body.keys.clear();
  body.values.clear();
#pragma unroll
  for (int item = 0; item < ITEMS; ++item) {
    const int held = Owned::item_at(lane, item);
    const void* query = (const char*)p.query + block.item_row<QUERY_ITEMS>(geometry, plan, p.query_strides, held) * T::BYTES;
    const void* d_out = (const char*)p.d_out + block.item_row<QUERY_ITEMS>(geometry, plan, p.d_out_strides, held) * T::BYTES;
    load_row<T, LANES, ELEMS, ALIGNED>(body.query[item], query, geometry.head_dim, lane);
    load_row<T, LANES, ELEMS, ALIGNED>(body.d_out[item], d_out, geometry.head_dim_v, lane);
#pragma unroll
    for (int e = 0; e < ELEMS; ++e) {
      body.query[item][e] *= scale.of_rows;
      body.d_query[item][e] = 0.0f;
    }
  }
#pragma unroll
  for (int slot = 0; slot < Owned::OWNED; ++slot) {
    const int item = Lanes<LANES, ITEMS>::first_item(lane) + Owned::item_slot(slot);
    const float* pair = p.statistics + 2 * block.item_row<QUERY_ITEMS>(geometry, plan, p.statistics_strides, item);
    arch::load_pair(body.lse_log2[slot], body.delta[slot], pair);
  }

  Paths<2> keys;
  keys.set(0, p.key, block.seen_row<QUERY_ITEMS>(geometry, p.key_strides, head_kv), p.key_strides, T::BYTES, lane);
  keys.set(1, p.value, block.seen_row<QUERY_ITEMS>(geometry, p.value_strides, head_kv), p.value_strides, T::BYTES, lane);
  AlwaysSeen<2> always;
  always.count = geometry.additional_keys;
  always.set(0, p.additional_key, p.additional_key_strides, block.batch, head_kv, T::BYTES);
  always.set(1, p.additional_value, p.additional_value_strides, block.batch, head_kv, T::BYTES);
  always.first[0] += lane * 16;
  always.first[1] += lane * 16;
  const RowRange rows = {0, block.window_rows()};
  if (fills_lanes<LANES, ELEMS, ALIGNED>(geometry)) walk_ahead<true, TOKENS>(block, geometry, rows, keys, always, body);
  else walk_ahead<false, TOKENS>(block, geometry, rows, keys, always, body);

  block.template place<QUERY_ITEMS, true>(geometry, plan);
#pragma unroll
  for (int item = 0; item < ITEMS; ++item) {
    const int held = Owned::item_at(block.lane, item);
    if (!block.exists(plan, held)) continue;
    store_row<T, LANES, ALIGNED>((char*)p.d_query + block.item_row<QUERY_ITEMS>(geometry, plan, p.d_query_strides, held) * T::BYTES,
                                 body.d_query[item], geometry.scale, geometry.head_dim, lane);
  }
}

template <class T, int LANES, int ELEMS, int ITEMS, int TOKENS, bool ALIGNED>
struct KeyBody {
  typedef Pairs<LANES, ITEMS, TOKENS> Group;
  // A lane's own pairs are at its first places, so that it needs statistics of no more tokens than these.
  enum { OWNED = Group::OWNED, OWN_TOKENS = OWNED < TOKENS ? OWNED : TOKENS };

  const Geometry& geometry;
  int lane;
  float key[ITEMS][ELEMS];         // times scale_log2 / unit
  float value[ITEMS][ELEMS];
  float d_key[ITEMS][ELEMS];    // without scale
  float d_value[ITEMS][ELEMS];
  float unit;  // as above
  Rows<T, LANES, ELEMS, TOKENS, ALIGNED> queries, d_outs;
  float lse_log2[OWN_TOKENS];
  float delta[OWN_TOKENS];

  __device__ __forceinline__ void clear(const SplitScale& scale) {
    unit = scale.of_scores;
    queries.clear();
    d_outs.clear();
#pragma unroll
    for (int t = 0; t < OWN_TOKENS; ++t) lse_log2[t] = delta[t] = 0.0f;
  }

  __device__ __forceinline__ void take(int item, const char* key_row, const char* value_row, const SplitScale& scale) {
    load_row<T, LANES, ELEMS, ALIGNED>(key[item], key_row, geometry.head_dim, lane);
    load_row<T, LANES, ELEMS, ALIGNED>(value[item], value_row, geometry.head_dim_v, lane);
#pragma unroll
    for (int e = 0; e < ELEMS; ++e) {
      key[item][e] *= scale.of_rows;
      d_key[item][e] = 0.0f;
      d_value[item][e] = 0.0f;
    }
  }

  __device__ __forceinline__ void load_statistics(const Next<TOKENS, 3>& next) {
#pragma unroll
    for (int t = 0; t < OWN_TOKENS; ++t)
      arch::load_pair_if(next.there[t], lse_log2[t], delta[t], (const float*)next.at[t][2]);
  }

  template <bool WHOLE>
  __device__ __forceinline__ void begin(const Next<TOKENS, 3>& next) {
    d_outs.template load<WHOLE>(next, 1, geometry.head_dim_v, lane);
    queries.template load<WHOLE>(next, 0, geometry.head_dim, lane);
    load_statistics(next);
  }

  template <bool WHOLE>
  __device__ __forceinline__ void step(const bool (&visible)[OWNED], Next<TOKENS, 3>& next) {
    float query[TOKENS][ELEMS], d_out[TOKENS][ELEMS];
    float score_partial[Group::COUNT], d_weight_partial[Group::COUNT];
    float score[OWNED], d_weight[OWNED], weight[OWNED], d_score[OWNED];
    d_outs.unpack(d_out);
    multiply(value, d_out, d_weight_partial);
    queries.unpack(query);
    multiply(key, query, score_partial);
    Group::reduce(d_weight_partial, d_weight);
    Group::reduce(score_partial, score);
#pragma unroll
    for (int slot = 0; slot < OWNED; ++slot) {
      const int t = slot % TOKENS;
      weight[slot] = visible[slot] ? backward_weight(score[slot], unit, lse_log2[t]) : 0.0f;
      d_score[slot] = visible[slot] ? weight[slot] * (d_weight[slot] - delta[t]) : 0.0f;
    }
#pragma unroll
    for (int pair = 0; pair < Group::COUNT; ++pair) {
      const float w = Group::share(weight, pair);
#pragma unroll
      for (int e = 0; e < ELEMS; ++e)
        arch::accumulate_where_nonzero(d_value[pair / TOKENS][e], w, d_out[pair % TOKENS][e]);
    }
#pragma unroll
    for (int pair = 0; pair < Group::COUNT; ++pair) {
      const float g = Group::share(d_score, pair);
#pragma unroll
      for (int e = 0; e < ELEMS; ++e)
        arch::accumulate_where_nonzero(d_key[pair / TOKENS][e], g, query[pair % TOKENS][e]);
    }
#pragma unroll
    for (int s = 0; s < 3; ++s) next.advance(s);
    begin<WHOLE>(next);
  }
};

// With 32 elements a lane registers hold a key's two gradients and no row beside them: rows are read part by part, the key's
// own from L1, and those of the query a second time once the weight is known.
template <class T, int LANES, bool ALIGNED>
struct KeyBody<T, LANES, 32, 1, 1, ALIGNED> {
  typedef Pairs<LANES, 1, 1> Group;
  enum { ELEMS = 16, PARTS = 2, PART = LANES * ELEMS };
  static_assert(LANES == WARP, "as in load_now");

  const Geometry& geometry;
  int lane;
  const char* key_row;
  const char* value_row;
  SplitScale scale;
  float d_key[1][PARTS * ELEMS];  // without scale
  float d_value[1][PARTS * ELEMS];

  __device__ __forceinline__ void clear(const SplitScale& split) { scale = split; }

  __device__ __forceinline__ void take(int, const char* key, const char* value, const SplitScale&) {
    key_row = key;
    value_row = value;
#pragma unroll
    for (int e = 0; e < PARTS * ELEMS; ++e) {
      d_key[0][e] = 0.0f;
      d_value[0][e] = 0.0f;
    }
  }

  __device__ __forceinline__ void load(float (&values)[ELEMS], const char* row, int part, int length) const {
    load_row<T, LANES, ELEMS, ALIGNED>(values, row + part * PART * T::BYTES, length - part * PART, lane);
  }

  // This lane's share of a dot product of two rows; not unrolled, so that one part at a time is in registers.
  __device__ __forceinline__ float dot(const char* a_row, const char* b_row, float factor, int length) const {
    float sum = 0.0f;
#pragma unroll 1
    for (int part = 0; part < PARTS; ++part) {
      float a[ELEMS], b[ELEMS];
      load(a, a_row, part, length);
      load(b, b_row, part, length);
#pragma unroll
      for (int e = 0; e < ELEMS; ++e) sum = fmaf(a[e] * factor, b[e], sum);
    }
    return sum;
  }

  template <bool WHOLE>
  __device__ __forceinline__ void begin(const Next<1, 3>&) {}

  template <bool WHOLE>
  __device__ __forceinline__ void step(const bool (&visible)[1], Next<1, 3>& next) {
    const char* const token[3] = {next.at[0][0] - lane * 16, next.at[0][1] - lane * 16, next.at[0][2]};
    float score_partial[1] = {dot(key_row, token[0], scale.of_rows, geometry.head_dim)};
    float d_weight_partial[1] = {dot(value_row, token[1], 1.0f, geometry.head_dim_v)};
    float score[1], d_weight[1], lse_log2, delta;
    Group::reduce(score_partial, score);
    Group::reduce(d_weight_partial, d_weight);
    arch::load_pair(lse_log2, delta, (const float*)token[2]);
    // Every lane owns the one item.
    const float weight = visible[0] ? backward_weight(score[0], scale.of_scores, lse_log2) : 0.0f;
    const float d_score = visible[0] ? weight * (d_weight[0] - delta) : 0.0f;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      float query[ELEMS], d_out[ELEMS];
      load(query, token[0], part, geometry.head_dim);
      load(d_out, token[1], part, geometry.head_dim_v);
#pragma unroll
      for (int e = 0; e < ELEMS; ++e) {
        arch::accumulate_where_nonzero(d_value[0][part * ELEMS + e], weight, d_out[e]);
        arch::accumulate_where_nonzero(d_key[0][part * ELEMS + e], d_score, query[e]);
      }
    }
#pragma unroll
    for (int s = 0; s < 3; ++s) next.advance(s);
  }
};

template <class T, int LANES, int ELEMS, int ITEMS, bool ALIGNED>
NATTEN_DEVICE void backward_key(const BackwardParams& p) {
  enum { TOKENS = ELEMS <= 8 && LANES > 1 ? 2 : 1 };
  typedef Pairs<LANES, ITEMS, TOKENS> Owned;
  const Geometry& geometry = p.geometry;
  const Decomposition& plan = p.decomposition;
  Block<LANES, ITEMS> block;
  if (!block.template place<KEY_ITEMS>(geometry, plan)) return;
  block.agree();
  const int lane = block.lane;

  const SplitScale scale = SplitScale::of(geometry.scale_log2, geometry.scale);
  KeyBody<T, LANES, ELEMS, ITEMS, TOKENS, ALIGNED> body = {geometry, lane};
  body.clear(scale);
#pragma unroll
  for (int item = 0; item < ITEMS; ++item) {
    const int held = Owned::item_at(lane, item);
    const char* key = (const char*)p.key + block.item_row<KEY_ITEMS>(geometry, plan, p.key_strides, held) * T::BYTES;
    const char* value = (const char*)p.value + block.item_row<KEY_ITEMS>(geometry, plan, p.value_strides, held) * T::BYTES;
    body.take(item, key, value, scale);
  }

  RowRange rows = {0, block.window_rows()};
  const bool partial = p.rows_per_split > 0;
  if (partial) {
    rows.begin = minimum((int)blockIdx.y * p.rows_per_split, rows.end);
    rows.end = minimum(rows.begin + p.rows_per_split, rows.end);
  }
  AlwaysSeen<3> none;
  none.count = 0;
  const int heads_per_kv = (int)geometry.heads_per_kv.value;
#pragma unroll 1
  for (int shared = 0; shared < heads_per_kv; ++shared) {
    const int head = block.head * heads_per_kv + shared;
    Paths<3> queries;
    queries.set(0, p.query, block.seen_row<KEY_ITEMS>(geometry, p.query_strides, head), p.query_strides, T::BYTES, lane);
    queries.set(1, p.d_out, block.seen_row<KEY_ITEMS>(geometry, p.d_out_strides, head), p.d_out_strides, T::BYTES, lane);
    queries.set(2, p.statistics, block.seen_row<KEY_ITEMS>(geometry, p.statistics_strides, head), p.statistics_strides, 8, 0);
    if (fills_lanes<LANES, ELEMS, ALIGNED>(geometry)) walk_ahead<true, TOKENS>(block, geometry, rows, queries, none, body);
    else walk_ahead<false, TOKENS>(block, geometry, rows, queries, none, body);
  }

  block.template place<KEY_ITEMS, true>(geometry, plan);
  // Known to be 1 here alone: without a product ptxas would bind the sums to the registers that stores want, and move them out
  // of the way of loads in every turn of the loop.
  const float one = __int_as_float(0x3f800000 | geometry.head_dim >> 31);
#pragma unroll
  for (int item = 0; item < ITEMS; ++item) {
    const int held = Owned::item_at(block.lane, item);
    if (!block.exists(plan, held)) continue;
    const long long key_row = block.item_row<KEY_ITEMS>(geometry, plan, p.d_key_strides, held);
    const long long value_row = block.item_row<KEY_ITEMS>(geometry, plan, p.d_value_strides, held);
    if (partial) {
      store_partial<T, LANES>((float*)p.d_key + blockIdx.y * p.partial_key_stride + key_row, body.d_key[item],
                              geometry.scale, geometry.head_dim, lane);
      store_partial<T, LANES>((float*)p.d_value + blockIdx.y * p.partial_value_stride + value_row,
                              body.d_value[item], one, geometry.head_dim_v, lane);
    } else {
      store_row<T, LANES, ALIGNED>((char*)p.d_key + key_row * T::BYTES, body.d_key[item], geometry.scale,
                                   geometry.head_dim, lane);
      store_row<T, LANES, ALIGNED>((char*)p.d_value + value_row * T::BYTES, body.d_value[item], one,
                                   geometry.head_dim_v, lane);
    }
  }
}

}  // namespace natten

// The macros come from the compile matrix (crates/xtask). With 8 elements a lane registers hold what the loops need for three ctas
// on a multiprocessor. Others are asked for one, so that ptxas does not spill for the sake of a third; what they need leaves room
// for two.
#define NATTEN_CTAS (NATTEN_ELEMS > 8 ? 1 : 3)
#define NATTEN_CONFIG natten::NATTEN_TYPE, NATTEN_LANES, NATTEN_ELEMS, NATTEN_ITEMS, NATTEN_ALIGNED

#if NATTEN_PASS == 0
extern "C" __global__ void __launch_bounds__(128, NATTEN_CTAS) NATTEN_ENTRY(natten::BackwardParams p) {
  natten::backward_query<NATTEN_CONFIG>(p);
}
#else
extern "C" __global__ void __launch_bounds__(128, NATTEN_CTAS) NATTEN_ENTRY(natten::BackwardParams p) {
  natten::backward_key<NATTEN_CONFIG>(p);
}
#endif
