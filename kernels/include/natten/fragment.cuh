// SPDX-License-Identifier: MIT OR Apache-2.0
// Rows of 16-bit elements in shared memory, without bank conflicts, as ldmatrix reads them.
#pragma once
#include "arch/copy.cuh"
#include "device.cuh"

namespace natten {

// ROWS rows of DIM elements, in panels of at most 64 elements (128 bytes), each panel row by row. The 16-byte chunks of a
// row are exchanged by XOR with the row's number, so that eight neighbouring rows have the same chunk in different banks.
template <int ROWS, int DIM>
struct Panels {
  enum {
    PITCH = DIM >= 64 ? 128 : DIM * 2,  // bytes of a row within a panel
    CHUNKS = PITCH / 16,                // of a row within a panel
    PANELS = DIM * 2 / PITCH,
    PANEL_BYTES = ROWS * PITCH,
    BYTES = PANELS * PANEL_BYTES
  };
  static_assert(CHUNKS == 8 || CHUNKS == 4, "whole rows of banks");

  // Byte offset of chunk 0 or 1 (`half`) of a row; for chunk 2 k + half see `step`.
  NATTEN_DEVICE unsigned offset(int row, int half) {
    const int turn = CHUNKS == 8 ? row & 7 : row >> 1 & 3;
    return row * PITCH + ((half ^ turn) << 4);
  }
  // Address of chunk 2 k + half, from the address of chunk `half` of the same row in memory aligned to PITCH.
  NATTEN_DEVICE unsigned step(unsigned address, int k) {
    return (address ^ (k % (CHUNKS / 2) << 5)) + k / (CHUNKS / 2) * PANEL_BYTES;
  }
};

// How THREADS threads copy such rows: a thread has one chunk column and every STRIDE-th row.
template <int ROWS, int DIM, int THREADS>
struct Copier {
  typedef Panels<ROWS, DIM> Layout;
  enum { STRIDE = THREADS / Layout::CHUNKS, PASSES = ROWS / STRIDE };
  static_assert(PASSES * STRIDE == ROWS, "whole passes");

  NATTEN_DEVICE int row(unsigned thread) { return thread / (unsigned)Layout::CHUNKS; }
  NATTEN_DEVICE int chunk(unsigned thread) { return thread % (unsigned)Layout::CHUNKS; }
  NATTEN_DEVICE unsigned offset(unsigned thread) { return Layout::offset(row(thread), chunk(thread)); }

  // One chunk of one row, or zeros where `valid` has none of the bits of `mask`: `from` is the thread's chunk of that row's
  // first panel, `to` its offset() plus the slot.
  NATTEN_DEVICE void copy(unsigned to, const char* from, int pass, int panel, unsigned valid, unsigned mask) {
    arch::copy_16_bytes_or_zero(to + panel * Layout::PANEL_BYTES + pass * STRIDE * Layout::PITCH,
                                from + panel * Layout::PITCH, valid, mask);
  }
};

}  // namespace natten
