// SPDX-License-Identifier: MIT OR Apache-2.0
// Tensor memory and the products that work in it (sm_100a, PTX 8.6).
//
// Tensor memory has 128 lanes of 512 columns of 32 bits; an address holds the lane in its upper half and the column in its
// lower. A product's row r of 128 is lane r. Warp w of a warpgroup loads and stores lanes 32 w .. 32 w + 31, a lane of its own
// each.
//
// All of it is asynchronous. A warp waits for its own loads and stores. Others may rely on them, or on products, behind two
// fences: one before whoever synchronises goes on, one after. A commit stands for the first fence of products.
// The compiler knows nothing of that, so `settle` follows every wait for a load.
#pragma once
#include "settle.cuh"

namespace natten {
namespace arch {

// Reserves columns, a power of two from 32 to 512, for the whole warp that calls; their address goes to shared memory.
template <int COLUMNS>
static __device__ __forceinline__ void tensor_allocate(unsigned place) {
  asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], %1;" :: "r"(place), "n"(COLUMNS) : "memory");
}

// Says that this cta allocates no more, for others that wait to.
static __device__ __forceinline__ void tensor_allocate_no_more() {
  asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;" ::: "memory");
}

template <int COLUMNS>
static __device__ __forceinline__ void tensor_free(unsigned address) {
  asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, %1;" :: "r"(address), "n"(COLUMNS) : "memory");
}

// Stands before an arrival or barrier that tells others of what was done in tensor memory, once that has been waited for.
static __device__ __forceinline__ void tensor_fence_before() {
  asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
}

// Stands behind the wait for one.
static __device__ __forceinline__ void tensor_fence_after() {
  asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
}

// Arrives at a barrier once all products of this thread so far are done.
static __device__ __forceinline__ void tensor_commit(unsigned barrier) {
  asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" :: "r"(barrier) : "memory");
}

// Which swizzle a tile in shared memory was written with; the value is the descriptor's field.
enum TensorSwizzle { TENSOR_SWIZZLE_128_BYTES = 2, TENSOR_SWIZZLE_64_BYTES = 4 };

// Describes an operand in shared memory. Strides in bytes. Operands whose rows run along k (Q, K) use only `eight_rows`, from
// one group of eight rows to the next. Operands whose rows run along n (V) also use `next_block`, from one block as wide as
// the swizzle to the next.
static __device__ __forceinline__ unsigned long long describe_tensor(unsigned address, TensorSwizzle swizzle,
                                                                     unsigned eight_rows, unsigned next_block) {
  const unsigned long long version = 1ull << 46;  // of the descriptor: Blackwell's
  return (unsigned long long)((address & 0x3ffff) >> 4) | (unsigned long long)(next_block >> 4) << 16 |
         (unsigned long long)(eight_rows >> 4) << 32 | version | (unsigned long long)swizzle << 61;
}

// The type of what a product multiplies, as fields of its descriptor, from a pair of elements that are 1: 0x3c00 each in f16, 0x3f80
// in bf16. Made from these, so that the texts of a kernel for either type differ in its name alone, and one of them ships.
static __device__ __forceinline__ unsigned tensor_formats(unsigned ones) {
  const unsigned is_bf16 = ones >> 7 & 1;
  return is_bf16 << 7 | is_bf16 << 10;
}

// Describes a product of M x N with sums in f32, but for the type. B_ALONG_N: the rows of B run along n.
template <int M, int N, bool B_ALONG_N>
struct TensorProduct {
  static_assert(M == 128 && N % 16 == 0 && N <= 256, "sizes of a product");
  enum : unsigned {
    SUMS_IN_F32 = 1u << 4,
    NEGATE_A = 1u << 13,  // may be added
    WORD = SUMS_IN_F32 | (B_ALONG_N ? 1u << 16 : 0u) | N / 8u << 17 | M / 16u << 24
  };
};

// d = a b, or d += a b, over 16 elements of k. One thread issues it for the whole cta. A in shared memory.
static __device__ __forceinline__ void tensor_multiply(unsigned d, unsigned long long a, unsigned long long b,
                                                       unsigned product, bool adds) {
  asm volatile("{ .reg .pred adds; setp.ne.u32 adds, %4, 0; tcgen05.mma.cta_group::1.kind::f16 [%0], %1, %2, %3, adds; }"
               :: "r"(d), "l"(a), "l"(b), "r"(product), "r"((unsigned)adds) : "memory");
}

// The same with A in tensor memory, two elements to a word.
static __device__ __forceinline__ void tensor_multiply_from(unsigned d, unsigned a, unsigned long long b, unsigned product,
                                                            bool adds) {
  asm volatile("{ .reg .pred adds; setp.ne.u32 adds, %4, 0; tcgen05.mma.cta_group::1.kind::f16 [%0], [%1], %2, %3, adds; }"
               :: "r"(d), "r"(a), "l"(b), "r"(product), "r"((unsigned)adds) : "memory");
}

#define NATTEN_TENSOR_REGISTERS \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define NATTEN_TENSOR_OPERANDS_8(mode, x, i) \
  mode(x[i]), mode(x[i + 1]), mode(x[i + 2]), mode(x[i + 3]), mode(x[i + 4]), mode(x[i + 5]), mode(x[i + 6]), mode(x[i + 7])
#define NATTEN_TENSOR_OPERANDS(mode, x, i) \
  NATTEN_TENSOR_OPERANDS_8(mode, x, i), NATTEN_TENSOR_OPERANDS_8(mode, x, i + 8), \
      NATTEN_TENSOR_OPERANDS_8(mode, x, i + 16), NATTEN_TENSOR_OPERANDS_8(mode, x, i + 24)

// 32 columns of this thread's lane, to values[FIRST ..].
template <int FIRST, int COUNT>
static __device__ __forceinline__ void tensor_load(float (&values)[COUNT], unsigned address) {
  asm volatile("tcgen05.ld.sync.aligned.32x32b.x32.b32 " NATTEN_TENSOR_REGISTERS ", [%32];"
               : NATTEN_TENSOR_OPERANDS("=f", values, FIRST) : "r"(address) : "memory");
}

template <int FIRST, int COUNT>
static __device__ __forceinline__ void tensor_store(unsigned address, const float (&values)[COUNT]) {
  asm volatile("tcgen05.st.sync.aligned.32x32b.x32.b32 [%32], " NATTEN_TENSOR_REGISTERS ";"
               :: NATTEN_TENSOR_OPERANDS("f", values, FIRST), "r"(address) : "memory");
}

template <int FIRST, int COUNT>
static __device__ __forceinline__ void tensor_store(unsigned address, const unsigned (&words)[COUNT]) {
  asm volatile("tcgen05.st.sync.aligned.32x32b.x32.b32 [%32], " NATTEN_TENSOR_REGISTERS ";"
               :: NATTEN_TENSOR_OPERANDS("r", words, FIRST), "r"(address) : "memory");
}

// Waits for this warp's loads.
static __device__ __forceinline__ void tensor_wait_loads() {
  asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory");
}

// Waits for this warp's stores.
static __device__ __forceinline__ void tensor_wait_stores() {
  asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory");
}

}  // namespace arch
}  // namespace natten
