// SPDX-License-Identifier: MIT OR Apache-2.0
// Warpgroup matrix multiply (sm_90a): D[64 x N] in registers, B in shared memory, A in shared memory or registers.
//
// A warpgroup is four warps starting at a multiple of four; all of them issue each instruction here together. Warp w
// owns rows 16 w .. 16 w + 15 of D. In it, lane l holds of rows l / 4 (half 0) and l / 4 + 8 (half 1)
//   d[4 n + 2 half + e] = D[row][8 n + 2 (l % 4) + e],
// and the A operand in registers has that same layout, two columns to a register.
//
// The multiplications run asynchronously: between a fence and the wait that retires them neither D nor A may be
// touched. The compiler knows nothing of that, so `settle` follows every wait: it pins the values that the wait made
// valid behind it.
#pragma once
#include "convert.cuh"
#include "settle.cuh"

namespace natten {
namespace arch {

// Orders register accesses before the first multiplication that uses the registers.
static __device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

static __device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING committed groups are unfinished.
template <int PENDING>
static __device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(PENDING) : "memory");
}

// Which swizzle a tile in shared memory was written with; the value is the descriptor's field.
enum Swizzle { SWIZZLE_128_BYTES = 1, SWIZZLE_64_BYTES = 2 };

// Describes an operand in shared memory. Strides in bytes. Operands whose rows run along k (Q, K) use only
// `eight_rows`, from one group of eight rows to the next. Operands whose rows run along n (V) also use `next_block`,
// from one block as wide as the swizzle to the next.
static __device__ __forceinline__ unsigned long long describe(unsigned address, Swizzle swizzle, unsigned eight_rows,
                                                              unsigned next_block) {
  return (unsigned long long)((address & 0x3ffff) >> 4) | (unsigned long long)(next_block >> 4) << 16 |
         (unsigned long long)(eight_rows >> 4) << 32 | (unsigned long long)swizzle << 62;
}

template <class Inputs, int N>
struct Wgmma;

#define NATTEN_REGISTERS_16 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NATTEN_REGISTERS_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NATTEN_REGISTERS_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NATTEN_REGISTERS_128 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define NATTEN_OPERANDS_4(mode, d, i) mode(d[i]), mode(d[i + 1]), mode(d[i + 2]), mode(d[i + 3])
#define NATTEN_OPERANDS_16(mode, d, i) \
  NATTEN_OPERANDS_4(mode, d, i), NATTEN_OPERANDS_4(mode, d, i + 4), NATTEN_OPERANDS_4(mode, d, i + 8), \
      NATTEN_OPERANDS_4(mode, d, i + 12)
#define NATTEN_OPERANDS_32(mode, d, i) NATTEN_OPERANDS_16(mode, d, i), NATTEN_OPERANDS_16(mode, d, i + 16)
#define NATTEN_OPERANDS_64(mode, d, i) NATTEN_OPERANDS_32(mode, d, i), NATTEN_OPERANDS_32(mode, d, i + 32)
#define NATTEN_OPERANDS_128(mode, d, i) NATTEN_OPERANDS_64(mode, d, i), NATTEN_OPERANDS_64(mode, d, i + 64)

// multiply: D = A B. multiply_add: D += A B. Both with k = 16, A and B in shared memory with rows along k (Q K^T).
// accumulate: D += A B with A in registers and B's rows along n (P V).
// COUNT is N / 2, the registers of D; the operands after them are numbered COUNT, COUNT + 1, ...
#define NATTEN_WGMMA(INPUTS, TYPE, N, COUNT, A0, A1, A2, A3, A4) \
  template <> \
  struct Wgmma<INPUTS, N> { \
    static __device__ __forceinline__ void multiply(float (&d)[COUNT], unsigned long long a, unsigned long long b) { \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE \
                   " {" NATTEN_REGISTERS_##COUNT "}, %" #A0 ", %" #A1 ", 0, 1, 1, 0, 0;" \
                   : NATTEN_OPERANDS_##COUNT("=f", d, 0) : "l"(a), "l"(b)); \
    } \
    static __device__ __forceinline__ void multiply_add(float (&d)[COUNT], unsigned long long a, unsigned long long b) { \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE \
                   " {" NATTEN_REGISTERS_##COUNT "}, %" #A0 ", %" #A1 ", 1, 1, 1, 0, 0;" \
                   : NATTEN_OPERANDS_##COUNT("+f", d, 0) : "l"(a), "l"(b)); \
    } \
    static __device__ __forceinline__ void accumulate(float (&d)[COUNT], const unsigned (&a)[4], unsigned long long b) { \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE \
                   " {" NATTEN_REGISTERS_##COUNT "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #A4 ", 1, 1, 1, 1;" \
                   : NATTEN_OPERANDS_##COUNT("+f", d, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
    } \
  };
#define NATTEN_WGMMA_TYPES(N, COUNT, ...) \
  NATTEN_WGMMA(HalfInputs, "f16", N, COUNT, __VA_ARGS__) \
  NATTEN_WGMMA(Bfloat16Inputs, "bf16", N, COUNT, __VA_ARGS__)

NATTEN_WGMMA_TYPES(32, 16, 16, 17, 18, 19, 20)
NATTEN_WGMMA_TYPES(64, 32, 32, 33, 34, 35, 36)
NATTEN_WGMMA_TYPES(128, 64, 64, 65, 66, 67, 68)
NATTEN_WGMMA_TYPES(256, 128, 128, 129, 130, 131, 132)

}  // namespace arch
}  // namespace natten
