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
//! The unit multiplies what a lane does not see as well: by a weight of 0. Where a packed value is not finite, the products are
//! those of vectors, each lane over what it sees alone.

use natten_core::Element;

use super::Call;
use super::task::QueryTile;
use crate::arch::rows::Rows;
use crate::arch::tiles::{KeyBlock, SIDE, Scores, Sums, TILE, score_tiles, sum_tiles};
use crate::arch::{Kernel, Simd};
use crate::boxes::{Box3, LaneBox, cut};
use crate::buffer::Buffer;
use crate::groups::{Groups, Pair, pairs};
use crate::pack::{Tokens, pack_lanes};
use crate::packed::{PackedRows, RowFormat};
use crate::parallel::Scratch;
use crate::schedule::{Task, lane_tokens};
use crate::score_block::ScoreBlock;
use crate::softmax::powers_below;
use crate::tile_mask::TileMask;

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
        let Scratch { lanes, tile_masks, prefetch, windows, key_blocks: (blocks, starts), .. } = scratch;
        let packed = if additional { &scratch.packed_additional } else { &scratch.packed };
        let of_pair = state.words * 2 * SIDE;
        for head in 0..state.heads {
            for pair in pairs(&state.groups) {
                for g in 0..pair.count {
                    let single = Pair { first: pair.first + g, count: 1, ..pair };
                    let Some(block) = ScoreBlock::new(windows, &state.groups, single, packed) else {
                        continue;
                    };
                    let at = (head * state.groups.pair_count() + pair.index) * of_pair;
                    let vector = head * state.groups.len() + single.first;
                    let lanes = &lanes[0].get()[at + g * SIDE..];
                    for tile in cut(&block.seen, SCORE_ROWS, SCORE_ROWS) {
                        let mask = &tile_masks.mask(&block, &tile, 2);
                        let lines = TileLines::new(mask);
                        if lines.pairs == 0 {
                            continue;
                        }
                        lines.list_keys(mask, blocks);
                        let scores = scratch.score_tiles[0].reserve(lines.scores_len());
                        let words = state.words;
                        let operands = Scores { lanes, words, packed: packed.operands[0].get(), blocks };
                        score_tiles(simd, &operands, prefetch, scores);
                        let weights = scratch.words.reserve(lines.weights_len());
                        let [max, sum] = scratch
                            .lane_scalars
                            .each_mut()
                            .map(|of_lanes| &mut of_lanes.get_mut()[vector * SIDE..(vector + 1) * SIDE]);
                        let (scores, scale) = (&*scores, state.scale);
                        let factor = weigh(simd, (&lines, scale), scores, weights, (max, sum));
                        let of_vector = SIDE * state.width;
                        let sums = &mut scratch.sums[0].get_mut()[vector * of_vector..][..of_vector];
                        rescale(simd, factor, sums);
                        let values = packed.operands[1].get();
                        lines.list_values(&block, mask, state.width, starts);
                        let pitch = packed.extents[2].len().div_ceil(2);
                        let operands = Sums { values, pitch, starts, weights };
                        if packed.has_non_finite {
                            add_seen(simd, &lines, &operands, sums);
                        } else {
                            sum_tiles(simd, &operands, sums);
                        }
                    }
                }
            }
        }
    }
}

/// The part of a score tile that its group sees, in pairs of neighbours.
struct TileLines<'a> {
    /// Lines.
    count: usize,
    /// The first pair of a line, and how many.
    first: usize,
    pairs: usize,
    /// Which lanes see them, see [`TileMask::seen_pairs`].
    seen: &'a [u32],
}

impl<'a> TileLines<'a> {
    #[inline(always)]
    fn new(mask: &TileMask<'a>) -> Self {
        let shape = mask.shape(0);
        let (first, count) = (shape.first / 2, mask.starts.len());
        let pairs = if shape.columns == 0 { 0 } else { (shape.first + shape.columns).div_ceil(2) - first };
        TileLines { count, first, pairs, seen: mask.seen_pairs() }
    }

    /// Tiles of weights of a line.
    #[inline(always)]
    fn weight_tiles(&self) -> usize {
        self.pairs.div_ceil(SIDE)
    }

    /// Numbers of the score tile: lines follow each other, and the last one's last tile of keys may reach beyond it.
    #[inline(always)]
    fn scores_len(&self) -> usize {
        (self.count * self.pairs * 2 + SIDE) * SIDE
    }

    /// Numbers of the tiles of weights.
    #[inline(always)]
    fn weights_len(&self) -> usize {
        self.count * self.weight_tiles() * TILE
    }

    /// Lists the tiles of keys.
    #[inline(always)]
    fn list_keys(&self, mask: &TileMask<'_>, blocks: &mut Vec<KeyBlock>) {
        blocks.clear();
        for (line, &start) in mask.starts.iter().enumerate() {
            let row = start + 2 * self.first as u32;
            let slot = (line * self.pairs * 2) as u32;
            blocks.extend(
                (0..2 * self.pairs as u32).step_by(SIDE).map(|i| KeyBlock { row: row + i, slot: slot + i }),
            );
        }
    }

    /// Lists where the values of each tile of weights begin.
    #[inline(always)]
    fn list_values(&self, block: &ScoreBlock<'_>, mask: &TileMask<'_>, width: usize, starts: &mut Vec<u32>) {
        let rows = block.packed.extents[2].len();
        let line_len = RowFormat::Transposed(width).line_len(rows);
        starts.clear();
        for &row in mask.starts {
            let line = (row as usize - mask.shift) / rows;
            let start = line * line_len + mask.shift / 2 + self.first;
            starts.extend((0..self.weight_tiles()).map(|i| (start + i * SIDE) as u32));
        }
    }
}

/// The softmax of a score tile: maxima and denominators of the lanes, and the tiles of weights. Returns what earlier sums must be
/// multiplied by.
#[inline(always)]
fn weigh<S: Simd>(
    simd: S,
    (lines, scale): (&TileLines<'_>, f32),
    scores: &[f32],
    weights: &mut [f32],
    (max, sum): (&mut [f32], &mut [f32]),
) -> S::V {
    let lowest = simd.splat(f32::NEG_INFINITY);
    let mut maxima = [simd.load(max), lowest];
    for (scores, &seen) in scores.as_chunks::<{ 2 * SIDE }>().0.iter().zip(lines.seen) {
        for (i, max) in maxima.iter_mut().enumerate() {
            let score = simd.load(&scores[i * SIDE..]);
            *max = simd.select(seen >> (16 * i), simd.max(score, *max), *max);
        }
    }
    let new = simd.max(maxima[1], maxima[0]);
    let power = Powers::new(simd, new, scale);
    // Minus infinity times a scale of 0 would be no number; the sums are 0 then.
    let old = simd.max(simd.load(max), simd.splat(f32::MIN));
    let mut factor = [power.exponent(simd, old)];
    powers_below(simd, &mut factor);
    let [factor] = factor;
    simd.store(max, new);
    let mut sums = [simd.splat(0.0); 2];
    let of_lines = scores.as_chunks::<SIDE>().0.chunks_exact(2 * lines.pairs);
    let of_lines = of_lines.zip(lines.seen.chunks_exact(lines.pairs));
    for ((scores, seen), weights) in of_lines.zip(weights.chunks_exact_mut(lines.weight_tiles() * TILE)) {
        let (weights, rest) = weights.as_chunks_mut::<SIDE>().0.split_at_mut(lines.pairs);
        let (twos, one) = scores.as_chunks::<4>();
        let (seen, last_seen) = seen.as_chunks::<2>();
        let (weights, last_weights) = weights.as_chunks_mut::<2>();
        for ((scores, seen), weights) in twos.iter().zip(seen).zip(weights) {
            weigh_pairs(simd, &power, (scores, seen), weights, &mut sums);
        }
        if let ([even, odd], [seen], [weights]) = (one, last_seen, last_weights) {
            weigh_pairs(simd, &power, (&[*even, *odd], &[*seen]), std::array::from_mut(weights), &mut sums);
        }
        rest.fill([0.0; SIDE]);
    }
    let tile_sum = simd.add(sums[0], sums[1]);
    simd.store(sum, simd.fma(simd.load(sum), factor, tile_sum));
    factor
}

/// The weights of some pairs of keys, which are twice as many.
#[inline(always)]
fn weigh_pairs<S: Simd, const KEYS: usize, const PAIRS: usize>(
    simd: S,
    power: &Powers<S::V>,
    (scores, seen): (&[[f32; SIDE]; KEYS], &[u32; PAIRS]),
    weights: &mut [[f32; SIDE]; PAIRS],
    sums: &mut [S::V; 2],
) {
    let zero = simd.splat(0.0);
    let mut powers = [zero; KEYS];
    for (power_of, score) in powers.iter_mut().zip(scores) {
        *power_of = power.exponent(simd, simd.load(score));
    }
    powers_below(simd, &mut powers);
    #[allow(clippy::needless_range_loop, reason = "the index names places in three arrays")]
    for pair in 0..PAIRS {
        let even = simd.select(seen[pair], powers[2 * pair], zero);
        let odd = simd.select(seen[pair] >> 16, powers[2 * pair + 1], zero);
        *sums = [simd.add(sums[0], even), simd.add(sums[1], odd)];
        simd.store(&mut weights[pair], simd.pair(even, odd));
    }
}

/// Powers of 2 relative to the largest score. Halves of scores are subtracted, since two scores may be further apart than f32
/// reaches, and multiplied afterwards, so that the largest has a weight of 1.
struct Powers<V> {
    half: V,
    largest: V,
    factor: V,
}

impl<V: Copy> Powers<V> {
    /// Where a lane has seen no key, or scores that are minus infinity alone, the lowest number serves: minus infinity minus itself
    /// would be NaN.
    #[inline(always)]
    fn new<S: Simd<V = V>>(simd: S, max: V, scale: f32) -> Self {
        let factor = (scale * (2.0 * std::f32::consts::LOG2_E)).min(f32::MAX);
        Powers {
            half: simd.splat(0.5),
            largest: simd.mul(simd.max(max, simd.splat(f32::MIN)), simd.splat(-0.5)),
            factor: simd.splat(factor),
        }
    }

    /// The power of 2 that a score is relative to the largest.
    #[inline(always)]
    fn exponent<S: Simd<V = V>>(&self, simd: S, score: V) -> V {
        simd.mul(simd.fma(score, self.half, self.largest), self.factor)
    }
}

/// Multiplies the sums of each lane; nothing to do where no lane's maximum moved.
#[inline(always)]
fn rescale<S: Simd>(simd: S, factor: S::V, sums: &mut [f32]) {
    let mut factors = [1.0; SIDE];
    simd.store(&mut factors, factor);
    if factors.iter().all(|&factor| factor == 1.0) {
        return;
    }
    for row in sums.chunks_exact_mut(SIDE) {
        simd.store(row, simd.mul(simd.load(row), factor));
    }
}

/// [`sum_tiles`] where values are not finite: adds to each lane what it sees, and nothing else.
#[inline(never)]
fn add_seen<S: Simd>(simd: S, lines: &TileLines<'_>, args: &Sums<'_>, sums: &mut [f32]) {
    let of_line = lines.weight_tiles();
    for (line, seen) in lines.seen.chunks_exact(lines.pairs).enumerate() {
        let start = args.starts[line * of_line] as usize;
        let weights = &args.weights[line * of_line * TILE..];
        for (i, (&seen, words)) in seen.iter().zip(weights.chunks_exact(SIDE)).enumerate() {
            let [even, odd] = [16, 0].map(|shift| {
                let numbers: [f32; SIDE] =
                    std::array::from_fn(|lane| f32::from_bits(words[lane].to_bits() << shift & 0xffff_0000));
                simd.load(&numbers)
            });
            for (component, sum) in sums.chunks_exact_mut(SIDE).enumerate() {
                let value = args.values[start + component * args.pitch + i].to_bits();
                let old = simd.load(sum);
                let with = simd.fma(even, simd.splat(f32::from_bits(value << 16)), old);
                let old = simd.select(seen, with, old);
                let with = simd.fma(odd, simd.splat(f32::from_bits(value & 0xffff_0000)), old);
                simd.store(sum, simd.select(seen >> 16, with, old));
            }
        }
    }
}
