// SPDX-License-Identifier: MIT OR Apache-2.0
// Masks of the Blackwell kernels: a thread holds scores of a single row, of all columns of the tile or of neighbouring ones, so
// that a row's mask is one bit for each of these.
//
// Column 32 w + b of the tile is bit b of word w of four. Which columns lie at least so far along an axis stands in a table
// (sm90/bits.cuh); a row's mask is the conjunction of two entries per axis, whatever the box.
#pragma once
#include "../sm90/bits.cuh"
#include "../sm90/item.cuh"
#include "../softmax.cuh"

namespace natten {
namespace sm100 {

struct RunColumns {
  enum { BITS = 32 };
  NATTEN_DEVICE int of(int word, int bit) { return word * 32 + bit; }
};

// Which columns of the tile whose first column is `first` a row meets. `bits`: the table, from the first word that is wanted of
// its entries on.
template <class Box, int WORDS>
NATTEN_DEVICE void row_mask(const Box& box, unsigned bits, const sm90::RowNote& row, const int (&first)[3],
                            unsigned (&mask)[WORDS]) {
#pragma unroll
  for (int w = 0; w < WORDS; ++w) mask[w] = 0xffffffffu;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const unsigned words = bits + sm90::axis_entry(box, a) * sm90::BITS_ENTRY_BYTES;
    const int before = first[a] * sm90::BITS_ENTRY_BYTES;
    const int last = box.along(a).length() * sm90::BITS_ENTRY_BYTES;
    const Range window = row.window(a);
    int from[WORDS], to[WORDS];
    arch::load_shared(from, words + clamp(window.start - before, 0, last));
    arch::load_shared(to, words + clamp(window.end - before, 0, last));
#pragma unroll
    for (int w = 0; w < WORDS; ++w) mask[w] &= (unsigned)(from[w] & ~to[w]);
  }
}

// The first `count` columns.
template <int WORDS>
NATTEN_DEVICE void column_mask(int count, unsigned (&mask)[WORDS]) {
#pragma unroll
  for (int w = 0; w < WORDS; ++w) {
    const int bits = clamp(count - 32 * w, 0, 32);
    mask[w] = bits == 32 ? 0xffffffffu : (1u << bits) - 1;
  }
}

// What is not seen becomes something else: a score or an exponent -inf, whose weight is zero.
template <int COUNT, int WORDS>
NATTEN_DEVICE void hide(float (&values)[COUNT], const unsigned (&mask)[WORDS], float instead) {
  static_assert(COUNT == 32 * WORDS, "a bit for each of them");
#pragma unroll
  for (int w = 0; w < WORDS; ++w) {
#pragma unroll
    for (int bit = 0; bit < 32; ++bit) {
      if (!(mask[w] & 1u << bit)) values[32 * w + bit] = instead;
    }
  }
}

}  // namespace sm100
}  // namespace natten
