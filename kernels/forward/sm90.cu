// SPDX-License-Identifier: MIT OR Apache-2.0
// Forward pass on Hopper's tensor cores (sm_90a): the copy engine brings boxes of the caller's own layout, warpgroups
// multiply them.
//
//   producer, one thread:   for each item (batch, head, residue, tile of queries) of this cta
//                             Q -> shared; for each key tile, full ones first: K, V -> shared
//   consumers, 64 queries each:
//     S = Q K[0]^T; P = weights(S)
//     for j = 1 ..: issue S = Q K[j]^T; issue O += P V[j-1]
//                   wait for S; hide what is not seen (partial tiles only); P' = weights(S), while O += P V runs
//                   wait for O; move references that P' says are far away; P = P'
//     O += P V[last]; out = O / sum; lse = ln 2 (reference + log2 sum)
//   rows whose weights leave f32 make their item come again, to be done with a look at the scores
//
// Warps: one producer warpgroup (two threads of it work), then two or three consumer warpgroups that take turns at
// issuing products, so that one's softmax runs under another's products. The grid is persistent: one cta a
// multiprocessor, items dealt in turn.
// Shared memory: sm90/config.cuh; Q | K | V | rows | mask words | items | places of tiles | lost rows | barriers. The
// result goes out over its own queries, while the next item's arrive.
// Barriers: K full, K empty, V full, V empty for each stage, Q full, Q empty, item ready for each item in flight; full ones count
// bytes, empty ones the consumers' warps. Named barriers 1 .. 3 pass the turn, 8 .. 10 hold a warpgroup together.
// Registers: per consumer thread HEAD_DIM / 2 for O, KEYS / 2 for S, KEYS / 4 for P; 232 in all (two consumer
// warpgroups) or 160 (three); the producer gives up all but 40 or 32.
#include <natten/launch.cuh>
#include <natten/sm90/consumer.cuh>
#include <natten/sm90/producer.cuh>

namespace natten {
namespace sm90 {

template <class C>
NATTEN_DEVICE void forward(const ForwardParamsSm90& p) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const unsigned shared = arch::shared_address(shared_memory);
  const int warp = (int)arch::shuffle_from(threadIdx.x / 32, 0);  // tells the compiler that the warp agrees

  if (threadIdx.x == 0) {
    init_ring<C::STAGES>(shared + C::KEY_FULL, shared + C::KEY_EMPTY, 1, 4 * C::WARPGROUPS);
    init_ring<C::STAGES>(shared + C::VALUE_FULL, shared + C::VALUE_EMPTY, 1, 4 * C::WARPGROUPS);
    init_ring<C::ITEMS>(shared + C::QUERY_FULL, shared + C::QUERY_EMPTY, 1, 4 * C::WARPGROUPS + 1);  // the producer reads items
    for (int item = 0; item < C::ITEMS; ++item) arch::barrier_init(shared + C::ITEM_READY + 8 * item, 1);
    arch::fence_async_proxy();  // the copy engine completes some of them
  }
  fill_bits<FragmentColumns<C::KEYS>, C::THREADS>(AnyBox{p.key_sides}, shared + C::BITS_AT);
  clear_padding<C>(shared, AnyBox{p.key_sides}.rows());
  __syncthreads();

  if (warp < 4) {
    arch::lower_registers<C::PRODUCER_REGISTERS>();
    if (warp == 0 && arch::elect_one()) {
      Producer<C> producer = {p, shared};
      producer.run();
    } else if (warp == 1 && arch::elect_one()) {
      const ItemProducer<C> producer = {p, shared};
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
