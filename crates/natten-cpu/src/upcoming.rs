//! What a task will read and write after the box at hand, so that it can be fetched in time.

use natten_core::Element;

use crate::arch::prefetch::Ahead;
use crate::arch::rows::SharedRows;
use crate::groups::{Groups, pairs};
use crate::pack::Rows;
use crate::packed::announce;
use crate::parallel::Scratch;
use crate::schedule::{Place, Schedule, lane_tokens, stream_tokens};
use crate::score_block::ScoreBlock;
use crate::tasks::{Box3, TileBox, volume};

/// Rows of a register tile of scores, about.
const ROWS_IN_TILE: usize = 8;

/// Where a task is in its schedule, and what it reads.
pub(crate) struct Upcoming<'a, 'c, E> {
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

impl<E: Element> Upcoming<'_, '_, E> {
    /// Lists the rows of the next box: of the same chunk, else of the next one, else of the next task, which this
    /// thread most likely runs.
    #[inline(always)]
    pub(crate) fn announce(
        &self,
        place: &Place,
        tile: &TileBox,
        (next_box, next_tile): (Option<&Box3>, Option<&TileBox>),
        scratch: &mut Scratch,
    ) {
        let Scratch { ahead, stream, spans, .. } = scratch;
        ahead.clear();
        if next_box.is_none() && self.schedule.far {
            self.written(place, tile, ahead);
        }
        if let Some(next) = next_box {
            self.stream(place, tile, &stream.missing(next), ahead);
        } else if let Some(next) = next_tile {
            let seen = next.each_ref().map(|axis| axis.seen());
            self.stream(place, next, &stream.missing(&seen), ahead);
            self.lanes(place, next, ahead);
        } else if self.index + 1 < self.schedule.len() {
            let place = self.schedule.place(self.index + 1);
            if let Some(tile) = place.chunks(&self.schedule.blocking).next() {
                let seen = tile.each_ref().map(|axis| axis.seen());
                if let Some(first) = self.schedule.boxes(&seen).next() {
                    self.stream(&place, &tile, &first, ahead);
                }
                self.lanes(&place, &tile, ahead);
            }
        }
        let groups = Groups::new(self.schedule.blocking.group, tile.each_ref().map(|axis| axis.lanes.len()));
        let first = pairs(&groups).next().and_then(|pair| ScoreBlock::new(spans, &groups, pair, stream));
        let rows = first.map_or(0, |block| volume(&block.seen));
        ahead.spread(place.heads.len() * groups.len().div_ceil(2) * rows / ROWS_IN_TILE);
    }

    fn stream(&self, place: &Place, tile: &TileBox, missing: &Box3, ahead: &mut Ahead) {
        let tokens = stream_tokens(tile, place.batch, place.head_kv);
        if self.schedule.far {
            self.rows.iter().for_each(|rows| announce(ahead, rows, &tokens, missing));
        }
    }

    fn written(&self, place: &Place, tile: &TileBox, ahead: &mut Ahead) {
        let [x, y, z] = tile.each_ref().map(|axis| axis.lanes.len());
        for head in place.heads.clone() {
            let tokens = lane_tokens(tile, place.batch, head);
            for rows in self.written {
                for i in 0..x * y {
                    ahead.push(rows.line(&tokens, [i / y, i % y], &(0..z)).ahead());
                }
            }
        }
    }

    fn lanes(&self, place: &Place, tile: &TileBox, ahead: &mut Ahead) {
        let positions = tile.each_ref().map(|axis| 0..axis.lanes.len());
        for head in place.heads.clone() {
            let tokens = lane_tokens(tile, place.batch, head);
            self.lanes.iter().for_each(|rows| announce(ahead, rows, &tokens, &positions));
        }
    }
}
