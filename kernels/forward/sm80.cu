// SPDX-License-Identifier: MIT OR Apache-2.0
// Forward pass on tensor cores, sm_80 and later: boxes of ROWS queries walk over boxes of KEYS keys.
//
//   Q = rows of the box of queries                       (to shared memory once; in registers where they fit)
//   for the keys of the windows, then the additional keys:
//     for each full tile, then for each partial tile with its mask:
//       wait for K; start copying the next K
//       S = Q K^T, in a partial tile from -infinity where a key is not seen
//       if any score of the warp exceeds its row's reference by 2^8: move the references, rescale O and the sums
//       P = 2^(S * scale_log2 - reference); sum += rowsum(P)
//       wait for V; start copying the next V
//       O += P V
//   where some reference came to lie far from 0, all of it once more: every tile with its mask, P = 2^((S - reference) * scale_log2)
//   out = O / sum;  lse = ln 2 * (reference + log2 sum)
//
// Warps: 4, alike; each owns ROWS / 4 rows of S and O. Two barriers a tile: K's slot is free after the second, V's after
// the first of the next tile.
// Shared memory: sm80/config.cuh; Q (ROWS x D) | three slots (KEYS x D) that K and V take in turns | Segment | Thresholds |
// Starts. The result goes out over Q.
// Registers at D 128, ROWS 128: O 128, S 64, the rest for fragments and addresses.
// Keys of a tile that a query does not see get weight 0; a NaN or infinity in them or their values comes through.
#include <natten/launch.cuh>
#include <natten/sm80/copies.cuh>
#include <natten/sm80/epilogue.cuh>

namespace natten {
namespace sm80 {

template <class C>
struct Forward {
  const TileForwardParams& p;
  Shared<C> shared;
  KeyCopies<C> copies;
  Products<C> products;
  RowSoftmax<C> softmax;

  __device__ __forceinline__ void run() {
    QueryTile tile;
    if (!tile.place(p.geometry, p.plan, (int)blockIdx.x)) return;
    Segment& segment = shared.segment();
    if (thread_index() == 0) segment.tile = tile;
    copy_query(p, shared, tile);
    // Scales so large leave no reference near 0, but where all scores are equal.
    const bool starts_far = softmax.scale(p) > NATTEN_FAR;
    if (thread_index() == 0) segment.far = starts_far;
    describe_keys(p, shared, tile, false, starts_far);
    // Said in two ways, each of which makes ptxas spill in the other's sizes.
    if (C::TIGHT) {
      if (!starts_far) walk<false>();
      if (starts_far || __syncthreads_or(softmax.is_lost())) {
        if (!starts_far) describe_again();
        walk_far();
      }
    } else {
      bool far = starts_far;
      if (!far) {
        walk<false>();
        far = __syncthreads_or(softmax.is_lost());
        if (far) describe_again();
      }
      if (far) {
        walk_far();
        if (C::D == 256) return store();
      }
    }
    store();
  }

  __device__ __forceinline__ void describe_again() {
    Segment& segment = shared.segment();
    if (thread_index() == 0) segment.far = 2;
    describe_keys(p, shared, segment.tile, false, true);
  }

  // What both walks need is worked out in either: it would be kept in registers in between.
  __device__ __forceinline__ void walk_far() {
    shared.base += arch::opaque(0);
    walk<true>();
  }

  __device__ __forceinline__ void store() {
    Epilogue<C> epilogue = {p, shared};
    epilogue.store(softmax, products);
  }

  // Over all keys.
  template <bool FAR>
  __device__ __forceinline__ void walk() {
    Segment& segment = shared.segment();
    softmax.clear();
    products.clear();
    while (true) {
      __syncthreads();
      copies.start(p, shared);
      copies.template copy<true>(segment, 0, copies.slots[0]);
      copies.template copy<true>(segment, 1, copies.slots[1]);
      prepare_loops(p, shared);
      if (segment.is_additional()) __syncthreads();
      else products.template receive_query<!FAR>(p, shared);
      if (!FAR) {
#pragma unroll 1
        for (int left = segment.grid.full(); left > 0; --left) step<false>();
      }
      int left = segment.grid.total() - segment.grid.full();
      Partial<C> partial;
      if (left > 0) partial.begin(p, shared, copies.at);
#pragma unroll 1
      for (; left > 0; --left) step<true, FAR>(&partial);
      arch::wait_for_copies<0>();
      __syncthreads();
      if (segment.is_last) break;
      describe_keys(p, shared, segment.tile, true, FAR);
    }
  }

  // One tile of keys. Zeros follow the last one.
  template <bool MASKED, bool FAR = false>
  __device__ __forceinline__ void step(Partial<C>* partial = nullptr) {
    const Segment& segment = shared.segment();
    arch::wait_for_copies<1>();
    __syncthreads();
    if (MASKED) copies.advance_partial(shared, *partial);
    else copies.advance_full(segment);
    copies.template copy<MASKED>(segment, 0, copies.slots[2]);

    typename Products<C>::Scores score;
    if (MASKED && C::TIGHT) partial->start.set(lane_index());
    if (MASKED) partial->start.load(score, partial->mask.tile, shared.starts());
    else start_at_zero(score);
    products.template multiply_query_key<!FAR>(score, copies.slots[0]);
    softmax.template weigh<FAR>(p, score, products);

    arch::wait_for_copies<1>();
    __syncthreads();
    copies.template copy<MASKED>(segment, 1, copies.slots[0]);
    if (MASKED) partial->mask.enter_tile(shared.table(), segment.grid, copies.at);
    products.multiply_weight_value(score, copies.slots[1]);
    copies.turn_slots();
  }

  NATTEN_DEVICE void start_at_zero(typename Products<C>::Scores& score) {
#pragma unroll
    for (int m = 0; m < C::M; ++m) {
#pragma unroll
      for (int n = 0; n < C::N; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) score[m][n][e] = 0.0f;
      }
    }
  }
};

}  // namespace sm80
}  // namespace natten

// The macros come from the compile matrix (crates/xtask).
typedef natten::sm80::Config<natten::NATTEN_TYPE, NATTEN_DIM, NATTEN_ROWS, NATTEN_KEYS> KernelConfig;
NATTEN_DYNAMIC_SHARED(KernelConfig::SHARED_BYTES)

extern "C" __global__ void __launch_bounds__(KernelConfig::THREADS, 2)
    NATTEN_ENTRY(const __grid_constant__ natten::TileForwardParams p) {
  extern __shared__ __align__(1024) char shared[];
  natten::sm80::Forward<KernelConfig> forward = {p, {shared}};
  forward.run();
}
