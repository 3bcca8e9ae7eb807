// SPDX-License-Identifier: MIT OR Apache-2.0
// How the lanes of a group share one row of head_dim elements in global memory.
//
// Lane l of a group of LANES holds ELEMS elements in chunks of 16 bytes: chunk c covers the row's elements from
// (c * LANES + l) * PER_CHUNK on, so that a group's loads are contiguous. ALIGNED kernels move whole chunks: every base,
// stride and row length is a multiple of 16 bytes; the others move element by element.
#pragma once
#include "arch/memory.cuh"
#include "element.cuh"

namespace natten {

// One lane's part of a row, as stored.
template <class T, int LANES, int ELEMS, bool ALIGNED>
struct Row {
  enum {
    WORDS = ELEMS * T::BYTES / 4,
    PER_WORD = 4 / T::BYTES,
    CHUNKS = WORDS / 4,
    WIDTH = LANES * ELEMS  // the longest row
  };
  static_assert(CHUNKS * 4 == WORDS, "whole chunks");

  unsigned words[WORDS];

  // `length` elements from `row`, zeros beyond. A row that fills the lanes takes the short way.
  __device__ __forceinline__ void load(const void* row, int length, int lane) {
    if (ALIGNED && length == WIDTH) load_whole(row, lane);
    else load_part(row, length, lane);
  }

  __device__ __forceinline__ void load_whole(const void* row, int lane) {
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) load_chunk(c, (const char*)row + lane * 16 + c * LANES * 16);
  }

  __device__ __forceinline__ void load_part(const void* row, int length, int lane) {
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const int first = (c * LANES + lane) * T::PER_CHUNK;
#pragma unroll
      for (int w = 0; w < 4; ++w) words[c * 4 + w] = 0;
      if (ALIGNED) {
        if (first < length) load_chunk(c, (const char*)row + lane * 16 + c * LANES * 16);
      } else {
        load_elements(c, row, first, length);
      }
    }
  }

  // From this lane's first chunk on if the row is there, otherwise what it holds stays. WHOLE: the row fills the lanes.
  template <bool WHOLE>
  __device__ __forceinline__ void load_if(bool there, const char* from, int length, int lane) {
    if (!WHOLE) {
      if (there) load_part(from - lane * 16, length, lane);
      return;
    }
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      unsigned chunk[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) chunk[w] = words[c * 4 + w];
      arch::load_16_bytes_if(there, chunk, from + c * LANES * 16);
#pragma unroll
      for (int w = 0; w < 4; ++w) words[c * 4 + w] = chunk[w];
    }
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int w = 0; w < WORDS; ++w) words[w] = 0;
  }

  // As floats, all at once: conversions inside the branches of several items would be done once an item.
  __device__ __forceinline__ void unpack(float (&values)[ELEMS]) const {
#pragma unroll
    for (int e = 0; e < ELEMS; ++e) values[e] = T::unpack(words[e / PER_WORD], e % PER_WORD);
  }

  __device__ __forceinline__ void load_chunk(int c, const char* from) {
    unsigned chunk[4];
    arch::load_16_bytes(chunk, from);
#pragma unroll
    for (int w = 0; w < 4; ++w) words[c * 4 + w] = chunk[w];
  }

  __device__ __forceinline__ void load_elements(int c, const void* row, int first, int length) {
#pragma unroll
    for (int e = 0; e < T::PER_CHUNK; ++e) {
      if (first + e < length) {
        const char* from = (const char*)row + (long long)(first + e) * T::BYTES;
        if (T::BYTES == 4) words[c * 4 + e] = arch::load_4_bytes(from);
        else words[c * 4 + e / 2] |= arch::load_2_bytes(from) << (e % 2 * 16);
      }
    }
  }
};

// One lane's part of a row, as floats.
template <class T, int LANES, int ELEMS, bool ALIGNED>
NATTEN_DEVICE void load_row(float (&values)[ELEMS], const void* row, int length, int lane) {
  Row<T, LANES, ELEMS, ALIGNED> stored;
  stored.load(row, length, lane);
  stored.unpack(values);
}

// Writes one lane's part of a row of `length` elements, each times `factor`.
template <class T, int LANES, bool ALIGNED, int ELEMS>
NATTEN_DEVICE void store_row(void* row, const float (&values)[ELEMS], float factor, int length, int lane) {
#pragma unroll
  for (int c = 0; c < ELEMS / T::PER_CHUNK; ++c) {
    const int first = (c * LANES + lane) * T::PER_CHUNK;
    unsigned chunk[4] = {0, 0, 0, 0};
#pragma unroll
    for (int e = 0; e < T::PER_CHUNK; ++e) {
      const unsigned bits = T::pack(values[c * T::PER_CHUNK + e] * factor);
      chunk[e * T::BYTES / 4] |= bits << (T::BYTES == 2 ? e % 2 * 16 : 0);
      if (!ALIGNED && first + e < length) {
        char* to = (char*)row + (long long)(first + e) * T::BYTES;
        if (T::BYTES == 4) arch::store_4_bytes(to, bits);
        else arch::store_2_bytes(to, bits);
      }
    }
    if (ALIGNED && first < length) arch::store_16_bytes((char*)row + (long long)first * T::BYTES, chunk);
  }
}

// The same lane's part as f32, whatever the type whose chunks the lanes hold: for partial sums.
template <class T, int LANES, int ELEMS>
NATTEN_DEVICE void store_partial(float* row, const float (&values)[ELEMS], float factor, int length, int lane) {
#pragma unroll
  for (int e = 0; e < ELEMS; ++e) {
    const int index = (e / T::PER_CHUNK * LANES + lane) * T::PER_CHUNK + e % T::PER_CHUNK;
    if (index < length) arch::store_4_bytes(row + index, __float_as_uint(values[e] * factor));
  }
}

// One element of a row.
template <class T>
NATTEN_DEVICE float load_element(const void* row, int index) {
  const char* from = (const char*)row + (long long)index * T::BYTES;
  return T::unpack(T::BYTES == 4 ? arch::load_4_bytes(from) : arch::load_2_bytes(from), 0);
}

template <class T>
NATTEN_DEVICE void store_element(void* row, int index, float value) {
  char* to = (char*)row + (long long)index * T::BYTES;
  if (T::BYTES == 4) arch::store_4_bytes(to, T::pack(value));
  else arch::store_2_bytes(to, T::pack(value));
}

}  // namespace natten
