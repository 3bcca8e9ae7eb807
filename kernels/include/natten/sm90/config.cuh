// SPDX-License-Identifier: MIT OR Apache-2.0
// What the Hopper forward kernel fixes at compile time, and its map of shared memory.
#pragma once
#include "../arch/barrier.cuh"
#include "../arch/shared.cuh"
#include "../arch/tma.cuh"
#include "../arch/wgmma.cuh"
#include "../element.cuh"
#include "../params_sm90.h"
#include "item.cuh"
#include "ring.cuh"

namespace natten {
namespace sm90 {

// TYPE, bucket of head_dim, keys of a tile, consumer warpgroups (64 queries each).
template <class TYPE, int HEAD_DIM_, int KEYS_, int WARPGROUPS_>
struct Config {
  typedef TYPE Type;
  enum {
    HEAD_DIM = HEAD_DIM_,
    KEYS = KEYS_,
    WARPGROUPS = WARPGROUPS_,
    BOXES = WARPGROUPS,               // of queries, side by side
    STAGES = HEAD_DIM <= 64 ? 4 : 2,  // of K, and as many of V
    LEAVES_OUT = 1,                   // each warpgroup the tiles that its queries do not see
    LOSING = WARPGROUPS,              // so many may lose rows whose weights leave f32
    THREADS = 128 * (WARPGROUPS + 1),
    PRODUCER_REGISTERS = WARPGROUPS == 2 ? 40 : 32,
    CONSUMER_REGISTERS = WARPGROUPS == 2 ? 232 : 160,
    // The four warps of the producers' warpgroup.
    TILE_WARP = 0,
    ITEM_WARP = 1,
    ROW_WARPS = 2,  // the others

    // Rows are cut into slabs as wide as the swizzle: [slab][row][SLAB elements].
    SLAB = HEAD_DIM < 64 ? HEAD_DIM : 64,
    SLABS = HEAD_DIM / SLAB,
    SLAB_ROW_BYTES = SLAB * 2,
    SWIZZLE = SLAB == 64 ? arch::SWIZZLE_128_BYTES : arch::SWIZZLE_64_BYTES,
    BOX_ROWS = 64,  // queries of one warpgroup
    QUERY_SLAB_BYTES = BOX_ROWS * SLAB_ROW_BYTES,
    KEY_SLAB_BYTES = KEYS * SLAB_ROW_BYTES,
    QUERY_BOX_BYTES = BOX_ROWS * HEAD_DIM * 2,
    KEY_TILE_BYTES = KEYS * HEAD_DIM * 2,

    QUERY_TILE_BYTES = WARPGROUPS * QUERY_BOX_BYTES,

    // Items in flight: the next one's queries arrive while this one is worked on, where there is room for them, and the one behind it
    // has been described by then.
    QUERIES = HEAD_DIM == 256 ? 1 : 2,
    ITEMS = QUERIES + 1,

    // Shared memory in bytes. Swizzled tiles start at multiples of 1024. The result goes out over the item's queries.
    QUERY_AT = 0,
    KEY_AT = QUERY_AT + QUERIES * QUERY_TILE_BYTES,
    VALUE_AT = KEY_AT + STAGES * KEY_TILE_BYTES,
    ROWS_AT = VALUE_AT + STAGES * KEY_TILE_BYTES,
    BITS_AT = ROWS_AT + ITEMS * WARPGROUPS * BOX_ROWS * RowNote::BYTES,  // per axis and bound 0 .. side: 4 words
    BITS_BYTES = (KEYS + 5) * 16,                                        // worst: all keys along one axis
    ITEM_AT = BITS_AT + BITS_BYTES,
    TILES_AT = ITEM_AT + ITEMS * WorkItem::BYTES,      // first key of each stage's tile
    LOST_AT = TILES_AT + STAGES * KeyTile::BYTES,     // of each item and warp
    BARRIERS_AT = LOST_AT + ITEMS * LOSING * 4 * LostRows::BYTES,
    KEY_FULL = BARRIERS_AT,
    KEY_EMPTY = KEY_FULL + 8 * STAGES,
    VALUE_FULL = KEY_EMPTY + 8 * STAGES,
    VALUE_EMPTY = VALUE_FULL + 8 * STAGES,
    QUERY_FULL = VALUE_EMPTY + 8 * STAGES,
    QUERY_EMPTY = QUERY_FULL + 8 * QUERIES,
    ITEM_READY = QUERY_EMPTY + 8 * QUERIES,
    ROWS_READY = ITEM_READY + 8 * ITEMS,
    SHARED_BYTES = ROWS_READY + 8 * ITEMS
  };
  static_assert(SHARED_BYTES <= 227 * 1024, "shared memory of one cta");
  static_assert(PRODUCER_REGISTERS * 128 + CONSUMER_REGISTERS * 128 * WARPGROUPS <= 65536, "registers");

  // What is noted of a row in an item's place, where a box of queries and then its result lies in a place of those, and which rows of a warp an
  // item in its place lost.
  NATTEN_DEVICE RowNote row_note(unsigned shared, int place, int row) {
    return {shared + ROWS_AT + (place * WARPGROUPS * BOX_ROWS + row) * RowNote::BYTES};
  }
  NATTEN_DEVICE unsigned queries(unsigned shared, int place, int box) {
    return shared + QUERY_AT + place * QUERY_TILE_BYTES + box * QUERY_BOX_BYTES;
  }
  NATTEN_DEVICE LostRows lost_rows(unsigned shared, int place, int warp) {
    return {shared + LOST_AT + (place * LOSING * 4 + warp) * LostRows::BYTES};
  }
};

}  // namespace sm90
}  // namespace natten
