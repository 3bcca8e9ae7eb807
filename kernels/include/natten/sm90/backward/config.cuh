// SPDX-License-Identifier: MIT OR Apache-2.0
// What the Hopper backward kernels fix at compile time, and their map of shared memory.
#pragma once
#include "../../params_sm90_backward.h"
#include "../config.cuh"
#include "item.cuh"

namespace natten {
namespace sm90 {

// TYPE, bucket of head_dim, columns of a tile, whether the rows are keys. Two consumer warpgroups have 64 rows each.
template <class TYPE, int HEAD_DIM_, int COLUMNS_, bool OF_KEYS_>
struct BackwardConfig {
  typedef TYPE Type;
  enum {
    HEAD_DIM = HEAD_DIM_,
    COLUMNS = COLUMNS_,
    BOX_ROWS = 64,  // of one warpgroup
    OF_KEYS = OF_KEYS_,
    OUTPUTS = OF_KEYS ? 2 : 1,
    // Gradients that are worked out by items of their own, and those that an item sums up.
    GRADIENTS = OF_KEYS && HEAD_DIM > 128 ? 2 : 1,
    RESULTS = OUTPUTS / GRADIENTS,
    WARPGROUPS = 2,
    BOXES = WARPGROUPS,  // of rows, side by side
    THREADS = 128 * (WARPGROUPS + 1),
    // Of what a cta is launched with, 168 a thread. The longest rows leave the producer little.
    PRODUCER_REGISTERS = HEAD_DIM > 64 ? 40 : 56,
    CONSUMER_REGISTERS = HEAD_DIM > 64 ? 232 : 224,

    // Rows are cut into slabs as wide as the swizzle: [slab][row][SLAB elements].
    SLAB = HEAD_DIM < 64 ? HEAD_DIM : 64,
    SLABS = HEAD_DIM / SLAB,
    SLAB_ROW_BYTES = SLAB * 2,
    SWIZZLE = SLAB == 64 ? arch::SWIZZLE_128_BYTES : arch::SWIZZLE_64_BYTES,
    ROW_SLAB_BYTES = BOX_ROWS * SLAB_ROW_BYTES,
    COLUMN_SLAB_BYTES = COLUMNS * SLAB_ROW_BYTES,
    ROW_BOX_BYTES = BOX_ROWS * HEAD_DIM * 2,  // of one warpgroup and one operand
    ROW_TILE_BYTES = WARPGROUPS * ROW_BOX_BYTES,
    COLUMN_TILE_BYTES = COLUMNS * HEAD_DIM * 2,

    // Items in flight: the next one's rows arrive while this one is worked on, where there is room for them.
    ITEMS = HEAD_DIM > 64 ? 1 : 2,
    STAGES = HEAD_DIM > 128 ? 2 : HEAD_DIM > 64 ? 3 : 4,

    // Shared memory in bytes. Swizzled tiles start at multiples of 1024. Results go out over the item's rows.
    ROW_AT = 0,                                                  // [item][operand][warpgroup]
    COLUMN_AT = ROW_AT + ITEMS * 2 * ROW_TILE_BYTES,             // [stage][operand]
    STATISTICS_AT = COLUMN_AT + STAGES * 2 * COLUMN_TILE_BYTES,  // [stage][lse_log2, delta][column]
    STATISTICS_BYTES = OF_KEYS ? 8 * COLUMNS : 0,
    ROWS_AT = STATISTICS_AT + STAGES * STATISTICS_BYTES,
    // Each warp notes its 16 rows, then the first and the last row of its warpgroup's box.
    WARP_NOTES = 18,
    BITS_AT = ROWS_AT + WARPGROUPS * 4 * WARP_NOTES * RowNote::BYTES,  // per axis and bound 0 .. side: 4 words
    BITS_BYTES = (COLUMNS + 5) * 16,                                   // worst: all columns along one axis
    ITEM_AT = BITS_AT + BITS_BYTES,
    PARTS_AT = ITEM_AT + ITEMS * WorkItem::BYTES,
    TILES_AT = PARTS_AT + ITEMS * ItemPart::BYTES,
    BARRIERS_AT = TILES_AT + STAGES * ColumnTile::BYTES,
    COLUMN_FULL = BARRIERS_AT,
    COLUMN_EMPTY = COLUMN_FULL + 8 * STAGES,
    TILE_POSTED = COLUMN_EMPTY + 8 * STAGES,
    ROW_FULL = TILE_POSTED + 8 * STAGES,
    ROW_EMPTY = ROW_FULL + 8 * ITEMS,
    SHARED_BYTES = ROW_EMPTY + 8 * ITEMS
  };
  static_assert(SHARED_BYTES <= 227 * 1024, "shared memory of one cta");
  static_assert(PRODUCER_REGISTERS + CONSUMER_REGISTERS * WARPGROUPS <= 168 * (WARPGROUPS + 1), "registers");
};

}  // namespace sm90
}  // namespace natten
