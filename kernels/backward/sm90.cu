// SPDX-License-Identifier: MIT OR Apache-2.0
// Backward pass on Hopper's tensor cores (sm_90a): deterministic, two passes that recompute the weights.
//
//   pass over queries: rows q, d_out; columns k, v:      d_query = scale sum dS k
//   pass over keys:    rows k, v; columns q, d_out:      d_key = scale sum dS^T q, d_value = sum P^T d_out
//   where P = 2^(scale_log2 q k^T - lse_log2), dS = P (d_out v^T - delta)
//
// Either is bounded by what a tile of rows meets: the windows of its queries, or the queries whose windows hold its keys. A
// result is summed by one warpgroup in a fixed order, so bits repeat: no atomics, no partial sums.
//
// Warps: a producer warpgroup (one thread copies; in the pass over keys one warp gathers statistics), then two consumer
// warpgroups of 64 rows each. The grid is persistent: one cta a multiprocessor, items dealt in turn.
// Shared memory: sm90/backward/config.cuh; rows | columns in stages | their queries' statistics | notes of rows | mask words |
// items | places of tiles | barriers. Results go out over the item's own rows.
// Barriers: columns full (bytes, and in the pass over keys the lanes that gather statistics), columns empty, tile posted for
// each stage; rows full, rows empty for each item. Named barriers 8 and 9 hold a warpgroup together.
// Registers: per consumer thread HEAD_DIM / 2 for each result, COLUMNS / 2 for S and for dP, COLUMNS / 4 for each's pairs.
// A row without keys has weights of 0: the statistics of its log-sum-exp are what makes them so.
#include <natten/launch.cuh>
#include <natten/sm90/backward/consumer.cuh>
#include <natten/sm90/backward/producer.cuh>

namespace natten {
namespace sm90 {

template <class C>
NATTEN_DEVICE void backward(const BackwardParamsSm90& p) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const unsigned shared = arch::shared_address(shared_memory);
  const int warp = (int)arch::shuffle_from(threadIdx.x / 32, 0);  // tells the compiler that the warp agrees

  if (threadIdx.x == 0) {
    init_ring<C::STAGES>(shared + C::COLUMN_FULL, shared + C::COLUMN_EMPTY, C::OF_KEYS ? 33 : 1, 4 * C::WARPGROUPS);
    for (int stage = 0; stage < C::STAGES; ++stage) arch::barrier_init(shared + C::TILE_POSTED + 8 * stage, 1);
    init_ring<C::ITEMS>(shared + C::ROW_FULL, shared + C::ROW_EMPTY, 1, 4 * C::WARPGROUPS);
    arch::fence_async_proxy();  // the copy engine completes some of them
  }
  fill_bits<FragmentColumns<C::COLUMNS>>(Log2Box{p.column_box_log2}, shared + C::BITS_AT, {warp, C::THREADS / 32});
  __syncthreads();

  if (warp < 4) {
    arch::lower_registers<C::PRODUCER_REGISTERS>();
    BackwardProducer<C> producer = {p, shared};
    if (warp == 0 && arch::elect_one()) producer.run();
    if (C::OF_KEYS && warp == 1) producer.gather_statistics((int)threadIdx.x % 32);
  } else {
    arch::raise_registers<C::CONSUMER_REGISTERS>();
    BackwardConsumer<C> consumer = {p, shared, warp / 4 - 1, warp % 4, (int)threadIdx.x % 32};
    consumer.run();
  }
}

}  // namespace sm90
}  // namespace natten

// The macros come from the compile matrix (crates/xtask).
typedef natten::sm90::BackwardConfig<natten::NATTEN_TYPE, NATTEN_HEAD_DIM, NATTEN_COLUMNS, NATTEN_PASS == 1> KernelConfig;
NATTEN_DYNAMIC_SHARED(KernelConfig::SHARED_BYTES)

extern "C" __global__ void __launch_bounds__(KernelConfig::THREADS, 1)
    NATTEN_ENTRY(const __grid_constant__ natten::BackwardParamsSm90 p) {
  natten::sm90::backward<KernelConfig>(p);
}
