// SPDX-License-Identifier: MIT OR Apache-2.0
// How every function of the kernels is declared: nothing is called on a GPU, all is compiled into its kernel.
#pragma once

#define NATTEN_DEVICE static __device__ __forceinline__
