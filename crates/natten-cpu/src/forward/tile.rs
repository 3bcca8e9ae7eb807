//! A query tile of the forward on vectors: scores with queries in lanes, sums with components in lanes.

use natten_core::Element;

use super::Call;
use super::task::QueryTile;
use crate::arch::rows::Rows;
use crate::arch::{Kernel, Simd};
use crate::boxes::{Box3, LaneBox};
use crate::buffer::Buffer;
use crate::groups::{Groups, pairs};
use crate::pack::{Tokens, pack_lanes};
use crate::packed::{PackedRows, RowFormat};
use crate::parallel::Scratch;
use crate::schedule::{Task, lane_tokens};
use crate::score_block::ScoreBlock;
use crate::score_tile::{ScoreOperands, SumOperands};
use crate::softmax::{FOUR_LN_2, QUARTER_LOG2_E, Reference, exponentiate, exponentiate_pairs, is_beyond};
use crate::tile_mask::{ScoreTileShape, TileMask};

/// A query tile on its way through its keys. Lanes, sums and running maxima are in the scratch buffers, all groups of
/// the first head before those of the next.
pub(super) struct TileState<const DOT: bool> {
    groups: Groups,
    heads: usize,
    head_dim: usize,
    /// Words of a query or key.
    words: usize,
    /// Components of a value, rounded up to whole vectors.
    width: usize,
    /// Factor on scores, a quarter of `log2 e` included.
    scale: f32,
}

impl<const DOT: bool> QueryTile for TileState<DOT> {
    #[inline(always)]
    fn begin<S: Simd, E: Element>(
        simd: S,
        call: &Call<'_, E>,
        (task, tile): (&Task, &LaneBox),
        groups: Groups,
        scratch: &mut Scratch,
    ) -> Self {
        let head_dim = call.problem.head_dim();
        let words = if DOT { head_dim.div_ceil(2) } else { head_dim };
        let width = call.problem.head_dim_v().next_multiple_of(S::WIDE);
        let (heads, vectors) = (task.heads.len(), task.heads.len() * groups.len());
        let of_head = groups.pair_count() * words * 2 * S::LANES;
        let lanes = scratch.lanes[0].reserve(heads * of_head);
        for (head, lanes) in task.heads.clone().zip(lanes.chunks_exact_mut(of_head)) {
            let tokens = lane_tokens(tile, task.batch, head);
            pack_lanes::<S, E, DOT>(simd, (&call.query, words), &tokens, &groups, &mut scratch.stage, lanes);
        }
        scratch.lane_scalars[0].reserve(vectors * S::LANES).fill(f32::NEG_INFINITY);
        scratch.lane_scalars[1].reserve(vectors * S::LANES).fill(0.0);
        scratch.sums[0].reserve(vectors * S::LANES * width);
        let scale = call.problem.scale() as f32 * QUARTER_LOG2_E;
        TileState { groups, heads, head_dim, words, width, scale }
    }

    #[inline(always)]
    fn pack<S: Simd, E: Element>(
        &self,
        simd: S,
        [keys, values]: [&Rows<'_, E>; 2],
        tokens: &Tokens,
        missing: &Box3,
        packed: &mut PackedRows,
    ) {
        let forms = match DOT {
            true => [RowFormat::Words(self.words), RowFormat::Pairs(self.width)],
            false => [RowFormat::Single(self.head_dim), RowFormat::Single(self.width)],
        };
        packed.pack(simd, 0, forms[0], (keys, tokens), missing);
        packed.pack(simd, 1, forms[1], (values, tokens), missing);
    }

    #[inline(always)]
    fn attend<S: Simd>(&self, simd: S, additional: bool, scratch: &mut Scratch) {
        simd.vectorize(Attend { state: self, additional, scratch });
    }

    #[inline(always)]
    fn finish<S: Simd, E: Element>(
        &self,
        simd: S,
        call: &Call<'_, E>,
        task: &Task,
        tile: &LaneBox,
        scratch: &mut Scratch,
    ) {
        let head_dim_v = call.problem.head_dim_v();
        let row = scratch.stage.reserve(head_dim_v);
        let [maxima, denominators] = scratch.lane_scalars.each_ref().map(Buffer::get);
        let all_sums = scratch.sums[0].get();
        for (h, head) in task.heads.clone().enumerate() {
            let tokens = lane_tokens(tile, task.batch, head);
            for group in 0..self.groups.len() {
                for (lane, [x, y], z) in self.groups.rows_of(group) {
                    let first = (h * self.groups.len() + group) * S::LANES + lane;
                    let line = call.out.line(&tokens, [x, y], &z);
                    let lse = call.lse.as_ref().map(|lse| lse.line(&tokens, [x, y], &z));
                    for (i, index) in (first..first + z.len()).enumerate() {
                        let (max, sum) = (maxima[index], denominators[index]);
                        let (factor, sums) = (sum.recip(), &all_sums[index * self.width..][..head_dim_v]);
                        line.fill(i, |out| match sum == 0.0 {
                            // A query without keys: nothing was ever added to its sums.
                            true => out.fill(E::from_f32(0.0)),
                            false => simd.narrow_times(sums, factor, row, out),
                        });
                        if let Some(lse) = &lse {
                            lse.fill(i, |lse| lse[0] = max * FOUR_LN_2 + sum.ln());
                        }
                    }
                }
            }
        }
    }
}

impl<const DOT: bool> TileState<DOT> {
    /// As [`TileState::attend`].
    #[inline(always)]
    fn attend_here<S: Simd>(&self, simd: S, additional: bool, scratch: &mut Scratch) {
        let Scratch { lanes, score_tiles, tile_masks, prefetch, windows, .. } = scratch;
        let (lanes, windows) = (lanes[0].get(), &*windows);
        let packed = if additional { &scratch.packed_additional } else { &scratch.packed };
        let mut softmax = OnlineSoftmax {
            packed,
            scores: &mut score_tiles[0],
            words: &mut scratch.words,
            maxima: [0.0; 64],
            lane_scalars: &mut scratch.lane_scalars,
            sums: &mut scratch.sums[0],
        };
        let of_head = self.groups.pair_count() * self.words * 2 * S::LANES;
        for head in 0..self.heads {
            for pair in pairs(&self.groups) {
                let Some(block) = ScoreBlock::new(windows, &self.groups, pair, packed) else { continue };
                for tile in block.score_tiles() {
                    let mask = &tile_masks.mask(&block, &tile, if DOT { 2 } else { 1 });
                    let operands = ScoreOperands {
                        lanes: &lanes[head * of_head..],
                        words: self.words,
                        packed: packed.operands[0].get(),
                        pitch: self.words,
                        scale: self.scale,
                    };
                    softmax.maxima = [f32::NEG_INFINITY; 64];
                    let results = (softmax.scores.reserve(mask.scores_len::<S>()), &mut softmax.maxima[..]);
                    block.scores::<S, DOT, true>(simd, &operands, mask, prefetch, results);
                    for g in 0..pair.count {
                        self.accumulate(simd, (&block, mask), head, g, &mut softmax);
                    }
                }
            }
        }
    }

    /// The softmax of one group's scores, and its share of the output.
    #[inline(always)]
    fn accumulate<S: Simd>(
        &self,
        simd: S,
        (block, mask): (&ScoreBlock<'_>, &TileMask<'_>),
        head: usize,
        g: usize,
        softmax: &mut OnlineSoftmax<'_>,
    ) {
        let shape = mask.shape(g);
        if shape.columns == 0 {
            return;
        }
        let width = self.width;
        let vector = head * self.groups.len() + block.pair.first + g;
        let lanes = vector * S::LANES..(vector + 1) * S::LANES;
        let sums = &mut softmax.sums.get_mut()[lanes.start * width..lanes.end * width];
        let [maxima, denominators] = softmax.lane_scalars;
        let (max, sum) = (&mut maxima.get_mut()[lanes.clone()], &mut denominators.get_mut()[lanes]);
        // Where nothing was added, not even NaN, sums start here.
        let overwrite = max.iter().all(|&max| max == f32::NEG_INFINITY) && sum.iter().all(|&sum| sum == 0.0);
        let old = simd.load(max);
        let new = simd.max(simd.load(&softmax.maxima[g * S::LANES..]), old);
        simd.store(max, new);
        let scores_len = mask.scores_len::<S>();
        let scores = &mut softmax.scores.get_mut()[..scores_len];
        let words = softmax.words.reserve(if DOT { scores_len / 2 } else { 0 });
        let (factor, tile_sum) = match is_beyond(max) {
            true => weigh::<S, DOT, true>(simd, (old, new), (g, &shape), scores, words),
            false => weigh::<S, DOT, false>(simd, (old, new), (g, &shape), scores, words),
        };
        if !overwrite {
            rescale(simd, factor, sums, width);
        }
        simd.store(sum, simd.fma(simd.load(sum), factor, tile_sum));
        let operands = SumOperands {
            weights: if DOT { words } else { scores },
            packed: softmax.packed.operands[1].get(),
            width,
            overwrite,
            has_non_finite: softmax.packed.has_non_finite,
        };
        block.weighted_sums::<S, DOT>(simd, (g, mask), &operands, sums);
    }
}

/// What the softmax of a pair reads and writes.
struct OnlineSoftmax<'a> {
    packed: &'a PackedRows,
    scores: &'a mut Buffer,
    words: &'a mut Buffer,
    /// Largest scores of the tile, a vector for each group.
    maxima: [f32; 64],
    lane_scalars: &'a mut [Buffer; 2],
    sums: &'a mut Buffer,
}

/// The part of a task that does not depend on the element type, as a function of its own.
struct Attend<'a, const DOT: bool> {
    state: &'a TileState<DOT>,
    additional: bool,
    scratch: &'a mut Scratch,
}

impl<const DOT: bool> Kernel for Attend<'_, DOT> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.state.attend_here(simd, self.additional, self.scratch);
    }
}

/// Turns scores into weights relative to the largest by now. Returns what earlier sums must be multiplied by, and the sum of the
/// weights.
#[inline(always)]
fn weigh<S: Simd, const DOT: bool, const BEYOND: bool>(
    simd: S,
    (old, new): (S::V, S::V),
    (g, shape): (usize, &ScoreTileShape),
    scores: &mut [f32],
    words: &mut [f32],
) -> (S::V, S::V) {
    let reference = Reference::<S::V, BEYOND>::new(simd, new);
    let sum = match DOT {
        true => exponentiate_pairs(simd, scores, (g, shape), reference, words),
        false => exponentiate(simd, scores, (g, shape), reference),
    };
    (reference.power(simd, old), sum)
}

/// Multiplies each lane's sum; nothing to do where no lane's maximum moved.
#[inline(always)]
fn rescale<S: Simd>(simd: S, factor: S::V, sums: &mut [f32], width: usize) {
    let mut factors = [1.0; 32];
    simd.store(&mut factors, factor);
    if factors[..S::LANES].iter().all(|&factor| factor == 1.0) {
        return;
    }
    for (row, &factor) in sums.chunks_exact_mut(width).zip(&factors[..S::LANES]) {
        row.iter_mut().for_each(|x| *x *= factor);
    }
}
