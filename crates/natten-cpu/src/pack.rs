//! Packing the tokens of the lanes: widened to f32 or as words of two bf16, as
//! vectors over lanes. Dilated tokens become neighbours here, so everything later is undilated.

use natten_core::Element;

use crate::arch::rows::Rows;
use crate::arch::{Kernel, Simd};
use crate::buffer::Buffer;
use crate::groups::{Groups, pairs};

/// Which tokens positions stand for, along each axis: `start + position * step`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokens {
    /// Token of position 0.
    pub start: [usize; 3],
    /// Tokens from one position to the next.
    pub step: [usize; 3],
    /// Batch item.
    pub batch: usize,
    /// Head.
    pub head: usize,
}

impl Tokens {
    /// The token of a position.
    #[inline(always)]
    pub(crate) fn at(&self, position: [usize; 3]) -> [usize; 3] {
        std::array::from_fn(|a| self.start[a] + position[a] * self.step[a])
    }
}

/// Lanes of a tile as vectors over the lanes of pairs of groups: `to[(pair * words + d) * 2 * LANES + lane]`. Absent
/// lanes are 0, and so are words past a row. As f32, or as words of two bf16 if `PAIRS`.
#[inline(always)]
pub(crate) fn pack_lanes<S: Simd, E: Element, const PAIRS: bool>(
    simd: S,
    (rows, words): (&Rows<'_, E>, usize),
    tokens: &Tokens,
    groups: &Groups,
    stage: &mut Buffer,
    to: &mut [f32],
) {
    simd.vectorize(PackLanes::<'_, '_, E, PAIRS> { rows, words, tokens, groups, stage, to });
}

/// [`pack_lanes`] as a function of its own.
struct PackLanes<'a, 'd, E, const PAIRS: bool> {
    rows: &'a Rows<'d, E>,
    words: usize,
    tokens: &'a Tokens,
    groups: &'a Groups,
    stage: &'a mut Buffer,
    to: &'a mut [f32],
}

impl<E: Element, const PAIRS: bool> Kernel for PackLanes<'_, '_, E, PAIRS> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let PackLanes { rows, words: pitch, tokens, groups, stage, to } = self;
        let words = if PAIRS { rows.width.div_ceil(2) } else { rows.width };
        let (zeros, stage) = stage.reserve((1 + S::LANES) * words).split_at_mut(words);
        zeros.fill(0.0);
        for (pair, to) in pairs(groups).zip(to.chunks_exact_mut(pitch * 2 * S::LANES)) {
            to[words * 2 * S::LANES..].fill(0.0);
            for g in 0..2 {
                let to = (&mut to[g * S::LANES..], 2 * S::LANES);
                let mut lanes = [&bytemuck::cast_slice::<f32, E>(zeros)[..rows.width]; MOST_LANES];
                if g < pair.count {
                    for (lane, [x, y], z) in groups.rows_of(pair.first + g) {
                        let line = rows.line(tokens, [x, y], &z);
                        lanes[lane..].iter_mut().zip(line.rows()).for_each(|(lane, row)| *lane = row);
                    }
                }
                let lanes = &lanes[..S::LANES];
                if PAIRS {
                    let mut of_words = [&*zeros; MOST_LANES];
                    let stage = stage.chunks_exact_mut(words);
                    for ((words, row), stage) in of_words.iter_mut().zip(lanes).zip(stage) {
                        *words = match bytemuck::try_cast_slice(row) {
                            Ok(words) if row.len() % 2 == 0 => words,
                            _ => {
                                copy_words(row, stage);
                                stage
                            }
                        };
                    }
                    simd.transpose(&of_words[..S::LANES], to);
                } else {
                    simd.transpose(lanes, to);
                }
            }
        }
    }
}

/// Most lanes of a vector.
const MOST_LANES: usize = 16;

/// A row of bf16 as words; an odd last component is paired with 0.
#[inline(always)]
pub(crate) fn copy_words<E: Element>(row: &[E], to: &mut [f32]) {
    let bits: &[u16] = bytemuck::cast_slice(row);
    let halves: &mut [u16] = bytemuck::cast_slice_mut(to);
    let (halves, rest) = halves.split_at_mut(bits.len());
    // A row is short: 32 numbers at a time beat a call of the C library.
    let (bits, last_bits) = bits.as_chunks::<32>();
    let (halves, last_halves) = halves.as_chunks_mut::<32>();
    halves.iter_mut().zip(bits).for_each(|(to, from)| *to = *from);
    last_halves.iter_mut().zip(last_bits).for_each(|(to, from)| *to = *from);
    rest.fill(0);
}
