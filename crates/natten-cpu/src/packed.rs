//! Packed rows: the keys and values (or what takes their place in a backward) of a row block, copied densely and widened
//! once for all lanes that see them.
//!
//! Row blocks of one task move along an axis. Lines (rows along the last axis) live in a ring over the first two axes,
//! so what the next block still needs stays where it is:
//!
//! ```text
//! line of [x, y]   (x mod room_x) * room_y + y mod room_y        rows of a line follow each other
//! ```

use natten_core::Element;

use crate::arch::rows::Rows;
use crate::arch::{Kernel, Simd};
use crate::boxes::Box3;
use crate::buffer::Buffer;
use crate::pack::{Tokens, copy_words};

/// The packed rows of a box.
#[derive(Debug, Default)]
pub(crate) struct PackedRows {
    /// Both operands: keys and values, or what stands for them in a backward.
    pub operands: [Buffer; 2],
    /// Two numbers of each row, in a backward.
    pub scalars: [Buffer; 2],
    /// Whether some number of the second operand was NaN or infinite. Known for pairs only.
    pub has_non_finite: bool,
    /// The box.
    pub extents: Box3,
    /// The ring's line of each line of the box, the second axis fastest.
    pub lines: Vec<u32>,
    capacity: [usize; 2],
    /// A line on its way to [`RowFormat::Transposed`].
    stage: Buffer,
}

/// How rows of an operand are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowFormat {
    /// As f32, this many to a row; numbers past the row are 0.
    Single(usize),
    /// As words of two components, this many to a row.
    Words(usize),
    /// Two rows in one, a word for each component, this many to both.
    Pairs(usize),
    /// For each of this many components the rows of a line, two in each word. What follows the last one is finite for as long
    /// as [`TRANSPOSED_REACH`] words.
    Transposed(usize),
}

/// Words that may be read from any pair of rows on, see [`RowFormat::Transposed`].
pub(crate) const TRANSPOSED_REACH: usize = 16;

impl RowFormat {
    /// Numbers of a line of `rows` rows.
    pub(crate) fn line_len(self, rows: usize) -> usize {
        match self {
            RowFormat::Single(width) | RowFormat::Words(width) => rows * width,
            RowFormat::Pairs(width) => rows.div_ceil(2) * width,
            RowFormat::Transposed(width) => rows.div_ceil(2) * width + TRANSPOSED_REACH,
        }
    }

    /// Numbers that are read past the last line: rows of scores come sixteen at a time, whose last ones are not looked at.
    fn past_end(self) -> usize {
        match self {
            RowFormat::Words(width) => 16 * width,
            _ => 0,
        }
    }
}

impl PackedRows {
    /// Forgets what is packed. Boxes to come have at most `capacity` lines along the first two axes, or are packed anew
    /// each time.
    pub(crate) fn reset(&mut self, capacity: [usize; 2]) {
        self.extents = [0..0, 0..0, 0..0];
        self.capacity = capacity;
        self.has_non_finite = false;
    }

    /// What of a box is not yet here.
    #[inline(always)]
    pub(crate) fn missing(&self, wanted: &Box3) -> Box3 {
        let held = &self.extents;
        let mut missing = wanted.clone();
        for a in 0..2 {
            let other = 1 - a;
            let follows = held[a].start <= wanted[a].start && wanted[a].start <= held[a].end;
            let fits = wanted[a].len() <= self.capacity[a] && wanted[other].len() <= self.capacity[other];
            if held[other] == wanted[other] && held[2] == wanted[2] && follows && fits {
                missing[a].start = held[a].end.max(wanted[a].start).min(wanted[a].end);
                return missing;
            }
        }
        missing
    }

    /// Becomes the wanted box; returns what must be packed.
    pub(crate) fn advance(&mut self, wanted: &Box3) -> Box3 {
        let missing = self.missing(wanted);
        if missing == *wanted {
            self.capacity = [self.capacity[0].max(wanted[0].len()), self.capacity[1].max(wanted[1].len())];
        }
        self.extents = wanted.clone();
        let mut lines = std::mem::take(&mut self.lines);
        lines.clear();
        for x in wanted[0].clone() {
            lines.extend(wanted[1].clone().map(|y| self.line([x, y]) as u32));
        }
        self.lines = lines;
        missing
    }

    /// Where the line of two coordinates is.
    #[inline(always)]
    fn line(&self, [x, y]: [usize; 2]) -> usize {
        x % self.capacity[0] * self.capacity[1] + y % self.capacity[1]
    }

    /// Packs what is missing of operand `which`.
    #[inline(always)]
    pub(crate) fn pack<S: Simd, E: Element>(
        &mut self,
        simd: S,
        which: usize,
        form: RowFormat,
        (rows, tokens): (&Rows<'_, E>, &Tokens),
        missing: &Box3,
    ) {
        simd.vectorize(Pack { packed: self, which, form, rows, tokens, missing });
    }

    /// Both numbers of the rows of a line.
    #[inline(always)]
    pub(crate) fn scalar_line(&mut self, at: [usize; 2]) -> [&mut [f32]; 2] {
        let len = self.extents[2].len();
        let (start, capacity) = (self.line(at) * len, self.capacity[0] * self.capacity[1] * len);
        self.scalars.each_mut().map(|buffer| &mut buffer.reserve(capacity)[start..][..len])
    }
}

/// [`PackedRows::pack`] as a function of its own.
struct Pack<'a, 'd, E> {
    packed: &'a mut PackedRows,
    which: usize,
    form: RowFormat,
    rows: &'a Rows<'d, E>,
    tokens: &'a Tokens,
    missing: &'a Box3,
}

impl<E: Element> Kernel for Pack<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Pack { packed, which, form, rows, tokens, missing } = self;
        let line_len = form.line_len(packed.extents[2].len());
        let mut buffer = std::mem::take(&mut packed.operands[which]);
        let to = buffer.reserve(packed.capacity[0] * packed.capacity[1] * line_len + form.past_end());
        let (mut finite, mut stage) = (true, std::mem::take(&mut packed.stage));
        for x in missing[0].clone() {
            for y in missing[1].clone() {
                let line = rows.line(tokens, [x, y], &missing[2]);
                let line = line.rows();
                let to = &mut to[packed.line([x, y]) * line_len..][..line_len];
                match form {
                    RowFormat::Single(width) if width == rows.width => {
                        line.zip(to.chunks_exact_mut(width)).for_each(|(from, to)| simd.widen(from, to));
                    }
                    RowFormat::Single(width) => {
                        for (from, to) in line.zip(to.chunks_exact_mut(width)) {
                            let (row, rest) = to.split_at_mut(rows.width);
                            simd.widen(from, row);
                            rest.fill(0.0);
                        }
                    }
                    RowFormat::Words(width) => {
                        line.zip(to.chunks_exact_mut(width)).for_each(|(from, to)| copy_words(from, to));
                    }
                    RowFormat::Pairs(width) => finite &= pack_pairs(line, width, to),
                    RowFormat::Transposed(width) => {
                        let pairs = missing[2].len().div_ceil(2);
                        let staged = stage.reserve(pairs * width);
                        finite &= pack_pairs(line, width, staged);
                        transpose_pairs(simd, staged, (pairs, width), to);
                    }
                }
            }
        }
        packed.operands[which] = buffer;
        packed.stage = stage;
        packed.has_non_finite |= !finite;
    }
}

/// A line of pairs of rows, transposed: `to[component * pairs + pair]`, and zeros behind.
#[inline(always)]
fn transpose_pairs<S: Simd>(simd: S, line: &[f32], (pairs, width): (usize, usize), to: &mut [f32]) {
    let (to, rest) = to.split_at_mut(pairs * width);
    rest.fill(0.0);
    let mut pair = 0;
    while pair < pairs {
        let count = (pairs - pair).min(S::LANES);
        if count == S::LANES {
            let rows: [&[f32]; 16] =
                std::array::from_fn(|i| &line[(pair + i.min(S::LANES - 1)) * width..][..width]);
            simd.transpose(&rows[..S::LANES], (&mut to[pair..], pairs));
        } else {
            for (i, row) in line[pair * width..].chunks_exact(width).enumerate() {
                row.iter().enumerate().for_each(|(c, &word)| to[c * pairs + pair + i] = word);
            }
        }
        pair += count;
    }
}

/// Rows of bf16, two neighbours in each word. An odd last row is paired with 0. Returns whether all are finite.
#[inline(always)]
fn pack_pairs<'a, E: Element>(mut rows: impl Iterator<Item = &'a [E]>, width: usize, to: &mut [f32]) -> bool {
    let words: &mut [u32] = bytemuck::cast_slice_mut(to);
    let mut largest = 0u16;
    for to in words.chunks_exact_mut(width) {
        let Some(even) = rows.next() else { break };
        let even: &[u16] = bytemuck::cast_slice(even);
        let (to, rest) = to.split_at_mut(even.len());
        rest.fill(0);
        largest = even.iter().fold(largest, |largest, &bits| largest.max(bits & 0x7fff));
        match rows.next() {
            Some(odd) => {
                let odd: &[u16] = bytemuck::cast_slice(odd);
                largest = odd.iter().fold(largest, |largest, &bits| largest.max(bits & 0x7fff));
                for ((to, &even), &odd) in to.iter_mut().zip(even).zip(odd) {
                    *to = u32::from(even) | u32::from(odd) << 16;
                }
            }
            None => to.iter_mut().zip(even).for_each(|(to, &even)| *to = u32::from(even)),
        }
    }
    largest < 0x7f80
}
