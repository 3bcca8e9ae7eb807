// SPDX-License-Identifier: MIT OR Apache-2.0
// Masks of the Hopper kernels: one bit for each score that a thread holds of a row.
//
// Score d[4 n + 2 half + e] of a thread is column 8 n + 2 (lane % 4) + e of the tile; its bit is 2 n + e. A column's
// place in the tile's box follows from its number, axis 2 fastest. "Coordinate along an axis >= bound" is a word that
// depends on the axis, the bound and lane % 4 only. All these words stand in shared memory, made once per cta;
// a row's mask is the conjunction of two of them per axis, whatever the box.
#pragma once
#include "../softmax.cuh"
#include "bits.cuh"
#include "item.cuh"

namespace natten {
namespace sm90 {

// The columns of a lane's words, for bits.cuh.
template <int COLUMNS>
struct FragmentColumns {
  enum { BITS = COLUMNS / 4 };
  NATTEN_DEVICE int of(int word, int bit) { return bit / 2 * 8 + word * 2 + bit % 2; }
};

// Which of a thread's columns of a tile are met by two rows along one axis, where the tile's first column is at `first`.
template <class Box>
NATTEN_DEVICE void meet_along(int a, const Box& box, unsigned bits, const RowNote (&rows)[2], int first, unsigned (&mask)[2]) {
  // Each lane reads its own word of an entry: it shifts by that much what it clamps, and what it clamps to.
  const int word = (int)threadIdx.x % 4 * 4;
  const unsigned words = bits + axis_entry(box, a) * BITS_ENTRY_BYTES;
  const int shift = word - first * BITS_ENTRY_BYTES;
  const int last = word + box.along(a).length() * BITS_ENTRY_BYTES;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Range window = rows[half].window(a);
    const unsigned from = arch::load_shared(words + clamp(window.start + shift, word, last));
    const unsigned to = arch::load_shared(words + clamp(window.end + shift, word, last));
    mask[half] &= from & ~to;
  }
}

// Along all axes.
template <class Box>
NATTEN_DEVICE void row_masks(const Box& box, unsigned bits, const RowNote (&rows)[2], const int (&first)[3],
                             unsigned (&mask)[2]) {
  mask[0] = mask[1] = 0xffffffffu;
#pragma unroll
  for (int a = 0; a < 3; ++a) meet_along(a, box, bits, rows, first[a], mask);
}

// Which of a thread's columns are among the first `count`: of even columns and of odd ones the lowest, a bit for every
// eight columns of the tile.
NATTEN_DEVICE unsigned column_mask(int count) {
  unsigned mask = 0;
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const int bits = clamp((count - (int)threadIdx.x % 4 * 2 - odd + 7) >> 3, 0, 16);
    const unsigned lowest = bits == 16 ? 0xffffffffu : (1u << 2 * bits) - 1;
    mask |= lowest & 0x55555555u << odd;
  }
  return mask;
}

// Scores that are not seen become -inf, whose weight is zero.
template <int COUNT>
NATTEN_DEVICE void hide(float (&scores)[COUNT], const unsigned (&mask)[2]) {
  // Bit after bit of one word, which the assembler turns into predicates several at a time.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int bit = 0; bit < COUNT / 2; ++bit) {
      const int i = bit / 2 * 4 + half * 2 + bit % 2;
      if (!(mask[half] & 1u << bit)) scores[i] = -NATTEN_INFINITY;
    }
  }
}

}  // namespace sm90
}  // namespace natten
