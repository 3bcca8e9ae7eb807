// SPDX-License-Identifier: MIT OR Apache-2.0
// Backward pass on Blackwell's tensor cores (sm_100a): deterministic, two passes that recompute the weights, as Hopper's.
//
//   pass over queries: rows q, d_out; columns k, v:      d_query = scale sum dS k
//   pass over keys:    rows k, v; columns q, d_out:      d_key = scale sum dS^T q, d_value = sum P^T d_out
//   where P = 2^(scale_log2 q k^T - lse_log2), dS = P (d_out v^T - delta)
//
//   producer, one thread:   for each item (tile of 128 rows) of this cta
//                             both operands' rows -> shared; for each column tile, full ones first: both operands' columns
//   issuer, one thread:       for each column tile: S = R0 C0^T; dP = R1 C1^T; d_row1 += P C1 (keys only); d_row0 += dS C0
//   two softmax warpgroups, a row a thread, each its half of the columns of a tile:
//     for each column tile: read S; P, hiding what is not met (partial tiles only); read dP; dS
//     scale d_row0, d_row1 and write them
//
// Warps: a helper warpgroup (the producer is a thread of its warp 0, the issuer one of warp 1, which also allocates tensor
// memory; in the pass over keys warp 2 gathers statistics), then the softmax warpgroups. The grid is persistent as Hopper's: one
// cta a multiprocessor, items dealt in turn. A result is summed by one thread's products in a fixed order, so bits repeat.
// Shared memory: sm100/backward/config.cuh; rows | columns in stages | their queries' statistics | notes of rows | mask words |
// items | places of tiles | barriers. Results go out over the item's own rows.
// Tensor memory: S, 128 columns, P over its halves; dP, likewise with dS; then d_row0 and d_row1, HEAD_DIM columns each.
// Barriers: columns full (bytes, and in the pass over keys the lanes that gather statistics), columns empty (a commit and all
// softmax warps), tile posted for each stage; rows full, rows empty for each item; S full, P summed, dP full, sums full (commits),
// S taken, dS full (all softmax warps).
// Registers: a softmax thread has 64 weights, their 32 pairs, and 32 gradients at a time; 224 in all, for which the helpers give up
// all but 56.
#include <natten/launch.cuh>
#include <natten/sm100/backward/differentiator.cuh>
#include <natten/sm100/backward/issuer.cuh>
#include <natten/sm90/backward/producer.cuh>

namespace natten {
namespace sm100 {

template <class C>
NATTEN_DEVICE void init_barriers(unsigned shared) {
  const int warps = 4 * C::WARPGROUPS;
  sm90::init_ring<C::STAGES>(shared + C::COLUMN_FULL, shared + C::COLUMN_EMPTY, C::OF_KEYS ? 33 : 1, warps + 1);
  for (int stage = 0; stage < C::STAGES; ++stage) arch::barrier_init(shared + C::TILE_POSTED + 8 * stage, 1);
  sm90::init_ring<C::ITEMS>(shared + C::ROW_FULL, shared + C::ROW_EMPTY, 1, warps + 1);  // the issuer reads items too
  arch::barrier_init(shared + C::SCORES_FULL, 1);
  arch::barrier_init(shared + C::SCORES_TAKEN, warps);
  arch::barrier_init(shared + C::WEIGHTS_SUMMED, 1);
  arch::barrier_init(shared + C::D_WEIGHTS_FULL, 1);
  arch::barrier_init(shared + C::D_SCORES_FULL, warps);
  arch::barrier_init(shared + C::SUMS_FULL, 1);
  arch::fence_async_proxy();  // the copy engine completes some of them
}

template <class C>
NATTEN_DEVICE void help(const BackwardParamsSm90& p, unsigned shared, unsigned tensor, int warp) {
  sm90::BackwardProducer<C> producer = {p, shared};
  if (warp == 0 && arch::elect_one()) producer.run();
  if (warp == 1 && arch::elect_one()) {
    BackwardIssuer<C> issuer = {shared, tensor};
    issuer.run();
  }
  if (C::OF_KEYS && warp == 2) producer.gather_statistics((int)threadIdx.x % 32);
  arch::sync_warp();
}

template <class C>
NATTEN_DEVICE void backward(const BackwardParamsSm90& p) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const unsigned shared = arch::shared_address(shared_memory);
  const int warp = (int)arch::shuffle_from(threadIdx.x / 32, 0);  // tells the compiler that the warp agrees

  if (threadIdx.x == 0) init_barriers<C>(shared);
  if (warp == 1) {
    arch::tensor_allocate<C::TENSOR_COLUMNS>(shared + C::TENSOR_AT);
    arch::tensor_allocate_no_more();
  }
  sm90::fill_bits<RunColumns>(Log2Box{p.column_box_log2}, shared + C::BITS_AT, {warp, C::THREADS / 32});
  arch::tensor_fence_before();
  __syncthreads();
  arch::tensor_fence_after();
  const unsigned tensor = arch::load_shared(shared + C::TENSOR_AT);

  if (warp < 4) {
    arch::lower_registers<C::HELPER_REGISTERS>();
    help<C>(p, shared, tensor, warp);
  } else {
    arch::raise_registers<C::SOFTMAX_REGISTERS>();
    const unsigned lanes = (unsigned)(warp % 4 * 32) << 16;
    Differentiator<C> differentiator = {p, shared, tensor + lanes, warp / 4 - 1, warp % 4, (int)threadIdx.x % 32};
    differentiator.run();
  }
  __syncthreads();
  if (warp == 1) arch::tensor_free<C::TENSOR_COLUMNS>(tensor);
}

}  // namespace sm100
}  // namespace natten

// The macros come from the compile matrix (crates/xtask).
typedef natten::sm100::BackwardConfig<natten::NATTEN_TYPE, NATTEN_HEAD_DIM, NATTEN_PASS == 1> KernelConfig;
NATTEN_DYNAMIC_SHARED(KernelConfig::SHARED_BYTES)

extern "C" __global__ void __launch_bounds__(KernelConfig::THREADS, 1)
    NATTEN_ENTRY(const __grid_constant__ natten::BackwardParamsSm90 p) {
  natten::sm100::backward<KernelConfig>(p);
}
