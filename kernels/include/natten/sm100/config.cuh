// SPDX-License-Identifier: MIT OR Apache-2.0
// What the Blackwell forward kernel fixes at compile time, and its maps of shared and tensor memory.
#pragma once
#include "../arch/barrier.cuh"
#include "../arch/shared.cuh"
#include "../arch/tcgen05.cuh"
#include "../element.cuh"
#include "../params_sm90.h"
#include "../sm90/item.cuh"
#include "../sm90/ring.cuh"

namespace natten {
namespace sm100 {

// Work items, places of tiles and rings are the Hopper family's: so are the boxes.
using sm90::KeyTile;
using sm90::RingPlace;
using sm90::RowNote;
using sm90::WorkItem;

// TYPE, bucket of head_dim, softmax warpgroups (128 queries each).
template <class TYPE, int HEAD_DIM_, int WARPGROUPS_>
struct Config {
  typedef TYPE Type;
  enum {
    HEAD_DIM = HEAD_DIM_,
    WARPGROUPS = WARPGROUPS_,
    BOXES = WARPGROUPS,  // of queries, side by side
    KEYS = 128,
    BOX_ROWS = 128,  // queries of one warpgroup: a row for each of its threads, and for each lane of tensor memory
    STAGES = 2,      // of K, and as many of V
    LEAVES_OUT = 0,  // one thread issues for all
    LOSING = 0,      // none loses rows: weights are taken by the largest scores
    THREADS = 128 * (WARPGROUPS + 1),
    // One warpgroup beside the helpers has registers enough as they are.
    SHARES_REGISTERS = WARPGROUPS == 2,
    HELPER_REGISTERS = 56,
    SOFTMAX_REGISTERS = 224,

    // Rows are cut into slabs as wide as the swizzle: [slab][row][SLAB elements].
    SLAB = HEAD_DIM < 64 ? HEAD_DIM : 64,
    SLABS = HEAD_DIM / SLAB,
    SLAB_ROW_BYTES = SLAB * 2,
    SWIZZLE = SLAB == 64 ? arch::TENSOR_SWIZZLE_128_BYTES : arch::TENSOR_SWIZZLE_64_BYTES,
    QUERY_SLAB_BYTES = BOX_ROWS * SLAB_ROW_BYTES,
    KEY_SLAB_BYTES = KEYS * SLAB_ROW_BYTES,
    QUERY_BOX_BYTES = BOX_ROWS * HEAD_DIM * 2,
    KEY_TILE_BYTES = KEYS * HEAD_DIM * 2,
    QUERY_TILE_BYTES = WARPGROUPS * QUERY_BOX_BYTES,

    // Items in flight: the next one's queries arrive while this one is worked on, where there is room for them.
    QUERIES = WARPGROUPS * HEAD_DIM == 256 ? 1 : 2,
    ITEMS = QUERIES,

    // Shared memory in bytes. Swizzled tiles start at multiples of 1024. The result goes out over the item's queries.
    QUERY_AT = 0,
    KEY_AT = QUERY_AT + QUERIES * QUERY_TILE_BYTES,
    VALUE_AT = KEY_AT + STAGES * KEY_TILE_BYTES,
    ROWS_AT = VALUE_AT + STAGES * KEY_TILE_BYTES,
    BITS_AT = ROWS_AT + ITEMS * WARPGROUPS * BOX_ROWS * RowNote::BYTES,  // per axis and bound 0 .. side: 4 words
    BITS_BYTES = (KEYS + 5) * 16,                                // worst: all keys along one axis
    ITEM_AT = BITS_AT + BITS_BYTES,
    TILES_AT = ITEM_AT + ITEMS * WorkItem::BYTES,                // first key of each stage's tile
    LOST_AT = TILES_AT + STAGES * KeyTile::BYTES,
    BARRIERS_AT = LOST_AT,
    KEY_FULL = BARRIERS_AT,
    KEY_EMPTY = KEY_FULL + 8 * STAGES,
    VALUE_FULL = KEY_EMPTY + 8 * STAGES,
    VALUE_EMPTY = VALUE_FULL + 8 * STAGES,
    QUERY_FULL = VALUE_EMPTY + 8 * STAGES,
    QUERY_EMPTY = QUERY_FULL + 8 * QUERIES,
    ITEM_READY = QUERY_EMPTY + 8 * QUERIES,
    SCORES_FULL = ITEM_READY + 8 * ITEMS,          // per warpgroup, as the two below
    WEIGHTS_FULL = SCORES_FULL + 8 * WARPGROUPS,
    SUMS_FULL = WEIGHTS_FULL + 8 * WARPGROUPS,
    TENSOR_AT = SUMS_FULL + 8 * WARPGROUPS,        // where tensor memory was given
    SHARED_BYTES = TENSOR_AT + 16,

    // Columns of tensor memory: S of each warpgroup, whose weights lie over its first half as pairs, then O of each.
    SCORE_COLUMNS = KEYS,
    SUMS_AT = WARPGROUPS * SCORE_COLUMNS,
    COLUMNS_USED = SUMS_AT + WARPGROUPS * HEAD_DIM,
    COLUMNS = COLUMNS_USED > 256 ? 512 : 256
  };
  static_assert(SHARED_BYTES <= 227 * 1024, "shared memory of one cta");
  static_assert(COLUMNS_USED <= 512 && COLUMNS_USED > 128, "tensor memory");
  static_assert(HELPER_REGISTERS * 128 + SOFTMAX_REGISTERS * 128 * WARPGROUPS <= 65536, "registers");

  // What is noted of a row in an item's place, and where a box of queries and then its result lies in a place of those; no rows are ever lost.
  NATTEN_DEVICE RowNote row_note(unsigned shared, int place, int row) {
    return {shared + ROWS_AT + (place * WARPGROUPS * BOX_ROWS + row) * RowNote::BYTES};
  }
  NATTEN_DEVICE unsigned queries(unsigned shared, int place, int box) {
    return shared + QUERY_AT + place * QUERY_TILE_BYTES + box * QUERY_BOX_BYTES;
  }
  NATTEN_DEVICE sm90::LostRows lost_rows(unsigned shared, int, int) { return {shared + LOST_AT}; }

  NATTEN_DEVICE unsigned scores(unsigned tensor, int group) { return tensor + group * SCORE_COLUMNS; }
  NATTEN_DEVICE unsigned sums(unsigned tensor, int group) { return tensor + SUMS_AT + group * HEAD_DIM; }
};

}  // namespace sm100
}  // namespace natten
