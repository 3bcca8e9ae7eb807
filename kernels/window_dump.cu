// SPDX-License-Identifier: MIT OR Apache-2.0
// Writes out what window.cuh says about one axis, so that a test can hold it against natten-core's formula.
#include <natten/window.cuh>

extern "C" __global__ void __launch_bounds__(128) NATTEN_ENTRY(natten::WindowDumpParams p) {
  const int token = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (token >= p.extent) return;
  const int position = natten::divide(token, p.axis.dilation);
  const int residue = token - position * (int)p.axis.dilation.value;
  const natten::Residue of = natten::residue_of(p.axis, residue);
  const int query = position - of.query_start, key = position - of.key_start;
  const natten::Range none = {0, 0};
  const natten::Range sees = query >= 0 && query < of.queries ? natten::window(p.axis, of, query) : none;
  const natten::Range seen_by = key >= 0 && key < of.keys ? natten::inverse_window(p.axis, of, key) : none;
  int* ranges = p.ranges + 4 * (long long)token;
  ranges[0] = sees.start;
  ranges[1] = sees.end;
  ranges[2] = seen_by.start;
  ranges[3] = seen_by.end;
}
