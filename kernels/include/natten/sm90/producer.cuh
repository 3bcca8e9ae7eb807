// SPDX-License-Identifier: MIT OR Apache-2.0
// The producer: one thread that walks the work items and their key tiles, and keeps the copy engine busy.
//
// Consumers need K of the first tile, then K of tile j + 1 before V of tile j, so that is the order of the loads. Tile j
// of the whole run, counted over all items, uses stage j mod STAGES of both rings.
#pragma once
#include "copies.cuh"
#include "ring.cuh"
#include "work.cuh"

namespace natten {
namespace sm90 {

template <class C>
struct Producer {
  const ForwardParamsSm90& p;
  unsigned shared;
  WorkItem item;
  unsigned pushed;  // key tiles so far

  static __device__ __forceinline__ unsigned stage(unsigned tile) { return tile % C::STAGES; }
  static __device__ __forceinline__ unsigned parity(unsigned tile) { return tile / C::STAGES & 1; }

  // Loads keys or values of the tile whose place was noted down for this stage. `side`: 0 for keys, 1 for values.
  __device__ __forceinline__ void load_tile(unsigned to, unsigned full, unsigned tile, const arch::TensorMap& map,
                                            int side, const arch::TensorMap& additional_map,
                                            const MapSteps& additional_steps) {
    arch::barrier_arrive_expect(full, C::KEY_TILE_BYTES);
    const KeyTile place = KeyTile::load(shared + C::TILES_AT + KeyTile::BYTES * stage(tile));
    const unsigned destination = to + stage(tile) * C::KEY_TILE_BYTES;
    if (place.additional > 0) {
      const WorkItem::Head head = item.head();
      const int head_kv = divide(head.head, p.geometry.heads_per_kv);
      const int outer = head.batch * additional_steps.batch + head_kv * additional_steps.head;
      load_slabs<C>(destination, C::KEY_SLAB_BYTES, full, additional_map, place.first, outer);
    } else {
      load_slabs<C>(destination, C::KEY_SLAB_BYTES, full, map, place.first, item.outer(side));
    }
  }

  __device__ __forceinline__ void push_value(unsigned tile) {
    arch::barrier_wait(shared + C::VALUE_EMPTY + 8 * stage(tile), parity(tile) ^ 1);
    load_tile(shared + C::VALUE_AT, shared + C::VALUE_FULL + 8 * stage(tile), tile, p.value, 1,
              p.additional_value, p.additional_value_steps);
  }

  // Its keys, then the values of the tile before it.
  __device__ __forceinline__ void push(const KeyTile& tile, bool first) {
    arch::barrier_wait(shared + C::KEY_EMPTY + 8 * stage(pushed), parity(pushed) ^ 1);
    // Where the tile lies: for the mask (the arrival publishes it), and for its values later.
    tile.store(shared + C::TILES_AT + KeyTile::BYTES * stage(pushed));
    load_tile(shared + C::KEY_AT, shared + C::KEY_FULL + 8 * stage(pushed), pushed, p.key, 0,
              p.additional_key, p.additional_key_steps);
    if (!first) push_value(pushed - 1);
    ++pushed;
  }

  __device__ __forceinline__ void push_queries(int slot) {
    const unsigned full = shared + C::QUERY_FULL + 8 * slot;
    arch::barrier_arrive_expect(full, C::QUERY_TILE_BYTES);
    load_rows<C>(shared + C::QUERY_AT + slot * C::QUERY_TILE_BYTES, full, p.query, p.query_steps, item, p.query_box_log2,
                 p.query_side);
  }

  __device__ __forceinline__ void push_tiles() {
    const unsigned before = pushed;
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
      int at[3] = {item.lower(pass, 0), item.lower(pass, 1), item.lower(pass, 2)};
      bool in_window = at[0] < item.upper(pass, 0) && at[1] < item.upper(pass, 1) && at[2] < item.upper(pass, 2);
      const int whole = p.geometry.additional_keys - p.geometry.additional_keys % C::KEYS;
      int key = pass == 0 ? 0 : whole;
#pragma unroll 1
      for (;;) {
        KeyTile tile = {{0, 0, key}, 0};
        if (in_window) {
          // The second pass jumps over a row of the full box at once.
          if (pass == 1 && item.in_full_box(0, at[0]) && item.in_full_box(1, at[1]) && item.in_full_box(2, at[2])) {
            at[2] = item.upper(0, 2);
          }
          if (at[2] >= item.upper(pass, 2)) {
            at[2] = item.lower(pass, 2);
            if (++at[1] >= item.upper(pass, 1)) {
              at[1] = item.lower(pass, 1);
              in_window = ++at[0] < item.upper(pass, 0);
            }
            continue;
          }
#pragma unroll
          for (int a = 0; a < 3; ++a) {
            tile.first[a] = item.along(a).first_column + (at[a] << p.key_box_log2[a]);
          }
          ++at[2];
        } else if (key < (pass == 0 ? whole : p.geometry.additional_keys)) {
          tile.additional = p.geometry.additional_keys - key;
          key += C::KEYS;
        } else {
          break;
        }
        push(tile, pushed == before);
      }
    }
    push_value(pushed - 1);
  }

  __device__ __forceinline__ void run() {
    pushed = 0;
    unsigned count = 0;
    for (int index = (int)blockIdx.x; index < p.items; index += (int)gridDim.x) {
      const int slot = await_slot(count);
      if (!describe_item<C>(p, index, item)) continue;
      push_queries(slot);
      push_tiles();
      ++count;
    }
    const int slot = await_slot(count);
    item.set({0, 0, 0, 0});
    arch::barrier_arrive(shared + C::QUERY_FULL + 8 * slot);
  }

  // Waits until the item that had this one's place, description and queries, is done with.
  __device__ __forceinline__ int await_slot(unsigned count) {
    const RingPlace place = RingPlace::template of<C::ITEMS>(count);
    arch::barrier_wait(shared + C::QUERY_EMPTY + 8 * place.stage, place.parity ^ 1);
    item = {shared + C::ITEM_AT + place.stage * WorkItem::BYTES};
    return place.stage;
  }
};

}  // namespace sm90
}  // namespace natten
