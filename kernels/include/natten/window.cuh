// SPDX-License-Identifier: MIT OR Apache-2.0
// The mask of one axis, once for every kernel: which keys a query sees, and which queries see a key.
//
// Positions count tokens of one residue class: token = residue + position * dilation. All kernels work in
// positions, so dilation shows up in addresses only. A call may hold a part of an axis: positions are then counted from the
// first query or key that it holds, and what windows do is said of the whole.
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

// One residue of an axis: the whole, in positions, and what of it the call holds.
struct Residue {
  int length;       // positions of the whole, at whose ends windows stop
  int query_start;  // position of the first query that the call holds
  int queries;      // so many
  int key_start;    // likewise
  int keys;
};

// Tokens of a residue before the one that so many positions, and residues beside them, lead to.
NATTEN_DEVICE int tokens_before(const Tokens& end, int residue) { return end.quotient + (residue < end.remainder); }

NATTEN_DEVICE int query_count(const Axis& axis, int residue) {
  return tokens_before(axis.query_end, residue) - tokens_before(axis.query_begin, residue);
}
NATTEN_DEVICE int key_count(const Axis& axis, int residue) {
  return tokens_before(axis.key_end, residue) - tokens_before(axis.key_begin, residue);
}

NATTEN_DEVICE Residue residue_of(const Axis& axis, int residue) {
  return {tokens_before(axis.whole, residue), tokens_before(axis.query_begin, residue), query_count(axis, residue),
          tokens_before(axis.key_begin, residue), key_count(axis, residue)};
}

// Any residue of an axis of which all are alike: no remainders.
NATTEN_DEVICE Residue any_residue(const Axis& axis) {
  const int query_start = axis.query_begin.quotient, key_start = axis.key_begin.quotient;
  return {axis.whole.quotient, query_start, axis.query_end.quotient - query_start, key_start,
          axis.key_end.quotient - key_start};
}

// The token of the call at which a residue begins, where the tokens that the call holds begin at `begin` of the whole.
NATTEN_DEVICE int first_token(const Axis& axis, const Tokens& begin, int residue) {
  return residue - begin.remainder + (residue < begin.remainder ? (int)axis.dilation.value : 0);
}
NATTEN_DEVICE int first_query(const Axis& axis, int residue) { return first_token(axis, axis.query_begin, residue); }
NATTEN_DEVICE int first_key(const Axis& axis, int residue) { return first_token(axis, axis.key_begin, residue); }

// Halves are shifts, which ptxas recomputes where it would keep a division in a register. What is divided is never negative.

// The keys of a residue that its query at `position` sees, of those that the call holds. Both are counted from the first held.
NATTEN_DEVICE Range window(const Axis& axis, const Residue& of, int position) {
  // Windows begin where their block says, but for the first ones, and for the last ones, which end with the whole.
  const int last = of.length - axis.window - of.key_start;
  const int free = minimum(round_down(of.query_start + position, axis.stride) + axis.reach - of.key_start, last);
  const int start = clamp(free, 0, of.keys);
  if (axis.is_causal) return {start, clamp(position + (of.query_start + 1 - of.key_start), 0, of.keys)};
  // The first ones end with the first `window` tokens of the whole.
  return {start, clamp(free + axis.window, maximum(axis.window - of.key_start, 0), of.keys)};
}

// The queries of a residue that see its key at `position`, of those that the call holds; there may be none.
NATTEN_DEVICE Range inverse_window(const Axis& axis, const Residue& of, int position) {
  const int stride = (int)axis.stride.value;
  const int size = axis.window;
  const int at = of.key_start + position;
  int start = at, beyond = size;
  if (!axis.is_causal) {
    // A stride block starting at b has its leader at b + stride / 2, its window from leader - left to leader + right.
    const int left = size / 2;
    const int right = size - left - 1;
    const int ahead = stride - stride / 2 - 1;
    start = at >= size ? round_down(at - right + ahead, axis.stride) : 0;
    beyond = left + ahead + 1;
  }
  // The last windows end with the whole. Of any other key, at + beyond is one of its tokens, or its end.
  const int end = at >= of.length - size ? of.queries : round_down(at + beyond, axis.stride) - of.query_start;
  return {clamp(start - of.query_start, 0, of.queries), clamp(end, 0, of.queries)};
}

}  // namespace natten
