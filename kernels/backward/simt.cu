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
#include <natten/block.cuh>
#include <natten/row.cuh>
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

  const Geometry& geometry;
  int lane;
  float query[ITEMS][ELEMS];       // times scale_log2 / unit
  float d_out[ITEMS][ELEMS];
  float d_query[ITEMS][ELEMS];  // without scale
  float lse_log2[OWNED];
  float delta[OWNED];
  float unit;  // of scores, in powers of two: a power of two itself

  __device__ __forceinline__ void operator()(const char* const (&tokens)[TOKENS][2], const bool (&visible)[OWNED]) {
    float key[TOKENS][ELEMS], value[TOKENS][ELEMS];
    load_rows<T, LANES, ALIGNED>(key, value, tokens, geometry.head_dim, geometry.head_dim_v, lane);

    float score_partial[Group::COUNT], d_weight_partial[Group::COUNT], score[OWNED], d_weight[OWNED], d_score[OWNED];
    multiply(query, key, score_partial);
    multiply(d_out, value, d_weight_partial);
    Group::reduce(score_partial, score, lane);
    Group::reduce(d_weight_partial, d_weight, lane);
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
  const int lane = block.lane;
  const int head_kv = divide(block.head, geometry.heads_per_kv);

  const SplitScale scale = SplitScale::of(geometry.scale_log2, geometry.scale);
  QueryBody<T, LANES, ELEMS, ITEMS, TOKENS, ALIGNED> body = {geometry, lane};
  body.unit = scale.of_scores;
#pragma unroll
  for (int item = 0; item < ITEMS; ++item) {
    const void* query = (const char*)p.query + block.item_row(geometry, plan, p.query_strides, item) * T::BYTES;
    const void* d_out = (const char*)p.d_out + block.item_row(geometry, plan, p.d_out_strides, item) * T::BYTES;
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
    const float* pair = p.statistics + 2 * block.item_row(geometry, plan, p.statistics_strides, item);
    arch::load_pair(body.lse_log2[slot], body.delta[slot], pair);
  }

  Streams<2> keys;
  keys.set(0, p.key, block.seen_row(geometry, p.key_strides, head_kv), p.key_strides, geometry, T::BYTES);
  keys.set(1, p.value, block.seen_row(geometry, p.value_strides, head_kv), p.value_strides, geometry, T::BYTES);
  keys.keep();
  AlwaysSeen<2> always;
  always.count = geometry.additional_keys;
  always.set(0, p.additional_key, p.additional_key_strides, block.batch, head_kv, T::BYTES);
  always.set(1, p.additional_value, p.additional_value_strides, block.batch, head_kv, T::BYTES);
  walk<TOKENS, true>(block, {0, block.window_rows()}, keys, always, body);

#pragma unroll
  for (int item = 0; item < ITEMS; ++item) {
    if (!block.exists(plan, item)) continue;
    store_row<T, LANES, ALIGNED>((char*)p.d_query + block.item_row(geometry, plan, p.d_query_strides, item) * T::BYTES,
                                 body.d_query[item], geometry.scale, geometry.head_dim, lane);
  }
}

template <class T, int LANES, int ELEMS, int ITEMS, bool ALIGNED>
struct KeyBody {
  typedef Lanes<LANES, ITEMS> Group;
  enum { OWNED = Group::OWNED };

  const Geometry& geometry;
  int lane;
  float key[ITEMS][ELEMS];         // times scale_log2 / unit
  float value[ITEMS][ELEMS];
  float d_key[ITEMS][ELEMS];    // without scale
  float d_value[ITEMS][ELEMS];
  float unit;  // as above

  __device__ __forceinline__ void take(int item, const char* key_row, const char* value_row, const SplitScale& scale) {
    unit = scale.of_scores;
    load_row<T, LANES, ELEMS, ALIGNED>(key[item], key_row, geometry.head_dim, lane);
    load_row<T, LANES, ELEMS, ALIGNED>(value[item], value_row, geometry.head_dim_v, lane);
#pragma unroll
    for (int e = 0; e < ELEMS; ++e) {
      key[item][e] *= scale.of_rows;
      d_key[item][e] = 0.0f;
      d_value[item][e] = 0.0f;
    }
  }

  __device__ __forceinline__ void operator()(const char* const (&token)[1][3], const bool (&visible)[OWNED]) {
    float query[1][ELEMS], d_out[1][ELEMS];
    load_rows<T, LANES, ALIGNED>(query, d_out, token, geometry.head_dim, geometry.head_dim_v, lane);
    float lse_log2, delta;
    arch::load_pair(lse_log2, delta, (const float*)token[0][2]);

    float score_partial[ITEMS], d_weight_partial[ITEMS];
    float score[OWNED], d_weight[OWNED], weight[OWNED], d_score[OWNED];
    multiply(key, query, score_partial);
    multiply(value, d_out, d_weight_partial);
    Group::reduce(score_partial, score, lane);
    Group::reduce(d_weight_partial, d_weight, lane);
#pragma unroll
    for (int slot = 0; slot < OWNED; ++slot) {
      weight[slot] = visible[slot] ? backward_weight(score[slot], unit, lse_log2) : 0.0f;
      d_score[slot] = visible[slot] ? weight[slot] * (d_weight[slot] - delta) : 0.0f;
    }
#pragma unroll
    for (int item = 0; item < ITEMS; ++item) {
      const float w = Group::share(weight, item);
      const float g = Group::share(d_score, item);
#pragma unroll
      for (int e = 0; e < ELEMS; ++e) {
        arch::accumulate_where_nonzero(d_value[item][e], w, d_out[0][e]);
        arch::accumulate_where_nonzero(d_key[item][e], g, query[0][e]);
      }
    }
  }
};

// With 32 elements a lane registers hold a key's two gradients and no row beside them: rows are read part by part, the key's
// own from L1, and those of the query a second time once the weight is known.
template <class T, int LANES, bool ALIGNED>
struct KeyBody<T, LANES, 32, 1, ALIGNED> {
  typedef Lanes<LANES, 1> Group;
  enum { ELEMS = 16, PARTS = 2, PART = LANES * ELEMS };

  const Geometry& geometry;
  int lane;
  const char* key_row;
  const char* value_row;
  SplitScale scale;
  float d_key[1][PARTS * ELEMS];  // without scale
  float d_value[1][PARTS * ELEMS];

  __device__ __forceinline__ void take(int, const char* key, const char* value, const SplitScale& split) {
    key_row = key;
    value_row = value;
    scale = split;
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

  __device__ __forceinline__ void operator()(const char* const (&tokens)[1][3], const bool (&visible)[1]) {
    const char* const(&token)[3] = tokens[0];
    float score_partial[1] = {dot(key_row, token[0], scale.of_rows, geometry.head_dim)};
    float d_weight_partial[1] = {dot(value_row, token[1], 1.0f, geometry.head_dim_v)};
    float score[1], d_weight[1], lse_log2, delta;
    Group::reduce(score_partial, score, lane);
    Group::reduce(d_weight_partial, d_weight, lane);
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
  }
};

template <class T, int LANES, int ELEMS, int ITEMS, bool ALIGNED>
NATTEN_DEVICE void backward_key(const BackwardParams& p) {
  const Geometry& geometry = p.geometry;
  const Decomposition& plan = p.decomposition;
  Block<LANES, ITEMS> block;
  if (!block.template place<KEY_ITEMS>(geometry, plan)) return;
  const int lane = block.lane;

  const SplitScale scale = SplitScale::of(geometry.scale_log2, geometry.scale);
  KeyBody<T, LANES, ELEMS, ITEMS, ALIGNED> body = {geometry, lane};
#pragma unroll
  for (int item = 0; item < ITEMS; ++item) {
    const char* key = (const char*)p.key + block.item_row(geometry, plan, p.key_strides, item) * T::BYTES;
    const char* value = (const char*)p.value + block.item_row(geometry, plan, p.value_strides, item) * T::BYTES;
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
    Streams<3> queries;
    queries.set(0, p.query, block.seen_row(geometry, p.query_strides, head), p.query_strides, geometry, T::BYTES);
    queries.set(1, p.d_out, block.seen_row(geometry, p.d_out_strides, head), p.d_out_strides, geometry, T::BYTES);
    queries.set(2, p.statistics, block.seen_row(geometry, p.statistics_strides, head), p.statistics_strides, geometry, 8);
    if (ELEMS <= 16) queries.keep();
    walk<1, true>(block, rows, queries, none, body);
  }

  // Known to be 1 here alone: without a product ptxas would bind the sums to the registers that stores want, and move them out
  // of the way of loads in every turn of the loop.
  const float one = __int_as_float(0x3f800000 | geometry.head_dim >> 31);
#pragma unroll
  for (int item = 0; item < ITEMS; ++item) {
    if (!block.exists(plan, item)) continue;
    const long long key_row = block.item_row(geometry, plan, p.d_key_strides, item);
    const long long value_row = block.item_row(geometry, plan, p.d_value_strides, item);
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

// The macros come from the compile matrix (crates/xtask). One cta a multiprocessor is asked for, so that ptxas does not
// spill for the sake of a third; what it needs leaves room for two.
#define NATTEN_CONFIG natten::NATTEN_TYPE, NATTEN_LANES, NATTEN_ELEMS, NATTEN_ITEMS, NATTEN_ALIGNED

#if NATTEN_PASS == 0
extern "C" __global__ void __launch_bounds__(128, 1) NATTEN_ENTRY(natten::BackwardParams p) {
  natten::backward_query<NATTEN_CONFIG>(p);
}
#else
extern "C" __global__ void __launch_bounds__(128, 1) NATTEN_ENTRY(natten::BackwardParams p) {
  natten::backward_key<NATTEN_CONFIG>(p);
}
#endif
