#include <natten/sm90/consumer.cuh>
#include <natten/sm90/producer.cuh>

namespace natten {
namespace sm90 {

template <class C>
NATTEN_DEVICE void forward(const ForwardParamsSm90& p) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const unsigned shared = arch::shared_address(shared_memory);
  const int warp = arch::shuffle_from((int)threadIdx.x / 32, 0);  // tells the compiler that the warp agrees

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < C::STAGES; ++stage) {
      arch::barrier_init(shared + C::KEY_FULL + 8 * stage, 1);
      arch::barrier_init(shared + C::VALUE_FULL + 8 * stage, 1);
      arch::barrier_init(shared + C::KEY_EMPTY + 8 * stage, 4 * C::WARPGROUPS);
      arch::barrier_init(shared + C::VALUE_EMPTY + 8 * stage, 4 * C::WARPGROUPS);
    }
    arch::barrier_init(shared + C::QUERY_FULL, 1);
    arch::barrier_init(shared + C::QUERY_EMPTY, 4 * C::WARPGROUPS);
    arch::fence_barrier_init();
    arch::fence_async_proxy();
  }
  fill_bits<C>(p, shared + C::BITS_AT);
  __syncthreads();

  if (warp < 4) {
    arch::lower_registers<C::PRODUCER_REGISTERS>();
    if (warp == 0 && arch::elect_one()) {
      Producer<C> producer = {p, shared};
      producer.run();
    }
  } else {
    arch::raise_registers<C::CONSUMER_REGISTERS>();
    Consumer<C> consumer = {p, shared, warp / 4 - 1, warp % 4, (int)threadIdx.x % 32};
    consumer.run();
  }
}

}  // namespace sm90
}  // namespace natten

// The macros come from the compile matrix (crates/xtask).
typedef natten::sm90::Config<natten::sm90::NATTEN_TYPE, NATTEN_HEAD_DIM, NATTEN_KEYS, NATTEN_WARPGROUPS> KernelConfig;

extern "C" __global__ void __launch_bounds__(KernelConfig::THREADS, 1)
    NATTEN_ENTRY(const __grid_constant__ natten::ForwardParamsSm90 p) {
  natten::sm90::forward<KernelConfig>(p);
}
