// SPDX-License-Identifier: MIT OR Apache-2.0
// What the producer of a backward pass tells beside the item (../item.cuh): which part of its work it is, and each tile of columns.
#pragma once
#include "../../arch/shared.cuh"
#include "../../device.cuh"

namespace natten {
namespace sm90 {

// The column tile of a stage, and where its queries' statistics are, in the pass over keys.
struct ColumnTile {
  enum { STATISTICS_AT = 16, BYTES = 32 };

  int first[3];    // coordinates of its first column
  int additional;  // additional keys from this tile on; 0: a tile of the window; -1: there is no further tile

  NATTEN_DEVICE ColumnTile load(unsigned address) {
    int words[4];
    arch::load_shared(words, address);
    return {{words[0], words[1], words[2]}, words[3]};
  }
  __device__ __forceinline__ void store(unsigned address) const {
    arch::store_shared(address, first[0], first[1], first[2], additional);
  }

  // Offset in pairs of those of the residue's first query.
  NATTEN_DEVICE long long statistics(unsigned address) { return arch::load_shared_long(address + STATISTICS_AT); }
  NATTEN_DEVICE void set_statistics(unsigned address, long long at) {
    arch::store_shared_long(address + STATISTICS_AT, at);
  }
};

// Which part of the work on its rows an item is: a call of few row tiles is split, along an axis of columns or by the heads that
// share keys; and where registers hold one gradient of 64 rows alone, an item of keys works out that of keys or of values.
struct ItemPart {
  enum { BYTES = 16 };
  enum { KEYS = 0, VALUES = 1 };

  int split;
  int gradient;
  int first_head;  // of those that share the item's keys, in the pass over keys
  int heads;

  NATTEN_DEVICE ItemPart load(unsigned address) {
    int words[4];
    arch::load_shared(words, address);
    return {words[0], words[1], words[2], words[3]};
  }
  __device__ __forceinline__ void store(unsigned address) const {
    arch::store_shared(address, split, gradient, first_head, heads);
  }
};

}  // namespace sm90
}  // namespace natten
