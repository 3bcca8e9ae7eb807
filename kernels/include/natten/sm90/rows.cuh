// SPDX-License-Identifier: MIT OR Apache-2.0
// What the Hopper kernels do with rows beside products: where each lies and what it meets, and in the backward its results' way out.
#pragma once
#include "../arch/memory.cuh"
#include "../params.h"
#include "bits.cuh"
#include "item.cuh"

namespace natten {
namespace sm90 {

// All residues of a launch are alike.
template <bool OF_KEYS>
NATTEN_DEVICE int row_count(const Axis& axis) {
  return OF_KEYS ? any_residue(axis).keys : any_residue(axis).queries;
}

// What the row at a position meets along an axis: the keys that a query sees, or the queries that see a key, which may be
// none.
template <bool OF_KEYS>
NATTEN_DEVICE Range meets(const Axis& axis, int position) {
  const Residue of = any_residue(axis);
  return OF_KEYS ? inverse_window(axis, of, position) : window(axis, of, position);
}

// A row of a warpgroup's box.
struct Row {
  int group;  // the warpgroup
  int index;  // in its box
};

// Where a row lies: its token along each axis. One that does not exist lies where the residue's last one does.
struct RowPlace {
  int token[3];
  bool exists;
};

// Notes down what a row meets, and tells where it lies. Other lanes read the note behind a wait for this one.
template <bool OF_KEYS>
NATTEN_DEVICE RowPlace describe_row(const Axis (&axes)[3], const int (&box_log2)[3], const int& side, const WorkItem& item,
                                    Row row, const RowNote& note) {
  RowPlace place;
  place.exists = true;
#pragma unroll
  for (int a = 2; a >= 0; --a) {
    const Axis& axis = axes[a];
    const int log2 = box_log2[a];
    const WorkItem::Along along = item.along(a);
    const int box = a == side ? row.group << log2 : 0;
    int position = along.base + box + low_bits(row.index, log2);
    row.index >>= log2;
    const int count = row_count<OF_KEYS>(axis);
    place.exists &= position < count;
    position = minimum(position, count - 1);
    const Range met = meets<OF_KEYS>(axis, position);
    note.set_window(a, {met.start * BITS_ENTRY_BYTES, met.end * BITS_ENTRY_BYTES});
    place.token[a] = (int)token_at(axis, along.residue, position);
  }
  return place;
}

// A row's offset in a tensor, in elements. In 64 bits: a batch item of a large tensor is far away.
NATTEN_DEVICE long long row_offset(const Strides& strides, const WorkItem::Head& head, const RowPlace& place) {
  long long offset = head.batch * strides.batch + head.head * strides.head;
#pragma unroll
  for (int a = 2; a >= 0; --a) offset += place.token[a] * strides.axis[a];
  return offset;
}

// A warp's ROWS rows of a result, LENGTH elements each, lie in shared memory in chunks of 16 bytes. The exclusive or spreads the eight rows that are
// written together over all banks.
template <int LENGTH, int ROWS = 16>
struct RowChunks {
  enum {
    CHUNKS = LENGTH / 8,
    CHUNK_XOR = CHUNKS < 8 ? CHUNKS - 1 : 7,
    EACH = ROWS * CHUNKS / 32,       // chunks of a lane,
    AT_ONCE = EACH < 8 ? EACH : 8    // so many of them on their way at once
  };

  static __device__ __forceinline__ int at(int row, int chunk) { return (row * CHUNKS + (chunk ^ (row & CHUNK_XOR))) * 16; }

  // Puts an even chunk and the next of 16 rows, from fragments as pairs: of rows 0 .. 7 and of rows 8 .. 15 of the one, then of the other.
  static __device__ __forceinline__ void put(unsigned to, int lane, int chunk, const unsigned (&pairs)[4]) {
    arch::store_matrices((to + at(lane % 16, lane / 16)) ^ chunk * 16, pairs);
  }

  // From shared memory to result `which` of rows with the first of these notes, so many elements a row.
  static __device__ __forceinline__ void copy_out(unsigned from, const RowNote& first, int which, void* out, const int& length,
                                                  int lane) {
    for (int begin = lane; begin < ROWS * CHUNKS; begin += 32 * AT_ONCE) {
      long long at[AT_ONCE];
      int words[AT_ONCE][4];
#pragma unroll
      for (int i = 0; i < AT_ONCE; ++i) {
        const int index = begin + 32 * i;
        at[i] = RowNote{first.address + index / CHUNKS * RowNote::BYTES}.result(which);
        arch::load_shared(words[i], from + RowChunks::at(index / CHUNKS, index % CHUNKS));
      }
#pragma unroll
      for (int i = 0; i < AT_ONCE; ++i) {
        const int chunk = (begin + 32 * i) % CHUNKS;
        if (at[i] == RowNote::ABSENT || chunk * 8 >= length) continue;
        const unsigned bits[4] = {(unsigned)words[i][0], (unsigned)words[i][1], (unsigned)words[i][2], (unsigned)words[i][3]};
        arch::store_16_bytes((char*)out + (at[i] + chunk * 8) * 2, bits);
      }
    }
  }
};

}  // namespace sm90
}  // namespace natten
