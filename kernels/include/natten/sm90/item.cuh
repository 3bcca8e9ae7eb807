// SPDX-License-Identifier: MIT OR Apache-2.0
// What the producer of the Hopper kernel tells itself and the consumers in shared memory, typed: work items, the places of
// key tiles, and what a warpgroup notes of its rows. Each is known by its address: registers are few.
#pragma once
#include "../arch/shared.cuh"
#include "../window.cuh"

namespace natten {
namespace sm90 {

// A work item: one tile of queries, of one batch item, one head and one residue per axis, and the grid of key tiles that it
// sees, those of additional keys included.
struct WorkItem {
  struct Head {
    int full;   // key tiles that every query of the item sees whole
    int tiles;  // all key tiles; 0: there is no further item
    int batch;
    int head;
  };
  struct Along {
    int base;       // position of the first query
    int residue;
    int first_key;  // coordinate of the first key seen
    int tiles;      // key tiles
  };
  enum { HEAD_AT = 0, ALONG_AT = 16, FULL_AT = 64, OUTER_AT = 88, BYTES = 96 };

  unsigned address;

  __device__ __forceinline__ Head head() const {
    int words[4];
    arch::load_shared(words, address + HEAD_AT);
    return {words[0], words[1], words[2], words[3]};
  }
  __device__ __forceinline__ void set(const Head& head) const {
    arch::store_shared(address + HEAD_AT, head.full, head.tiles, head.batch, head.head);
  }

  __device__ __forceinline__ Along along(int a) const {
    int words[4];
    arch::load_shared(words, address + ALONG_AT + 16 * a);
    return {words[0], words[1], words[2], words[3]};
  }
  __device__ __forceinline__ void set(int a, const Along& along) const {
    arch::store_shared(address + ALONG_AT + 16 * a, along.base, along.residue, along.first_key, along.tiles);
  }

  // Until an axis is described, the number of the item's tile along it stands there.
  __device__ __forceinline__ int tile(int a) const { return (int)arch::load_shared(address + ALONG_AT + 16 * a); }
  __device__ __forceinline__ void set_tile(int a, unsigned tile) const {
    arch::store_shared(address + ALONG_AT + 16 * a, tile);
  }

  // The box of full tiles in the grid, from .. to along an axis.
  __device__ __forceinline__ Range full(int a) const {
    int words[2];
    arch::load_shared(words, address + FULL_AT + 8 * a);
    return {words[0], words[1]};
  }
  __device__ __forceinline__ void set_full(int a, const Range& full) const {
    arch::store_shared(address + FULL_AT + 8 * a, full.start, full.end);
  }

  // Outermost coordinate of the keys (side 0) or values (side 1) in their tensor maps.
  __device__ __forceinline__ int outer(int side) const { return (int)arch::load_shared(address + OUTER_AT + 4 * side); }
  __device__ __forceinline__ void set_outer(int keys, int values) const {
    arch::store_shared(address + OUTER_AT, keys, values);
  }
};

// The key tile of a stage.
struct KeyTile {
  enum { BYTES = 16 };

  int first[3];    // coordinates of its first key
  int additional;  // additional keys from this tile on; 0: a tile of the window

  NATTEN_DEVICE KeyTile load(unsigned address) {
    int words[4];
    arch::load_shared(words, address);
    return {{words[0], words[1], words[2]}, words[3]};
  }
  __device__ __forceinline__ void store(unsigned address) const {
    arch::store_shared(address, first[0], first[1], first[2], additional);
  }
};

// What a warpgroup notes of one of its query rows.
struct RowNote {
  enum { WINDOWS_AT = 0, OUT_AT = 24, LSE_AT = 32, BYTES = 48 };

  unsigned address;

  // What the row sees along an axis, in units of its mask's choice.
  __device__ __forceinline__ Range window(int a) const {
    int words[2];
    arch::load_shared(words, address + WINDOWS_AT + 8 * a);
    return {words[0], words[1]};
  }
  __device__ __forceinline__ void set_window(int a, const Range& window) const {
    arch::store_shared(address + WINDOWS_AT + 8 * a, window.start, window.end);
  }

  // Offsets in elements of its result and log-sum-exp; -1: the row does not exist.
  __device__ __forceinline__ long long out() const { return arch::load_shared_long(address + OUT_AT); }
  __device__ __forceinline__ void set_out(long long at) const { arch::store_shared_long(address + OUT_AT, at); }
  __device__ __forceinline__ long long lse() const { return arch::load_shared_long(address + LSE_AT); }
  __device__ __forceinline__ void set_lse(long long at) const { arch::store_shared_long(address + LSE_AT, at); }
};

}  // namespace sm90
}  // namespace natten
