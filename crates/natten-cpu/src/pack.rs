//! Copying tokens of strided tensors into small dense buffers: one tile at a time, widened to f32 or as words of
//! two bf16. Dilated tokens become neighbours here, so everything later is undilated.

use natten_core::layout::RowLayout;
use natten_core::{Element, TensorView};

use crate::arch::Simd;
use crate::tasks::{Box3, volume};

/// A tensor to read rows from.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, E> {
    data: &'a [E],
    layout: RowLayout,
    /// Elements of a row.
    pub width: usize,
}

impl<'a, E: Element> Rows<'a, E> {
    /// Rows of `[batch, tokens.., heads, head_dim]`.
    pub(crate) fn of_rows(view: &TensorView<'a, E>) -> Self {
        let shape = view.shape();
        Rows { data: view.data(), layout: view.rows(), width: shape[shape.len() - 1] }
    }

    /// Numbers of `[batch, tokens.., heads]`, as rows of one.
    pub(crate) fn of_scalars(view: &TensorView<'a, E>) -> Self {
        Rows { data: view.data(), layout: view.scalars(), width: 1 }
    }

    /// One row.
    #[inline(always)]
    pub(crate) fn row(&self, batch: usize, token: [usize; 3], head: usize) -> &'a [E] {
        &self.data[self.layout.row(batch, token, head)..][..self.width]
    }

    /// The rows of a box, last axis fastest. Each is fetched into the cache well before its turn: tokens are far
    /// apart when heads lie between them, which no hardware prefetcher follows.
    #[inline(always)]
    fn each<S: Simd>(&self, simd: S, tokens: &Tokens, extent: &Box3, mut visit: impl FnMut(&'a [E])) {
        const AHEAD: usize = 12;
        let step = self.layout.token_strides[2] * tokens.step[2] as isize;
        let len = extent[2].len();
        for x in extent[0].clone() {
            for y in extent[1].clone() {
                let start = |y| {
                    let token = tokens.at([x, y, extent[2].start]);
                    self.layout.row(tokens.batch, token, tokens.head)
                };
                let (first, next) = (start(y), start((y + 1).min(extent[1].end - 1)));
                let at = |first: usize, z: usize| first.wrapping_add_signed(z as isize * step);
                for z in 0..len {
                    let ahead =
                        if z + AHEAD < len { at(first, z + AHEAD) } else { at(next, (z + AHEAD) % len) };
                    simd.prefetch(&self.data[ahead..][..self.width]);
                    visit(&self.data[at(first, z)..][..self.width]);
                }
            }
        }
    }
}

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

/// The positions of a box, last axis fastest.
#[inline(always)]
pub(crate) fn positions(extent: &Box3) -> impl Iterator<Item = [usize; 3]> + '_ {
    extent[0]
        .clone()
        .flat_map(move |x| extent[1].clone().flat_map(move |y| extent[2].clone().map(move |z| [x, y, z])))
}

/// Grows a buffer without clearing what is overwritten anyway.
pub(crate) fn reserve(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Rows of a box as f32, `pitch` apart; columns past the row are 0.
#[inline(always)]
pub(crate) fn pack_rows<S: Simd, E: Element>(
    simd: S,
    rows: &Rows<'_, E>,
    tokens: &Tokens,
    extent: &Box3,
    pitch: usize,
    to: &mut Vec<f32>,
) {
    let to = reserve(to, volume(extent) * pitch);
    let mut to = to.chunks_exact_mut(pitch);
    rows.each(simd, tokens, extent, |from| {
        let Some(to) = to.next() else { return };
        let (row, rest) = to.split_at_mut(rows.width);
        simd.widen(from, row);
        rest.fill(0.0);
    });
}

/// Rows of a box of bf16 as words of two components, `width.div_ceil(2)` apart.
#[inline(always)]
pub(crate) fn pack_words<S: Simd, E: Element>(
    simd: S,
    rows: &Rows<'_, E>,
    tokens: &Tokens,
    extent: &Box3,
    to: &mut Vec<f32>,
) {
    let words = rows.width.div_ceil(2);
    let to = reserve(to, volume(extent) * words);
    let mut to = to.chunks_exact_mut(words);
    rows.each(simd, tokens, extent, |from| {
        if let Some(to) = to.next() {
            copy_words(from, to);
        }
    });
}

/// A row of bf16 as words; an odd last component is paired with 0.
#[inline(always)]
fn copy_words<E: Element>(row: &[E], to: &mut [f32]) {
    let bits: &[u16] = bytemuck::cast_slice(row);
    let halves: &mut [u16] = bytemuck::cast_slice_mut(to);
    halves[..bits.len()].copy_from_slice(bits);
    halves[bits.len()..].fill(0);
}

/// Rows of a box of bf16, two neighbours along the last axis in each word, `pitch` words for each such pair. An
/// odd last row is paired with 0. Returns whether all numbers are finite.
#[inline(always)]
pub(crate) fn pack_row_pairs<S: Simd, E: Element>(
    simd: S,
    rows: &Rows<'_, E>,
    tokens: &Tokens,
    extent: &Box3,
    pitch: usize,
    to: &mut Vec<f32>,
) -> bool {
    let pairs = extent[2].len().div_ceil(2);
    let to = reserve(to, extent[0].len() * extent[1].len() * pairs * pitch);
    let mut to = to.chunks_exact_mut(pitch);
    let (mut largest, mut z, last) = (0u16, 0, extent[2].len() - 1);
    let mut even: &[u16] = &[];
    rows.each(simd, tokens, extent, |from| {
        let bits: &[u16] = bytemuck::cast_slice(from);
        largest = bits.iter().fold(largest, |largest, &bits| largest.max(bits & 0x7fff));
        if z % 2 == 0 {
            even = bits;
        }
        if z % 2 == 1 || z == last {
            let Some(to) = to.next() else { return };
            let words: &mut [u32] = bytemuck::cast_slice_mut(to);
            let (words, rest) = words.split_at_mut(even.len());
            rest.fill(0);
            if z % 2 == 1 {
                for ((to, &even), &odd) in words.iter_mut().zip(even).zip(bits) {
                    *to = u32::from(even) | u32::from(odd) << 16;
                }
            } else {
                words.iter_mut().zip(even).for_each(|(to, &even)| *to = u32::from(even));
            }
        }
        z = if z == last { 0 } else { z + 1 };
    });
    largest < 0x7f80
}

/// Where groups of lanes lie in a tile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Groups {
    /// Lanes of a group along each axis.
    pub group: [usize; 3],
    /// Groups of the tile along each axis.
    pub counts: [usize; 3],
    /// Lanes of the tile along each axis.
    pub lanes: [usize; 3],
    /// The lanes of a group with a given coordinate, one bit a lane, by axis.
    pub bits: [[u32; 32]; 3],
}

impl Groups {
    /// The groups that cover `lanes`.
    pub(crate) fn new(group: [usize; 3], lanes: [usize; 3]) -> Self {
        let mut bits = [[0; 32]; 3];
        for lane in 0..group.iter().product() {
            let at = [lane / (group[1] * group[2]), lane / group[2] % group[1], lane % group[2]];
            for (bits, at) in bits.iter_mut().zip(at) {
                bits[at] |= 1 << lane;
            }
        }
        Groups { group, counts: std::array::from_fn(|a| lanes[a].div_ceil(group[a])), lanes, bits }
    }

    /// Number of groups.
    pub(crate) fn len(&self) -> usize {
        self.counts.iter().product()
    }

    /// First lane of group `index`.
    #[inline(always)]
    pub(crate) fn origin(&self, index: usize) -> [usize; 3] {
        let [_, y, z] = self.counts;
        [index / (y * z) * self.group[0], index / z % y * self.group[1], index % z * self.group[2]]
    }

    /// The lanes of group `index` that are in the tile: number in the group, and coordinates in the tile.
    #[inline(always)]
    pub(crate) fn lanes_of(&self, index: usize) -> impl Iterator<Item = (usize, [usize; 3])> + use<> {
        let (origin, group, lanes) = (self.origin(index), self.group, self.lanes);
        (0..group[0]).flat_map(move |x| {
            (0..group[1]).flat_map(move |y| {
                (0..group[2]).filter_map(move |z| {
                    let at = [origin[0] + x, origin[1] + y, origin[2] + z];
                    let inside = at[0] < lanes[0] && at[1] < lanes[1] && at[2] < lanes[2];
                    inside.then_some(((x * group[1] + y) * group[2] + z, at))
                })
            })
        })
    }
}

/// Lanes of a tile as vectors over lanes: `to[(group * words + d) * LANES + lane]`. Absent lanes are 0. As f32, or
/// as words of two bf16 if `PAIRS`.
#[inline(always)]
pub(crate) fn pack_lanes<S: Simd, E: Element, const PAIRS: bool>(
    simd: S,
    rows: &Rows<'_, E>,
    tokens: &Tokens,
    groups: &Groups,
    stage: &mut Vec<f32>,
    to: &mut [f32],
) {
    let words = if PAIRS { rows.width.div_ceil(2) } else { rows.width };
    let stage = reserve(stage, words * S::LANES);
    for (group, to) in to.chunks_exact_mut(words * S::LANES).enumerate() {
        stage.fill(0.0);
        for (lane, position) in groups.lanes_of(group) {
            let row = rows.row(tokens.batch, tokens.at(position), tokens.head);
            let stage = &mut stage[lane * words..][..words];
            if PAIRS { copy_words(row, stage) } else { simd.widen(row, stage) }
        }
        simd.transpose(stage, words, words, to);
    }
}
