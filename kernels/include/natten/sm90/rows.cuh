// SPDX-License-Identifier: MIT OR Apache-2.0
// What a consumer warpgroup of a Hopper kernel does with its 64 rows beside products: where each lies and what it meets,
// and its result's way out.
#pragma once
#include "../arch/memory.cuh"
#include "../params.h"
#include "bits.cuh"
#include "item.cuh"

namespace natten {
namespace sm90 {

template <bool OF_KEYS>
NATTEN_DEVICE int row_count(const Axis& axis, int residue) {
  return OF_KEYS ? key_count(axis, residue) : query_count(axis, residue);
}

// What the row at a position meets along an axis: the keys that a query sees, or the queries that see a key, which may be
// none.
template <bool OF_KEYS>
NATTEN_DEVICE Range meets(const Axis& axis, int residue, int position) {
  const int queries = query_count(axis, residue), keys = key_count(axis, residue);
  return OF_KEYS ? inverse_window(axis, queries, keys, position) : window(axis, queries, keys, position);
}

// A row of a warpgroup's box.
struct Row {
  int group;  // the warpgroup
  int index;  // in its box
};

// Notes down what a row meets, and where it lies in tensors of so many strides; false if it does not exist. `offsets` are
// those of the item's head before, and the row's afterwards. One row a lane; others read the note behind the next wait for
// the warp or warpgroup.
template <bool OF_KEYS, int TENSORS>
NATTEN_DEVICE bool describe_row(const Axis (&axes)[3], const int (&box_log2)[3], const int& side, const WorkItem& item, Row row,
                                const RowNote& note, const Strides* (&strides)[TENSORS],
                                long long (&offsets)[TENSORS]) {
  bool exists = true;
#pragma unroll
  for (int a = 2; a >= 0; --a) {
    const Axis& axis = axes[a];
    const int log2 = box_log2[a];
    const WorkItem::Along along = item.along(a);
    const int box = a == side ? row.group << log2 : 0;
    int position = along.base + box + low_bits(row.index, log2);
    row.index >>= log2;
    const int count = row_count<OF_KEYS>(axis, along.residue);
    exists &= position < count;
    position = minimum(position, count - 1);
    const Range met = meets<OF_KEYS>(axis, along.residue, position);
    note.set_window(a, {met.start * BITS_ENTRY_BYTES, met.end * BITS_ENTRY_BYTES});
    const long long token = token_at(axis, along.residue, position);
#pragma unroll
    for (int i = 0; i < TENSORS; ++i) offsets[i] += token * strides[i]->axis[a];
  }
  return exists;
}

// The first offset of a head's rows. In 64 bits: a batch item of a large tensor is far away.
NATTEN_DEVICE long long head_offset(const Strides& strides, const WorkItem::Head& head) {
  return head.batch * strides.batch + head.head * strides.head;
}

// A warp's ROWS rows of a result, LENGTH elements each, lie in shared memory in chunks of 16 bytes. The exclusive or spreads the eight rows that are
// written together over all banks.
template <int LENGTH, int ROWS = 16>
struct RowChunks {
  enum { CHUNKS = LENGTH / 8, CHUNK_XOR = CHUNKS < 8 ? CHUNKS - 1 : 7 };

  static __device__ __forceinline__ int at(int row, int chunk) { return (row * CHUNKS + (chunk ^ (row & CHUNK_XOR))) * 16; }

  // From shared memory to result `which` of rows with the first of these notes, so many elements a row.
  static __device__ __forceinline__ void copy_out(unsigned from, const RowNote& first, int which, void* out, const int& length,
                                                  int lane) {
    for (int index = lane; index < ROWS * CHUNKS; index += 32) {
      const int row = index / CHUNKS;
      const int chunk = index % CHUNKS;
      const long long at = RowNote{first.address + row * RowNote::BYTES}.result(which);
      int words[4];
      arch::load_shared(words, from + RowChunks::at(row, chunk));
      if (at != RowNote::ABSENT && chunk * 8 < length) {
        const unsigned bits[4] = {(unsigned)words[0], (unsigned)words[1], (unsigned)words[2], (unsigned)words[3]};
        arch::store_16_bytes((char*)out + (at + chunk * 8) * 2, bits);
      }
    }
  }
};

}  // namespace sm90
}  // namespace natten
