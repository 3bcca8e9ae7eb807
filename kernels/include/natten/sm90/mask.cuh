// SPDX-License-Identifier: MIT OR Apache-2.0
// Masks of the Hopper kernels: one bit for each score that a thread holds of a row.
//
// Score d[4 n + 2 half + e] of a thread is column 8 n + 2 (lane % 4) + e of the tile; its bit is 2 n + e. A column's
// place in the tile's box is cut from its bits, axis 2 lowest. "Coordinate along an axis >= bound" is a word that
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

// Which of a thread's columns of the tile whose first column is `first` are met by two rows.
NATTEN_DEVICE void row_masks(const int (&box_log2)[3], unsigned bits, const RowNote (&rows)[2], const int (&first)[3],
                             unsigned (&mask)[2]) {
  mask[0] = mask[1] = 0xffffffffu;
  // Each lane reads its own word of an entry: it shifts by that much what it clamps, and what it clamps to.
  const int word = (int)threadIdx.x % 4 * 4;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const unsigned words = bits + axis_entry(box_log2, a) * BITS_ENTRY_BYTES;
    const int shift = word - first[a] * BITS_ENTRY_BYTES;
    const int last = word + (BITS_ENTRY_BYTES << box_log2[a]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Range window = rows[half].window(a);
      const unsigned from = arch::load_shared(words + clamp(window.start + shift, word, last));
      const unsigned to = arch::load_shared(words + clamp(window.end + shift, word, last));
      mask[half] &= from & ~to;
    }
  }
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
