// SPDX-License-Identifier: MIT OR Apache-2.0
// What the Blackwell backward kernels fix at compile time, and their maps of shared and tensor memory.
#pragma once
#include "../../arch/barrier.cuh"
#include "../../arch/shared.cuh"
#include "../../arch/tcgen05.cuh"
#include "../../element.cuh"
#include "../../params_sm90_backward.h"
#include "../../sm90/backward/item.cuh"
#include "../../sm90/item.cuh"
#include "../../sm90/ring.cuh"

namespace natten {
namespace sm100 {

// Work items, tiles of columns and rings are the Hopper family's: so are the boxes.
using sm90::ColumnTile;
using sm90::ItemPart;
using sm90::RingPlace;
using sm90::RowNote;
using sm90::WorkItem;

// TYPE, bucket of head_dim, whether the rows are keys.
template <class TYPE, int HEAD_DIM_, bool OF_KEYS_>
struct BackwardConfig {
  typedef TYPE Type;
  enum {
    HEAD_DIM = HEAD_DIM_,
    OF_KEYS = OF_KEYS_,
    OUTPUTS = OF_KEYS ? 2 : 1,
    GRADIENTS = 1,   // tensor memory holds all sums of an item: none has items of its own
    BOXES = 1,       // of rows
    BOX_ROWS = 128,  // a row for each lane of tensor memory
    COLUMNS = 128,
    // Both softmax warpgroups have all rows, a row a thread, and each its half of the columns of every tile.
    WARPGROUPS = 2,
    SHARE = COLUMNS / WARPGROUPS,
    THREADS = 128 * (WARPGROUPS + 1),
    HELPER_REGISTERS = 56,
    SOFTMAX_REGISTERS = 224,

    // Rows are cut into slabs as wide as the swizzle: [slab][row][SLAB elements].
    SLAB = HEAD_DIM < 64 ? HEAD_DIM : 64,
    SLABS = HEAD_DIM / SLAB,
    SLAB_ROW_BYTES = SLAB * 2,
    SWIZZLE = SLAB == 64 ? arch::TENSOR_SWIZZLE_128_BYTES : arch::TENSOR_SWIZZLE_64_BYTES,
    ROW_SLAB_BYTES = BOX_ROWS * SLAB_ROW_BYTES,
    COLUMN_SLAB_BYTES = COLUMNS * SLAB_ROW_BYTES,
    ROW_TILE_BYTES = BOX_ROWS * HEAD_DIM * 2,  // of one operand
    COLUMN_TILE_BYTES = COLUMNS * HEAD_DIM * 2,

    // Elements of a row that a warpgroup writes: of a gradient of its own, or of its half of the only one.
    WRITTEN = OF_KEYS || HEAD_DIM == 32 ? HEAD_DIM : HEAD_DIM / 2,

    // Items in flight: the next one's rows arrive while this one is worked on, where there is room for them.
    ITEMS = HEAD_DIM > 64 ? 1 : 2,
    STAGES = HEAD_DIM > 64 ? 2 : 3,

    // Shared memory in bytes. Swizzled tiles start at multiples of 1024. Results go out over the item's rows.
    ROW_AT = 0,                                                  // [item][operand]
    COLUMN_AT = ROW_AT + ITEMS * 2 * ROW_TILE_BYTES,             // [stage][operand]
    STATISTICS_AT = COLUMN_AT + STAGES * 2 * COLUMN_TILE_BYTES,  // [stage][lse_log2, delta][column]
    STATISTICS_BYTES = OF_KEYS ? 8 * COLUMNS : 0,
    ROWS_AT = STATISTICS_AT + STAGES * STATISTICS_BYTES,
    BITS_AT = ROWS_AT + WARPGROUPS * BOX_ROWS * RowNote::BYTES,  // per axis and bound 0 .. side: 4 words
    BITS_BYTES = (COLUMNS + 5) * 16,                             // worst: all columns along one axis
    ITEM_AT = BITS_AT + BITS_BYTES,
    PARTS_AT = ITEM_AT + ITEMS * WorkItem::BYTES,
    TILES_AT = PARTS_AT + ITEMS * ItemPart::BYTES,
    BARRIERS_AT = TILES_AT + STAGES * ColumnTile::BYTES,
    COLUMN_FULL = BARRIERS_AT,
    COLUMN_EMPTY = COLUMN_FULL + 8 * STAGES,
    TILE_POSTED = COLUMN_EMPTY + 8 * STAGES,
    ROW_FULL = TILE_POSTED + 8 * STAGES,
    ROW_EMPTY = ROW_FULL + 8 * ITEMS,
    // One of each, a phase for every tile.
    SCORES_FULL = ROW_EMPTY + 8 * ITEMS,
    SCORES_TAKEN = SCORES_FULL + 8,
    WEIGHTS_SUMMED = SCORES_TAKEN + 8,
    D_WEIGHTS_FULL = WEIGHTS_SUMMED + 8,
    D_SCORES_FULL = D_WEIGHTS_FULL + 8,
    SUMS_FULL = D_SCORES_FULL + 8,
    TENSOR_AT = SUMS_FULL + 8,  // where tensor memory was given
    SHARED_BYTES = TENSOR_AT + 16,

    // Columns of tensor memory: S, then dP, f32, then the sums. A warpgroup's pairs of weights lie over its half of S, those of
    // the gradients of scores over its half of dP.
    SCORES_COLUMN = 0,
    D_WEIGHTS_COLUMN = COLUMNS,
    SUMS_COLUMN = 2 * COLUMNS,
    COLUMNS_USED = SUMS_COLUMN + OUTPUTS * HEAD_DIM,
    TENSOR_COLUMNS = 512
  };
  static_assert(SHARED_BYTES <= 227 * 1024, "shared memory of one cta");
  static_assert(COLUMNS_USED <= TENSOR_COLUMNS && COLUMNS_USED > TENSOR_COLUMNS / 2, "tensor memory");
  static_assert(HELPER_REGISTERS * 128 + SOFTMAX_REGISTERS * 128 * WARPGROUPS <= 65536, "registers");

  NATTEN_DEVICE unsigned scores(unsigned tensor) { return tensor + SCORES_COLUMN; }
  NATTEN_DEVICE unsigned d_weights(unsigned tensor) { return tensor + D_WEIGHTS_COLUMN; }
  NATTEN_DEVICE unsigned sums(unsigned tensor, int output) { return tensor + SUMS_COLUMN + output * HEAD_DIM; }
};

}  // namespace sm100
}  // namespace natten
