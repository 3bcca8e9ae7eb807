// SPDX-License-Identifier: MIT OR Apache-2.0
// Tensor cores of sm_80 and later, warp by warp: mma.m16n8k16 and the loads that feed it.
//
// Fragments, with lane = 4 * row + quad: C holds (row, 2 quad + {0, 1}) in c[0..1] and (row + 8, ..) in c[2..3].
#pragma once
#include "convert.cuh"

namespace natten {
namespace arch {

// add: c += a (16 x 16) * b (16 x 8). Not volatile: the compiler may move it between loads and softmax.
template <class Inputs>
struct Mma;

template <>
struct Mma<HalfInputs> {
  static __device__ __forceinline__ void add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

template <>
struct Mma<Bfloat16Inputs> {
  static __device__ __forceinline__ void add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

// Four 8 x 8 matrices of 16-bit elements; lane i gives the shared address of row i % 8 of matrix i / 8.
static __device__ __forceinline__ void load_matrices(unsigned (&r)[4], unsigned shared_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address));
}

// The same, of 4 x 4-byte elements a row: an 8 x 4 matrix each, element (i, j) to lane 4 i + j.
static __device__ __forceinline__ void load_matrices(float (&r)[4], unsigned shared_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=f"(r[0]), "=f"(r[1]), "=f"(r[2]), "=f"(r[3]) : "r"(shared_address));
}

static __device__ __forceinline__ void load_matrices_transposed(unsigned (&r)[4], unsigned shared_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address));
}

}  // namespace arch
}  // namespace natten
