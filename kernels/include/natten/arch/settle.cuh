// SPDX-License-Identifier: MIT OR Apache-2.0
// Registers that something asynchronous writes, of which the compiler knows nothing.
#pragma once

namespace natten {
namespace arch {

// Pins values behind the wait that made them valid.
template <int COUNT>
static __device__ __forceinline__ void settle(float (&values)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(values[i]) :: "memory");
}

}  // namespace arch
}  // namespace natten
