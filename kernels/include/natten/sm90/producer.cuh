// SPDX-License-Identifier: MIT OR Apache-2.0
// The producers: one thread that walks the key tiles of each work item and keeps the copy engine busy, and one that describes the
// items ahead of it and loads their queries.
//
// Consumers need K of the first tile, then K of tile j + 1 before V of tile j, so that is the order of the loads. Tile j
// of the whole run, counted over all items, uses stage j mod STAGES of both rings.
#pragma once
#include "copies.cuh"
#include "ring.cuh"
#include "work.cuh"

namespace natten {
namespace sm90 {

// Tiles along an axis: some at its beginning and some at its end, which are visited in turns. So boxes of queries side by side
// along it, each of which sees one end alone, have tiles at the same time.
struct Line {
  int begin;
  int low;   // so many from the beginning
  int end;
  int high;  // so many before the end

  __device__ __forceinline__ int count() const { return low + high; }
  __device__ __forceinline__ int at(int i) const {
    const int turns = minimum(low, high);
    const bool is_low = i < 2 * turns ? i % 2 == 0 : low > high;
    const int number = i < 2 * turns ? i / 2 : i - turns;
    return is_low ? begin + number : end - 1 - number;
  }
};

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
    const KeyTile place = KeyTile::load(shared + C::TILES_AT + KeyTile::BYTES * stage(tile));
    const int keys = place.additional > 0 ? (int)C::KEYS : AnyBox{p.key_sides}.rows();
    arch::barrier_arrive_expect(full, keys * C::HEAD_DIM * 2);
    const unsigned destination = to + stage(tile) * C::KEY_TILE_BYTES;
    int outer = item.outer(side);
    if (place.additional > 0) {
      const WorkItem::Head head = item.head();
      outer = head.batch * additional_steps.batch + divide(head.head, p.geometry.heads_per_kv) * additional_steps.head;
    }
    load_slabs<C>(destination, C::KEY_SLAB_BYTES, full, place.additional > 0 ? additional_map : map, place.first, outer);
  }

  __device__ __forceinline__ void push_value(unsigned tile) {
    arch::barrier_wait(shared + C::VALUE_EMPTY + 8 * stage(tile), parity(tile) ^ 1);
    load_tile(shared + C::VALUE_AT, shared + C::VALUE_FULL + 8 * stage(tile), tile, p.value, 1,
              p.additional_value, p.additional_value_steps);
  }

  // Its keys, then the values of the tile before it.
  __device__ __forceinline__ void push(const KeyTile& tile, unsigned left_out, unsigned line, bool first) {
    arch::barrier_wait(shared + C::KEY_EMPTY + 8 * stage(pushed), parity(pushed) ^ 1);
    // Where the tile lies: for the mask (the arrival publishes it), and for its values later.
    tile.store(shared + C::TILES_AT + KeyTile::BYTES * stage(pushed));
    if (C::LEAVES_OUT) KeyTile::set_line(shared + C::TILES_AT + KeyTile::BYTES * stage(pushed), left_out, line);
    load_tile(shared + C::KEY_AT, shared + C::KEY_FULL + 8 * stage(pushed), pushed, p.key, 0,
              p.additional_key, p.additional_key_steps);
    if (!first) push_value(pushed - 1);
    ++pushed;
  }

  // Which boxes of queries meet no tile at this place along their side, a bit each.
  __device__ __forceinline__ unsigned boxes_without(int at) const {
    unsigned boxes = 0;
#pragma unroll
    for (int box = 0; box < C::WARPGROUPS; ++box) {
      const Range met = item.met(box);
      boxes |= (at < met.start || at >= met.end ? 1u : 0u) << box;
    }
    return boxes;
  }

  // The tiles that a pass visits along the side of the boxes of queries, at a place along the other two axes.
  __device__ __forceinline__ Line line(int pass, int axis, bool is_full_outside) const {
    const int end = item.along(axis).tiles;
    const Range full = item.full(axis);
    if (pass == 0) return {full.start, full.end - full.start, end, 0};
    if (is_full_outside) return {0, full.start, end, end - full.end};
    return {0, (end + 1) / 2, end, end / 2};
  }

  // Additional keys that fill tiles.
  __device__ __forceinline__ int whole_tiles() const {
    return p.geometry.additional_keys - p.geometry.additional_keys % C::KEYS;
  }

  // Registers are few: i counts tiles of a line, and then additional keys.
  __device__ __forceinline__ void push_tiles() {
    bool is_first = true;
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
      const int side = p.query_side;
      const int outer = side == 0 ? 1 : 0, middle = side == 2 ? 1 : 2;
      int x = item.lower(pass, outer), y = item.lower(pass, middle);
      bool in_window = x < item.upper(pass, outer) && y < item.upper(pass, middle);
      int i = in_window || pass == 0 ? 0 : whole_tiles();
#pragma unroll 1
      for (;;) {
        KeyTile tile = {{0, 0, i}, 0};
        unsigned left_out = 0, line_begin = 0;
        if (in_window) {
          const Line tiles = line(pass, side, item.in_full_box(outer, x) && item.in_full_box(middle, y));
          if (i == tiles.count()) {
            i = 0;
            if (++y >= item.upper(pass, middle)) {
              y = item.lower(pass, middle);
              in_window = ++x < item.upper(pass, outer);
              if (!in_window && pass == 1) i = whole_tiles();
            }
            continue;
          }
          const int at = tiles.at(i);
#pragma unroll
          for (int a = 0; a < 3; ++a) {
            tile.first[a] =
                item.along(a).first_column + (a == side ? at : a == outer ? x : y) * (int)p.key_sides[a].value;
          }
          if (C::LEAVES_OUT && pass == 1) left_out = boxes_without(at);
          line_begin = pushed - i;
          ++i;
        } else if (i < (pass == 0 ? whole_tiles() : p.geometry.additional_keys)) {
          tile.additional = p.geometry.additional_keys - i;
          i += C::KEYS;
        } else {
          break;
        }
        push(tile, left_out, line_begin, is_first);
        is_first = false;
      }
    }
    push_value(pushed - 1);
  }

  __device__ __forceinline__ void run() {
    pushed = 0;
    for (unsigned number = 0;;) {
      const RingPlace place = RingPlace::template of<C::ITEMS>(number);
      item = {shared + C::ITEM_AT + place.stage * WorkItem::BYTES};
      arch::barrier_wait(shared + C::ITEM_READY + 8 * place.stage, place.parity);
      if (item.head().tiles == 0) return;
      push_tiles();
      number = item.number() + 1;
      arch::barrier_arrive(shared + C::QUERY_EMPTY + 8 * RingPlace::template of<C::ITEMS>(number - 1).stage);  // it has been read
    }
  }
};

// One thread of another warp: describes the work items of this cta, one behind the other, as soon as there is a place for one, and
// loads their queries. An item of which consumers lost rows comes again, to be done carefully.
template <class C>
struct ItemProducer {
  const ForwardParamsSm90& p;
  unsigned shared;

  __device__ __forceinline__ void run() const {
    unsigned count = 0;  // items handed out
    unsigned known = 0;  // of so many it is known how they went
    const bool is_careful = C::LOSING > 0 && p.geometry.scale_log2 > NATTEN_FAR;
    for (int next = (int)blockIdx.x;;) {
      int lost = -1;  // the place of an item with lost rows
      while (lost < 0 && known < count && (known + C::ITEMS == count || next >= p.items)) {
        const int slot = await_end(known++);
        if (has_lost(slot)) lost = slot;
      }
      const int index = lost < 0 ? next : item(lost).index();
      if (index >= p.items) break;
      if (lost < 0) next += (int)gridDim.x;
      const int slot = count % C::ITEMS;
      if (!describe_item<C>(p, index, item(slot))) continue;
      item(slot).set_number(count);
      item(slot).set_order(index, is_careful || lost >= 0);
      note_due(slot, is_careful, lost);
      arch::barrier_arrive(shared + C::ITEM_READY + 8 * slot);
      push_queries(slot);
      ++count;
    }
    const int slot = count % C::ITEMS;
    item(slot).set({0, 0, 0, 0});
    arch::barrier_arrive(shared + C::ITEM_READY + 8 * slot);
    arch::barrier_arrive(shared + C::QUERY_FULL + 8 * slot);
  }

  __device__ __forceinline__ WorkItem item(int slot) const { return {shared + C::ITEM_AT + slot * WorkItem::BYTES}; }

  // Waits until an item is done with, description and queries; where it was.
  __device__ __forceinline__ int await_end(unsigned number) const {
    const RingPlace place = RingPlace::template of<C::ITEMS>(number);
    arch::barrier_wait(shared + C::QUERY_EMPTY + 8 * place.stage, place.parity);
    return place.stage;
  }

  __device__ __forceinline__ LostRows lost_rows(int slot, int warp) const {
    return {shared + C::LOST_AT + (slot * 4 * C::LOSING + warp) * LostRows::BYTES};
  }
  __device__ __forceinline__ bool has_lost(int slot) const {
    int votes = 0;
#pragma unroll
    for (int warp = 0; warp < 4 * C::LOSING; warp += 2) {
      int words[4];
      arch::load_shared(words, lost_rows(slot, warp).address);  // of two warps
      votes |= words[0] | words[1] | words[2] | words[3];
    }
    return votes != 0;
  }

  // For which rows a careful item comes: all, or those that it lost in its former place.
  __device__ __forceinline__ void note_due(int slot, bool is_careful, int lost) const {
    if (!is_careful && lost < 0) return;
    for (int warp = 0; warp < 4 * C::LOSING; ++warp) {
      if (is_careful) lost_rows(slot, warp).fill();
      else lost_rows(slot, warp).copy(lost_rows(lost, warp));
    }
  }

  __device__ __forceinline__ void push_queries(int slot) const {
    const unsigned full = shared + C::QUERY_FULL + 8 * slot;
    arch::barrier_arrive_expect(full, C::QUERY_TILE_BYTES);
    load_rows<C>(shared + C::QUERY_AT + slot * C::QUERY_TILE_BYTES, full, p.query, p.query_steps, item(slot), p.query_box_log2,
                 p.query_side);
  }
};

}  // namespace sm90
}  // namespace natten
