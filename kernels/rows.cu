// SPDX-License-Identifier: MIT OR Apache-2.0
// Row by row work around the attention passes, any GPU from sm_50: delta, merge, and the sum of partial gradients.
//
// One warp owns one row; its lanes step through the row's elements. No shared memory.
#include <natten/row.cuh>
#include <natten/lanes.cuh>
#include <natten/place.cuh>
#include <natten/softmax.cuh>

namespace natten {

// Which row this warp owns.
struct WarpRow {
  int batch;
  int token[3];
  int head;
  bool exists;

  NATTEN_DEVICE WarpRow find(const RowCount& count) {
    WarpRow row;
    int index = (int)(blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP);
    row.exists = index < count.rows;
    row.head = take_index(index, count.heads);
#pragma unroll
    for (int a = 2; a >= 0; --a) row.token[a] = take_index(index, count.axis[a]);
    row.batch = index;
    return row;
  }

  __device__ __forceinline__ long long in(const Strides& strides) const {
    return batch * strides.batch + token[0] * strides.axis[0] + token[1] * strides.axis[1] + token[2] * strides.axis[2] +
           head * strides.head;
  }
};

template <class T>
NATTEN_DEVICE void delta(const DeltaParams& p) {
  const WarpRow row = WarpRow::find(p.count);
  if (!row.exists) return;
  const int lane = (int)threadIdx.x % WARP;
  const char* out = (const char*)p.out + row.in(p.out_strides) * T::BYTES;
  const char* d_out = (const char*)p.d_out + row.in(p.d_out_strides) * T::BYTES;
  float sum = 0.0f;
#pragma unroll 1
  for (int i = lane; i < p.count.length; i += WARP)
    sum = fmaf(load_element<T>(out, i), load_element<T>(d_out, i), sum);
#pragma unroll
  for (int lanes = 1; lanes < WARP; lanes *= 2) sum += arch::shuffle_xor(sum, lanes);
  if (lane != 0) return;
  if (p.d_lse != nullptr) sum -= arch::load_float(p.d_lse + row.in(p.d_lse_strides));
  float* pair = p.statistics + 2 * row.in(p.statistics_strides);
  pair[0] = arch::load_float(p.lse + row.in(p.lse_strides)) * NATTEN_LOG2_E;
  pair[1] = sum;
}

template <class T>
NATTEN_DEVICE void sum_partials(const SumParams& p) {
  const WarpRow row = WarpRow::find(p.count);
  if (!row.exists) return;
  const float* partial = p.partial + row.in(p.partial_strides);
  char* to = (char*)p.sum + row.in(p.sum_strides) * T::BYTES;
#pragma unroll 1
  for (int i = (int)threadIdx.x % WARP; i < p.count.length; i += WARP) {
    float sum = 0.0f;
#pragma unroll 1
    for (int split = 0; split < p.splits; ++split) sum += arch::load_float(partial + split * p.split_stride + i);
    store_element<T>(to, i, sum);
  }
}

template <class T>
NATTEN_DEVICE void merge(const MergeParams& p) {
  const WarpRow row = WarpRow::find(p.count);
  if (!row.exists) return;
  float weight[MERGE_BRANCHES];
  const char* from[MERGE_BRANCHES];
  float most = -NATTEN_INFINITY;
  // Unrolled with constant indices: a run-time index into parameters would copy them to local memory.
#pragma unroll
  for (int b = 0; b < MERGE_BRANCHES; ++b) {
    weight[b] = -NATTEN_INFINITY;
    if (b < p.branches) {
      weight[b] = arch::load_float(p.branch[b].lse + row.in(p.branch[b].lse_strides)) * NATTEN_LOG2_E;
      from[b] = (const char*)p.branch[b].out + row.in(p.branch[b].out_strides) * T::BYTES;
      most = fmaxf(most, weight[b]);
    }
  }
  // No branch saw a key: every weight is 0, not 2^(-inf - -inf).
  const float reference = most == -NATTEN_INFINITY ? 0.0f : most;
  float sum = 0.0f;
#pragma unroll
  for (int b = 0; b < MERGE_BRANCHES; ++b) {
    weight[b] = arch::exp2_approx(weight[b] - reference);
    sum += weight[b];
  }
  const float factor = inverse_of(sum);
  const int lane = (int)threadIdx.x % WARP;
  if (p.lse != nullptr && lane == 0) p.lse[row.in(p.lse_strides)] = log_sum_exp(reference, sum);
  char* to = (char*)p.out + row.in(p.out_strides) * T::BYTES;
#pragma unroll 1
  for (int i = lane; i < p.count.length; i += WARP) {
    float value = 0.0f;
#pragma unroll
    for (int b = 0; b < MERGE_BRANCHES; ++b) {
      if (b < p.branches) arch::accumulate_where_nonzero(value, weight[b] * factor, load_element<T>(from[b], i));
    }
    store_element<T>(to, i, value);
  }
}

}  // namespace natten

// The macros come from the compile matrix (crates/xtask).
#if NATTEN_PASS == 0
extern "C" __global__ void __launch_bounds__(128) NATTEN_ENTRY(natten::DeltaParams p) {
  natten::delta<natten::NATTEN_TYPE>(p);
}
#elif NATTEN_PASS == 1
extern "C" __global__ void __launch_bounds__(128) NATTEN_ENTRY(natten::SumParams p) {
  natten::sum_partials<natten::NATTEN_TYPE>(p);
}
#else
extern "C" __global__ void __launch_bounds__(128) NATTEN_ENTRY(natten::MergeParams p) {
  natten::merge<natten::NATTEN_TYPE>(p);
}
#endif
