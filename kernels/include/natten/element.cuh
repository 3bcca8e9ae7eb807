// SPDX-License-Identifier: MIT OR Apache-2.0
// Element types: how values become the bits that memory and tensor cores hold, once for every kernel.
//
// pack and unpack are for any architecture; pack_pair, two elements in one word as the tensor cores read them, and Inputs,
// the name by which their products know the type, are for sm_80 and later. Both ways of packing round alike.
#pragma once
#include "arch/convert.cuh"
#include "device.cuh"

namespace natten {

struct F32 {
  enum { BYTES = 4, PER_CHUNK = 4 };  // a chunk has 16 bytes
  // A word (4 bytes) of storage holds PER_WORD elements; index picks one.
  NATTEN_DEVICE float unpack(unsigned word, int) { return __uint_as_float(word); }
  NATTEN_DEVICE unsigned pack(float value) { return __float_as_uint(value); }
};

struct F16 {
  enum { BYTES = 2, PER_CHUNK = 8 };
  typedef arch::HalfInputs Inputs;
  NATTEN_DEVICE float unpack(unsigned word, int index) {
    return arch::half_to_float((unsigned short)(index ? word >> 16 : word & 0xffff));
  }
  NATTEN_DEVICE unsigned pack(float value) { return arch::float_to_half(value); }
  NATTEN_DEVICE unsigned pack_pair(float low, float high) { return arch::pack_f16(low, high); }
};

// Flips the signs of two elements in a word, of either type of 16 bits.
enum : unsigned { PAIR_SIGNS = 0x80008000u };

// The upper half of an f32.
struct BF16 {
  enum { BYTES = 2, PER_CHUNK = 8 };
  typedef arch::Bfloat16Inputs Inputs;
  NATTEN_DEVICE float unpack(unsigned word, int index) {
    return __uint_as_float(index ? word & 0xffff0000u : word << 16);
  }
  // Round to nearest even; a NaN stays one even if only its low bits were set.
  NATTEN_DEVICE unsigned pack(float value) {
    const unsigned bits = __float_as_uint(value);
    const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : rounded;
  }
  NATTEN_DEVICE unsigned pack_pair(float low, float high) { return arch::pack_bf16(low, high); }
};

}  // namespace natten
