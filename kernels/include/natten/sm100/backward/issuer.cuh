// SPDX-License-Identifier: MIT OR Apache-2.0
// The thread that issues all products of a Blackwell backward pass.
//
// Tile t of the whole run, counted over all items, uses stage t mod STAGES and phase t of the barriers that are one of each.
// Weights lie over scores and gradients of scores over those of weights, and the instruction set orders no product's reading
// before another's writing. So the scores of the next tile are issued once the weights of this one are summed, while the softmax
// warpgroups work out the gradients of scores; and its gradients of weights once these are summed, while they work out weights.
#pragma once
#include "config.cuh"

namespace natten {
namespace sm100 {

template <class C>
struct BackwardIssuer {
  typedef arch::TensorProduct<C::BOX_ROWS, C::COLUMNS, false> ScoreProduct;
  typedef arch::TensorProduct<C::BOX_ROWS, C::HEAD_DIM, true> SumProduct;

  unsigned shared;
  unsigned tensor;
  unsigned rows;     // of the item: operand 0, then operand 1
  unsigned formats;  // of all products

  static __device__ __forceinline__ unsigned stage(unsigned tile) { return tile % C::STAGES; }

  __device__ __forceinline__ unsigned columns(unsigned tile, int operand) const {
    return shared + C::COLUMN_AT + (stage(tile) * 2 + operand) * C::COLUMN_TILE_BYTES;
  }

  // For what others did with tensor memory.
  __device__ __forceinline__ void await(unsigned barrier, unsigned parity) const {
    arch::barrier_wait(shared + barrier, parity);
    arch::tensor_fence_after();
  }

  // to = rows of an operand times the columns of the same.
  __device__ __forceinline__ void multiply_rows(unsigned to, unsigned tile, int operand) const {
    const arch::TensorSwizzle swizzle = (arch::TensorSwizzle)C::SWIZZLE;
    const unsigned eight_rows = 8 * C::SLAB_ROW_BYTES;
    const unsigned long long a = arch::describe_tensor(rows + operand * C::ROW_TILE_BYTES, swizzle, eight_rows, 0);
    const unsigned long long b = arch::describe_tensor(columns(tile, operand), swizzle, eight_rows, 0);
#pragma unroll
    for (int k = 0; k < C::HEAD_DIM; k += 16) {
      const int slab = k / C::SLAB;
      const int within = k % C::SLAB * 2;
      const unsigned long long a_step = (slab * C::ROW_SLAB_BYTES + within) >> 4;
      const unsigned long long b_step = (slab * C::COLUMN_SLAB_BYTES + within) >> 4;
      arch::tensor_multiply(to, a + a_step, b + b_step, ScoreProduct::WORD | formats, k > 0);
    }
  }

  // sums = pairs times the columns of an operand, or sums += that.
  __device__ __forceinline__ void sum(unsigned sums, unsigned pairs, unsigned tile, int operand, bool adds) const {
    const unsigned long long b = arch::describe_tensor(columns(tile, operand), (arch::TensorSwizzle)C::SWIZZLE,
                                                       8 * C::SLAB_ROW_BYTES, C::COLUMN_SLAB_BYTES);
#pragma unroll
    for (int column = 0; column < C::COLUMNS; column += 16) {
      const int place = column / C::SHARE * C::SHARE + column % C::SHARE / 2;
      const unsigned long long b_step = column * C::SLAB_ROW_BYTES >> 4;
      arch::tensor_multiply_from(sums, pairs + place, b + b_step, SumProduct::WORD | formats, adds || column > 0);
    }
  }

  // S of a tile, once those of the tile before are done with.
  __device__ __forceinline__ void issue_scores(unsigned tile) const {
    arch::barrier_wait(shared + C::COLUMN_FULL + 8 * stage(tile), tile / C::STAGES & 1);
    if (C::OF_KEYS) await(C::WEIGHTS_SUMMED, tile & 1 ^ 1);
    multiply_rows(C::scores(tensor), tile, 0);
    arch::tensor_commit(shared + C::SCORES_FULL);
  }

  // dP of a tile, likewise.
  __device__ __forceinline__ void issue_d_weights(unsigned tile) const {
    await(C::SUMS_FULL, tile & 1 ^ 1);
    multiply_rows(C::d_weights(tensor), tile, 1);
    arch::tensor_commit(shared + C::D_WEIGHTS_FULL);
  }

  // The tiles from `begin` to `end`.
  __device__ __forceinline__ void issue_item(unsigned begin, unsigned end) const {
#pragma unroll 1
    for (unsigned tile = begin; tile <= end; ++tile) {
      // The sums of the tile before stand between what is issued for this one.
      const unsigned before = tile - 1;
      if (tile > begin) {
        await(C::SCORES_TAKEN, before & 1);
        if (C::OF_KEYS) {
          sum(C::sums(tensor, 1), C::scores(tensor), before, 1, before > begin);
          arch::tensor_commit(shared + C::WEIGHTS_SUMMED);
        }
      }
      if (tile < end) issue_scores(tile);
      if (tile > begin) {
        await(C::D_SCORES_FULL, before & 1);
        sum(C::sums(tensor, 0), C::d_weights(tensor), before, 0, before > begin);
        arch::tensor_commit(shared + C::COLUMN_EMPTY + 8 * stage(before));
        arch::tensor_commit(shared + C::SUMS_FULL);
      }
      if (tile < end) issue_d_weights(tile);
    }
  }

  __device__ __forceinline__ void run() {
    formats = arch::tensor_formats(C::Type::pack_pair(1.0f, 1.0f));
    unsigned tile = 0;
#pragma unroll 1
    for (unsigned count = 0;; ++count) {
      const RingPlace place = RingPlace::template of<C::ITEMS>(count);
      arch::barrier_wait(shared + C::ROW_FULL + 8 * place.stage, place.parity);
      const WorkItem item = {shared + C::ITEM_AT + place.stage * WorkItem::BYTES};
      const int tiles = item.head().tiles;
      if (tiles < 0) break;
      arch::barrier_arrive(shared + C::ROW_EMPTY + 8 * place.stage);  // its description has been read
      rows = shared + C::ROW_AT + place.stage * 2 * C::ROW_TILE_BYTES;
      issue_item(tile, tile + tiles);
      tile += tiles;
    }
  }
};

}  // namespace sm100
}  // namespace natten
