//! The two products on a unit that multiplies tiles of bf16: sixteen rows of 32 numbers by as many columns, with sums in f32.
//!
//! ```text
//! scores[key][query]      = key[..] . query[..]              16 keys x 16 queries, 32 components at a time
//! sums[component][query] += value[component][..] weight[..]  16 components x 16 queries, 32 keys at a time
//! ```
//!
//! The left operand of either lies in memory as rows, the right one as pairs: row `i` holds numbers `2 i` and `2 i + 1` of
//! each column side by side, a word for each column. So keys stay rows, queries and weights are words with a lane for each query,
//! and values are packed as one row for each component. design-notes.md has the other ways.
//!
//! | file | what |
//! |---|---|
//! | `mod` | what is checked before either product |
//! | `model` | the unit in software |
//!
//! The unit itself is in `amx`. It takes numbers below the normal ones for 0 and never gives any.

pub(super) mod model;

use super::Simd;
use super::prefetch::PrefetchQueue;

/// Rows of a tile, and numbers in a row of f32 or of words.
pub(crate) const SIDE: usize = 16;

/// Numbers of a tile.
pub(crate) const TILE: usize = SIDE * SIDE;

/// What this machine lacks, asked once: the flags of its processor, or the system's permission.
pub(crate) fn lack() -> Option<crate::isa::Lack> {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    return super::amx::lack();
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    return Some(crate::isa::Lack::Flags);
}

/// Sixteen packed keys, and the slot of the score tile that the scores of the first go to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyBlock {
    /// The first packed row.
    pub row: u32,
    /// Its slot; slots are vectors over lanes.
    pub slot: u32,
}

/// Operands of [`score_tiles`].
pub(crate) struct Scores<'a> {
    /// Sixteen queries as words, `words` vectors over the lanes of two groups.
    pub lanes: &'a [f32],
    /// Words of a row, a multiple of [`SIDE`].
    pub words: usize,
    /// The packed keys, `words` for each.
    pub packed: &'a [f32],
    /// Which, in ascending order of their slots.
    pub blocks: &'a [KeyBlock],
}

/// `out[slot + i][lane] = lanes[lane] . row[i]` for the sixteen rows of each block. What is past the last row of a line is
/// computed as well, so that slots past it hold anything until their own block is done.
#[inline(always)]
pub(crate) fn score_tiles<S: Simd>(
    simd: S,
    args: &Scores<'_>,
    prefetch: &mut PrefetchQueue,
    out: &mut [f32],
) {
    let Scores { lanes, words, packed, blocks } = *args;
    assert!(words.is_multiple_of(SIDE) && words > 0 && lanes.len() >= (2 * words - 1) * SIDE);
    let start = out.as_mut_ptr();
    for pair in blocks.chunks(2) {
        let pair = [pair[0], pair[pair.len() - 1]];
        for block in pair {
            assert!((block.row as usize + SIDE) * words <= packed.len());
            assert!((block.slot as usize + SIDE) * SIDE <= out.len());
        }
        // As many as register blocks of these rows would have made due, for half the lanes.
        (0..2).for_each(|_| prefetch.fetch(simd));
        let block = ScoreBlock {
            queries: lanes.as_ptr(),
            queries_stride_bytes: 2 * SIDE * size_of::<f32>(),
            chunks: words / SIDE,
            keys: pair.map(|block| packed.as_ptr().wrapping_add(block.row as usize * words)),
            keys_stride_bytes: words * size_of::<f32>(),
            scores: pair.map(|block| start.wrapping_add(block.slot as usize * SIDE)),
        };
        // SAFETY: lanes, rows and slots were just checked; the caller is inside `with_tiles`, or the token would have none.
        unsafe { simd.multiply_scores(&block) };
    }
}

/// Two blocks of keys by sixteen queries; the same one twice where there is no second.
pub(crate) struct ScoreBlock {
    /// Sixteen words for each pair of components: readable for sixteen rows of each chunk.
    pub queries: *const f32,
    /// Bytes from one pair of components to the next.
    pub queries_stride_bytes: usize,
    /// Parts of a row, of 32 components each.
    pub chunks: usize,
    /// Rows of `chunks * 16` words: readable for sixteen rows each.
    pub keys: [*const f32; 2],
    /// Bytes from one row to the next.
    pub keys_stride_bytes: usize,
    /// Sixteen rows of sixteen f32 each: writable, the first written first.
    pub scores: [*mut f32; 2],
}

/// Operands of [`sum_tiles`].
pub(crate) struct Sums<'a> {
    /// Packed values: pairs of keys as words, a row for each component.
    pub values: &'a [f32],
    /// Words from one component to the next.
    pub pitch: usize,
    /// Where sixteen pairs of the first component begin, for each tile of weights.
    pub starts: &'a [u32],
    /// Tiles of sixteen pairs of keys by sixteen queries.
    pub weights: &'a [f32],
}

/// `sums[component][lane] += sum over pairs of weight[pair][lane] . value[component][pair]`, a multiple of [`SIDE`] of components.
#[inline(always)]
pub(crate) fn sum_tiles<S: Simd>(simd: S, args: &Sums<'_>, sums: &mut [f32]) {
    let width = sums.len() / SIDE;
    assert!(width.is_multiple_of(SIDE) && args.weights.len() >= args.starts.len() * TILE);
    let most = args.starts.iter().max().map_or(0, |&start| start as usize);
    assert!(most + (width.max(1) - 1) * args.pitch + SIDE <= args.values.len());
    let mut done = 0;
    while done < width {
        let tiles = match (width - done) / SIDE {
            left if left >= 4 => 4,
            left if left >= 2 => 2,
            _ => 1,
        };
        let block = SumBlock {
            values: args.values.as_ptr().wrapping_add(done * args.pitch),
            values_stride_bytes: args.pitch * size_of::<f32>(),
            starts: args.starts.as_ptr(),
            weights: args.weights.as_ptr(),
            count: args.starts.len(),
            sums: sums.as_mut_ptr().wrapping_add(done * SIDE),
            tiles,
        };
        if block.count > 0 {
            // SAFETY: values, weights and sums were just checked; the caller is inside `with_tiles`, or the token would have none.
            unsafe { simd.multiply_sums(&block) };
        }
        done += tiles * SIDE;
    }
}

/// One, two or four tiles of sums over some tiles of weights.
pub(crate) struct SumBlock {
    /// The first component of what `starts` count from: readable for sixteen words from each on, and as many components as `tiles` have.
    pub values: *const f32,
    /// Bytes from one component to the next.
    pub values_stride_bytes: usize,
    /// `count` numbers of words.
    pub starts: *const u32,
    /// `count` tiles.
    pub weights: *const f32,
    /// At least one.
    pub count: usize,
    /// `tiles` tiles, to read and to write.
    pub sums: *mut f32,
    /// 1, 2 or 4.
    pub tiles: usize,
}

/// Nothing but products of tiles, for so many rounds. Returns the operations.
#[inline(always)]
pub(crate) fn multiply_alone<S: Simd>(simd: S, rounds: usize) -> f64 {
    // SAFETY: the caller is inside `with_tiles`.
    let products = unsafe { simd.multiply_alone(rounds) };
    (products * SIDE * SIDE * 2 * SIDE * 2) as f64
}

/// A weight as the vectors round it: to nearest, ties to even, nothing below the normal numbers.
#[inline(always)]
pub(crate) fn weight_bits(x: f32) -> u16 {
    super::bf16_bits(model::flushed(x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Kernel, WithTiles, dispatch_tiles, scalar::Scalar};
    use crate::isa::Isa;

    const WORDS: usize = 2 * SIDE;
    const WIDTH: usize = 7 * SIDE;
    const PITCH: usize = 5;

    /// Both products of what a seed gives: some rows of scores, then all sums.
    struct Products(u64);

    impl Kernel for Products {
        type Output = Vec<u32>;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<u32> {
            let mut state = self.0;
            let mut words = |count: usize| -> Vec<f32> { (0..count).map(|_| drawn(&mut state)).collect() };
            let (lanes, packed) = (words(2 * WORDS * SIDE), words(40 * WORDS));
            let (values, weights) = (words(WIDTH * PITCH + 2 * SIDE), words(3 * TILE));
            let mut scores = vec![0.0; 3 * TILE];
            let mut sums: Vec<f32> = (0..WIDTH * SIDE).map(|i| i as f32 / 64.0 - 3.0).collect();
            let blocks = [(0, 0), (7, 10), (24, 32)].map(|(row, slot)| KeyBlock { row, slot });
            let operands = Scores { lanes: &lanes, words: WORDS, packed: &packed, blocks: &blocks };
            score_tiles(simd, &operands, &mut PrefetchQueue::default(), &mut scores);
            let starts = [3, 0, 19];
            let operands = Sums { values: &values, pitch: PITCH, starts: &starts, weights: &weights };
            sum_tiles(simd, &operands, &mut sums);
            let canonical = |x: f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
            scores.into_iter().chain(sums).map(canonical).collect()
        }
    }

    /// A word of two bf16: most of them ordinary, a few tiny, huge or no numbers.
    fn drawn(state: &mut u64) -> f32 {
        let mut half = || {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            let bits = (*state >> 40) as u32;
            match bits % 64 {
                0 => bits >> 6 & 0xffff,
                1 => bits >> 6 & 0x80ff,
                _ => 0x3e00 + (bits >> 6 & 0x81ff),
            }
        };
        f32::from_bits(half() | half() << 16)
    }

    #[test]
    fn the_unit_and_its_model_give_the_same_bits() {
        let has_unit = Isa::Amx.is_available();
        if let Some(lack) = Isa::Amx.lack() {
            println!("SKIP the unit itself: {lack}");
        }
        for seed in 1..40 {
            let expected = Scalar::<16>.with_tiles(Products(seed * 0x9e37_79b9));
            assert!(
                dispatch_tiles(Isa::AmxModel, WithTiles(Products(seed * 0x9e37_79b9))) == expected,
                "seed {seed}"
            );
            if has_unit {
                assert!(
                    dispatch_tiles(Isa::Amx, WithTiles(Products(seed * 0x9e37_79b9))) == expected,
                    "seed {seed}: the unit"
                );
            }
        }
    }

    #[test]
    fn products_are_those_of_the_formula() {
        // Small integers, so that every order of additions is exact.
        struct Exact;
        impl Kernel for Exact {
            type Output = (Vec<f32>, Vec<f32>);
            #[inline(always)]
            fn run<S: Simd>(self, simd: S) -> Self::Output {
                let word =
                    |i: usize| f32::from_bits(u32::from(small(2 * i)) | u32::from(small(2 * i + 1)) << 16);
                let lanes: Vec<f32> = (0..2 * SIDE * SIDE).map(word).collect();
                let packed: Vec<f32> = (0..20 * SIDE).map(|i| word(i + 3)).collect();
                let (mut scores, mut sums) = (vec![0.0; TILE], vec![1.0; TILE]);
                let blocks = [KeyBlock { row: 2, slot: 0 }];
                let operands = Scores { lanes: &lanes, words: SIDE, packed: &packed, blocks: &blocks };
                score_tiles(simd, &operands, &mut PrefetchQueue::default(), &mut scores);
                let operands = Sums { values: &packed, pitch: 4, starts: &[5], weights: &lanes };
                sum_tiles(simd, &operands, &mut sums);
                (scores, sums)
            }
        }
        fn small(i: usize) -> u16 {
            (((i * 7 % 11) as f32 - 5.0).to_bits() >> 16) as u16
        }
        let number = |i: usize| f32::from_bits(u32::from(small(i)) << 16);
        let (scores, sums) = dispatch_tiles(Isa::Amx, WithTiles(Exact));
        for row in 0..SIDE {
            for lane in 0..SIDE {
                let dot: f32 = (0..2 * SIDE)
                    .map(|d| {
                        let of_key = number(2 * ((row + 2) * SIDE + 3) + d);
                        of_key * number(2 * (d / 2 * 2 * SIDE + lane) + d % 2)
                    })
                    .sum();
                assert_eq!(scores[row * SIDE + lane], dot, "row {row}, lane {lane}");
                let sum: f32 = (0..2 * SIDE)
                    .map(|key| {
                        let of_value = number(2 * (row * 4 + 5 + 3) + key);
                        of_value * number(2 * (key / 2 * SIDE + lane) + key % 2)
                    })
                    .sum();
                assert_eq!(sums[row * SIDE + lane], 1.0 + sum, "component {row}, lane {lane}");
            }
        }
    }
}
