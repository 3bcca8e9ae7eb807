// SPDX-License-Identifier: MIT OR Apache-2.0
// What the Ampere forward kernel fixes at compile time, and its map of shared memory.
#pragma once
#include "../arch/mma.cuh"
#include "../element.cuh"
#include "../fragment.cuh"
#include "mask.cuh"
#include "tile.cuh"

namespace natten {
namespace sm80 {

// The keys at hand, those of the windows or the additional ones: what the loops need of them and ptxas cannot keep in
// registers.
struct Segment {
  long long row_step[2][2];    // bytes of K, V from a thread's row to its row STRIDE and 2 STRIDE further
  long long near_step[2];      // bytes of K, V to the next tile along axis 2
  long long line_step[2];      // bytes of K, V from the last full tile of a line to the first of the next line
  long long token_step[3][2];  // bytes of K, V to the next key along each axis
  KeyGrid grid;
  QueryTile tile;
  int first[3];                // position of the first key; -1: the keys at hand are the additional ones
  short is_last;               // no other keys follow those at hand
  short far;                   // references are far from 0: 0 no, 1 from the start, 2 since they were lost

  __device__ __forceinline__ bool is_additional() const { return first[2] < 0; }
};

// Where the first key is, in bytes of K, V: what each axis adds, and in [3] batch item, head and the tensor's address.
typedef long long Origins[4][2];

// Element type, bucket of head_dim, queries of a cta, keys of a tile.
template <class T, int D_, int ROWS_, int KEYS_>
struct Config {
  typedef T Type;
  enum {
    D = D_,
    ROWS = ROWS_,
    KEYS = KEYS_,
    WARPS = 4,
    THREADS = 32 * WARPS,
    WARP_ROWS = ROWS / WARPS,
    M = WARP_ROWS / 16,  // row blocks of one mma
    N = KEYS / 8,        // column blocks of S
    HOLDS_QUERY = M * D <= 256 && M * D != 256 || M == 1
  };
  typedef Copier<KEYS, D, THREADS> KeyCopier;
  typedef Panels<ROWS, D> QueryLayout;
  typedef typename KeyCopier::Layout KeyLayout;
  typedef Thresholds<KEYS> Table;
  // Memory for copies of the starting scores is there, but for the two sizes that just fit twice into a multiprocessor.
  enum { TIGHT = D == 128 && ROWS == 128, SPREAD = D < 256 && !TIGHT };
  typedef sm80::Starts<SPREAD> Starts;

  // Shared memory in bytes: Q first, then the slots that K and V take in turns.
  enum {
    SLOTS_AT = QueryLayout::BYTES,
    SEGMENT_AT = SLOTS_AT + 3 * KeyLayout::BYTES,
    TABLE_AT = SEGMENT_AT + sizeof(Segment),
    STARTS_AT = TABLE_AT + Table::BYTES,
    SHARED_BYTES = STARTS_AT + Starts::BYTES
  };
  static_assert(SEGMENT_AT % 16 == 0 && STARTS_AT % 16 == 0, "ldmatrix reads whole rows");
};

// The cta's shared memory, part by part.
template <class C>
struct Shared {
  char* base;

  __device__ __forceinline__ unsigned address() const { return arch::shared_address(base); }
  __device__ __forceinline__ unsigned slot(int i) const { return address() + C::SLOTS_AT + i * C::KeyLayout::BYTES; }
  __device__ __forceinline__ unsigned starts() const { return address() + C::STARTS_AT; }
  __device__ __forceinline__ Segment& segment() const { return *(Segment*)(base + C::SEGMENT_AT); }
  __device__ __forceinline__ unsigned* table() const { return (unsigned*)(base + C::TABLE_AT); }
  // In the slot that is not copied to before the loops.
  __device__ __forceinline__ Origins& origins() const {
    return *(Origins*)(base + C::SLOTS_AT + 2 * C::KeyLayout::BYTES);
  }
};

// Only what the loops use in every tile lives in registers; the rest starts from the thread's number, read anew.
NATTEN_DEVICE unsigned thread_index() { return arch::thread_index(); }
NATTEN_DEVICE unsigned lane_index() { return arch::thread_index() % 32; }
NATTEN_DEVICE int warp_index() { return arch::thread_index() / 32; }

// The first row of Q and O that this thread's warp owns.
template <class C>
NATTEN_DEVICE int warp_row() {
  return warp_index() * C::WARP_ROWS;
}

}  // namespace sm80
}  // namespace natten
