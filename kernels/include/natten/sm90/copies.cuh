// SPDX-License-Identifier: MIT OR Apache-2.0
// What the producers of the Hopper kernels ask of the copy engine: a tile as slabs, and the rows of an item, both ways.
#pragma once
#include "../params_sm90.h"
#include "bits.cuh"
#include "item.cuh"

namespace natten {
namespace sm90 {

// Loads one tile, whose slabs have `slab_bytes` each.
template <class C>
NATTEN_DEVICE void load_slabs(unsigned to, int slab_bytes, unsigned barrier, const arch::TensorMap& map,
                              const int (&at)[3], int outer) {
#pragma unroll 1
  for (int slab = 0; slab < C::SLABS; ++slab)
    arch::load_box(to + slab * slab_bytes, &map, barrier, slab * C::SLAB, at[2], at[1], at[0], outer);
}

// Zeroes the rows of all stages of keys and values that tiles of so many keys leave empty: weights of 0 are multiplied with
// what stands there. Before the first copy of either.
template <class C>
NATTEN_DEVICE void clear_padding(unsigned shared, int keys, const Team& team) {
  const int thread = team.warp * 32 + (int)threadIdx.x % 32;
  const int bytes = (C::KEYS - keys) * C::SLAB_ROW_BYTES;
  for (int slab = 0; slab < 2 * C::STAGES * C::SLABS; ++slab) {
    const unsigned from = shared + C::KEY_AT + slab * C::KEY_SLAB_BYTES + keys * C::SLAB_ROW_BYTES;
    for (int at = thread * 16; at < bytes; at += team.warps * 32 * 16) arch::store_shared(from + at, 0, 0, 0, 0);
  }
  arch::fence_async_proxy();  // products read them
}

// The slabs of a tensor's rows of an item, boxes side by side along an axis: where each lies in shared memory, and the coordinates of its
// first element in the tensor.
template <class C, class Each>
NATTEN_DEVICE void each_slab(unsigned at, const MapSteps& steps, const WorkItem& item, const int (&box_log2)[3], const int& side,
                             const Each& each) {
  const WorkItem::Head head = item.head();
  int outer = head.batch * steps.batch + head.head * steps.head;
  int token[3];
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const WorkItem::Along along = item.along(a);
    token[a] = along.base;
    outer += along.residue * steps.residue[a];
  }
#pragma unroll 1
  for (int box = 0; box < C::BOXES; ++box) {
#pragma unroll 1
    for (int slab = 0; slab < C::SLABS; ++slab) {
      each(at, slab * C::SLAB, token, outer);
      at += C::BOX_ROWS * C::SLAB_ROW_BYTES;
    }
#pragma unroll
    for (int a = 0; a < 3; ++a) token[a] += a == side ? 1 << box_log2[a] : 0;
  }
}

// Loads a tensor's rows of an item.
template <class C>
NATTEN_DEVICE void load_rows(unsigned to, unsigned barrier, const arch::TensorMap& map, const MapSteps& steps,
                             const WorkItem& item, const int (&box_log2)[3], const int& side) {
  each_slab<C>(to, steps, item, box_log2, side, [&](unsigned at, int element, const int (&token)[3], int outer) {
    arch::load_box(at, &map, barrier, element, token[2], token[1], token[0], outer);
  });
}

// Stores them.
template <class C>
NATTEN_DEVICE void store_rows(unsigned from, const arch::TensorMap& map, const MapSteps& steps, const WorkItem& item,
                              const int (&box_log2)[3], const int& side) {
  each_slab<C>(from, steps, item, box_log2, side, [&](unsigned at, int element, const int (&token)[3], int outer) {
    arch::store_box(at, &map, element, token[2], token[1], token[0], outer);
  });
  arch::commit_stores();
}

// Where in a box of rows the copy engine has a chunk of 16 bytes of one: slabs one behind the other, and in each the swizzle takes the
// number of the row into that of the chunk.
template <class C>
NATTEN_DEVICE unsigned chunk_at(int row, int chunk) {
  const int chunks = C::SLAB / 8;
  const int swizzled = chunk % chunks ^ (chunks == 8 ? row % 8 : row / 2 % 4);
  return chunk / chunks * C::BOX_ROWS * C::SLAB_ROW_BYTES + row * C::SLAB_ROW_BYTES + swizzled * 16;
}

}  // namespace sm90
}  // namespace natten
