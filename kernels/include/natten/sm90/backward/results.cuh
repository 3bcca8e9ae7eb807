// SPDX-License-Identifier: MIT OR Apache-2.0
// The outputs of a backward pass, each by a number that need not be constant: d_query; or d_key, then d_value.
#pragma once
#include "../../params_sm90_backward.h"

namespace natten {
namespace sm90 {

struct BackwardResults {
  const BackwardParamsSm90& p;

  __device__ __forceinline__ void* address_of(int output) const { return output == 0 ? p.d_row[0] : p.d_row[1]; }

  // From the partial sums of one split to the next.
  __device__ __forceinline__ long long split_stride_of(int output) const {
    return output == 0 ? p.split_strides[0] : p.split_strides[1];
  }

  // What its sums are multiplied by.
  __device__ __forceinline__ float factor_of(int output) const { return output == 0 ? p.geometry.scale : 1.0f; }

  // Elements of a row.
  __device__ __forceinline__ int length_of(int output) const {
    return output == 0 ? p.geometry.head_dim : p.geometry.head_dim_v;
  }
};

}  // namespace sm90
}  // namespace natten
