// SPDX-License-Identifier: MIT OR Apache-2.0
// Where on the axes a piece of work lies: its place in a grid of tiles, rows of a box, tokens of a residue.
//
// A box of tokens has sides that are given at run time, and its rows are counted along axis 2 first. Where all sides are
// powers of two, row r of it has its coordinates in bit fields of r.
#pragma once
#include "window.cuh"

namespace natten {

// x[a] of an array in registers.
NATTEN_DEVICE int pick(const int (&x)[3], int a) { return a == 0 ? x[0] : a == 1 ? x[1] : x[2]; }

// Takes the fastest of several indices off a number that holds them all.
NATTEN_DEVICE int take_index(int& number, const Divisor& extent) {
  const int rest = divide(number, extent);
  const int index = number - rest * (int)extent.value;
  number = rest;
  return index;
}

// A tile along an axis: its number holds the residue, which varies fastest, and the box of that residue.
struct Place {
  int box;
  int residue;
};

NATTEN_DEVICE Place find_place(int along, const Divisor& residues) {
  const int box = divide(along, residues);
  return {box, along - box * (int)residues.value};
}

// Along a causal axis the last boxes, which see most keys, come first.
NATTEN_DEVICE int longest_first(const Axis& axis, int along, const Divisor& tiles) {
  return axis.is_causal ? (int)tiles.value - 1 - along : along;
}

NATTEN_DEVICE int low_bits(int n, int bits) { return n & ((1 << bits) - 1); }

// Coordinate along axis a of row r of a box.
NATTEN_DEVICE int coordinate(const int (&log2)[3], int row, int a) {
  if (a < 2) row >>= log2[2];
  if (a < 1) row >>= log2[1];
  return low_bits(row, log2[a]);
}

// The bits of a row number below those of axis a.
NATTEN_DEVICE int bits_below(const int (&log2)[3], int a) { return a == 2 ? 0 : log2[2] + (a == 0 ? log2[1] : 0); }

// The side of a box along an axis: a power of two, or any number.
struct Log2Side {
  int log2;

  __device__ __forceinline__ int length() const { return 1 << log2; }
  // So many whole sides have room in n.
  __device__ __forceinline__ int whole(int n) const { return n >> log2; }
};

struct AnySide {
  const Divisor& side;

  __device__ __forceinline__ int length() const { return (int)side.value; }
  __device__ __forceinline__ int whole(int n) const { return divide(n, side); }
};

// A box whose sides are all of one of these kinds.
struct Log2Box {
  const int (&log2)[3];

  __device__ __forceinline__ Log2Side along(int a) const { return {log2[a]}; }
  __device__ __forceinline__ int coordinate(int row, int a) const { return natten::coordinate(log2, row, a); }
};

struct AnyBox {
  const Divisor (&sides)[3];

  __device__ __forceinline__ AnySide along(int a) const { return {sides[a]}; }
  __device__ __forceinline__ int rows() const { return (int)(sides[0].value * sides[1].value * sides[2].value); }
  // A row behind the last has a coordinate along axis 0 that is none of the box's.
  __device__ __forceinline__ int coordinate(int row, int a) const {
    if (a < 2) row = divide(row, sides[2]);
    if (a < 1) return divide(row, sides[1]);
    return take_index(row, sides[a]);
  }
};

// The token at a position of a residue that begins at `first`.
NATTEN_DEVICE long long token_at(const Axis& axis, int first, long long position) {
  return first + position * (int)axis.dilation.value;
}

}  // namespace natten
