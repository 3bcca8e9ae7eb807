//! A score tile on its way where a unit multiplies tiles: while the vectors turn its scores into weights, the unit computes the
//! scores of the next one and adds up the values of those weights that are done.

use crate::arch::Simd;
use crate::arch::prefetch::PrefetchQueue;
use crate::arch::tiles::{KeyBlock, SIDE, Scores, Sums, TILE, score_tiles, sum_tiles};
use crate::buffer::Buffer;
use crate::packed::{PackedRows, RowFormat};
use crate::score_block::ScoreBlock;
use crate::softmax::powers_below;
use crate::tile_mask::TileMask;

/// The part of a score tile that its group sees, in pairs of neighbours, and its scores.
#[derive(Debug, Default)]
pub(crate) struct TileInFlight {
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
    scores: Buffer,
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
    /// Room for weights.
    pub weights: &'a mut Buffer,
    /// Maxima and denominators.
    pub lane_scalars: &'a mut [Buffer; 2],
    /// Sums.
    pub sums: &'a mut Buffer,
}

/// Tiles of weights whose values are added up at once: sums are loaded and stored for each time.
const SUMMED_TOGETHER: usize = 2;

impl TileInFlight {
    /// Becomes a tile without keys.
    pub(crate) fn clear(&mut self) {
        self.pairs = 0;
        self.seen.clear();
        self.keys.clear();
        self.values.clear();
    }

    /// Whether there is no key that its group sees.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.pairs == 0
    }

    /// Becomes the tile of a mask, without scores yet.
    #[inline(always)]
    pub(crate) fn begin(
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

    /// Computes the scores of part `part` of so many.
    #[inline(always)]
    fn score<S: Simd>(&mut self, simd: S, operands: &mut Operands<'_>, (part, of): (usize, usize)) {
        let twos = self.keys.len().div_ceil(2);
        let end = |part: usize| (2 * (twos * part / of)).min(self.keys.len());
        let blocks = &self.keys[end(part)..end(part + 1)];
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

    /// Takes the tile into its group's softmax and sums, and computes the scores of the next one meanwhile.
    #[inline(always)]
    pub(crate) fn weigh_and_sum<S: Simd>(
        &self,
        simd: S,
        operands: &mut Operands<'_>,
        next: &mut TileInFlight,
    ) {
        if self.is_empty() {
            next.score(simd, operands, (0, 1));
            return;
        }
        let lanes = self.vector * SIDE..(self.vector + 1) * SIDE;
        let mut weights = std::mem::take(operands.weights);
        let of_tiles = weights.reserve(self.values.len() * TILE);
        let max = &mut operands.lane_scalars[0].get_mut()[lanes.clone()];
        let (power, factor) = self.raise_maxima(simd, operands.scale, max);
        let of_group = lanes.start * operands.width..lanes.end * operands.width;
        rescale(simd, factor, &mut operands.sums.get_mut()[of_group.clone()]);
        let (mut sums, of_line) = ([simd.splat(0.0); 2], self.pairs.div_ceil(SIDE));
        for tile in 0..self.values.len() {
            let first = tile / of_line * self.pairs + tile % of_line * SIDE;
            let pairs = (self.pairs - tile % of_line * SIDE).min(SIDE);
            let scores = &self.scores.get()[first * 2 * SIDE..(first + pairs) * 2 * SIDE];
            let seen = &self.seen[first..first + pairs];
            weigh(simd, &power, (scores, seen), &mut of_tiles[tile * TILE..][..TILE], &mut sums);
            next.score(simd, operands, (tile, self.values.len()));
            if (tile + 1) % SUMMED_TOGETHER == 0 || tile + 1 == self.values.len() {
                let tiles = tile / SUMMED_TOGETHER * SUMMED_TOGETHER..tile + 1;
                let args = Sums {
                    values: operands.packed.operands[1].get(),
                    pitch: operands.packed.extents[2].len().div_ceil(2),
                    starts: &self.values[tiles.clone()],
                    weights: &of_tiles[tiles.start * TILE..],
                };
                let sums = &mut operands.sums.get_mut()[of_group.clone()];
                match operands.packed.has_non_finite {
                    true => self.add_seen(simd, tiles.start, &args, sums),
                    false => sum_tiles(simd, &args, sums),
                }
            }
        }
        let sum = &mut operands.lane_scalars[1].get_mut()[lanes];
        let of_tile = simd.add(sums[0], sums[1]);
        simd.store(sum, simd.fma(simd.load(sum), factor, of_tile));
        *operands.weights = weights;
    }

    /// Raises the lanes' maxima to the scores that they see. Returns powers relative to these, and what earlier sums must be multiplied
    /// by.
    #[inline(always)]
    fn raise_maxima<S: Simd>(&self, simd: S, scale: f32, max: &mut [f32]) -> (Powers<S::V>, S::V) {
        let mut maxima = [simd.load(max), simd.splat(f32::NEG_INFINITY)];
        for (scores, &seen) in self.scores.get().as_chunks::<{ 2 * SIDE }>().0.iter().zip(&self.seen) {
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
        simd.store(max, new);
        (power, factor[0])
    }

    /// [`sum_tiles`] where values are not finite: adds to each lane what it sees, and nothing else. `args` begin at tile `first`.
    #[inline(never)]
    fn add_seen<S: Simd>(&self, simd: S, first: usize, args: &Sums<'_>, sums: &mut [f32]) {
        let of_line = self.pairs.div_ceil(SIDE);
        for (i, &start) in args.starts.iter().enumerate() {
            let (line, part) = ((first + i) / of_line, (first + i) % of_line);
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

/// A tile of weights: some pairs of a line, at most sixteen, and zeros. Adds them up as they were before they were rounded.
#[inline(always)]
fn weigh<S: Simd>(
    simd: S,
    power: &Powers<S::V>,
    (scores, seen): (&[f32], &[u32]),
    weights: &mut [f32],
    sums: &mut [S::V; 2],
) {
    let (weights, rest) = weights.as_chunks_mut::<SIDE>().0.split_at_mut(seen.len());
    let (scores, last_scores) = scores.as_chunks::<SIDE>().0.as_chunks::<4>();
    let (seen, last_seen) = seen.as_chunks::<2>();
    let (weights, last_weights) = weights.as_chunks_mut::<2>();
    for ((scores, seen), weights) in scores.iter().zip(seen).zip(weights) {
        weigh_pairs(simd, power, (scores, seen), weights, sums);
    }
    if let ([even, odd], [seen], [weights]) = (last_scores, last_seen, last_weights) {
        weigh_pairs(simd, power, (&[*even, *odd], &[*seen]), std::array::from_mut(weights), sums);
    }
    rest.fill([0.0; SIDE]);
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
