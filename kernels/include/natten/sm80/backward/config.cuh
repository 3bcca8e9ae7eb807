// SPDX-License-Identifier: MIT OR Apache-2.0
// What the Ampere backward kernels fix at compile time, and their map of shared memory.
#pragma once
#include "../../arch/mma.cuh"
#include "../../element.cuh"
#include "../../fragment.cuh"
#include "../../params_sm80_backward.h"
#include "../mask.cuh"
#include "tile.cuh"

namespace natten {
namespace sm80 {

// The operands of a pass, and beside those of its columns the statistics of queries.
enum { STATISTICS = 2, SIDES = 3, STATISTICS_BYTES = 8 };

// The columns at hand, those of a head that rows meet or the additional keys: what the loops need of them and ptxas cannot
// keep in registers. Steps are in bytes, of each side.
struct ColumnSegment {
  long long pass_step[2][2];       // from a thread's column to its column STRIDE and 2 STRIDE further
  long long near_step[SIDES];      // to the next tile along axis 2
  long long line_step[SIDES];      // from the last full tile of a line to the first of the next line
  long long token_step[3][SIDES];  // to the next column along each axis
  long long origin[4][SIDES];      // of the first column: what each axis adds, and in [3] the tensor's address, batch item, head
  KeyGrid grid;
  RowTile tile;
  int first[3];                    // position of the first column; -1: the columns at hand are the additional keys
  int is_last;                     // no other columns follow those at hand

  __device__ __forceinline__ bool is_additional() const { return first[2] < 0; }
};

// Element type, bucket of head_dim, rows of a cta, columns of a tile, whether rows are keys.
template <class T, int D_, int ROWS_, int COLUMNS_, bool OF_KEYS_>
struct BackwardConfig {
  typedef T Type;
  enum {
    D = D_,
    ROWS = ROWS_,
    COLUMNS = COLUMNS_,
    OF_KEYS = OF_KEYS_,
    RESULTS = OF_KEYS ? 2 : 1,
    // Where two results of 16 rows do not fit a warp's registers, two groups of warps have the same rows: each computes all
    // weights and sums a half of the head_dim of either result.
    GROUPS = OF_KEYS && D > 128 ? 2 : 1,
    WARPS = 4,  // of a group
    THREADS = 32 * WARPS * GROUPS,
    WARP_ROWS = ROWS / WARPS,
    M = WARP_ROWS / 16,  // row blocks of one mma
    N = COLUMNS / 8,     // column blocks of a score tile
    PART = D / GROUPS,   // elements of a result's row that a warp sums
    // Operands of the rows that stay in registers: as many as leave room for the rest beside the results, S and dP.
    REGISTERS = M * (RESULTS * PART / 2 + COLUMNS),
    ROOM = 210,
    HOLDS = REGISTERS + 2 * M * D / 4 <= ROOM ? 2 : REGISTERS + M * D / 4 <= ROOM ? 1 : 0,
    // The largest kernels have no registers for loads that ptxas moves ahead of the weights: a fence keeps these in their place.
    // Which addresses are kept and which worked out anew for each tile is what spills nothing with any of the pinned assemblers.
    FENCED = M > 1 || D > 128,
    OPERANDS = 2 / GROUPS  // that a thread copies columns of: a group one, or all threads both
  };
  typedef Copier<COLUMNS, D, 32 * WARPS> ColumnCopier;
  typedef Panels<ROWS, D> RowLayout;
  typedef typename ColumnCopier::Layout ColumnLayout;
  typedef Thresholds<COLUMNS> Table;

  // Shared memory in bytes: rows first, under which results go out, then two stages of columns.
  enum {
    STAGE_STATISTICS_AT = 2 * ColumnLayout::BYTES,  // in a stage: of each column a pair
    STAGE_BYTES = STAGE_STATISTICS_AT + (OF_KEYS ? COLUMNS * STATISTICS_BYTES : 0),
    STAGES_AT = 2 * RowLayout::BYTES,
    SEGMENT_AT = STAGES_AT + 2 * STAGE_BYTES,
    WINDOWS_AT = SEGMENT_AT + sizeof(ColumnSegment),  // by axis, by coordinate in the box of rows: sides are ROWS + 2 at most
    ROW_STATISTICS_AT = WINDOWS_AT + (ROWS + 2) * sizeof(Range),  // of each row a pair, where rows are queries
    TABLE_AT = ROW_STATISTICS_AT + (OF_KEYS ? 0 : ROWS * STATISTICS_BYTES),
    SHARED_BYTES = TABLE_AT + Table::BYTES
  };
  static_assert(STAGE_BYTES % 128 == 0 && SEGMENT_AT % 8 == 0, "swizzled rows, long words");
  static_assert(SHARED_BYTES <= 99 * 1024, "shared memory of a cta on every GPU of the family");
};

// The cta's shared memory, part by part.
template <class C>
struct BackwardShared {
  char* base;

  __device__ __forceinline__ unsigned address() const { return arch::shared_address(base); }
  __device__ __forceinline__ unsigned rows(int operand) const { return address() + operand * C::RowLayout::BYTES; }
  __device__ __forceinline__ unsigned stages() const { return address() + C::STAGES_AT; }
  // Of two.
  __device__ __forceinline__ unsigned other_stage(unsigned stage) const {
    return 2 * stages() + C::STAGE_BYTES - stage;
  }
  __device__ __forceinline__ ColumnSegment& segment() const { return *(ColumnSegment*)(base + C::SEGMENT_AT); }
  // What rows meet along an axis, in positions, by their coordinate in the box.
  __device__ __forceinline__ Range* windows(const BackwardTileParams& p, int a) const {
    const int before = a == 2 ? 0 : (1 << p.row_log2[2]) + (a == 0 ? 1 << p.row_log2[1] : 0);
    return (Range*)(base + C::WINDOWS_AT) + before;
  }
  __device__ __forceinline__ unsigned row_statistics() const { return address() + C::ROW_STATISTICS_AT; }
  __device__ __forceinline__ unsigned* table() const { return (unsigned*)(base + C::TABLE_AT); }
};

// Only what the loops use in every tile lives in registers; the rest starts from the thread's number, read anew.
struct Thread {
  NATTEN_DEVICE unsigned index() { return arch::thread_index(); }
  NATTEN_DEVICE unsigned lane() { return arch::thread_index() % 32; }
  // Of the group.
  template <class C>
  NATTEN_DEVICE int warp() {
    return arch::thread_index() / 32 % C::WARPS;
  }
  // Of the cta.
  template <class C>
  NATTEN_DEVICE int group() {
    return C::GROUPS == 1 ? 0 : arch::thread_index() / (32 * C::WARPS);
  }
  // The first row that its warp has.
  template <class C>
  NATTEN_DEVICE int row() {
    return warp<C>() * C::WARP_ROWS;
  }
};

}  // namespace sm80
}  // namespace natten
