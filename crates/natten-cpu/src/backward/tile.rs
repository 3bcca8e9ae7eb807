//! One task of a backward pass, walked tile by tile like the forward's.

use natten_core::{Element, Problem};

use super::d_scores::{RowScalars, d_scores};
use super::{Operands, Pass, PassTasks};
use crate::arch::rows::{Rows, SharedRows};
use crate::arch::{Kernel, Simd};
use crate::boxes::{Box3, Boxes, cut, plain_box};
use crate::groups::{Groups, pairs};
use crate::pack::{Tokens, pack_lanes};
use crate::packed::RowFormat;
use crate::parallel::{Scratch, Tasks};
use crate::prefetch::Prefetcher;
use crate::schedule::{Schedule, Task, lane_tokens, plain_tokens, row_tokens};
use crate::score_block::ScoreBlock;
use crate::score_tile::{ScoreOperands, SumOperands};
use crate::softmax::QUARTER_LOG2_E;

impl<E: Element> Tasks for PassTasks<'_, '_, E> {
    fn count(&self) -> usize {
        match &self.pass {
            Pass::Queries { schedule, .. } | Pass::Keys { schedule, .. } => schedule.len(),
            Pass::Additional { .. } => {
                let problem = self.operands.problem;
                problem.batch() * problem.heads_kv() * problem.additional_keys().div_ceil(ADDITIONAL_TILE)
            }
        }
    }

    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, index: usize, scratch: &mut Scratch) {
        let operands = self.operands;
        match &self.pass {
            Pass::Queries { schedule, d_query } => queries(simd, operands, schedule, index, d_query, scratch),
            Pass::Keys { schedule, d_key, d_value } => {
                keys(simd, operands, schedule, index, [d_key, d_value], scratch);
            }
            Pass::Additional { d_key, d_value } => {
                let Some([keys, values]) = &operands.additional else { return };
                let task = additional_task(operands.problem, index);
                additional(simd, operands, [keys, values], &task, [d_key, d_value], scratch);
            }
        }
    }
}

/// Task number `index` of the pass over additional keys.
fn additional_task(problem: &Problem, index: usize) -> Task {
    let tiles = problem.additional_keys().div_ceil(ADDITIONAL_TILE);
    let (rest, tile) = (index / tiles, index % tiles);
    let (batch, head_kv) = (rest / problem.heads_kv(), rest % problem.heads_kv());
    let first = tile * ADDITIONAL_TILE;
    let per_kv = problem.heads_per_kv();
    Task {
        lanes: plain_box(first..(first + ADDITIONAL_TILE).min(problem.additional_keys())),
        batch,
        head_kv,
        heads: head_kv * per_kv..(head_kv + 1) * per_kv,
    }
}

/// Additional keys in a task of the pass over them.
const ADDITIONAL_TILE: usize = 32;

/// Rows that are packed at once where a task does not walk and has no schedule.
const ROW_BLOCK: usize = 512;

/// Pass 1 for one task: gradients of queries. One head after the other: packing keys again is cheap beside the three
/// products that use them.
#[inline(always)]
fn queries<S: Simd, E: Element>(
    simd: S,
    operands: &Operands<'_, E>,
    schedule: &Schedule<'_>,
    index: usize,
    d_query: &SharedRows<'_, E>,
    scratch: &mut Scratch,
) {
    let shape = Shape::new::<S>(operands.problem);
    let whole = schedule.task(index);
    let prefetcher = Prefetcher {
        schedule,
        rows: &[&operands.key, &operands.value],
        lanes: &[&operands.query, &operands.d_out, &operands.out],
        written: &[d_query],
        index,
    };
    for head in whole.heads.clone() {
        let task = Task { heads: head..head + 1, lanes: whole.lanes.clone(), ..whole };
        schedule.begin_task(&task, scratch);
        let mut tiles = task.tiles(&schedule.blocking).peekable();
        while let Some(tile) = tiles.next() {
            schedule.begin_tile(&tile, scratch);
            let groups = Groups::new(schedule.blocking.group, tile.each_ref().map(|axis| axis.lanes.len()));
            let lanes = lane_tokens(&tile, task.batch, head);
            let state = TileState::<true> { shape: &shape, groups: &groups };
            state.begin(simd, [&operands.query, &operands.d_out], &lanes, scratch);
            state.pack_lane_scalars(simd, operands, &lanes, scratch);
            let tokens = row_tokens(&tile, task.batch, task.head_kv);
            let rows = [&operands.key, &operands.value];
            let row_blocks = schedule.row_blocks(&scratch.windows.all());
            state.accumulate(simd, operands, (rows, &tokens), row_blocks, scratch, |next, scratch| {
                prefetcher.queue_next(&task, &tile, (next, tiles.peek()), scratch);
            });
            if let Some([keys, values]) = &operands.additional {
                let all = [0..1, 0..1, 0..operands.problem.additional_keys()];
                let tokens = plain_tokens(task.batch, task.head_kv);
                scratch.windows.set_all(&tile, &all);
                // Additional keys have a ring of their own, kept from tile to tile.
                std::mem::swap(&mut scratch.packed, &mut scratch.packed_additional);
                let row_blocks = cut(&all, schedule.blocking.row_block, ROW_BLOCK);
                state.accumulate(simd, operands, ([keys, values], &tokens), row_blocks, scratch, |_, _| {});
                std::mem::swap(&mut scratch.packed, &mut scratch.packed_additional);
                scratch.windows.read_tile(&tile);
            }
            state.store(simd, 0, &lanes, d_query, scratch);
        }
    }
}

/// Pass 2 for one task: gradients of keys and values.
#[inline(always)]
fn keys<S: Simd, E: Element>(
    simd: S,
    operands: &Operands<'_, E>,
    schedule: &Schedule<'_>,
    index: usize,
    gradients: [&SharedRows<'_, E>; 2],
    scratch: &mut Scratch,
) {
    let shape = Shape::new::<S>(operands.problem);
    let task = schedule.task(index);
    let prefetcher = Prefetcher {
        schedule,
        rows: &[&operands.query, &operands.d_out, &operands.out],
        lanes: &[&operands.key, &operands.value],
        written: &gradients,
        index,
    };
    schedule.begin_task(&task, scratch);
    let mut tiles = task.tiles(&schedule.blocking).peekable();
    while let Some(tile) = tiles.next() {
        schedule.begin_tile(&tile, scratch);
        let groups = Groups::new(schedule.blocking.group, tile.each_ref().map(|axis| axis.lanes.len()));
        let lanes = lane_tokens(&tile, task.batch, task.head_kv);
        let state = TileState::<false> { shape: &shape, groups: &groups };
        state.begin(simd, [&operands.key, &operands.value], &lanes, scratch);
        for head in task.heads.clone() {
            if task.heads.len() > 1 {
                scratch.packed.reset([0; 2]);
            }
            let tokens = row_tokens(&tile, task.batch, head);
            let rows = [&operands.query, &operands.d_out];
            let row_blocks = schedule.row_blocks(&scratch.windows.all());
            state.accumulate(simd, operands, (rows, &tokens), row_blocks, scratch, |next, scratch| {
                // With several heads the next row block is as often another head's: fetched as it is packed.
                if task.heads.len() == 1 {
                    prefetcher.queue_next(&task, &tile, (next, tiles.peek()), scratch);
                }
            });
        }
        state.store(simd, 0, &lanes, gradients[0], scratch);
        state.store(simd, 1, &lanes, gradients[1], scratch);
    }
}

/// Pass 3 for one task: gradients of additional keys and values, which all queries see.
#[inline(always)]
fn additional<S: Simd, E: Element>(
    simd: S,
    operands: &Operands<'_, E>,
    rows: [&Rows<'_, E>; 2],
    task: &Task,
    gradients: [&SharedRows<'_, E>; 2],
    scratch: &mut Scratch,
) {
    let shape = Shape::new::<S>(operands.problem);
    let groups = Groups::new([1, 1, S::LANES], task.lanes.each_ref().map(|axis| axis.lanes.len()));
    let lanes = lane_tokens(&task.lanes, task.batch, task.head_kv);
    let state = TileState::<false> { shape: &shape, groups: &groups };
    state.begin(simd, rows, &lanes, scratch);
    let all = operands.problem.axes().each_ref().map(|axis| 0..axis.query_extent);
    scratch.windows.set_all(&task.lanes, &all);
    for head in task.heads.clone() {
        scratch.packed.reset([0; 2]);
        let tokens = plain_tokens(task.batch, head);
        let rows = [&operands.query, &operands.d_out];
        state.accumulate(
            simd,
            operands,
            (rows, &tokens),
            cut(&all, ROW_BLOCK, ROW_BLOCK),
            scratch,
            |_, _| {},
        );
    }
    state.store(simd, 0, &lanes, gradients[0], scratch);
    state.store(simd, 1, &lanes, gradients[1], scratch);
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

/// A tile on its way through the rows: its lanes are queries, or else keys.
struct TileState<'a, const OF_QUERIES: bool> {
    shape: &'a Shape,
    groups: &'a Groups,
}

impl<const OF_QUERIES: bool> TileState<'_, OF_QUERIES> {
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
            pack_lanes::<S, E, false>(simd, (rows, shape.dims[i]), tokens, groups, &mut scratch.stage, lanes);
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

    /// Packs those of the missing rows.
    #[inline(always)]
    fn pack_row_scalars<S: Simd, E: Element>(
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
                let [lse, delta] = scratch.packed.scalar_line([x, y]);
                for (i, (lse, delta)) in lse.iter_mut().zip(delta).enumerate() {
                    (*lse, *delta) = line.scalars(simd, i);
                }
            }
        }
    }

    /// Packs each row block and accumulates it. `prefetch` hears of the block after it.
    #[inline(always)]
    fn accumulate<S: Simd, E: Element>(
        &self,
        simd: S,
        operands: &Operands<'_, E>,
        (rows, tokens): ([&Rows<'_, E>; 2], &Tokens),
        row_blocks: Boxes,
        scratch: &mut Scratch,
        mut prefetch: impl FnMut(Option<&Box3>, &mut Scratch),
    ) {
        let mut row_blocks = row_blocks.peekable();
        while let Some(row_block) = row_blocks.next() {
            let missing = scratch.packed.advance(&row_block);
            for (i, rows) in rows.into_iter().enumerate() {
                scratch.packed.pack(
                    simd,
                    i,
                    RowFormat::Single(self.shape.widths[i]),
                    (rows, tokens),
                    &missing,
                );
            }
            if !OF_QUERIES {
                self.pack_row_scalars(simd, operands, tokens, &missing, scratch);
            }
            scratch.prefetch.clear();
            prefetch(row_blocks.peek(), scratch);
            simd.vectorize(AccumulateRows { state: self, scratch });
        }
    }

    /// Writes sums number `which` of all lanes. A query whose scores are all minus infinity has no gradient: keys that made them
    /// so have been multiplied by weights of 0.
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
        let lse = scratch.lane_scalars[0].get();
        for group in 0..self.groups.len() {
            for (lane, [x, y], z) in self.groups.rows_of(group) {
                let line = to.line(tokens, [x, y], &z);
                for (i, index) in (group * S::LANES + lane..).take(z.len()).enumerate() {
                    let sums = &sums[index * width..][..self.shape.dims[which]];
                    line.fill(i, |row| match OF_QUERIES && lse[index] == f32::INFINITY {
                        true => row.fill(E::from_f64(0.0)),
                        false => simd.narrow(sums, row),
                    });
                }
            }
        }
    }
}

/// Accumulates the packed row block into the sums of all groups, as a function of its own.
struct AccumulateRows<'a, 's, const OF_QUERIES: bool> {
    state: &'a TileState<'s, OF_QUERIES>,
    scratch: &'a mut Scratch,
}

impl<const OF_QUERIES: bool> Kernel for AccumulateRows<'_, '_, OF_QUERIES> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let AccumulateRows { state, scratch } = self;
        let Scratch { lanes, packed, score_tiles, tile_masks, prefetch, sums, lane_scalars, windows, .. } =
            scratch;
        let (packed, windows) = (&*packed, &*windows);
        for pair in pairs(state.groups) {
            let Some(block) = ScoreBlock::new(windows, state.groups, pair, packed) else { continue };
            for tile in block.score_tiles() {
                let mask = &tile_masks.mask(&block, &tile, 1);
                let len = mask.scores_len::<S>();
                let mut maxima = [0.0; 64];
                for (i, scale) in [state.shape.scale * QUARTER_LOG2_E, 1.0].into_iter().enumerate() {
                    let operands = ScoreOperands {
                        lanes: lanes[i].get(),
                        words: state.shape.dims[i],
                        packed: packed.operands[i].get(),
                        pitch: state.shape.widths[i],
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
                    let [lse, delta] = lane_scalars.each_ref().map(|scalars| scalars.get());
                    let scalars = match OF_QUERIES {
                        true => RowScalars::OfLanes(simd.load(&lse[at..]), simd.load(&delta[at..])),
                        false => RowScalars::OfRows(&block, tile.clone()),
                    };
                    d_scores(simd, (scores, products), (g, &shape), &scalars, state.shape.scale);
                    for which in if OF_QUERIES { 0..1 } else { 0..2 } {
                        let width = state.shape.widths[which];
                        let sums = &mut sums[which].get_mut()[at * width..(at + S::LANES) * width];
                        let weights = if which == 0 { &products[..len] } else { &scores[..len] };
                        let rows = packed.operands[which].get();
                        let operands = SumOperands {
                            weights,
                            packed: rows,
                            width,
                            overwrite: false,
                            has_non_finite: false,
                        };
                        block.weighted_sums::<S, false>(simd, (g, mask), &operands, sums);
                    }
                }
            }
        }
    }
}
