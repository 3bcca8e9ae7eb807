// SPDX-License-Identifier: MIT OR Apache-2.0
// Masks of the Blackwell kernels: a thread holds a whole row of scores, so a row's mask is one bit for each key of the tile.
//
// Four words, column 32 w + b being bit b of word w. Which keys lie at least so far along an axis stands in a table
// (sm90/bits.cuh); a row's mask is the conjunction of two entries per axis, whatever the box.
#pragma once
#include "../sm90/bits.cuh"
#include "../softmax.cuh"
#include "config.cuh"

namespace natten {
namespace sm100 {

enum { MASK_WORDS = 4 };

struct RunColumns {
  enum { BITS = 32 };
  NATTEN_DEVICE int of(int word, int bit) { return word * 32 + bit; }
};

// Which columns of the tile whose first column is `first` a row meets.
template <class Box>
NATTEN_DEVICE void row_mask(const Box& box, unsigned bits, const RowNote& row, const int (&first)[3],
                            unsigned (&mask)[MASK_WORDS]) {
#pragma unroll
  for (int w = 0; w < MASK_WORDS; ++w) mask[w] = 0xffffffffu;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const unsigned words = bits + sm90::axis_entry(box, a) * sm90::BITS_ENTRY_BYTES;
    const int before = first[a] * sm90::BITS_ENTRY_BYTES;
    const int last = box.along(a).length() * sm90::BITS_ENTRY_BYTES;
    const Range window = row.window(a);
    int from[MASK_WORDS], to[MASK_WORDS];
    arch::load_shared(from, words + clamp(window.start - before, 0, last));
    arch::load_shared(to, words + clamp(window.end - before, 0, last));
#pragma unroll
    for (int w = 0; w < MASK_WORDS; ++w) mask[w] &= (unsigned)(from[w] & ~to[w]);
  }
}

// The first `count` columns.
NATTEN_DEVICE void column_mask(int count, unsigned (&mask)[MASK_WORDS]) {
#pragma unroll
  for (int w = 0; w < MASK_WORDS; ++w) {
    const int bits = clamp(count - 32 * w, 0, 32);
    mask[w] = bits == 32 ? 0xffffffffu : (1u << bits) - 1;
  }
}

// Scores that are not seen become -inf, whose weight is zero.
NATTEN_DEVICE void hide(float (&scores)[32 * MASK_WORDS], const unsigned (&mask)[MASK_WORDS]) {
#pragma unroll
  for (int w = 0; w < MASK_WORDS; ++w) {
#pragma unroll
    for (int bit = 0; bit < 32; ++bit) {
      if (!(mask[w] & 1u << bit)) scores[32 * w + bit] = -NATTEN_INFINITY;
    }
  }
}

}  // namespace sm100
}  // namespace natten
