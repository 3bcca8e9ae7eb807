// SPDX-License-Identifier: MIT OR Apache-2.0
// The table that masks are made of: for each axis and bound which columns of a tile have a coordinate of at least that.
//
// An entry has four words. Which columns their bits stand for is the kernel's, as its scores lie in registers.
#pragma once
#include "../arch/shared.cuh"
#include "../arch/warp.cuh"
#include "../place.cuh"

namespace natten {
namespace sm90 {

// First entry of an axis in the table.
template <class Box>
NATTEN_DEVICE int axis_entry(const Box& box, int axis) {
  return (axis > 0 ? box.along(0).length() + 1 : 0) + (axis > 1 ? box.along(1).length() + 1 : 0);
}

// Rows note their windows in table entries, ready to be addresses.
enum { BITS_ENTRY_BYTES = 16 };

// Warps that share a piece of work, and which of them this one is.
struct Team {
  int warp;
  int warps;
};

// The warps fill the table, a word of every bound along an axis at a time. Columns::of says which column a bit of a word
// stands for. Columns behind the box's last lie beyond its side along axis 0, the last bound there, so no window has them.
template <class Columns, class Box>
NATTEN_DEVICE void fill_bits(const Box& box, unsigned bits, const Team& team) {
  const int lane = (int)threadIdx.x % 32;
#pragma unroll 1
  for (int number = team.warp; number < 12; number += team.warps) {
    const int a = number / 4, word = number % 4;
    const int at = lane < Columns::BITS ? box.coordinate(Columns::of(word, lane), a) : -1;
    const unsigned words = bits + axis_entry(box, a) * BITS_ENTRY_BYTES + word * 4;
    const int bounds = box.along(a).length() + 1;
#pragma unroll 1
    for (int first = 0; first < bounds; first += 32) {
      unsigned mine = 0;  // of bound first + lane
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const unsigned mask = arch::ballot(at >= first + i);
        mine = lane == i ? mask : mine;
      }
      if (first + lane < bounds) arch::store_shared(words + (first + lane) * BITS_ENTRY_BYTES, mine);
    }
  }
}

}  // namespace sm90
}  // namespace natten
