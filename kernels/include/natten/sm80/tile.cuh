// SPDX-License-Identifier: MIT OR Apache-2.0
// The box of queries that a cta of the Ampere kernel works on.
#pragma once
#include "../grid.cuh"

namespace natten {
namespace sm80 {

// A box of queries: of one batch item, one head and one residue per axis.
struct QueryTile {
  int batch;
  int head;
  int residue[3];
  int base[3];  // position of row 0

  // False if the residue ends before the box.
  __device__ __forceinline__ bool place(const Geometry& geometry, const TilePlan& plan, int tile) {
    bool any = true;
#pragma unroll
    for (int a = 2; a >= 0; --a) {
      const Axis& axis = geometry.axes[a];
      const int along = longest_first(axis, take_index(tile, plan.tiles[a]), plan.tiles[a]);
      const Place here = find_place(along, axis.dilation);
      residue[a] = here.residue;
      base[a] = here.box << plan.query_log2[a];
      any &= base[a] < query_count(axis, residue[a]);
    }
    head = take_index(tile, plan.heads);
    batch = tile;
    return any;
  }

  __device__ __forceinline__ bool exists(const Geometry& geometry, const TilePlan& plan, int row) const {
    bool inside = true;
#pragma unroll
    for (int a = 0; a < 3; ++a)
      inside &= base[a] + coordinate(plan.query_log2, row, a) < query_count(geometry.axes[a], residue[a]);
    return inside;
  }

  // What the query of `row` (clamped into the residue) sees along axis a.
  __device__ __forceinline__ Range sees(const Geometry& geometry, const TilePlan& plan, int row, int a) const {
    const Residue of = residue_of(geometry.axes[a], residue[a]);
    const int position = minimum(base[a] + coordinate(plan.query_log2, row, a), of.queries - 1);
    return window(geometry.axes[a], of, position);
  }

  // What the first and the last query see along axis `a`, which need not be known to the compiler.
  __device__ __forceinline__ void ends_see(const Geometry& geometry, const TilePlan& plan, int a, Range& by_first,
                                           Range& by_last) const {
    const Axis& axis = geometry.axes[a];
    natten::ends_see(axis, residue_of(axis, pick(residue, a)), pick(base, a), 1, plan.query_log2[a], by_first, by_last);
  }

  // Offset in elements of the tensor row of `row`.
  __device__ __forceinline__ long long offset(const Geometry& geometry, const TilePlan& plan, const Strides& strides,
                                              int row) const {
    long long at = batch * strides.batch + head * strides.head;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const Axis& axis = geometry.axes[a];
      const long long position = base[a] + coordinate(plan.query_log2, row, a);
      at += token_at(axis, first_query(axis, residue[a]), position) * strides.axis[a];
    }
    return at;
  }
};

}  // namespace sm80
}  // namespace natten
