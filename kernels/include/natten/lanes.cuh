// SPDX-License-Identifier: MIT OR Apache-2.0
// How a group of LANES lanes turns its partial dot products for ITEMS items into scores, each owned by one lane.
//
// A plain butterfly would cost log2(LANES) shuffles an item and leave every lane with every score, so softmax would
// run LANES times over. Halving the list of items at each exchange instead costs fewer than one shuffle an item, and
// leaves the lane with bits b0 b1 .. the items whose index starts with these bits; softmax then runs once.
#pragma once
#include "arch/warp.cuh"
#include "window.cuh"

namespace natten {

enum { WARP = 32 };

template <int LANES, int ITEMS>
struct Lanes {
  enum {
    SPLITS = LANES >= ITEMS ? (ITEMS == 8 ? 3 : ITEMS == 4 ? 2 : ITEMS == 2 ? 1 : 0) : (LANES == 2 ? 1 : 0),
    OWNED = ITEMS >> SPLITS  // items a lane owns; lanes that agree in their SPLITS low bits own the same
  };

  // First item that `lane` owns.
  NATTEN_DEVICE int first_item(int lane) {
    int item = 0;
#pragma unroll
    for (int level = 0; level < SPLITS; ++level) item |= ((lane >> level) & 1) * (ITEMS >> (level + 1));
    return item;
  }

  // The lane within the group that owns `item`, and under which index.
  NATTEN_DEVICE constexpr int owner(int item) {
    int lane = 0;
    for (int level = 0; level < SPLITS; ++level) lane |= ((item / (ITEMS >> (level + 1))) & 1) << level;
    return lane;
  }
  NATTEN_DEVICE constexpr int slot(int item) { return item % OWNED; }

  // Adds up each item's partial sums over the group and hands the sum to its owners.
  NATTEN_DEVICE void reduce(float (&sums)[ITEMS], float (&owned)[OWNED], int lane) {
    int count = ITEMS;
#pragma unroll
    for (int level = 0; level < SPLITS; ++level) {
      count /= 2;
      const bool upper = (lane >> level) & 1;
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const float keep = upper ? sums[i + count] : sums[i];
        const float give = upper ? sums[i] : sums[i + count];
        sums[i] = keep + arch::shuffle_xor(give, 1 << level);
      }
    }
#pragma unroll
    for (int i = 0; i < OWNED; ++i) {
#pragma unroll
      for (int lanes = 1 << SPLITS; lanes < LANES; lanes *= 2) sums[i] += arch::shuffle_xor(sums[i], lanes);
      owned[i] = sums[i];
    }
  }

  // Every lane of the group receives item's value from its owner. `group_lane` is the group's first lane.
  NATTEN_DEVICE float broadcast(const float (&owned)[OWNED], int item, int group_lane) {
    if (LANES == 1) return owned[slot(item)];
    return arch::shuffle_from(owned[slot(item)], group_lane + owner(item));
  }

  // The same without a register for the place in the warp.
  NATTEN_DEVICE float share(const float (&owned)[OWNED], int item) {
    if (LANES == 1) return owned[slot(item)];
    return arch::shuffle_within<LANES>(owned[slot(item)], owner(item));
  }
};

// The same for pairs of an item and one of TOKENS tokens that are taken at once, pair `item * TOKENS + token`, in an order of the
// lane's own: place p of its list holds pair p ^ first(lane). So every lane keeps the first half of its list and gives the
// second away, where it would select each with lanes' lists alike; and what it owns stands at its first places already.
template <int LANES, int ITEMS, int TOKENS>
struct Pairs {
  typedef Lanes<LANES, ITEMS * TOKENS> Group;
  enum { COUNT = ITEMS * TOKENS, OWNED = Group::OWNED };

  // The item and the token of a place of the lane's list. Items and tokens are held in that order.
  NATTEN_DEVICE int item_at(int lane, int item) { return item ^ Group::first_item(lane) / TOKENS; }
  NATTEN_DEVICE int token_at(int lane, int token) { return token ^ Group::first_item(lane) % TOKENS; }

  // Of an owned pair: its token, and which of the lane's items it has.
  NATTEN_DEVICE int token(int lane, int slot) { return (Group::first_item(lane) + slot) % TOKENS; }
  NATTEN_DEVICE constexpr int item_slot(int slot) { return slot / TOKENS; }

  // Adds up each pair's partial sums over the group and hands the sum to its owners.
  NATTEN_DEVICE void reduce(float (&sums)[COUNT], float (&owned)[OWNED]) {
    int count = COUNT;
#pragma unroll
    for (int level = 0; level < Group::SPLITS; ++level) {
      count /= 2;
#pragma unroll
      for (int i = 0; i < count; ++i) sums[i] += arch::shuffle_xor(sums[i + count], 1 << level);
    }
#pragma unroll
    for (int i = 0; i < OWNED; ++i) {
#pragma unroll
      for (int lanes = 1 << Group::SPLITS; lanes < LANES; lanes *= 2) sums[i] += arch::shuffle_xor(sums[i], lanes);
      owned[i] = sums[i];
    }
  }

  // The value of the pair at a place of the lane's list, from its owner: the same lane for the first places.
  NATTEN_DEVICE float share(const float (&owned)[OWNED], int place) {
    if (Group::owner(place) == 0) return owned[Group::slot(place)];
    return arch::shuffle_xor(owned[Group::slot(place)], Group::owner(place));
  }
};

}  // namespace natten
