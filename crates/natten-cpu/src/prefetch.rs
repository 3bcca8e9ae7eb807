//! Software prefetch: what a task will read and write after the row block at hand goes into the queue that the products
//! empty as they run.

use natten_core::Element;

use crate::arch::prefetch::PrefetchQueue;
use crate::arch::rows::SharedRows;
use crate::groups::{Groups, pairs};
use crate::pack::{Rows, Tokens};
use crate::parallel::Scratch;
use crate::schedule::{Place, Schedule, lane_tokens, stream_tokens};
use crate::score_block::ScoreBlock;
use crate::tasks::{Box3, TileBox, volume};

/// Rows of a register tile of scores, about.
const ROWS_IN_TILE: usize = 8;

/// Where a task is in its schedule, and what it reads.
pub(crate) struct Prefetcher<'a, 'c, E> {
    pub schedule: &'a Schedule<'c>,
    /// Of the stream.
    pub rows: &'a [&'a Rows<'c, E>],
    /// Of the lanes.
    pub lanes: &'a [&'a Rows<'c, E>],
    /// What is written when a chunk is done.
    pub written: &'a [&'a SharedRows<'c, E>],
    /// The task's number.
    pub index: usize,
}

impl<E: Element> Prefetcher<'_, '_, E> {
    /// Lists the rows of the next box: of the same chunk, else of the next one, else of the next task, which this
    /// thread most likely runs.
    #[inline(always)]
    pub(crate) fn queue_next(
        &self,
        place: &Place,
        tile: &TileBox,
        (next_box, next_tile): (Option<&Box3>, Option<&TileBox>),
        scratch: &mut Scratch,
    ) {
        let Scratch { prefetch: queue, stream, spans, .. } = scratch;
        queue.clear();
        if next_box.is_none() && self.schedule.prefetches_rows {
            self.queue_outputs(place, tile, queue);
        }
        if let Some(next) = next_box {
            self.queue_row_block(place, tile, &stream.missing(next), queue);
        } else if let Some(next) = next_tile {
            let seen = next.each_ref().map(|axis| axis.seen());
            self.queue_row_block(place, next, &stream.missing(&seen), queue);
            self.queue_lanes(place, next, queue);
        } else if self.index + 1 < self.schedule.len() {
            let place = self.schedule.place(self.index + 1);
            if let Some(tile) = place.chunks(&self.schedule.blocking).next() {
                let seen = tile.each_ref().map(|axis| axis.seen());
                if let Some(first) = self.schedule.boxes(&seen).next() {
                    self.queue_row_block(&place, &tile, &first, queue);
                }
                self.queue_lanes(&place, &tile, queue);
            }
        }
        let groups = Groups::new(self.schedule.blocking.group, tile.each_ref().map(|axis| axis.lanes.len()));
        let first = pairs(&groups).next().and_then(|pair| ScoreBlock::new(spans, &groups, pair, stream));
        let rows = first.map_or(0, |block| volume(&block.seen));
        queue.spread_over(place.heads.len() * groups.len().div_ceil(2) * rows / ROWS_IN_TILE);
    }

    fn queue_row_block(&self, place: &Place, tile: &TileBox, missing: &Box3, queue: &mut PrefetchQueue) {
        let tokens = stream_tokens(tile, place.batch, place.head_kv);
        if self.schedule.prefetches_rows {
            self.rows.iter().for_each(|rows| queue_rows(queue, rows, &tokens, missing));
        }
    }

    fn queue_outputs(&self, place: &Place, tile: &TileBox, queue: &mut PrefetchQueue) {
        let [x, y, z] = tile.each_ref().map(|axis| axis.lanes.len());
        for head in place.heads.clone() {
            let tokens = lane_tokens(tile, place.batch, head);
            for rows in self.written {
                for i in 0..x * y {
                    queue.push(rows.line(&tokens, [i / y, i % y], &(0..z)).prefetch_line());
                }
            }
        }
    }

    fn queue_lanes(&self, place: &Place, tile: &TileBox, queue: &mut PrefetchQueue) {
        let positions = tile.each_ref().map(|axis| 0..axis.lanes.len());
        for head in place.heads.clone() {
            let tokens = lane_tokens(tile, place.batch, head);
            self.lanes.iter().for_each(|rows| queue_rows(queue, rows, &tokens, &positions));
        }
    }
}

/// Rows of a box, to be fetched before they are packed.
fn queue_rows<E: Element>(queue: &mut PrefetchQueue, rows: &Rows<'_, E>, tokens: &Tokens, missing: &Box3) {
    if volume(missing) == 0 {
        return;
    }
    for x in missing[0].clone() {
        for y in missing[1].clone() {
            queue.push(rows.line(tokens, [x, y], &missing[2]).prefetch_line());
        }
    }
}
