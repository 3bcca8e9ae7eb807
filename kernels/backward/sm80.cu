// SPDX-License-Identifier: MIT OR Apache-2.0
// Backward pass on tensor cores, sm_80 and later: deterministic, two passes that recompute the weights.
//
//   pass over queries: rows q, d_out; columns k, v:      d_query = scale sum dS k
//   pass over keys:    rows k, v; columns q, d_out:      d_key = scale sum dS^T q, d_value = sum P^T d_out
//   where P = 2^(scale_log2 q k^T - lse_log2), dS = P (d_out v^T - delta)
//
//   both operands of a box of rows (to shared memory once; in registers where they fit)
//   for the columns of each head that shares the rows, or of the windows and then the additional keys:
//     for each full tile of columns, then for each partial tile with its mask:
//       wait for it; start copying the next one to the other stage
//       S, dP; P, dS; sums
//   gradients out over the rows, or a split's sums to where they are added up in order
//
// Either is bounded by what a box of rows meets: the windows of its queries, or the queries whose windows hold its keys. A result is
// summed by one warp in a fixed order, so bits repeat: no atomics.
//
// Warps: 4, alike, each with ROWS / 4 rows; 8 where a warp's registers hold the results of half the head_dim only. One barrier
// a tile.
// Shared memory: sm80/backward/config.cuh; rows (2 x ROWS x D) | two stages of columns (2 x COLUMNS x D, statistics) |
// ColumnSegment | windows of rows | Thresholds.
// Registers at D 128: results 128, S and dP 64.
// A row without keys has weights of 0: the statistics of its log-sum-exp are what makes them so.
#include <natten/launch.cuh>
#include <natten/sm80/backward/copies.cuh>
#include <natten/sm80/backward/epilogue.cuh>

namespace natten {
namespace sm80 {

template <class C>
struct Backward {
  const BackwardTileParams& p;
  BackwardShared<C> shared;
  ColumnCopies<C> copies;
  BackwardProducts<C> products;
  unsigned stage;  // shared address of the tile at hand

  __device__ __forceinline__ void run() {
    RowTile tile;
    if (!tile.template place<C::OF_KEYS>(p, (int)blockIdx.x)) return;
    ColumnSegment& segment = shared.segment();
    if (Thread::index() == 0) segment.tile = tile;
    copy_rows(p, shared, tile);
    describe_columns(p, shared, tile, 0);
    note_windows(p, shared, tile);
    note_statistics(p, shared, tile);
    products.clear();
    stage = shared.stages();
#pragma unroll 1
    for (int part = 0;; ++part) {
      __syncthreads();
      copies.start(p, shared);
      copies.template copy<true>(segment, stage);
      prepare_loops(shared, part);
      arch::wait_for_copies<1>();
      __syncthreads();
      if (part == 0) products.receive_rows(shared);
#pragma unroll 1
      for (int left = segment.grid.full(); left > 0; --left) step<false>();

      int left = segment.grid.total() - segment.grid.full();
      PartialTiles<C> partial;
      if (left > 0) partial.begin(p, shared, copies.at);
#pragma unroll 1
      for (; left > 0; --left) step<true>(&partial);
      const bool is_last = segment.is_last;
      arch::wait_for_copies<0>();
      __syncthreads();
      if (is_last) break;
      describe_columns(p, shared, segment.tile, part + 1);
    }
    BackwardEpilogue<C> epilogue = {p, shared};
    epilogue.store(products);
  }

  // One tile of columns. Zeros follow the last one.
  template <bool MASKED>
  __device__ __forceinline__ void step(PartialTiles<C>* partial = nullptr) {
    const ColumnSegment& segment = shared.segment();
    arch::wait_for_copies<0>();
    __syncthreads();
    TileMask<C::M> mask;
    if (MASKED) partial->find(mask, p, shared, copies.at);
    if (MASKED) copies.advance_partial(p, shared, *partial);
    else copies.advance_full(segment);
    copies.template copy<MASKED>(segment, shared.other_stage(stage));
    products.template step<MASKED>(p, shared, stage, mask);
    stage = shared.other_stage(stage);
  }
};

}  // namespace sm80
}  // namespace natten

// The macros come from the compile matrix (crates/xtask).
typedef natten::sm80::BackwardConfig<natten::NATTEN_TYPE, NATTEN_DIM, NATTEN_ROWS, NATTEN_COLUMNS, NATTEN_PASS == 1>
    KernelConfig;
NATTEN_DYNAMIC_SHARED(KernelConfig::SHARED_BYTES)

extern "C" __global__ void __launch_bounds__(KernelConfig::THREADS, KernelConfig::GROUPS == 1 ? 2 : 1)
    NATTEN_ENTRY(const __grid_constant__ natten::BackwardTileParams p) {
  extern __shared__ __align__(1024) char shared[];
  natten::sm80::Backward<KernelConfig> backward = {p, {shared}};
  backward.run();
}
