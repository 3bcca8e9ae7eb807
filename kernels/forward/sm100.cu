// SPDX-License-Identifier: MIT OR Apache-2.0
// Forward pass on Blackwell's tensor cores (sm_100a): the copy engine brings boxes of the caller's own layout, one thread has
// them multiplied, and scores, weights and sums stay in tensor memory.
//
//   for items, a warp:      each item (batch, head, residue, tile of queries) of this cta is described; Q -> shared;
//                           its result -> global, once warpgroups have left it over Q
//   producer, one thread:   for each key tile, full ones first: K, V -> shared
//   issuer, one thread:       S = Q K[0]^T; for each key tile j, for each warpgroup: O += P V[j]; S = Q K[j + 1]^T
//   warpgroups, 128 queries each, a row a thread:
//     for each key tile: read S; hide what is not seen (partial tiles only); P = weights(S), written over S
//                        rescale O if the reference moved
//     O / sum -> over Q; lse = ln 2 (reference + log2 sum) -> global
//
// Warps: a helper warpgroup (the producer is a thread of its warp 0, the issuer one of warp 1, which also allocates tensor
// memory; warp 2 is for items), then one or two softmax warpgroups: with two, one's softmax runs under the other's products. The grid is
// persistent as Hopper's: one cta a multiprocessor, items dealt in turn.
// Shared memory: sm100/config.cuh; Q x items | K x 2 | V x 2 | rows | mask words | items | places of tiles | barriers.
// Tensor memory: S of each warpgroup, 128 columns, its weights over the first 64; O of each, HEAD_DIM columns.
// Barriers: K full, K empty, V full, V empty for each stage, Q full, Q empty, item ready for each item; per warpgroup S full (a commit),
// P full (its four warps), O full (a commit).
// Registers: a softmax thread has 128 scores; 224 in all beside a second warpgroup, for which the helpers give up all but 56.
#include <natten/launch.cuh>
#include <natten/sm100/issuer.cuh>
#include <natten/sm100/weigher.cuh>
#include <natten/sm90/item_producer.cuh>
#include <natten/sm90/producer.cuh>

namespace natten {
namespace sm100 {

template <class C>
NATTEN_DEVICE void init_barriers(unsigned shared) {
  const int warps = 4 * C::WARPGROUPS;
  sm90::init_ring<C::STAGES>(shared + C::KEY_FULL, shared + C::KEY_EMPTY, 1, warps);
  sm90::init_ring<C::STAGES>(shared + C::VALUE_FULL, shared + C::VALUE_EMPTY, 1, 1);
  // The issuer reads items, too, and has seen the producer read them.
  sm90::init_ring<C::QUERIES>(shared + C::QUERY_FULL, shared + C::QUERY_EMPTY, 1, warps + 1);
  for (int item = 0; item < C::ITEMS; ++item) arch::barrier_init(shared + C::ITEM_READY + 8 * item, 1);
  for (int group = 0; group < C::WARPGROUPS; ++group) {
    arch::barrier_init(shared + C::SCORES_FULL + 8 * group, 1);
    arch::barrier_init(shared + C::WEIGHTS_FULL + 8 * group, 4);
    arch::barrier_init(shared + C::SUMS_FULL + 8 * group, 1);
  }
  arch::fence_async_proxy();  // the copy engine completes some of them
}

template <class C>
NATTEN_DEVICE void forward(const ForwardParamsSm90& p) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const unsigned shared = arch::shared_address(shared_memory);
  const int warp = (int)arch::shuffle_from(threadIdx.x / 32, 0);  // tells the compiler that the warp agrees

  if (threadIdx.x == 0) init_barriers<C>(shared);
  if (warp == 1) {
    arch::tensor_allocate<C::COLUMNS>(shared + C::TENSOR_AT);
    arch::tensor_allocate_no_more();
  }
  const sm90::Team all = {warp, C::THREADS / 32};
  sm90::fill_bits<RunColumns>(AnyBox{p.key_sides}, shared + C::BITS_AT, all);
  sm90::clear_padding<C>(shared, AnyBox{p.key_sides}.rows(), all);
  arch::tensor_fence_before();
  __syncthreads();
  arch::tensor_fence_after();
  const unsigned tensor = arch::load_shared(shared + C::TENSOR_AT);

  if (warp < 4) {
    if (C::SHARES_REGISTERS) arch::lower_registers<C::HELPER_REGISTERS>();
    if (warp == 0 && arch::elect_one()) {
      sm90::Producer<C> producer = {p, shared};
      producer.run();
    }
    if (warp == 1 && arch::elect_one()) {
      Issuer<C> issuer = {p, shared, tensor};
      issuer.run();
    }
    if (warp == 2) {
      const sm90::ItemProducer<C> producer = {p, shared};
      producer.run();
    }
    arch::sync_warp();
  } else {
    if (C::SHARES_REGISTERS) arch::raise_registers<C::SOFTMAX_REGISTERS>();
    const int group = warp / 4 - 1;
    const unsigned lanes = (unsigned)(warp % 4 * 32) << 16;
    Weigher<C> weigher = {p, shared, C::scores(tensor, group) + lanes, C::sums(tensor, group) + lanes, group, warp % 4,
                          (int)threadIdx.x % 32};
    weigher.run();
  }
  __syncthreads();
  if (warp == 1) arch::tensor_free<C::COLUMNS>(tensor);
}

}  // namespace sm100
}  // namespace natten

// The macros come from the compile matrix (crates/xtask).
typedef natten::sm100::Config<natten::NATTEN_TYPE, NATTEN_HEAD_DIM, NATTEN_WARPGROUPS> KernelConfig;
NATTEN_DYNAMIC_SHARED(KernelConfig::SHARED_BYTES)

extern "C" __global__ void __launch_bounds__(KernelConfig::THREADS, 1)
    NATTEN_ENTRY(const __grid_constant__ natten::ForwardParamsSm90 p) {
  natten::sm100::forward<KernelConfig>(p);
}
