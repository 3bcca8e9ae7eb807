// SPDX-License-Identifier: MIT OR Apache-2.0
// A warp that sees to items from their beginning to their end: it describes those of this cta one behind the other, as soon as there is a
// place for one, and has their queries loaded; once consumers have left its result in shared memory, it sends that off.
//
// An item of which consumers lost rows comes again, to be done carefully.
#pragma once
#include "../arch/memory.cuh"
#include "copies.cuh"
#include "ring.cuh"
#include "work.cuh"

namespace natten {
namespace sm90 {

template <class C>
struct ItemProducer {
  const ForwardParamsSm90& p;
  unsigned shared;

  // Worked out anew each time: what follows from it takes no registers, of which there are few.
  __device__ __forceinline__ int lane() const { return arch::opaque((int)threadIdx.x) % 32; }

  __device__ __forceinline__ void run() const {
    unsigned described = 0;  // items handed out,
    unsigned ended = 0;      // and of which it is known how they went
    int next = (int)blockIdx.x;
    int lost = -1;  // the place of an item that comes again
    for (;;) {
      unsigned loading;  // the item whose queries there is a place for now, if it has been handed out
      if (described < ended + C::ITEMS && (lost >= 0 || next < p.items)) {
        loading = described;
        described += hand_out(described, lost < 0 ? next : item(lost).index(), lost) ? 1 : 0;
        if (lost < 0) next += (int)gridDim.x;
        lost = -1;
      } else if (ended < described) {
        lost = await_end(ended++);
        loading = ended + C::QUERIES - 1;
      } else {
        break;
      }
      if (loading < described && loading < ended + C::QUERIES) push_queries(loading);
    }
    const int place = described % C::ITEMS;
    if (lane() == 0) item(place).set({0, 0, 0, 0});
    announce(place);
    if (lane() == 0) arch::barrier_arrive(shared + C::QUERY_FULL + 8 * (described % C::QUERIES));
    arch::await_stores_read();  // shared memory ends with the cta
  }

  __device__ __forceinline__ WorkItem item(int place) const { return {shared + C::ITEM_AT + place * WorkItem::BYTES}; }

  // Describes item `index` as the cta's next one, which may come for rows that were lost elsewhere. False if there is no such item.
  __device__ __forceinline__ bool hand_out(unsigned number, int index, int lost) const {
    arch::sync_warp();  // all lanes know the index: it may be written over
    const int place = number % C::ITEMS;
    const bool is_careful = C::LOSING > 0 && is_always_careful(p);
    if (lane() == 0) {
      item(place).set_number(number);
      item(place).set_order(index, is_careful || lost >= 0);
    }
    note_due(place, is_careful, lost);
    const bool exists = describe_item<C>(p, index, item(place), lane());
    if (exists) announce(place);
    return exists;
  }

  __device__ __forceinline__ void announce(int place) const {
    arch::sync_warp();  // lanes have described it together
    if (lane() == 0) arch::barrier_arrive(shared + C::ITEM_READY + 8 * place);
  }

  // Waits until an item is done with, and sends its result off. Its place if it lost rows, otherwise -1.
  __device__ __forceinline__ int await_end(unsigned number) const {
    const RingPlace at = RingPlace::template of<C::QUERIES>(number);
    const int place = number % C::ITEMS;
    arch::barrier_wait(shared + C::QUERY_EMPTY + 8 * at.stage, at.parity);
    const unsigned result = C::queries(shared, at.stage, 0);
    if (stores_rows_alone(p, item(place))) store_alone(place, result);
    else if (lane() == 0) store_rows<C>(result, p.out_map, p.out_steps, item(place), p.query_box_log2, p.query_side);
    return has_lost(place) ? place : -1;
  }

  // The rows that are due, each alone, behind what was written of the item before.
  __device__ __forceinline__ void store_alone(int place, unsigned result) const {
    arch::await_stores();
    arch::sync_warp();
    const int chunks = C::HEAD_DIM / 8;
#pragma unroll 1
    for (int index = lane(); index < C::WARPGROUPS * C::BOX_ROWS * chunks; index += 32) {
      const int row = index / chunks, chunk = index % chunks;
      const long long at = C::row_note(shared, place, row).result(RowNote::OUT);
      if (at == RowNote::ABSENT || chunk * 8 >= p.geometry.head_dim_v) continue;
      int words[4];
      arch::load_shared(words, result + row / C::BOX_ROWS * C::QUERY_BOX_BYTES + chunk_at<C>(row % C::BOX_ROWS, chunk));
      const unsigned bits[4] = {(unsigned)words[0], (unsigned)words[1], (unsigned)words[2], (unsigned)words[3]};
      arch::store_16_bytes((char*)p.out + (at + chunk * 8) * 2, bits);
    }
    arch::fence_async_proxy();  // the copy engine writes queries there next
    arch::sync_warp();
  }

  __device__ __forceinline__ bool has_lost(int place) const {
    int votes[2] = {0, 0};
    const int warp = lane();  // of the consumers
    if (warp < 4 * C::LOSING) arch::load_shared(votes, C::lost_rows(shared, place, warp).address);
    return arch::ballot((votes[0] | votes[1]) != 0) != 0;
  }

  // For which rows a careful item comes: all, or those that it lost in its former place.
  __device__ __forceinline__ void note_due(int place, bool is_careful, int lost) const {
    const int warp = lane();
    if (warp >= 4 * C::LOSING) return;
    if (is_careful) C::lost_rows(shared, place, warp).fill();
    else if (lost >= 0) C::lost_rows(shared, place, warp).copy(C::lost_rows(shared, lost, warp));
  }

  __device__ __forceinline__ void push_queries(unsigned number) const {
    if (lane() != 0) return;
    const int slot = number % C::QUERIES;
    const unsigned full = shared + C::QUERY_FULL + 8 * slot;
    arch::await_stores_read();  // of the result that was there
    arch::barrier_arrive_expect(full, C::QUERY_TILE_BYTES);
    load_rows<C>(C::queries(shared, slot, 0), full, p.query, p.query_steps, item(number % C::ITEMS), p.query_box_log2, p.query_side);
  }
};

}  // namespace sm90
}  // namespace natten
