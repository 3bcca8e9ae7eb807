//! One tile of a backward pass, walked in chunks like the forward's.

use natten_core::{Element, Problem};

use super::Operands;
use crate::arch::rows::SharedRows;
use crate::arch::{Kernel, Simd};
use crate::groups::{Groups, pairs};
use crate::pack::{Rows, Tokens, pack_lanes};
use crate::packed::Form;
use crate::parallel::Scratch;
use crate::prefetch::Prefetcher;
use crate::schedule::{Place, Schedule, lane_tokens, plain_tokens, stream_tokens};
use crate::score_block::ScoreBlock;
use crate::score_tile::{ScoreOperands, SumOperands};
use crate::softmax::{LOG2_E, exp2};
use crate::tasks::{Box3, Boxes, cut};
use crate::tile_mask::ScoreTileShape;

/// Positions of the stream that are packed at once where a task does not walk and has no schedule.
const BOX: usize = 512;

/// Pass 1 for one tile: gradients of queries. One head after the other: packing keys again is cheap beside the three
/// products that use them.
#[inline(always)]
pub(super) fn queries<S: Simd, E: Element>(
    simd: S,
    operands: &Operands<'_, E>,
    schedule: &Schedule<'_>,
    index: usize,
    d_query: &SharedRows<'_, E>,
    scratch: &mut Scratch,
) {
    let shape = Shape::new::<S>(operands.problem);
    let whole = schedule.place(index);
    let prefetcher = Prefetcher {
        schedule,
        rows: &[&operands.key, &operands.value],
        lanes: &[&operands.query, &operands.d_out, &operands.out],
        written: &[d_query],
        index,
    };
    for head in whole.heads.clone() {
        let place = Place { heads: head..head + 1, tile: whole.tile.clone(), ..whole };
        schedule.begin(&place, scratch);
        let mut chunks = place.chunks(&schedule.blocking).peekable();
        while let Some(tile) = chunks.next() {
            schedule.look(&tile, scratch);
            let groups = Groups::new(schedule.blocking.group, tile.each_ref().map(|axis| axis.lanes.len()));
            let lanes = lane_tokens(&tile, place.batch, head);
            let part = Part::<true> { shape: &shape, groups: &groups };
            part.begin(simd, [&operands.query, &operands.d_out], &lanes, scratch);
            part.pack_lane_scalars(simd, operands, &lanes, scratch);
            let tokens = stream_tokens(&tile, place.batch, place.head_kv);
            let rows = [&operands.key, &operands.value];
            let boxes = schedule.boxes(&scratch.spans.all());
            part.take(simd, operands, (rows, &tokens), boxes, scratch, |next, scratch| {
                prefetcher.queue_next(&place, &tile, (next, chunks.peek()), scratch);
            });
            if let Some([keys, values]) = &operands.additional {
                let all = [0..1, 0..1, 0..operands.problem.additional_keys()];
                let tokens = plain_tokens(place.batch, place.head_kv);
                scratch.spans.everything(&tile, &all);
                // Additional keys have a ring of their own, kept from chunk to chunk.
                std::mem::swap(&mut scratch.stream, &mut scratch.additional);
                let boxes = cut(&all, schedule.blocking.stream, BOX);
                part.take(simd, operands, ([keys, values], &tokens), boxes, scratch, |_, _| {});
                std::mem::swap(&mut scratch.stream, &mut scratch.additional);
                scratch.spans.of_tile(&tile);
            }
            part.store(simd, 0, &lanes, d_query, scratch);
        }
    }
}

/// Pass 2 for one tile: gradients of keys and values.
#[inline(always)]
pub(super) fn keys<S: Simd, E: Element>(
    simd: S,
    operands: &Operands<'_, E>,
    schedule: &Schedule<'_>,
    index: usize,
    gradients: [&SharedRows<'_, E>; 2],
    scratch: &mut Scratch,
) {
    let shape = Shape::new::<S>(operands.problem);
    let place = schedule.place(index);
    let prefetcher = Prefetcher {
        schedule,
        rows: &[&operands.query, &operands.d_out, &operands.out],
        lanes: &[&operands.key, &operands.value],
        written: &gradients,
        index,
    };
    schedule.begin(&place, scratch);
    let mut chunks = place.chunks(&schedule.blocking).peekable();
    while let Some(tile) = chunks.next() {
        schedule.look(&tile, scratch);
        let groups = Groups::new(schedule.blocking.group, tile.each_ref().map(|axis| axis.lanes.len()));
        let lanes = lane_tokens(&tile, place.batch, place.head_kv);
        let part = Part::<false> { shape: &shape, groups: &groups };
        part.begin(simd, [&operands.key, &operands.value], &lanes, scratch);
        for head in place.heads.clone() {
            if place.heads.len() > 1 {
                scratch.stream.begin([0; 2]);
            }
            let tokens = stream_tokens(&tile, place.batch, head);
            let rows = [&operands.query, &operands.d_out];
            let boxes = schedule.boxes(&scratch.spans.all());
            part.take(simd, operands, (rows, &tokens), boxes, scratch, |next, scratch| {
                // With several heads the next box is as often another head's: fetched as it is packed.
                if place.heads.len() == 1 {
                    prefetcher.queue_next(&place, &tile, (next, chunks.peek()), scratch);
                }
            });
        }
        part.store(simd, 0, &lanes, gradients[0], scratch);
        part.store(simd, 1, &lanes, gradients[1], scratch);
    }
}

/// Pass 3 for one tile: gradients of additional keys and values, which all queries see.
#[inline(always)]
pub(super) fn additional<S: Simd, E: Element>(
    simd: S,
    operands: &Operands<'_, E>,
    rows: [&Rows<'_, E>; 2],
    place: &Place,
    gradients: [&SharedRows<'_, E>; 2],
    scratch: &mut Scratch,
) {
    let shape = Shape::new::<S>(operands.problem);
    let groups = Groups::new([1, 1, S::LANES], place.tile.each_ref().map(|axis| axis.lanes.len()));
    let lanes = lane_tokens(&place.tile, place.batch, place.head_kv);
    let part = Part::<false> { shape: &shape, groups: &groups };
    part.begin(simd, rows, &lanes, scratch);
    let all = operands.problem.axes().each_ref().map(|axis| 0..axis.query_extent);
    scratch.spans.everything(&place.tile, &all);
    for head in place.heads.clone() {
        scratch.stream.begin([0; 2]);
        let tokens = plain_tokens(place.batch, head);
        let rows = [&operands.query, &operands.d_out];
        part.take(simd, operands, (rows, &tokens), cut(&all, BOX, BOX), scratch, |_, _| {});
    }
    part.store(simd, 0, &lanes, gradients[0], scratch);
    part.store(simd, 1, &lanes, gradients[1], scratch);
}

/// Components of the two kinds of rows, query and key first, value and output second.
struct Shape {
    dims: [usize; 2],
    /// Rounded up to whole vectors.
    widths: [usize; 2],
    scale: f32,
}

impl Shape {
    fn new<S: Simd>(problem: &Problem) -> Self {
        let dims = [problem.head_dim(), problem.head_dim_v()];
        let widths = dims.map(|dim| dim.next_multiple_of(S::WIDE));
        Shape { dims, widths, scale: problem.scale() as f32 }
    }
}

/// A chunk on its way through the stream: lanes are queries, or else keys.
struct Part<'a, const OF_QUERIES: bool> {
    shape: &'a Shape,
    groups: &'a Groups,
}

impl<const OF_QUERIES: bool> Part<'_, OF_QUERIES> {
    /// Packs both operands of the lanes and clears the sums.
    #[inline(always)]
    fn begin<S: Simd, E: Element>(
        &self,
        simd: S,
        rows: [&Rows<'_, E>; 2],
        tokens: &Tokens,
        scratch: &mut Scratch,
    ) {
        let (groups, shape) = (self.groups, self.shape);
        for (i, rows) in rows.into_iter().enumerate() {
            let lanes = scratch.lanes[i].reserve(groups.pair_count() * shape.dims[i] * 2 * S::LANES);
            pack_lanes::<S, E, false>(simd, rows, tokens, groups, &mut scratch.stage, lanes);
            scratch.sums[i].reserve(groups.len() * S::LANES * shape.widths[i]).fill(0.0);
        }
    }

    /// Packs log-sum-exp and delta of the lanes; absent ones have 0.
    #[inline(always)]
    fn pack_lane_scalars<S: Simd, E: Element>(
        &self,
        simd: S,
        operands: &Operands<'_, E>,
        tokens: &Tokens,
        scratch: &mut Scratch,
    ) {
        let numbers = self.groups.len() * S::LANES;
        let [lse, delta] = scratch.lane_scalars.each_mut().map(|buffer| buffer.reserve(numbers));
        lse.fill(0.0);
        delta.fill(0.0);
        for group in 0..self.groups.len() {
            for (lane, at, z) in self.groups.rows_of(group) {
                let line = operands.scalar_line(tokens, at, &z);
                let first = group * S::LANES + lane;
                for i in 0..z.len() {
                    (lse[first + i], delta[first + i]) = line.scalars(simd, i);
                }
            }
        }
    }

    /// Packs those of the stream's missing rows.
    #[inline(always)]
    fn pack_stream_scalars<S: Simd, E: Element>(
        &self,
        simd: S,
        operands: &Operands<'_, E>,
        tokens: &Tokens,
        missing: &Box3,
        scratch: &mut Scratch,
    ) {
        for x in missing[0].clone() {
            for y in missing[1].clone() {
                let line = operands.scalar_line(tokens, [x, y], &missing[2]);
                let [lse, delta] = scratch.stream.scalar_line([x, y]);
                for (i, (lse, delta)) in lse.iter_mut().zip(delta).enumerate() {
                    (*lse, *delta) = line.scalars(simd, i);
                }
            }
        }
    }

    /// Packs each box of the stream and takes it in. `prefetch` hears of the box after it.
    #[inline(always)]
    fn take<S: Simd, E: Element>(
        &self,
        simd: S,
        operands: &Operands<'_, E>,
        (rows, tokens): ([&Rows<'_, E>; 2], &Tokens),
        boxes: Boxes,
        scratch: &mut Scratch,
        mut prefetch: impl FnMut(Option<&Box3>, &mut Scratch),
    ) {
        let mut boxes = boxes.peekable();
        while let Some(stream) = boxes.next() {
            let missing = scratch.stream.advance(&stream);
            for (i, rows) in rows.into_iter().enumerate() {
                scratch.stream.pack(simd, i, Form::Single(self.shape.widths[i]), (rows, tokens), &missing);
            }
            if !OF_QUERIES {
                self.pack_stream_scalars(simd, operands, tokens, &missing, scratch);
            }
            scratch.prefetch.clear();
            prefetch(boxes.peek(), scratch);
            simd.vectorize(Take { part: self, scratch });
        }
    }

    /// Writes sums number `which` of all lanes.
    #[inline(always)]
    fn store<S: Simd, E: Element>(
        &self,
        simd: S,
        which: usize,
        tokens: &Tokens,
        to: &SharedRows<'_, E>,
        scratch: &Scratch,
    ) {
        let (sums, width) = (scratch.sums[which].get(), self.shape.widths[which]);
        for group in 0..self.groups.len() {
            for (lane, [x, y], z) in self.groups.rows_of(group) {
                let line = to.line(tokens, [x, y], &z);
                for (i, index) in (group * S::LANES + lane..).take(z.len()).enumerate() {
                    let sums = &sums[index * width..][..self.shape.dims[which]];
                    line.fill(i, |row| simd.narrow(sums, row));
                }
            }
        }
    }
}

/// Takes the packed box into the sums of all groups, as a function of its own.
struct Take<'a, 's, const OF_QUERIES: bool> {
    part: &'a Part<'s, OF_QUERIES>,
    scratch: &'a mut Scratch,
}

impl<const OF_QUERIES: bool> Kernel for Take<'_, '_, OF_QUERIES> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Take { part, scratch } = self;
        let Scratch { lanes, stream, score_tiles, tile_masks, prefetch, sums, lane_scalars, spans, .. } =
            scratch;
        let (stream, spans) = (&*stream, &*spans);
        for pair in pairs(part.groups) {
            let Some(block) = ScoreBlock::new(spans, part.groups, pair, stream) else { continue };
            for tile in block.score_tiles() {
                let mask = &tile_masks.mask(&block, &tile, 1);
                let len = mask.scores_len::<S>();
                let mut maxima = [0.0; 64];
                for (i, scale) in [part.shape.scale * LOG2_E, 1.0].into_iter().enumerate() {
                    let operands = ScoreOperands {
                        lanes: lanes[i].get(),
                        words: part.shape.dims[i],
                        stream: stream.operands[i].get(),
                        pitch: part.shape.widths[i],
                        scale,
                    };
                    let results = (score_tiles[i].reserve(len), &mut maxima[..]);
                    block.scores::<S, false, false>(simd, &operands, mask, prefetch, results);
                }
                for g in 0..pair.count {
                    let shape = mask.shape(g);
                    if shape.columns == 0 {
                        continue;
                    }
                    let group = pair.first + g;
                    let [scores, products] = score_tiles.each_mut().map(|tile| tile.get_mut());
                    let at = group * S::LANES;
                    let [lse, delta] = lane_scalars.each_ref().map(|numbers| numbers.get());
                    let numbers = match OF_QUERIES {
                        true => Numbers::OfLanes(simd.load(&lse[at..]), simd.load(&delta[at..])),
                        false => Numbers::OfRows(&block, tile.clone()),
                    };
                    weigh(simd, (scores, products), (g, &shape), &numbers, part.shape.scale);
                    for which in if OF_QUERIES { 0..1 } else { 0..2 } {
                        let width = part.shape.widths[which];
                        let sums = &mut sums[which].get_mut()[at * width..(at + S::LANES) * width];
                        let weights = if which == 0 { &products[..len] } else { &scores[..len] };
                        let rows = stream.operands[which].get();
                        let operands =
                            SumOperands { weights, stream: rows, width, fresh: false, has_non_finite: false };
                        block.weighted_sums::<S, false>(simd, (g, mask), &operands, sums);
                    }
                }
            }
        }
    }
}

/// Where the log-sum-exp and delta of a score come from: its lane, or its row of a tile of the stream.
enum Numbers<'a, V> {
    OfLanes(V, V),
    OfRows(&'a ScoreBlock<'a>, Box3),
}

/// Turns scores of group `g` into weights, and products into gradients of the unscaled scores.
#[inline(always)]
fn weigh<S: Simd>(
    simd: S,
    (scores, products): (&mut [f32], &mut [f32]),
    (g, shape): (usize, &ScoreTileShape),
    numbers: &Numbers<'_, S::V>,
    scale: f32,
) {
    let scale = simd.splat(scale);
    for x in 0..shape.x {
        for y in 0..shape.y {
            let start = ((x * shape.y + y) * shape.pitch + shape.first) * 2 * S::LANES;
            let range = start..start + shape.columns * 2 * S::LANES;
            let scores = scores[range.clone()].chunks_exact_mut(2 * S::LANES);
            let slots = scores.zip(products[range].chunks_exact_mut(2 * S::LANES));
            match numbers {
                Numbers::OfLanes(lse, delta) => {
                    for (score, product) in slots {
                        let (score, product) = (&mut score[g * S::LANES..], &mut product[g * S::LANES..]);
                        weigh_slot(simd, score, product, [*lse, *delta, scale]);
                    }
                }
                Numbers::OfRows(block, tile) => {
                    let [lse, delta] = block.stream.scalars.each_ref().map(|numbers| numbers.get());
                    let columns = &block.stream.extents[2];
                    let line = block.line(tile[0].start + x, tile[1].start + y);
                    let at = line * columns.len() + (tile[2].start - columns.start) + shape.first;
                    let of_rows = lse[at..][..shape.columns].iter().zip(&delta[at..][..shape.columns]);
                    for ((score, product), (&lse, &delta)) in slots.zip(of_rows) {
                        let (score, product) = (&mut score[g * S::LANES..], &mut product[g * S::LANES..]);
                        weigh_slot(simd, score, product, [simd.splat(lse), simd.splat(delta), scale]);
                    }
                }
            }
        }
    }
}

/// One slot of [`weigh`]. No closure: closures do not inherit the instructions of the function around them.
#[inline(always)]
fn weigh_slot<S: Simd>(simd: S, score: &mut [f32], product: &mut [f32], [lse, delta, scale]: [S::V; 3]) {
    let weight = exp2(simd, simd.sub(simd.load(score), lse));
    let gradient = simd.mul(simd.mul(weight, scale), simd.sub(simd.load(product), delta));
    simd.store(score, weight);
    simd.store(product, gradient);
}
