// SPDX-License-Identifier: MIT OR Apache-2.0
// Masks of partial tiles, as bits: one word a query row, ready to be tested with constants.
//
// A table in shared memory has, for every axis a and every v from 0 to the tile's side, the columns (keys) of a tile
// whose coordinate along a is below v. What a row sees of a tile is then the AND over axes of below[end] & ~below[start],
// both ends clamped into the tile: no loop over columns, no division, and any shape of tile.
//
// Bits stand in the order in which the lanes of a quad hold an mma's C fragment: a quad's lane has columns
// 8 j + 2 quad + {0, 1}, and finds them in its own KEYS / 4 neighbouring bits as bit 2 j + {0, 1}.
#pragma once
#include "arch/warp.cuh"
#include "tile.cuh"

namespace natten {

template <int KEYS>
struct ColumnBits;

template <>
struct ColumnBits<64> {
  typedef unsigned long long Word;
};

template <>
struct ColumnBits<32> {
  typedef unsigned Word;
};

// The table, built by all warps of a thread block.
template <int KEYS>
struct Thresholds {
  typedef typename ColumnBits<KEYS>::Word Word;
  enum { ENTRIES = KEYS + 5, BYTES = ENTRIES * sizeof(Word), PER_LANE = KEYS / 4 };  // sides add up to KEYS + 2 at most

  // The tile's column, which is its row in shared memory, that a bit stands for; and back.
  NATTEN_DEVICE int column_of(int bit) {
    const int own = bit % PER_LANE;
    return 8 * (own / 2) + 2 * (bit / PER_LANE) + own % 2;
  }
  NATTEN_DEVICE int bit_of(int column) { return column % 8 / 2 * PER_LANE + column / 8 * 2 + column % 2; }

  // Entry below[0] of axis a.
  NATTEN_DEVICE int first_entry(const int (&log2)[3], int a) {
    return a == 0 ? 0 : a == 1 ? (1 << log2[0]) + 1 : (1 << log2[0]) + (1 << log2[1]) + 2;
  }

  NATTEN_DEVICE void build(Word* table, const int (&log2)[3], int warp, int warps, int lane) {
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const int first = first_entry(log2, a);
#pragma unroll 1
      for (int v = warp; v <= 1 << log2[a]; v += warps) {
        Word bits = 0;
#pragma unroll
        for (int half = 0; half < KEYS / 32; ++half) {
          const bool below = coordinate(log2, column_of(half * 32 + lane), a) < v;
          bits |= (Word)arch::ballot(below) << (half * 32 % (8 * sizeof(Word)));
        }
        if (lane == 0) table[first + v] = bits;
      }
    }
  }
};

// Where the table has its entries below[0], and how large a tile is: what reading it takes.
struct Lookup {
  int entry[3];
  int log2[3];
};

// One row's view of a grid of key tiles.
template <int KEYS>
struct RowMask {
  typedef typename Thresholds<KEYS>::Word Word;

  // Per axis, both from 0 to 2^15: how far the row's window starts after the grid's first key, in the low half, and how
  // far it ends before the grid's last, in the high half. Neither exceeds the query tile's side plus the stride.
  unsigned margins[3];

  __device__ __forceinline__ void set(int a, int after_start, int before_end) {
    margins[a] = after_start | before_end << 16;
  }

  // What the row sees of the tile at `at`.
  __device__ __forceinline__ Word of_tile(const Word* table, const Lookup& lookup, const int (&count)[3],
                                          const int (&at)[3]) const {
    Word bits = ~(Word)0;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const int side = 1 << lookup.log2[a];
      const int origin = at[a] << lookup.log2[a];
      const Word* below = table + lookup.entry[a];
      const int start = (int)(margins[a] & 0xffff) - origin;
      const int end = count[a] - origin - (int)(margins[a] >> 16);
      bits &= below[clamp(end, 0, side)] & ~below[clamp(start, 0, side)];
    }
    return bits;
  }

  // The keys of a tile that some query of the query tile may see: those before the grid's end.
  NATTEN_DEVICE Word inside(const Word* table, const Lookup& lookup, const int (&count)[3], const int (&at)[3]) {
    Word bits = ~(Word)0;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const int left = count[a] - (at[a] << lookup.log2[a]);
      bits &= table[lookup.entry[a] + minimum(left, 1 << lookup.log2[a])];
    }
    return bits;
  }

  // Lane l of a warp has the word of row l: hands each lane its own bits of row `row`.
  NATTEN_DEVICE unsigned own_bits(Word word, int row, int quad) {
    if (KEYS == 32) return arch::shuffle_from((unsigned)word, row) >> (quad * 8);
    const unsigned low = arch::shuffle_from((unsigned)word, row);
    const unsigned high = arch::shuffle_from((unsigned)((unsigned long long)word >> 32), row);
    return (quad >= 2 ? high : low) >> (quad % 2 * 16);
  }
};

}  // namespace natten
