// SPDX-License-Identifier: MIT OR Apache-2.0
// What a kernel tells those who launch it, beside its launch bounds and its parameter.
#pragma once

// A constant that `cargo xtask kernels` reads from the compiled text and strips: bytes of dynamic shared memory of a block.
// So the sum stands once, where the layout is.
#define NATTEN_DYNAMIC_SHARED(bytes) \
  extern "C" {                       \
  __constant__ unsigned natten_dynamic_shared = bytes; \
  }
