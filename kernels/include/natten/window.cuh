// SPDX-License-Identifier: MIT OR Apache-2.0
// The mask of one axis, once for every kernel: which keys a query sees, and which queries see a key.
//
// Positions count tokens of one residue class: token = residue + position * dilation. All kernels work in
// positions, so dilation shows up in addresses only.
#pragma once
#include "device.cuh"
#include "params.h"

namespace natten {

// Half-open interval of positions.
struct Range {
  int start;
  int end;
};

NATTEN_DEVICE int minimum(int a, int b) { return a < b ? a : b; }
NATTEN_DEVICE int maximum(int a, int b) { return a > b ? a : b; }
NATTEN_DEVICE int clamp(int x, int low, int high) { return minimum(maximum(x, low), high); }

NATTEN_DEVICE int divide(int n, const Divisor& by) {
  return by.value == 1 ? n : (int)(__umulhi((unsigned)n, by.magic) >> by.shift);
}
NATTEN_DEVICE int round_down(int n, const Divisor& to) { return divide(n, to) * (int)to.value; }

// Tokens of one residue class.
NATTEN_DEVICE int query_count(const Axis& axis, int residue) { return axis.query_quotient + (residue < axis.query_remainder); }
NATTEN_DEVICE int key_count(const Axis& axis, int residue) { return axis.key_quotient + (residue < axis.key_remainder); }

// Halves are shifts, which ptxas recomputes where it would keep a division in a register. No number is
// negative but a query offset and what it is added to.

// The keys, among `keys` of its residue, that the query at `position` of `queries` sees.
NATTEN_DEVICE Range window(const Axis& axis, int queries, int keys, int position) {
  const int stride = (int)axis.stride.value;
  const int block = round_down(position, axis.stride);
  if (axis.is_causal) {
    const int leader = minimum(block + stride - 1, queries - 1);
    const int offset = axis.query_offset;
    return {maximum(leader + offset - axis.window + 1, 0), clamp(position + offset + 1, 0, keys)};
  }
  const int leader = minimum(block + (stride >> 1), queries - 1);
  const int start = minimum(maximum(leader - (axis.window >> 1), 0), keys - axis.window);
  return {start, start + axis.window};
}

// The queries that see the key at `position`; there may be none.
NATTEN_DEVICE Range inverse_window(const Axis& axis, int queries, int keys, int position) {
  const int stride = (int)axis.stride.value;
  const int size = axis.window;
  if (axis.is_causal) {
    // The query that stands at the key. Windows reach the first key from wherever an offset puts queries, so that at + size is
    // not negative.
    const int at = position - axis.query_offset;
    const int end = at + size >= queries ? queries : round_down(at + size, axis.stride);
    return {clamp(at, 0, queries), end};
  }
  // A stride block starting at b has its leader at b + stride / 2, its window from leader - left to leader + right.
  const int left = size / 2;
  const int right = size - left - 1;
  const int ahead = stride - stride / 2 - 1;
  const int start = position >= size ? round_down(position - right + ahead, axis.stride) : 0;
  const int end = position + size >= keys ? queries : round_down(position + left + ahead + 1, axis.stride);
  return {start, minimum(end, queries)};
}

}  // namespace natten
