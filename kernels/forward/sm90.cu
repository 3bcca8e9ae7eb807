// SPDX-License-Identifier: MIT OR Apache-2.0
// Forward pass on Hopper's tensor cores (sm_90a): the copy engine brings boxes of the caller's own layout, warpgroups
// multiply them.
//
//   for items, a warp:      each item (batch, head, residue, tile of queries) of this cta is described; Q -> shared;
//                           its result -> global, once consumers have left it over Q
//   for rows, two warps:    which keys each of its queries sees
//   for tiles, one thread:  for each key tile, full ones first: K, V -> shared
//   consumers, 64 queries each:
//     S = Q K[0]^T; P = weights(S)
//     for j = 1 ..: issue S = Q K[j]^T; issue O += P V[j-1]
//                   wait for S; hide what is not seen (partial tiles only); P' = weights(S), while O += P V runs
//                   wait for O; move references that P' says are far away; P = P'
//     O += P V[last]; O / sum -> over Q; lse = ln 2 (reference + log2 sum) -> global
//   rows whose weights leave f32 make their item come again, to be done with a look at the scores
//
// Warps: one warpgroup of producers, then two or three consumer warpgroups that take turns at
// issuing products, so that one's softmax runs under another's products. The grid is persistent: one cta a
// multiprocessor, items dealt in turn.
// Shared memory: sm90/config.cuh; Q | K | V | rows | mask words | items | places of tiles | lost rows | barriers. The
// result goes out over its own queries, while the next item's arrive.
// Barriers: K full, K empty, V full, V empty for each stage, Q full, Q empty for each place of queries, item ready, rows ready for
// each item in flight; full ones count bytes, empty ones the consumers' warps, ready ones the warps that describe. Named barrier 0 ends the preparation, 1 .. 3 pass the turn,
// 8 .. 10 hold a warpgroup together.
// Registers: per consumer thread HEAD_DIM / 2 for O, KEYS / 2 for S, KEYS / 4 for P; 232 in all (two consumer
// warpgroups) or 160 (three); the producers give up all but 40 or 32.
#include <natten/launch.cuh>
#include <natten/sm90/consumer.cuh>
#include <natten/sm90/item_producer.cuh>
#include <natten/sm90/producer.cuh>
#include <natten/sm90/row_producer.cuh>

namespace natten {
namespace sm90 {

// Of the maps that a warp copies by, so that the copy engine has them at hand by then.
template <class C>
NATTEN_DEVICE void prefetch_maps(const ForwardParamsSm90& p, int warp) {
  if (warp == C::ITEM_WARP) {
    arch::prefetch_map(&p.query);
    if (p.rows_alone == 0) arch::prefetch_map(&p.out_map);
  } else {
    arch::prefetch_map(&p.key);
    arch::prefetch_map(&p.value);
  }
}

template <class C>
NATTEN_DEVICE void init_barriers(unsigned shared) {
  const int warps = 4 * C::WARPGROUPS;
  init_ring<C::STAGES>(shared + C::KEY_FULL, shared + C::KEY_EMPTY, 1, warps);
  init_ring<C::STAGES>(shared + C::VALUE_FULL, shared + C::VALUE_EMPTY, 1, warps);
  init_ring<C::QUERIES>(shared + C::QUERY_FULL, shared + C::QUERY_EMPTY, 1, warps);
  init_ring<C::ITEMS>(shared + C::ITEM_READY, shared + C::ROWS_READY, 1, C::ROW_WARPS);
  arch::fence_async_proxy();  // the copy engine completes some of them
}

// The warps prepare what they share, all but that of items: it goes on to describe the first one meanwhile.
template <class C>
NATTEN_DEVICE void prepare(const ForwardParamsSm90& p, unsigned shared, int warp) {
  if (warp == C::ITEM_WARP) {
    if (arch::elect_one()) init_barriers<C>(shared);
    arch::sync_warp();
    arch::named_barrier_arrive(0, C::THREADS);
    return;
  }
  const Team others = {warp < C::ITEM_WARP ? warp : warp - 1, C::THREADS / 32 - 1};
  fill_bits<FragmentColumns<C::KEYS>>(AnyBox{p.key_sides}, shared + C::BITS_AT, others);
  clear_padding<C>(shared, AnyBox{p.key_sides}.rows(), others);
  arch::named_barrier_sync(0, C::THREADS);
}

template <class C>
NATTEN_DEVICE void forward(const ForwardParamsSm90& p) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const unsigned shared = arch::shared_address(shared_memory);
  const int warp = (int)arch::shuffle_from(threadIdx.x / 32, 0);  // tells the compiler that the warp agrees

  if ((warp == C::TILE_WARP || warp == C::ITEM_WARP) && arch::elect_one()) prefetch_maps<C>(p, warp);
  prepare<C>(p, shared, warp);
  if (warp < 4) {
    arch::lower_registers<C::PRODUCER_REGISTERS>();
    if (warp == C::TILE_WARP && arch::elect_one()) {
      Producer<C> producer = {p, shared};
      producer.run();
    } else if (warp == C::ITEM_WARP) {
      const ItemProducer<C> producer = {p, shared};
      producer.run();
    } else if (warp >= 4 - C::ROW_WARPS) {
      const RowProducer<C> producer = {p, shared, (int)threadIdx.x - 32 * (4 - C::ROW_WARPS)};
      producer.run();
    }
  } else {
    arch::raise_registers<C::CONSUMER_REGISTERS>();
    Consumer<C> consumer = {{p, (int)threadIdx.x % 32}, shared, warp / 4 - 1, warp % 4};
    consumer.run();
  }
}

}  // namespace sm90
}  // namespace natten

// The macros come from the compile matrix (crates/xtask).
typedef natten::sm90::Config<natten::NATTEN_TYPE, NATTEN_HEAD_DIM, NATTEN_KEYS, NATTEN_WARPGROUPS> KernelConfig;
NATTEN_DYNAMIC_SHARED(KernelConfig::SHARED_BYTES)

extern "C" __global__ void __launch_bounds__(KernelConfig::THREADS, 1)
    NATTEN_ENTRY(const __grid_constant__ natten::ForwardParamsSm90 p) {
  natten::sm90::forward<KernelConfig>(p);
}
