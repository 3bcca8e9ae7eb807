//! A query tile of the forward where a unit multiplies tiles of bf16 (arch/tiles): groups of sixteen queries, lanes of everything.
//!
//! ```text
//! for each group, for each score tile of at most SCORE_ROWS keys:
//!     scores[key][lane]      = keys . queries                        sixteen keys at a time
//!     max[lane]              = over the keys that the lane sees
//!     weights[pair][lane]    = 2^(scores - max) as bf16, two keys to a word, 0 where a lane does not see the key
//!     sums[component][lane] += values x weights                      32 keys at a time
//! ```
//!
//! The unit works beside the vectors, but a processor does not look far enough ahead to find work for both in such an order. So the
//! scores of the next tile and the sums of the one before, a part at a time, stand between the weights of this one
//! (tile_in_flight.rs).
//!
//! The unit multiplies what a lane does not see as well: by a weight of 0. Where a packed value is not finite, the products are
//! those of vectors, each lane over what it sees alone.

use natten_core::Element;

use super::Call;
use super::task::QueryTile;

use crate::arch::rows::Rows;
use crate::arch::tiles::{SIDE, TILE};
use crate::arch::{Kernel, Simd};
use crate::boxes::{Box3, LaneBox, cut};
use crate::buffer::Buffer;
use crate::groups::{Groups, Pair, pairs};
use crate::pack::{Tokens, pack_lanes};
use crate::packed::{PackedRows, RowFormat};
use crate::parallel::Scratch;
use crate::schedule::{Task, lane_tokens};
use crate::score_block::ScoreBlock;
use crate::tile_in_flight::Operands;
use crate::tile_mask::TILES;

/// Keys of a score tile: scores, weights and sums share a first-level cache.
const SCORE_ROWS: usize = 160;

/// See [`QueryTile`]. Sums are transposed: a vector over lanes for each component.
pub(super) struct TiledState {
    groups: Groups,
    heads: usize,
    /// Words of a query or key, whole tiles.
    words: usize,
    /// Components of a value, whole tiles.
    width: usize,
    /// The absolute factor on scores; its sign is the queries'.
    scale: f32,
}

impl QueryTile for TiledState {
    #[inline(always)]
    fn begin<S: Simd, E: Element>(
        simd: S,
        call: &Call<'_, E>,
        (task, tile): (&Task, &LaneBox),
        groups: Groups,
        scratch: &mut Scratch,
    ) -> Self {
        let words = call.problem.head_dim().div_ceil(2).next_multiple_of(SIDE);
        let width = call.problem.head_dim_v().next_multiple_of(SIDE);
        let (heads, vectors) = (task.heads.len(), task.heads.len() * groups.len());
        let of_head = groups.pair_count() * words * 2 * SIDE;
        let lanes = scratch.lanes[0].reserve(heads * of_head);
        for (head, lanes) in task.heads.clone().zip(lanes.chunks_exact_mut(of_head)) {
            let tokens = lane_tokens(tile, task.batch, head);
            pack_lanes::<S, E, true>(simd, (&call.query, words), &tokens, &groups, &mut scratch.stage, lanes);
        }
        let scale = call.problem.scale() as f32;
        if scale < 0.0 {
            // The largest score is then that of the largest product, which is all that the softmax looks for.
            let words: &mut [u32] = bytemuck::cast_slice_mut(lanes);
            words.iter_mut().for_each(|word| *word ^= 0x8000_8000);
        }
        scratch.lane_scalars[0].reserve(vectors * SIDE).fill(f32::NEG_INFINITY);
        scratch.lane_scalars[1].reserve(vectors * SIDE).fill(0.0);
        scratch.sums[0].reserve(vectors * SIDE * width).fill(0.0);
        TiledState { groups, heads, words, width, scale: scale.abs() }
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
        packed.pack(simd, 0, RowFormat::Words(self.words), (keys, tokens), missing);
        packed.pack(simd, 1, RowFormat::Transposed(self.width), (values, tokens), missing);
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
        let (width, head_dim_v) = (self.width, call.problem.head_dim_v());
        let (rows, row) = scratch.stage.reserve((SIDE + 1) * width).split_at_mut(SIDE * width);
        let [maxima, denominators] = scratch.lane_scalars.each_ref().map(Buffer::get);
        let all_sums = scratch.sums[0].get();
        for (h, head) in task.heads.clone().enumerate() {
            let tokens = lane_tokens(tile, task.batch, head);
            for group in 0..self.groups.len() {
                let vector = h * self.groups.len() + group;
                let sums = &all_sums[vector * SIDE * width..][..SIDE * width];
                for (first, sums) in sums.chunks_exact(TILE).enumerate() {
                    let of_components: [&[f32]; SIDE] = std::array::from_fn(|i| &sums[i * SIDE..][..SIDE]);
                    simd.transpose(&of_components, (&mut rows[first * SIDE..], width));
                }
                for (lane, [x, y], z) in self.groups.rows_of(group) {
                    let line = call.out.line(&tokens, [x, y], &z);
                    let lse = call.lse.as_ref().map(|lse| lse.line(&tokens, [x, y], &z));
                    for (i, lane) in (lane..lane + z.len()).enumerate() {
                        let (max, sum) = (maxima[vector * SIDE + lane], denominators[vector * SIDE + lane]);
                        let sums = &rows[lane * width..][..head_dim_v];
                        line.fill(i, |out| match sum == 0.0 {
                            // A query without keys: nothing was ever added to its sums.
                            true => out.fill(E::from_f32(0.0)),
                            false => simd.narrow_times(sums, sum.recip(), &mut row[..head_dim_v], out),
                        });
                        if let Some(lse) = &lse {
                            // Minus infinity times a scale of 0 would be no number.
                            let max = if sum == 0.0 { max } else { max * self.scale };
                            lse.fill(i, |lse| lse[0] = max + sum.ln());
                        }
                    }
                }
            }
        }
    }
}

/// The part of a task that does not depend on the element type, as a function of its own.
struct Attend<'a> {
    state: &'a TiledState,
    additional: bool,
    scratch: &'a mut Scratch,
}

impl Kernel for Attend<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Attend { state, additional, scratch } = self;
        let packed = if additional { &scratch.packed_additional } else { &scratch.packed };
        let groups = &state.groups;
        let mut operands = Operands {
            lanes: scratch.lanes[0].get(),
            packed,
            words: state.words,
            width: state.width,
            scale: state.scale,
            prefetch: &mut scratch.prefetch,
            lane_scalars: &mut scratch.lane_scalars,
            sums: &mut scratch.sums[0],
        };
        let in_flight = &mut scratch.tiles_in_flight;
        in_flight.clear();
        for head in 0..state.heads {
            for pair in pairs(groups) {
                for g in 0..pair.count {
                    let single = Pair { first: pair.first + g, count: 1, ..pair };
                    let Some(block) = ScoreBlock::new(&scratch.windows, groups, single, packed) else {
                        continue;
                    };
                    let lanes = (head * groups.pair_count() + pair.index) * state.words * 2 * SIDE + g * SIDE;
                    let vector = head * groups.len() + single.first;
                    for tile in cut(&block.seen, SCORE_ROWS, SCORE_ROWS) {
                        let mask = scratch.tile_masks.mask(&block, &tile, TILES);
                        in_flight.push(simd, &mut operands, (&block, &mask), (lanes, vector));
                    }
                }
            }
        }
        in_flight.finish(simd, &mut operands);
    }
}
