// SPDX-License-Identifier: MIT OR Apache-2.0
// Rings of places in shared memory that a producer fills and consumers empty, each with two barriers.
#pragma once
#include "../arch/barrier.cuh"
#include "../device.cuh"

namespace natten {
namespace sm90 {

// Where in a ring of stages: which one, and the parity of its phase.
struct RingPlace {
  int stage;
  unsigned parity;

  // Of the one with this number, counted from the start.
  template <int STAGES>
  static __device__ __forceinline__ RingPlace of(unsigned number) {
    return {(int)(number % STAGES), number / STAGES & 1};
  }

  template <int STAGES>
  __device__ __forceinline__ void advance() {
    stage += 1;
    if (stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }

  // The place before this one. Where an earlier place is wanted, working it out keeps both in uniform registers; the compiler puts a copy
  // that outlives `advance` into a register of every lane.
  template <int STAGES>
  __device__ __forceinline__ RingPlace before() const {
    return {(stage + STAGES - 1) % STAGES, parity ^ (stage == 0 ? 1u : 0u)};
  }
};

// Sets up the two barriers of each of a ring's places, full ones and empty ones for instance, by how many arrivals complete a phase of either.
template <int PLACES>
NATTEN_DEVICE void init_ring(unsigned full, unsigned empty, unsigned fillers, unsigned emptiers) {
  for (int place = 0; place < PLACES; ++place) {
    arch::barrier_init(full + 8 * place, fillers);
    arch::barrier_init(empty + 8 * place, emptiers);
  }
}

}  // namespace sm90
}  // namespace natten
