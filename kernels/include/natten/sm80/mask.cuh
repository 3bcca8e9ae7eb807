// SPDX-License-Identifier: MIT OR Apache-2.0
// Masks of partial tiles, as the numbers that their scores start from: 0 where the row sees the key, -infinity where not.
//
// A table in shared memory has, for every axis a and every v from 0 to the tile's side, the columns (keys) of a tile
// whose coordinate along a is below v. What a row sees of a tile is then the AND over axes of below[end] & ~below[start],
// both ends clamped into the tile: no loop over columns, no division, and any shape of tile. Two of the three axes stay as
// they are along a run of tiles.
//
// Four such bits are the number of a row of four floats in a second table, and ldmatrix hands such rows out in just the
// way in which an mma's C fragment holds them: an accumulator that starts from there needs no further thought about masks.
#pragma once
#include "../arch/mma.cuh"
#include "../arch/shared.cuh"
#include "../arch/warp.cuh"
#include "../grid.cuh"

namespace natten {
namespace sm80 {

// One bit per key of a tile, in a word for each parity. In a row of a C fragment the lanes of a quad hold columns
// 8 n + 2 quad + parity: four bits of that word, for quad 0, 1, 3, 2. Tiles are at least two keys long along axis 2, so
// that what axes 0 and 1 say is the same of both words.
struct Columns {
  unsigned word[2];

  // A word of groups of 2^group_log2 neighbouring pairs of columns, the first `pairs` of each group in it.
  NATTEN_DEVICE unsigned repeated(int pairs, int group_log2) {
    unsigned bits = (unsigned)((1ull << pairs) - 1);
    for (int width = 1 << group_log2; width < 32; width *= 2) bits |= bits << width;
    return bits & 0x33333333u | bits >> 1 & 0x44444444u | bits << 1 & 0x88888888u;
  }
};

// The table of columns below a coordinate: pairs of words for axis 2, then words for axis 1, and from the end backwards
// those for axis 0.
template <int KEYS>
struct Thresholds {
  enum { WORDS = 2 * (KEYS + 1) + 4, BYTES = 4 * WORDS };

  // Where columns below v are, in words, along axis 0 or 1.
  NATTEN_DEVICE int at(const int (&log2)[3], int a, int v) { return a == 0 ? WORDS - 1 - v : 2 * ((1 << log2[2]) + 1) + v; }

  // By 128 threads, an entry each: the first ones for axes 2 and 1, the last ones for axis 0.
  NATTEN_DEVICE void build(unsigned* table, const int (&log2)[3], int thread) {
    const int across = thread - ((1 << log2[2]) + 1), from_end = 127 - thread;
    if (across < 0) {
      arch::store_shared(arch::shared_address(table + 2 * thread), Columns::repeated((thread + 1) >> 1, log2[2] - 1),
                         Columns::repeated(thread >> 1, log2[2] - 1));
    } else if (across <= 1 << log2[1]) {
      table[at(log2, 1, across)] = Columns::repeated(across << (log2[2] - 1), log2[2] + log2[1] - 1);
    } else if (from_end <= 1 << log2[0]) {
      const int line_log2 = log2[2] + log2[1] - 1;
      table[at(log2, 0, from_end)] = Columns::repeated(from_end << line_log2, line_log2 + log2[0]);
    }
  }
};

// The table of starting scores: for each pattern of four columns a row of four floats, 16 bytes. SPREAD: each of the eight
// rows that ldmatrix reads at once has a copy, and so banks, of its own; patterns are 256 bytes apart then. Otherwise two
// patterns share banks if they differ for quads 0 and 2 only, which intervals of seven columns and more never do.
template <bool SPREAD>
struct Starts {
  enum { COPIES = SPREAD ? 8 : 1, PITCH = SPREAD ? 256 : 16, BYTES = 16 * PITCH };

  // The number of each nibble's pattern.
  NATTEN_DEVICE unsigned numbers(unsigned bits) { return SPREAD ? bits : bits ^ bits >> 3 & 0x11111111u; }

  // A row a thread, of at least 128. `table` is a shared address.
  NATTEN_DEVICE void build(unsigned table, int thread) {
    const int number = thread / COPIES;
    if (number >= 16) return;
    const int bits = SPREAD ? number : number ^ number >> 3;
    int words[4];
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) words[quad] = bits >> (quad ^ quad >> 1) & 1 ? 0 : 0xff800000;
    arch::store_shared(table + number * PITCH + thread % COPIES * 16, words[0], words[1], words[2], words[3]);
  }
};

// One row's view of a grid of key tiles.
template <int KEYS>
struct RowMask {
  // Per axis, both from 0 to 2^15: how far the row's window starts after the grid's first key, in the low half, and how
  // far it ends before the grid's last, in the high half. Neither exceeds the query tile's side plus the stride.
  unsigned margins[3];
  unsigned line;  // what the row sees of the tiles at hand along axes 0 and 1, in either word
  Columns tile;   // what it sees of the tile at hand

  __device__ __forceinline__ void set(int a, int after_start, int before_end) {
    margins[a] = after_start | before_end << 16;
  }

  // Goes to another line of tiles.
  __device__ __forceinline__ void enter_line(const unsigned* table, const KeyGrid& grid, const int (&at)[3]) {
    typedef Thresholds<KEYS> Table;
    line = ~0u;
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      const Range seen = inside(grid, at, a);
      line &= table[Table::at(grid.log2, a, seen.end)] & ~table[Table::at(grid.log2, a, seen.start)];
    }
  }

  // Goes to a tile of the line.
  __device__ __forceinline__ void enter_tile(const unsigned* table, const KeyGrid& grid, const int (&at)[3]) {
    const Range seen = inside(grid, at, 2);
    // By 32-bit addresses, of which an instruction can hold the constant part.
    int before_end[2], before_start[2];
    arch::load_shared(before_end, arch::shared_address(table) + seen.end * 8);
    arch::load_shared(before_start, arch::shared_address(table) + seen.start * 8);
#pragma unroll
    for (int p = 0; p < 2; ++p) tile.word[p] = line & before_end[p] & ~before_start[p];
  }

  // The coordinates of the tile at `at` that the row sees along axis a. A tile that was moved back does not show again what
  // the tile before it has shown.
  __device__ __forceinline__ Range inside(const KeyGrid& grid, const int (&at)[3], int a) const {
    const int side = 1 << grid.log2[a];
    const int origin = grid.origin(a, at[a]);
    const int start = maximum((int)(margins[a] & 0xffff), at[a] << grid.log2[a]) - origin;
    const int end = grid.count[a] - (int)(margins[a] >> 16) - origin;
    return {minimum(start, side), clamp(end, 0, side)};
  }
};

// Starting scores for the (M * 16, KEYS) products of a warp. M 2: lane l has the columns of row l; M 1: of row `row(l)`.
template <int M, int KEYS, bool SPREAD>
struct Start {
  // When a C fragment is loaded, a lane gives the address of a row, of 16, and has in mind columns of one parity. Byte 0:
  // the row; byte 1: 16 times the number of its copy; byte 2: the parity; byte 3: 0.
  unsigned part;

  NATTEN_DEVICE int row(unsigned lane) { return lane / 16 * 8 + lane % 8; }

  __device__ __forceinline__ void set(unsigned lane) {
    part = row(lane) | (SPREAD ? lane % 8 << 12 : 0) | lane / 8 % 2 << 16;
  }

  // `table`: shared address of Starts<SPREAD>.
  __device__ __forceinline__ void load(float (&score)[M][KEYS / 8][4], const Columns& columns, unsigned table) const {
    const bool odd = part & 1 << 16;
#pragma unroll
    for (int m = 0; m < M; ++m) {
      unsigned word = odd ? columns.word[1] : columns.word[0];
      if (M > 1) {
        const unsigned even_word = arch::shuffle_from(columns.word[0], part + m * 16);
        const unsigned odd_word = arch::shuffle_from(columns.word[1], part + m * 16);
        word = odd ? odd_word : even_word;
      }
      word = Starts<SPREAD>::numbers(word);
      // Numbers of patterns, one a byte, as a multiple of 16 or of 256.
      const unsigned patterns[2] = {SPREAD ? word & 0x0f0f0f0fu : word << 4 & 0xf0f0f0f0u,
                                    SPREAD ? word >> 4 & 0x0f0f0f0fu : word & 0xf0f0f0f0u};
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n) {
        const unsigned at = __byte_perm(patterns[n % 2], part, SPREAD ? 0x7705 | n / 2 << 4 : 0x7770 | n / 2);
        arch::load_matrices(score[m][n], table + at);
      }
    }
  }
};

}  // namespace sm80
}  // namespace natten
