// SPDX-License-Identifier: MIT OR Apache-2.0
// The table that masks are made of: for each axis and bound which columns of a tile have a coordinate of at least that.
//
// An entry has four words. Which columns their bits stand for is the kernel's, as its scores lie in registers.
#pragma once
#include "../arch/shared.cuh"
#include "../place.cuh"

namespace natten {
namespace sm90 {

// First entry of an axis in the table.
NATTEN_DEVICE int axis_entry(const int (&box_log2)[3], int axis) {
  return (axis > 0 ? (1 << box_log2[0]) + 1 : 0) + (axis > 1 ? (1 << box_log2[1]) + 1 : 0);
}

// Rows note their windows in table entries, ready to be addresses.
enum { BITS_ENTRY_BYTES = 16 };

// All threads of the cta fill the table. Columns::of says which column a bit of a word stands for.
template <class Columns, int THREADS>
NATTEN_DEVICE void fill_bits(const int (&box_log2)[3], unsigned bits) {
  for (int a = 0; a < 3; ++a) {
    const int side = 1 << box_log2[a];
    const int below = bits_below(box_log2, a);
    for (int entry = (int)threadIdx.x; entry < (side + 1) * 4; entry += THREADS) {
      unsigned word = 0;
      for (int bit = 0; bit < Columns::BITS; ++bit) {
        const int column = Columns::of(entry % 4, bit);
        word |= (low_bits(column >> below, box_log2[a]) >= entry / 4 ? 1u : 0u) << bit;
      }
      arch::store_shared(bits + axis_entry(box_log2, a) * BITS_ENTRY_BYTES + entry * 4, word);
    }
  }
}

}  // namespace sm90
}  // namespace natten
