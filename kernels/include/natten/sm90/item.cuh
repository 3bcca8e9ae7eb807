// SPDX-License-Identifier: MIT OR Apache-2.0
// What the producers of a Hopper kernel tell each other and the consumers in shared memory, typed: work items, the places of
// tiles, and what is noted of rows. Each is known by its address: registers are few.
//
// An item is a tile of rows, which meets tiles of columns: in the forward pass rows are queries and columns are keys.
#pragma once
#include "../arch/shared.cuh"
#include "../arch/warp.cuh"
#include "../window.cuh"

namespace natten {
namespace sm90 {

// A work item: one tile of rows, of one batch item, one head and one residue per axis, and the grid of column tiles that it
// meets, those of additional keys included.
struct WorkItem {
  struct Head {
    int full;   // column tiles that every row of the item meets whole
    int tiles;  // all column tiles; less than the least that an item has: there is no further one
    int batch;
    int head;
  };
  struct Along {
    int base;          // position of the first row
    int residue;
    int first_column;  // coordinate of the first column met
    int tiles;         // column tiles
  };
  enum {
    HEAD_AT = 0, ALONG_AT = 16, FULL_AT = 64, OUTER_AT = 88, MET_AT = 96, NUMBER_AT = 120, ORDER_AT = 124, BYTES = 128
  };

  unsigned address;

  __device__ __forceinline__ Head head() const {
    int words[4];
    arch::load_shared(words, address + HEAD_AT);
    return {words[0], words[1], words[2], words[3]};
  }
  __device__ __forceinline__ void set(const Head& head) const {
    arch::store_shared(address + HEAD_AT, head.full, head.tiles, head.batch, head.head);
  }

  __device__ __forceinline__ Along along(int a) const {
    int words[4];
    arch::load_shared(words, address + ALONG_AT + 16 * a);
    return {words[0], words[1], words[2], words[3]};
  }
  __device__ __forceinline__ void set(int a, const Along& along) const {
    arch::store_shared(address + ALONG_AT + 16 * a, along.base, along.residue, along.first_column, along.tiles);
  }

  // In the backward the number of the item's tile along an axis stands there until that is described.
  __device__ __forceinline__ int tile(int a) const { return (int)arch::load_shared(address + ALONG_AT + 16 * a); }
  __device__ __forceinline__ void set_tile(int a, unsigned tile) const {
    arch::store_shared(address + ALONG_AT + 16 * a, tile);
  }

  // The box of full tiles in the grid, from .. to along an axis.
  __device__ __forceinline__ Range full(int a) const {
    int words[2];
    arch::load_shared(words, address + FULL_AT + 8 * a);
    return {words[0], words[1]};
  }
  __device__ __forceinline__ void set_full(int a, const Range& full) const {
    arch::store_shared(address + FULL_AT + 8 * a, full.start, full.end);
  }

  // The tiles of a pass along an axis: pass 0 visits the box of full tiles, pass 1 the grid around it.
  __device__ __forceinline__ int lower(int pass, int a) const {
    const Range box = full(a);
    return pass == 0 ? box.start : 0;
  }
  __device__ __forceinline__ int upper(int pass, int a) const {
    const Range box = full(a);
    const Along grid = along(a);
    return pass == 0 ? box.end : grid.tiles;
  }
  __device__ __forceinline__ bool in_full_box(int a, int at) const { return at >= lower(0, a) && at < upper(0, a); }

  // The tiles that the rows of one warpgroup's box meet along the axis that the boxes stand side by side on.
  __device__ __forceinline__ Range met(int box) const {
    int words[2];
    arch::load_shared(words, address + MET_AT + 8 * box);
    return {words[0], words[1]};
  }
  __device__ __forceinline__ void set_met(int box, const Range& met) const {
    arch::store_shared(address + MET_AT + 8 * box, met.start, met.end);
  }

  // How many items of the cta came before: for the producer, whose registers are few.
  __device__ __forceinline__ unsigned number() const { return arch::load_shared(address + NUMBER_AT); }
  __device__ __forceinline__ void set_number(unsigned number) const { arch::store_shared(address + NUMBER_AT, number); }

  // Which item of the launch it is, and whether it is to be done carefully.
  __device__ __forceinline__ int index() const { return (int)(arch::load_shared(address + ORDER_AT) >> 1); }
  __device__ __forceinline__ bool is_careful() const { return (arch::load_shared(address + ORDER_AT) & 1) != 0; }
  __device__ __forceinline__ void set_order(int index, bool is_careful) const {
    arch::store_shared(address + ORDER_AT, (unsigned)index << 1 | (is_careful ? 1 : 0));
  }

  // Outermost coordinate of the columns in the tensor maps of their two operands (keys and values, or queries and d_out).
  __device__ __forceinline__ int outer(int side) const { return (int)arch::load_shared(address + OUTER_AT + 4 * side); }
  __device__ __forceinline__ void set_outer(int first, int second) const {
    arch::store_shared(address + OUTER_AT, first, second);
  }
};

// The key tile of a stage.
struct KeyTile {
  enum { LEFT_OUT_AT = 16, LINE_AT = 20, BYTES = 32 };

  int first[3];    // coordinates of its first key
  int additional;  // additional keys from this tile on; 0: a tile of the window

  // Which warpgroups' rows see none of its keys, a bit each.
  NATTEN_DEVICE unsigned left_out(unsigned address) { return arch::load_shared(address + LEFT_OUT_AT); }
  // The number of its line's first tile: tiles of a line differ along the side of the warpgroups' boxes alone.
  NATTEN_DEVICE unsigned line(unsigned address) { return arch::load_shared(address + LINE_AT); }
  NATTEN_DEVICE void set_line(unsigned address, unsigned left_out, unsigned line) {
    arch::store_shared(address + LEFT_OUT_AT, (int)left_out, (int)line);
  }

  NATTEN_DEVICE KeyTile load(unsigned address) {
    int words[4];
    arch::load_shared(words, address);
    return {{words[0], words[1], words[2]}, words[3]};
  }
  __device__ __forceinline__ void store(unsigned address) const {
    arch::store_shared(address, first[0], first[1], first[2], additional);
  }
};

// What is noted of a row.
struct RowNote {
  enum { WINDOWS_AT = 0, RESULTS_AT = 24, BYTES = 48 };
  enum { OUT = 0, LSE = 1 };  // the forward's results

  unsigned address;

  // What the row meets along an axis, in units of its mask's choice.
  __device__ __forceinline__ Range window(int a) const {
    int words[2];
    arch::load_shared(words, address + WINDOWS_AT + 8 * a);
    return {words[0], words[1]};
  }
  __device__ __forceinline__ void set_window(int a, const Range& window) const {
    arch::store_shared(address + WINDOWS_AT + 8 * a, window.start, window.end);
  }

  // Offsets in elements of its two results: lse and, where rows are stored one by one, out; d_query; or d_key and d_value. Strides may be negative, so that a
  // row which does not exist has an offset that none has.
  static constexpr long long ABSENT = -0x7fffffffffffffffLL - 1;

  // Whether its results are to be written.
  __device__ __forceinline__ bool is_due() const { return result(LSE) != ABSENT; }

  __device__ __forceinline__ long long result(int i) const { return arch::load_shared_long(address + RESULTS_AT + 8 * i); }
  __device__ __forceinline__ void set_result(int i, long long at) const {
    arch::store_shared_long(address + RESULTS_AT + 8 * i, at);
  }
};

// The rows of a warp whose weights left f32: of either half of its 16, a vote of the four lanes that share a row. Where an item comes
// again, they are the rows that it comes for.
struct LostRows {
  enum { BYTES = 8 };

  unsigned address;

  __device__ __forceinline__ bool has(int row) const {
    return (arch::load_shared(address + row / 8 * 4) >> row % 8 * 4 & 1) != 0;
  }
  // By all lanes, each of which says it of the two rows that it shares with three.
  __device__ __forceinline__ void add(int lane, const bool (&lost)[2]) const {
    const unsigned votes[2] = {arch::ballot(lost[0]), arch::ballot(lost[1])};
    if (lane == 0 && (votes[0] | votes[1]) != 0) {
      int known[2];
      arch::load_shared(known, address);
      arch::store_shared(address, known[0] | (int)votes[0], known[1] | (int)votes[1]);
    }
  }
  __device__ __forceinline__ void clear() const { arch::store_shared(address, 0, 0); }
  __device__ __forceinline__ void fill() const { arch::store_shared(address, -1, -1); }
  __device__ __forceinline__ void copy(const LostRows& from) const {
    int votes[2];
    arch::load_shared(votes, from.address);
    arch::store_shared(address, votes[0], votes[1]);
  }
};

}  // namespace sm90
}  // namespace natten
