// SPDX-License-Identifier: MIT OR Apache-2.0
// Masks of the Hopper kernel: one bit for each score that a thread holds of a row.
//
// Score d[4 n + 2 half + e] of a thread is column 8 n + 2 (lane % 4) + e of the key tile; its bit is 2 n + e. A column's
// place in the tile's box is cut from its bits, axis 2 lowest. "Coordinate along an axis >= bound" is a word that
// depends on the axis, the bound and lane % 4 only. All these words stand in shared memory, made once per thread block;
// a row's mask is the conjunction of two of them per axis, whatever the box.
#pragma once
#include "work.cuh"

namespace natten {
namespace sm90 {

// Lowest bit of a column that belongs to an axis.
NATTEN_DEVICE int axis_shift(const ForwardParamsSm90& p, int axis) {
  return (axis < 2 ? p.key_box_log2[2] : 0) + (axis < 1 ? p.key_box_log2[1] : 0);
}

// First entry of an axis in the table of words.
NATTEN_DEVICE int axis_entry(const ForwardParamsSm90& p, int axis) {
  return (axis > 0 ? (1 << p.key_box_log2[0]) + 1 : 0) + (axis > 1 ? (1 << p.key_box_log2[1]) + 1 : 0);
}

// All threads of the block fill the table.
template <class C>
NATTEN_DEVICE void fill_bits(const ForwardParamsSm90& p, unsigned bits) {
  for (int a = 0; a < 3; ++a) {
    const int side = 1 << p.key_box_log2[a];
    const int shift = axis_shift(p, a);
    for (int entry = (int)threadIdx.x; entry < (side + 1) * 4; entry += C::THREADS) {
      unsigned word = 0;
      for (int bit = 0; bit < C::KEYS / 4; ++bit) {
        const int column = bit / 2 * 8 + entry % 4 * 2 + bit % 2;
        const int coordinate = (column >> shift) & (side - 1);
        word |= (coordinate >= entry / 4 ? 1u : 0u) << bit;
      }
      arch::store_shared(bits + axis_entry(p, a) * 16 + entry * 4, word);
    }
  }
}

// Which of a thread's columns the row described at `row` sees, in the key tile at `position`.
NATTEN_DEVICE unsigned row_mask(const ForwardParamsSm90& p, unsigned bits, unsigned row, const int (&position)[4]) {
  unsigned mask = 0xffffffffu;
  const unsigned lane_bits = bits + threadIdx.x % 4 * 4;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    int window[2];
    arch::load_shared(window, row + ROW_WINDOWS + 8 * a);
    const int side = 1 << p.key_box_log2[a];
    const unsigned words = lane_bits + axis_entry(p, a) * 16;
    const int from = clamp(window[0] - position[a], 0, side);
    const int to = clamp(window[1] - position[a], 0, side);
    mask &= arch::load_shared(words + from * 16) & ~arch::load_shared(words + to * 16);
  }
  return mask;
}

// The first `count` columns.
template <class C>
NATTEN_DEVICE unsigned column_mask(int count) {
  unsigned mask = 0;
#pragma unroll
  for (int bit = 0; bit < C::KEYS / 4; ++bit) {
    const int column = bit / 2 * 8 + (int)threadIdx.x % 4 * 2 + bit % 2;
    mask |= (column < count ? 1u : 0u) << bit;
  }
  return mask;
}

// Scores that are not seen become -inf, whose weight is zero.
template <int COUNT>
NATTEN_DEVICE void hide(float (&scores)[COUNT], const unsigned (&mask)[2]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const int bit = i / 4 * 2 + i % 2;
    if (!(mask[i / 2 % 2] & 1u << bit)) scores[i] = -__int_as_float(0x7f800000);
  }
}

}  // namespace sm90
}  // namespace natten
