// SPDX-License-Identifier: MIT OR Apache-2.0
// The producer of a backward pass: one thread that walks the items and their column tiles and keeps the copy engine busy,
// and, in the pass over keys, a warp that gathers the statistics of each tile's queries.
//
// Tile j of the whole run, counted over all items, uses stage j mod STAGES.
#pragma once
#include "../../arch/copy.cuh"
#include "../copies.cuh"
#include "../ring.cuh"
#include "work.cuh"

namespace natten {
namespace sm90 {

template <class C>
struct BackwardProducer {
  const BackwardParamsSm90& p;
  unsigned shared;
  WorkItem item;
  ItemPart part;
  unsigned pushed;  // column tiles so far

  static __device__ __forceinline__ unsigned stage(unsigned tile) { return tile % C::STAGES; }
  static __device__ __forceinline__ unsigned parity(unsigned tile) { return tile / C::STAGES & 1; }

  // `sharing`: which of the heads that share the item's keys, in the pass over keys.
  __device__ __forceinline__ void push(const ColumnTile& tile, int sharing) {
    const unsigned slot = stage(pushed);
    arch::barrier_wait(shared + C::COLUMN_EMPTY + 8 * slot, parity(pushed) ^ 1);
    const unsigned posted = shared + C::TILES_AT + ColumnTile::BYTES * slot;
    tile.store(posted);
    const WorkItem::Head head = item.head();
    if (C::OF_KEYS) {
      // In 64 bits: a batch item of a large tensor is far away.
      const long long query_head = head.head * (long long)p.geometry.heads_per_kv.value + sharing;
      long long at = head.batch * p.statistics_strides.batch + query_head * p.statistics_strides.head;
#pragma unroll
      for (int a = 0; a < 3; ++a) at += item.along(a).residue * p.statistics_strides.axis[a];
      ColumnTile::set_statistics(posted, at);
      arch::barrier_arrive(shared + C::TILE_POSTED + 8 * slot);
    }
    const unsigned full = shared + C::COLUMN_FULL + 8 * slot;
    arch::barrier_arrive_expect(full, 2 * C::COLUMN_TILE_BYTES);
#pragma unroll 1
    for (int operand = 0; operand < 2; ++operand) {
      const unsigned to = shared + C::COLUMN_AT + (slot * 2 + operand) * C::COLUMN_TILE_BYTES;
      if (!C::OF_KEYS && tile.additional > 0) {
        const MapSteps& steps = p.additional_steps[operand];
        const int outer = head.batch * steps.batch + divide(head.head, p.geometry.heads_per_kv) * steps.head;
        load_slabs<C>(to, C::COLUMN_SLAB_BYTES, full, p.additional[operand], tile.first, outer);
      } else {
        const int outer = item.outer(operand) + sharing * p.column_steps[operand].head;
        load_slabs<C>(to, C::COLUMN_SLAB_BYTES, full, p.column[operand], tile.first, outer);
      }
    }
    ++pushed;
  }

  __device__ __forceinline__ void push_rows(int slot) {
    const unsigned full = shared + C::ROW_FULL + 8 * slot;
    // Gradients of values alone need no gradients of weights.
    const int operands = C::GRADIENTS > 1 && part.gradient == ItemPart::VALUES ? 1 : 2;
    arch::barrier_arrive_expect(full, operands * C::ROW_TILE_BYTES);
#pragma unroll 1
    for (int operand = 0; operand < operands; ++operand) {
      load_rows<C>(shared + C::ROW_AT + (slot * 2 + operand) * C::ROW_TILE_BYTES, full, p.row[operand],
                   p.row_steps[operand], item, p.row_box_log2, p.row_side);
    }
  }

  // The tiles of one pass over the grid.
  __device__ __forceinline__ void push_grid(int pass, int sharing) {
    int at[3] = {item.lower(pass, 0), item.lower(pass, 1), item.lower(pass, 2)};
    if (at[0] >= item.upper(pass, 0) || at[1] >= item.upper(pass, 1) || at[2] >= item.upper(pass, 2)) return;
#pragma unroll 1
    for (;;) {
      // The second pass jumps over a row of the full box at once.
      if (pass == 1 && item.in_full_box(0, at[0]) && item.in_full_box(1, at[1]) && item.in_full_box(2, at[2])) {
        at[2] = item.upper(0, 2);
      }
      if (at[2] >= item.upper(pass, 2)) {
        at[2] = item.lower(pass, 2);
        if (++at[1] >= item.upper(pass, 1)) {
          at[1] = item.lower(pass, 1);
          if (++at[0] >= item.upper(pass, 0)) return;
        }
        continue;
      }
      ColumnTile tile = {{0, 0, 0}, 0};
#pragma unroll
      for (int a = 0; a < 3; ++a) tile.first[a] = item.along(a).first_column + (at[a] << p.column_box_log2[a]);
      ++at[2];
      push(tile, sharing);
    }
  }

  __device__ __forceinline__ void push_tiles() {
    const int additional = additional_keys(p, part.split);
    const int whole = additional - additional % C::COLUMNS;
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
#pragma unroll 1
      for (int i = 0; i < part.heads; ++i) push_grid(pass, part.first_head + i);
      if (C::OF_KEYS) continue;
      const int end = pass == 0 ? whole : additional;
#pragma unroll 1
      for (int key = pass == 0 ? 0 : whole; key < end; key += C::COLUMNS) {
        push({{0, 0, key}, additional - key}, 0);
      }
    }
  }

  __device__ __forceinline__ void run() {
    pushed = 0;
    unsigned count = 0;
    for (int index = (int)blockIdx.x; index < p.items; index += (int)gridDim.x) {
      const int slot = await_slot(count);
      if (!describe_item<C>(p, index, item, part)) continue;
      part.store(shared + C::PARTS_AT + ItemPart::BYTES * slot);
      push_rows(slot);
      push_tiles();
      ++count;
    }
    const int slot = await_slot(count);
    item.set({0, -1, 0, 0});
    arch::barrier_arrive(shared + C::ROW_FULL + 8 * slot);
    if (C::OF_KEYS) {
      arch::barrier_wait(shared + C::COLUMN_EMPTY + 8 * stage(pushed), parity(pushed) ^ 1);
      const ColumnTile end = {{0, 0, 0}, -1};
      end.store(shared + C::TILES_AT + ColumnTile::BYTES * stage(pushed));
      arch::barrier_arrive(shared + C::TILE_POSTED + 8 * stage(pushed));
    }
  }

  // Waits until the item that had this one's place, description and rows, is done with.
  __device__ __forceinline__ int await_slot(unsigned count) {
    const RingPlace place = RingPlace::template of<C::ITEMS>(count);
    arch::barrier_wait(shared + C::ROW_EMPTY + 8 * place.stage, place.parity ^ 1);
    item = {shared + C::ITEM_AT + place.stage * WorkItem::BYTES};
    return place.stage;
  }

  // The warp that gathers statistics, a lane every 32nd column: they lie in steps of the dilation, so the copy engine cannot.
  __device__ __forceinline__ void gather_statistics(int lane) {
    for (unsigned tile = 0;; ++tile) {
      const unsigned slot = stage(tile);
      arch::barrier_wait(shared + C::TILE_POSTED + 8 * slot, parity(tile));
      const unsigned posted = shared + C::TILES_AT + ColumnTile::BYTES * slot;
      const ColumnTile at = ColumnTile::load(posted);
      if (at.additional < 0) return;
      const long long from = ColumnTile::statistics(posted);
      const unsigned to = shared + C::STATISTICS_AT + slot * C::STATISTICS_BYTES;
#pragma unroll
      for (int column = lane; column < C::COLUMNS; column += 32) {
        int index = column;
        long long pair = from;
        bool exists = true;
#pragma unroll
        for (int a = 2; a >= 0; --a) {
          const Axis& axis = p.geometry.axes[a];
          const int log2 = p.column_box_log2[a];
          const int query = at.first[a] + low_bits(index, log2);
          index >>= log2;
          exists &= query < row_count<false>(axis);
          pair += (long long)query * (int)axis.dilation.value * p.statistics_strides.axis[a];
        }
        const float* statistics = p.statistics + (exists ? 2 * pair : 0);
        arch::copy_4_bytes_or_zero(to + 4 * column, statistics, exists);
        arch::copy_4_bytes_or_zero(to + 4 * C::COLUMNS + 4 * column, statistics + 1, exists);
      }
      arch::barrier_arrive_on_copies(shared + C::COLUMN_FULL + 8 * slot);
    }
  }
};

}  // namespace sm90
}  // namespace natten
