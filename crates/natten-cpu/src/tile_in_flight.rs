//! Score tiles on their way where a unit multiplies tiles. Three are in flight: while the vectors turn the scores of one into
//! weights, the unit computes the scores of the next and adds up the values of the one before.
//!
//! What the unit stored is not forwarded to vectors, nor what they stored to it: whoever reads it too soon waits until it has
//! reached the cache. So a tile's scores are complete before the weights of another are begun, and its weights lie there for
//! as long before the unit reads them.

use std::ops::Range;

use crate::arch::prefetch::PrefetchQueue;
use crate::arch::tiles::{KeyBlock, SIDE, Scores, Sums, TILE, score_tiles, sum_tiles};
use crate::arch::{Kernel, Simd};
use crate::buffer::Buffer;
use crate::packed::{PackedRows, RowFormat};
use crate::score_block::ScoreBlock;
use crate::softmax::powers_below;
use crate::tile_mask::TileMask;
use crate::tile_weights::{Powers, Weights, weigh};

/// The score tiles in flight, a step apart.
#[derive(Debug, Default)]
pub(crate) struct TilesInFlight {
    /// Its scores are being computed.
    scored: TileInFlight,
    /// Its scores are becoming weights.
    weighed: TileInFlight,
    /// Its values are being added up.
    summed: TileInFlight,
}

/// The part of a score tile that its group sees, in pairs of neighbours.
#[derive(Debug, Default)]
struct TileInFlight {
    /// Pairs of a line.
    pairs: usize,
    /// Which lanes see them, see [`TileMask::seen_pairs`].
    seen: Vec<u32>,
    /// Tiles of keys.
    keys: Vec<KeyBlock>,
    /// Where the values of each tile of weights begin.
    values: Vec<u32>,
    /// Index of its queries, and of its group.
    lanes: usize,
    vector: usize,
    /// From when it is scored until it is weighed.
    scores: Buffer,
    /// From when it is weighed until it is summed.
    weights: Weights,
    /// What earlier sums of its lanes must be multiplied by.
    factors: [f32; SIDE],
}

/// So many things in parts as equal as may be, without a division for each.
struct Parts {
    count: usize,
    /// Things of a part, in 65536ths.
    each: usize,
}

impl Parts {
    #[inline(always)]
    fn new(count: usize, parts: usize) -> Self {
        Parts { count, each: (count << 16).div_ceil(parts) }
    }

    #[inline(always)]
    fn part(&self, part: usize) -> Range<usize> {
        let end = |part: usize| ((part * self.each) >> 16).min(self.count);
        end(part)..end(part + 1)
    }
}

/// What the score tiles of a query tile read and write.
pub(crate) struct Operands<'a> {
    /// Queries.
    pub lanes: &'a [f32],
    /// Keys and values.
    pub packed: &'a PackedRows,
    /// Words of a query or key.
    pub words: usize,
    /// Components of a value.
    pub width: usize,
    /// The factor on scores, not negative.
    pub scale: f32,
    /// Rows to fetch.
    pub prefetch: &'a mut PrefetchQueue,
    /// Maxima and denominators.
    pub lane_scalars: &'a mut [Buffer; 2],
    /// Sums.
    pub sums: &'a mut Buffer,
}

impl TilesInFlight {
    /// Forgets all: a task that failed may have left some.
    pub(crate) fn clear(&mut self) {
        self.weighed.clear();
        self.summed.clear();
    }

    /// Takes in what a group sees of a tile: `lanes` and `vector` are the indices of its queries and of the group.
    #[inline(always)]
    pub(crate) fn push<S: Simd>(
        &mut self,
        simd: S,
        operands: &mut Operands<'_>,
        (block, mask): (&ScoreBlock<'_>, &TileMask<'_>),
        lanes_and_vector: (usize, usize),
    ) {
        self.scored.begin(block, mask, lanes_and_vector, operands.width);
        if !self.scored.is_empty() {
            self.step(simd, operands);
        }
    }

    /// Brings all that was taken in to its end.
    #[inline(always)]
    pub(crate) fn finish<S: Simd>(&mut self, simd: S, operands: &mut Operands<'_>) {
        for _ in 0..2 {
            self.scored.clear();
            self.step(simd, operands);
        }
    }

    /// Each tile goes one step, in as many parts as the weighed one has tiles of weights.
    #[inline(always)]
    fn step<S: Simd>(&mut self, simd: S, operands: &mut Operands<'_>) {
        simd.vectorize(Step { tiles: self, operands });
    }
}

/// [`TilesInFlight::step`] as a function of its own.
struct Step<'a, 'o> {
    tiles: &'a mut TilesInFlight,
    operands: &'a mut Operands<'o>,
}

impl Kernel for Step<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (TilesInFlight { scored, weighed, summed }, operands) = (self.tiles, self.operands);
        summed.rescale(simd, operands);
        let parts = weighed.values.len().max(1);
        let keys = Parts::new(scored.keys.len().div_ceil(2), parts);
        let components = Parts::new(summed.twos_of_components(operands.width), parts);
        if weighed.is_empty() {
            scored.score(simd, operands, keys.part(0));
            summed.sum(simd, operands, components.part(0));
        } else {
            let power = weighed.raise_maxima(simd, operands);
            let mut sums = [simd.splat(0.0); 2];
            let (mut part, mut line) = (0, 0);
            while part < parts {
                for first in (0..weighed.pairs).step_by(SIDE) {
                    scored.score(simd, operands, keys.part(part));
                    summed.sum(simd, operands, components.part(part));
                    let pairs = line + first..line + (first + SIDE).min(weighed.pairs);
                    weighed.weigh(simd, &power, (part, pairs), &mut sums);
                    part += 1;
                }
                line += weighed.pairs;
            }
            weighed.add_to_denominators(simd, operands, sums);
        }
        std::mem::swap(summed, weighed);
        std::mem::swap(weighed, scored);
        // Two buffers of each kind go round between three tiles.
        std::mem::swap(&mut scored.scores, &mut summed.scores);
        std::mem::swap(&mut scored.weights, &mut weighed.weights);
    }
}

impl TileInFlight {
    /// Becomes a tile without keys.
    fn clear(&mut self) {
        self.pairs = 0;
        self.seen.clear();
        self.keys.clear();
        self.values.clear();
    }

    /// Whether there is no key that its group sees.
    #[inline(always)]
    fn is_empty(&self) -> bool {
        self.pairs == 0
    }

    /// Becomes the tile of a mask, without scores yet.
    #[inline(always)]
    fn begin(
        &mut self,
        block: &ScoreBlock<'_>,
        mask: &TileMask<'_>,
        (lanes, vector): (usize, usize),
        width: usize,
    ) {
        self.clear();
        let shape = mask.shape(0);
        if shape.columns == 0 {
            return;
        }
        let first = shape.first / 2;
        self.pairs = (shape.first + shape.columns).div_ceil(2) - first;
        (self.lanes, self.vector) = (lanes, vector);
        self.seen.extend_from_slice(mask.seen_pairs());
        let rows = block.packed.extents[2].len();
        let line_len = RowFormat::Transposed(width).line_len(rows);
        let columns = 2 * self.pairs as u32;
        for (line, &start) in mask.starts.iter().enumerate() {
            let (row, slot) = (start + 2 * first as u32, line as u32 * columns);
            self.keys.extend((0..columns).step_by(SIDE).map(|i| KeyBlock { row: row + i, slot: slot + i }));
            let packed_line = (start as usize - mask.shift) / rows;
            let value = packed_line * line_len + mask.shift / 2 + first;
            self.values.extend((0..self.pairs).step_by(SIDE).map(|i| (value + i) as u32));
        }
        // Lines follow each other, and the last one's last tile of keys may reach beyond it.
        self.scores.reserve((mask.starts.len() * 2 * self.pairs + SIDE) * SIDE);
    }

    /// Computes the scores of some twos of tiles of keys.
    #[inline(always)]
    fn score<S: Simd>(&mut self, simd: S, operands: &mut Operands<'_>, twos: Range<usize>) {
        let blocks = &self.keys[2 * twos.start..(2 * twos.end).min(self.keys.len())];
        if blocks.is_empty() {
            return;
        }
        let scores = Scores {
            lanes: &operands.lanes[self.lanes..],
            words: operands.words,
            packed: operands.packed.operands[0].get(),
            blocks,
        };
        score_tiles(simd, &scores, operands.prefetch, self.scores.get_mut());
    }

    /// Raises the lanes' maxima to the scores that they see. Returns powers relative to these, and keeps what earlier sums must be
    /// multiplied by.
    #[inline(always)]
    fn raise_maxima<S: Simd>(&mut self, simd: S, operands: &mut Operands<'_>) -> Powers<S::V> {
        let max = &mut operands.lane_scalars[0].get_mut()[self.vector * SIDE..][..SIDE];
        let mut maxima = [simd.load(max), simd.splat(f32::NEG_INFINITY)];
        for (scores, &seen) in self.scores.get().as_chunks::<{ 2 * SIDE }>().0.iter().zip(&self.seen) {
            for (i, max) in maxima.iter_mut().enumerate() {
                let score = simd.load(&scores[i * SIDE..]);
                *max = simd.select(seen >> (16 * i), simd.max(score, *max), *max);
            }
        }
        let new = simd.max(maxima[1], maxima[0]);
        let power = Powers::new(simd, new, operands.scale);
        // Minus infinity times a scale of 0 would be no number; the sums are 0 then.
        let old = simd.max(simd.load(max), simd.splat(f32::MIN));
        let mut factor = [power.exponent(simd, old)];
        powers_below(simd, &mut factor);
        simd.store(&mut self.factors, factor[0]);
        simd.store(max, new);
        self.weights.begin(self.values.len(), self.pairs);
        power
    }

    /// Tile `tile` of the weights, that of some pairs. They are added up as they were before they were rounded.
    #[inline(always)]
    fn weigh<S: Simd>(
        &mut self,
        simd: S,
        power: &Powers<S::V>,
        (tile, pairs): (usize, Range<usize>),
        sums: &mut [S::V; 2],
    ) {
        let scores = &self.scores.get()[pairs.start * 2 * SIDE..pairs.end * 2 * SIDE];
        let weights = &mut self.weights.tiles.get_mut()[tile * TILE..][..pairs.len() * SIDE];
        weigh(simd, power, (scores, &self.seen[pairs]), weights, sums);
    }

    /// Adds sums of weights to the lanes' denominators.
    #[inline(always)]
    fn add_to_denominators<S: Simd>(&self, simd: S, operands: &mut Operands<'_>, sums: [S::V; 2]) {
        let sum = &mut operands.lane_scalars[1].get_mut()[self.vector * SIDE..][..SIDE];
        let of_tile = simd.add(sums[0], sums[1]);
        simd.store(sum, simd.fma(simd.load(sum), simd.load(&self.factors), of_tile));
    }

    /// The sums of its group.
    #[inline(always)]
    fn sums<'a>(&self, operands: &'a mut Operands<'_>) -> &'a mut [f32] {
        let of_group = operands.width * SIDE;
        &mut operands.sums.get_mut()[self.vector * of_group..][..of_group]
    }

    /// Multiplies earlier sums by the factors; nothing to do where no lane's maximum moved.
    #[inline(always)]
    fn rescale<S: Simd>(&self, simd: S, operands: &mut Operands<'_>) {
        if self.is_empty() || self.factors.iter().all(|&factor| factor == 1.0) {
            return;
        }
        let factor = simd.load(&self.factors);
        for row in self.sums(operands).chunks_exact_mut(SIDE) {
            simd.store(row, simd.mul(simd.load(row), factor));
        }
    }

    /// Twos of tiles of components of so many that are to be added up.
    #[inline(always)]
    fn twos_of_components(&self, width: usize) -> usize {
        if self.is_empty() { 0 } else { width.div_ceil(2 * SIDE) }
    }

    /// Adds up some twos of tiles of components: their sums are loaded and stored once for all weights.
    #[inline(always)]
    fn sum<S: Simd>(&self, simd: S, operands: &mut Operands<'_>, twos: Range<usize>) {
        if twos.is_empty() {
            return;
        }
        let packed = operands.packed;
        let pitch = packed.extents[2].len().div_ceil(2);
        let components = 2 * SIDE * twos.start..(2 * SIDE * twos.end).min(operands.width);
        let args = Sums {
            values: &packed.operands[1].get()[components.start * pitch..],
            pitch,
            starts: &self.values,
            weights: self.weights.tiles.get(),
        };
        let sums = &mut self.sums(operands)[components.start * SIDE..components.end * SIDE];
        match packed.has_non_finite {
            true => self.add_seen(simd, &args, sums),
            false => sum_tiles(simd, &args, sums),
        }
    }

    /// [`sum_tiles`] where values are not finite: adds to each lane what it sees, and nothing else.
    #[inline(never)]
    fn add_seen<S: Simd>(&self, simd: S, args: &Sums<'_>, sums: &mut [f32]) {
        let of_line = self.pairs.div_ceil(SIDE);
        for (i, &start) in args.starts.iter().enumerate() {
            let (line, part) = (i / of_line, i % of_line);
            let seen = &self.seen[line * self.pairs..][..self.pairs][part * SIDE..];
            let words = args.weights[i * TILE..].chunks_exact(SIDE).take(SIDE);
            for (pair, (&seen, words)) in seen.iter().zip(words).enumerate() {
                let [even, odd] = [16, 0].map(|shift| {
                    let numbers: [f32; SIDE] = std::array::from_fn(|lane| {
                        f32::from_bits(words[lane].to_bits() << shift & 0xffff_0000)
                    });
                    simd.load(&numbers)
                });
                for (component, sum) in sums.chunks_exact_mut(SIDE).enumerate() {
                    let value = args.values[start as usize + component * args.pitch + pair].to_bits();
                    let old = simd.load(sum);
                    let with = simd.fma(even, simd.splat(f32::from_bits(value << 16)), old);
                    let old = simd.select(seen, with, old);
                    let with = simd.fma(odd, simd.splat(f32::from_bits(value & 0xffff_0000)), old);
                    simd.store(sum, simd.select(seen >> 16, with, old));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_and_leave_nothing() {
        for (count, parts) in (0..40).flat_map(|count| (1..40).map(move |parts| (count, parts))) {
            let shares = Parts::new(count, parts);
            let mut done = 0;
            for part in (0..parts).map(|part| shares.part(part)) {
                assert_eq!(part.start, done, "{count} things in {parts} parts");
                assert!(part.len() <= count.div_ceil(parts), "{count} things in {parts} parts: {part:?}");
                done = part.end;
            }
            assert_eq!(done, count, "{count} things in {parts} parts");
        }
    }
}
