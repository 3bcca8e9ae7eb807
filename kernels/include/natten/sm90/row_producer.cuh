// SPDX-License-Identifier: MIT OR Apache-2.0
// Warps beside the producers that describe an item's rows while consumers work on the item before it: which keys each sees, and where its
// results go.
#pragma once
#include "config.cuh"
#include "rows.cuh"
#include "work.cuh"

namespace natten {
namespace sm90 {

template <class C>
struct RowProducer {
  enum { LANES = 32 * C::ROW_WARPS };

  const ForwardParamsSm90& p;
  unsigned shared;
  int lane;  // of all these warps

  // One row. Of an item that comes again, other rows than those that it lost have their results.
  __device__ __forceinline__ void describe(const WorkItem& item, const WorkItem::Head& head, int place, int row) const {
    const RowNote note = C::row_note(shared, place, row);
    const RowPlace lies = describe_row<false>(p.geometry.axes, p.query_box_log2, p.query_side, item,
                                              {row / C::BOX_ROWS, row % C::BOX_ROWS}, note);
    const bool is_due = lies.exists && (!item.is_careful() || C::lost_rows(shared, place, row / 16).has(row % 16));
    note.set_result(RowNote::LSE, is_due ? row_offset(p.lse_strides, head, lies) : RowNote::ABSENT);
    if (!stores_rows_alone(p, item)) return;  // the copy engine finds the way of rows
    note.set_result(RowNote::OUT, is_due ? row_offset(p.out_strides, head, lies) : RowNote::ABSENT);
  }

  __device__ __forceinline__ void run() const {
    for (RingPlace at = {0, 0};; at.template advance<C::ITEMS>()) {
      const WorkItem item = {shared + C::ITEM_AT + at.stage * WorkItem::BYTES};
      arch::barrier_wait(shared + C::ITEM_READY + 8 * at.stage, at.parity);
      const WorkItem::Head head = item.head();
      const int rows = head.tiles == 0 ? 0 : C::WARPGROUPS * C::BOX_ROWS;
#pragma unroll 1
      for (int row = lane; row < rows; row += LANES) describe(item, head, at.stage, row);
      arch::sync_warp();
      if (lane % 32 == 0) arch::barrier_arrive(shared + C::ROWS_READY + 8 * at.stage);
      if (head.tiles == 0) return;
    }
  }
};

}  // namespace sm90
}  // namespace natten
