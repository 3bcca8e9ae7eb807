// SPDX-License-Identifier: MIT OR Apache-2.0
// The thread that issues all products of the Blackwell kernel.
//
// Tile t of the whole run, counted over all items, uses stage t mod STAGES of both rings and phase t of the barriers of each
// warpgroup. A warpgroup's weights lie over its scores, so the scores of a tile are issued once the sums of the tile before
// are done: the instruction set orders no product's reading before another's writing. The other warpgroup's products run
// meanwhile.
#pragma once
#include "config.cuh"

namespace natten {
namespace sm100 {

template <class C>
struct Issuer {
  typedef arch::TensorProduct<C::BOX_ROWS, C::KEYS, false> ScoreProduct;
  typedef arch::TensorProduct<C::BOX_ROWS, C::HEAD_DIM, true> SumProduct;

  const ForwardParamsSm90& p;
  unsigned shared;
  unsigned tensor;
  unsigned queries;        // of the item
  unsigned score_product;  // descriptors
  unsigned sum_product;

  static __device__ __forceinline__ unsigned stage(unsigned tile) { return tile % C::STAGES; }
  static __device__ __forceinline__ unsigned parity(unsigned tile) { return tile / C::STAGES & 1; }

  __device__ __forceinline__ void await_tile(unsigned full, unsigned tile) const {
    arch::barrier_wait(shared + full + 8 * stage(tile), parity(tile));
  }

  // S = Q K^T of a tile for a warpgroup.
  __device__ __forceinline__ void issue_scores(unsigned tile, int group) const {
    arch::barrier_wait(shared + C::SUMS_FULL + 8 * group, tile & 1 ^ 1);  // those of the tile before
    arch::tensor_fence_after();
    const arch::TensorSwizzle swizzle = (arch::TensorSwizzle)C::SWIZZLE;
    const unsigned eight_rows = 8 * C::SLAB_ROW_BYTES;
    const unsigned long long a = arch::describe_tensor(queries + group * C::QUERY_BOX_BYTES, swizzle, eight_rows, 0);
    const unsigned long long b =
        arch::describe_tensor(shared + C::KEY_AT + stage(tile) * C::KEY_TILE_BYTES, swizzle, eight_rows, 0);
#pragma unroll
    for (int k = 0; k < C::HEAD_DIM; k += 16) {
      const int slab = k / C::SLAB;
      const int within = k % C::SLAB * 2;
      const unsigned long long a_step = (slab * C::QUERY_SLAB_BYTES + within) >> 4;
      const unsigned long long b_step = (slab * C::KEY_SLAB_BYTES + within) >> 4;
      arch::tensor_multiply(C::scores(tensor, group), a + a_step, b + b_step, score_product, k > 0);
    }
    arch::tensor_commit(shared + C::SCORES_FULL + 8 * group);
  }

  // O = P V, or O += P V, of a tile for a warpgroup, once the weights are there.
  __device__ __forceinline__ void issue_sums(unsigned tile, int group, bool adds) const {
    arch::barrier_wait(shared + C::WEIGHTS_FULL + 8 * group, tile & 1);
    arch::tensor_fence_after();
    const unsigned long long b =
        arch::describe_tensor(shared + C::VALUE_AT + stage(tile) * C::KEY_TILE_BYTES, (arch::TensorSwizzle)C::SWIZZLE,
                              8 * C::SLAB_ROW_BYTES, C::KEY_SLAB_BYTES);
#pragma unroll
    for (int key = 0; key < C::KEYS; key += 16) {
      const unsigned long long b_step = key * C::SLAB_ROW_BYTES >> 4;
      arch::tensor_multiply_from(C::sums(tensor, group), C::scores(tensor, group) + key / 2, b + b_step, sum_product,
                                 adds || key > 0);
    }
    arch::tensor_commit(shared + C::SUMS_FULL + 8 * group);
  }

  // The tiles from `tile` to `end`.
  __device__ __forceinline__ void issue_item(unsigned tile, unsigned end) const {
    const unsigned begin = tile;
    await_tile(C::KEY_FULL, tile);
#pragma unroll 1
    for (int group = 0; group < C::WARPGROUPS; ++group) issue_scores(tile, group);
#pragma unroll 1
    for (; tile < end; ++tile) {
      await_tile(C::VALUE_FULL, tile);
      // Not unrolled: descriptors of all steps of both warpgroups would be kept in registers that there are not.
#pragma unroll 1
      for (int group = 0; group < C::WARPGROUPS; ++group) {
        issue_sums(tile, group, tile > begin);
        if (group == C::WARPGROUPS - 1) arch::tensor_commit(shared + C::VALUE_EMPTY + 8 * stage(tile));
        if (tile + 1 < end) {
          if (group == 0) await_tile(C::KEY_FULL, tile + 1);
          issue_scores(tile + 1, group);
        }
      }
    }
  }

  __device__ __forceinline__ void run() {
    // The largest score must have the largest weight, so a negative scale's sign goes to the queries.
    const unsigned formats = arch::tensor_formats(C::Type::pack_pair(1.0f, 1.0f));
    score_product = ScoreProduct::WORD | formats | (p.geometry.scale < 0.0f ? (unsigned)ScoreProduct::NEGATE_A : 0u);
    sum_product = SumProduct::WORD | formats;
    unsigned tile = 0;
#pragma unroll 1
    for (unsigned count = 0;; ++count) {
      const RingPlace place = RingPlace::template of<C::ITEMS>(count);
      arch::barrier_wait(shared + C::QUERY_FULL + 8 * place.stage, place.parity);
      const WorkItem item = {shared + C::ITEM_AT + place.stage * WorkItem::BYTES};
      const int tiles = item.head().tiles;
      if (tiles == 0) break;
      queries = C::queries(shared, place.stage, 0);
      issue_item(tile, tile + tiles);
      tile += tiles;
      // All values were there: the producer has read the item to its end as well.
      arch::barrier_arrive(shared + C::QUERY_EMPTY + 8 * place.stage);
    }
  }
};

}  // namespace sm100
}  // namespace natten
