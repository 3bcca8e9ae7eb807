//! Software prefetch: what a task will read and write after the row block at hand goes into the queue that the products
//! empty as they run.

use natten_core::Element;

use crate::arch::prefetch::PrefetchQueue;
use crate::arch::rows::Rows;
use crate::arch::rows::SharedRows;
use crate::boxes::{Box3, LaneBox, volume};
use crate::groups::{Groups, pairs};
use crate::pack::Tokens;
use crate::parallel::Scratch;
use crate::schedule::{Schedule, Task, lane_tokens, row_tokens};
use crate::score_block::ScoreBlock;

/// Rows of a register block of scores, about.
const ROWS_IN_REGISTER_BLOCK: usize = 8;

/// What a task reads and writes, and its place in the schedule.
pub(crate) struct Prefetcher<'a, 'c, E> {
    pub schedule: &'a Schedule<'c>,
    /// Rows to pack.
    pub rows: &'a [&'a Rows<'c, E>],
    /// Rows of the lanes.
    pub lanes: &'a [&'a Rows<'c, E>],
    /// What is written when a tile is done.
    pub written: &'a [&'a SharedRows<'c, E>],
    /// The task's number.
    pub index: usize,
}

impl<E: Element> Prefetcher<'_, '_, E> {
    /// Lists the rows of the next row block: of the same tile, else of the next one, else of the next task, which this
    /// thread most likely runs.
    #[inline(always)]
    pub(crate) fn queue_next(
        &self,
        task: &Task,
        tile: &LaneBox,
        (next_block, next_tile): (Option<&Box3>, Option<&LaneBox>),
        scratch: &mut Scratch,
    ) {
        let Scratch { prefetch: queue, packed, windows, .. } = scratch;
        queue.clear();
        if next_block.is_none() && self.schedule.prefetches_rows {
            self.queue_outputs(task, tile, queue);
        }
        if let Some(next) = next_block {
            self.queue_row_block(task, tile, &packed.missing(next), queue);
        } else if let Some(next) = next_tile {
            let seen = next.each_ref().map(|axis| axis.seen());
            self.queue_row_block(task, next, &packed.missing(&seen), queue);
            self.queue_lanes(task, next, queue);
        } else if self.index + 1 < self.schedule.len() {
            let task = self.schedule.task(self.index + 1);
            if let Some(tile) = task.tiles(&self.schedule.blocking).next() {
                let seen = tile.each_ref().map(|axis| axis.seen());
                if let Some(first) = self.schedule.row_blocks(&seen).next() {
                    self.queue_row_block(&task, &tile, &first, queue);
                }
                self.queue_lanes(&task, &tile, queue);
            }
        }
        let groups = Groups::new(self.schedule.blocking.group, tile.each_ref().map(|axis| axis.lanes.len()));
        let first = pairs(&groups).next().and_then(|pair| ScoreBlock::new(windows, &groups, pair, packed));
        let rows = first.map_or(0, |block| volume(&block.seen));
        queue.spread_over(task.heads.len() * groups.len().div_ceil(2) * rows / ROWS_IN_REGISTER_BLOCK);
    }

    fn queue_row_block(&self, task: &Task, tile: &LaneBox, missing: &Box3, queue: &mut PrefetchQueue) {
        let tokens = row_tokens(tile, task.batch, task.head_kv);
        if self.schedule.prefetches_rows {
            self.rows.iter().for_each(|rows| queue_rows(queue, rows, &tokens, missing));
        }
    }

    fn queue_outputs(&self, task: &Task, tile: &LaneBox, queue: &mut PrefetchQueue) {
        let [x, y, z] = tile.each_ref().map(|axis| axis.lanes.len());
        for head in task.heads.clone() {
            let tokens = lane_tokens(tile, task.batch, head);
            for rows in self.written {
                for i in 0..x * y {
                    queue.push(rows.line(&tokens, [i / y, i % y], &(0..z)).prefetch_line());
                }
            }
        }
    }

    fn queue_lanes(&self, task: &Task, tile: &LaneBox, queue: &mut PrefetchQueue) {
        let positions = tile.each_ref().map(|axis| 0..axis.lanes.len());
        for head in task.heads.clone() {
            let tokens = lane_tokens(tile, task.batch, head);
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
