// SPDX-License-Identifier: MIT OR Apache-2.0
// Row by row work around the attention passes, any GPU from sm_50: delta, the sum of partial gradients, merge and its
// gradient, and rows of any stride copied, or added, to where they are contiguous.
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
  pair[0] = statistic_of(arch::load_float(p.lse + row.in(p.lse_strides)));
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

// A row of each partial result, and what it weighs.
template <class T>
struct Branches {
  const char* from[MERGE_BRANCHES];
  float weight[MERGE_BRANCHES];  // times factor: exp(branch lse - lse)
  float factor;
  float reference;  // of the weights, base 2
  float sum;        // 0 where no branch saw a key

  // Unrolled with constant indices: a run-time index into parameters would copy them to local memory.
  template <class P>
  __device__ __forceinline__ void find(const P& p, const WarpRow& row) {
    float most = -NATTEN_INFINITY;
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
    reference = most == -NATTEN_INFINITY ? 0.0f : most;
    sum = 0.0f;
#pragma unroll
    for (int b = 0; b < MERGE_BRANCHES; ++b) {
      weight[b] = arch::exp2_approx(weight[b] - reference);
      sum += weight[b];
    }
    factor = inverse_of(sum);
  }
};

template <class T>
NATTEN_DEVICE void merge(const MergeParams& p) {
  const WarpRow row = WarpRow::find(p.count);
  if (!row.exists) return;
  Branches<T> of;
  of.find(p, row);
  const int lane = (int)threadIdx.x % WARP;
  if (p.lse != nullptr && lane == 0) p.lse[row.in(p.lse_strides)] = log_sum_exp(of.reference, of.sum);
  char* to = (char*)p.out + row.in(p.out_strides) * T::BYTES;
#pragma unroll 1
  for (int i = lane; i < p.count.length; i += WARP) {
    float value = 0.0f;
#pragma unroll
    for (int b = 0; b < MERGE_BRANCHES; ++b) {
      if (b < p.branches) arch::accumulate_where_nonzero(value, of.weight[b] * of.factor, load_element<T>(of.from[b], i));
    }
    store_element<T>(to, i, value);
  }
}

// d_out_b = w_b d_out and d_lse_b = w_b (d_out . (out_b - out) + d_lse) with w_b = exp(lse_b - lse). A branch
// without weight has no gradient, whatever it holds.
template <class T>
NATTEN_DEVICE void merge_backward(const MergeBackwardParams& p) {
  const WarpRow row = WarpRow::find(p.count);
  if (!row.exists) return;
  Branches<T> of;
  of.find(p, row);
  char* to[MERGE_BRANCHES];
  float along[MERGE_BRANCHES];
#pragma unroll
  for (int b = 0; b < MERGE_BRANCHES; ++b) {
    of.weight[b] *= of.factor;
    along[b] = 0.0f;
    if (b < p.branches) {
      to[b] = (char*)p.branch[b].d_out + row.in(p.branch[b].d_out_strides) * T::BYTES;
    }
  }
  const int lane = (int)threadIdx.x % WARP;
  const char* d_out = (const char*)p.d_out + row.in(p.d_out_strides) * T::BYTES;
#pragma unroll 1
  for (int i = lane; i < p.count.length; i += WARP) {
    const float grad = load_element<T>(d_out, i);
    float branch_out[MERGE_BRANCHES];
    float out = 0.0f;
#pragma unroll
    for (int b = 0; b < MERGE_BRANCHES; ++b) {
      if (b < p.branches) {
        branch_out[b] = load_element<T>(of.from[b], i);
        arch::accumulate_where_nonzero(out, of.weight[b], branch_out[b]);
      }
    }
#pragma unroll
    for (int b = 0; b < MERGE_BRANCHES; ++b) {
      if (b < p.branches) {
        along[b] = fmaf(grad, branch_out[b] - out, along[b]);
        store_element<T>(to[b], i, of.weight[b] == 0.0f ? 0.0f : of.weight[b] * grad);
      }
    }
  }
  const float d_lse = p.d_lse == nullptr ? 0.0f : arch::load_float(p.d_lse + row.in(p.d_lse_strides));
#pragma unroll
  for (int b = 0; b < MERGE_BRANCHES; ++b) {
    if (b < p.branches) {
#pragma unroll
      for (int lanes = 1; lanes < WARP; lanes *= 2) along[b] += arch::shuffle_xor(along[b], lanes);
      const float grad = of.weight[b] == 0.0f ? 0.0f : of.weight[b] * (along[b] + d_lse);
      if (lane == 0) p.branch[b].d_lse[row.in(p.branch[b].d_lse_strides)] = grad;
    }
  }
}

// Rows whose elements are any step apart, 0 where a gradient was broadcast.
template <class T>
NATTEN_DEVICE void copy_rows(const CopyParams& p) {
  const WarpRow row = WarpRow::find(p.count);
  if (!row.exists) return;
  const char* from = (const char*)p.from + row.in(p.from_strides) * T::BYTES;
  char* to = (char*)p.to + row.in(p.to_strides) * T::BYTES;
#pragma unroll 1
  for (int i = (int)threadIdx.x % WARP; i < p.count.length; i += WARP)
    store_element<T>(to, i, load_element<T>(from + i * p.from_step * T::BYTES, 0));
}

// The same, added to what is there: a sum of two numbers is rounded to f32 and then to their type as if it had been rounded once.
template <class T>
NATTEN_DEVICE void add_rows(const CopyParams& p) {
  const WarpRow row = WarpRow::find(p.count);
  if (!row.exists) return;
  const char* from = (const char*)p.from + row.in(p.from_strides) * T::BYTES;
  char* to = (char*)p.to + row.in(p.to_strides) * T::BYTES;
#pragma unroll 1
  for (int i = (int)threadIdx.x % WARP; i < p.count.length; i += WARP)
    store_element<T>(to, i, load_element<T>(to, i) + load_element<T>(from + i * p.from_step * T::BYTES, 0));
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
#elif NATTEN_PASS == 2
extern "C" __global__ void __launch_bounds__(128) NATTEN_ENTRY(natten::MergeParams p) {
  natten::merge<natten::NATTEN_TYPE>(p);
}
#elif NATTEN_PASS == 3
extern "C" __global__ void __launch_bounds__(128) NATTEN_ENTRY(natten::MergeBackwardParams p) {
  natten::merge_backward<natten::NATTEN_TYPE>(p);
}
#elif NATTEN_PASS == 4
extern "C" __global__ void __launch_bounds__(128) NATTEN_ENTRY(natten::CopyParams p) {
  natten::copy_rows<natten::NATTEN_TYPE>(p);
}
#else
extern "C" __global__ void __launch_bounds__(128) NATTEN_ENTRY(natten::CopyParams p) {
  natten::add_rows<natten::NATTEN_TYPE>(p);
}
#endif
