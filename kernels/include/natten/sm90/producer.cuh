// SPDX-License-Identifier: MIT OR Apache-2.0
// The producer of tiles: one thread that walks the key tiles of each work item and keeps the copy engine busy.
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
    const unsigned destination = to + stage(tile) * C::KEY_TILE_BYTES;
    int outer = item.outer(side);
    if (place.additional > 0) {
      const WorkItem::Head head = item.head();
      outer = head.batch * additional_steps.batch + divide(head.head, p.geometry.heads_per_kv) * additional_steps.head;
    }
    // Consumers may be done with the item once this has arrived: all that is read of it has been.
    const int keys = place.additional > 0 ? (int)C::KEYS : AnyBox{p.key_sides}.rows();
    arch::barrier_arrive_expect(full, keys * C::HEAD_DIM * 2);
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

  // All but the values of the last one. Registers are few: i counts tiles of a line, and then additional keys.
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
      push_value(pushed - 1);
    }
  }
};

}  // namespace sm90
}  // namespace natten
