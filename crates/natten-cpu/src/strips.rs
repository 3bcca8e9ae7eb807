//! What forward and backward share: one or two neighbouring groups of lanes meet a packed box of the stream.
//!
//! ```text
//! strip[slot][lane]   scores of a piece of the box: the union of the groups' windows, at most STRIP_SLOTS rows
//! sums[lane] +=       weights of the strip times rows of the stream, each lane over exactly its own window
//! ```
//!
//! Two groups side by side share the loads of all rows that both see. Sums never touch what a lane does not see,
//! so a NaN there is harmless; scores of such rows are computed and then replaced.

use std::ops::Range;

use crate::arch::Simd;
use crate::arch::tiles::{RowSlot, Scores, WeightedSum, scores, weighted_sum};
use crate::blocking::STRIP_SLOTS;
use crate::pack::Groups;
use crate::softmax::{LaneMasks, StripShape};
use crate::tasks::{Box3, Spans, cut, intersect};

/// One or two groups, neighbours along the last axis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    /// Index of the first group.
    pub first: usize,
    /// One or two.
    pub count: usize,
}

/// The groups of a tile, two at a time where the last axis has two.
pub(crate) fn pairs(groups: &Groups) -> impl Iterator<Item = Pair> + use<> {
    let along = groups.counts[2];
    (0..groups.len() / along.max(1)).flat_map(move |row| {
        (0..along).step_by(2).map(move |z| Pair { first: row * along + z, count: (along - z).min(2) })
    })
}

/// A pair of groups and the part of a packed box that it sees.
pub(crate) struct Meeting<'a> {
    pub spans: &'a Spans,
    pub groups: &'a Groups,
    pub pair: Pair,
    /// The packed box.
    pub stream: &'a Box3,
    /// The part of it that the pair sees, its last axis aligned to pairs.
    seen: Box3,
}

impl<'a> Meeting<'a> {
    /// `None` where the pair sees nothing of the box.
    #[inline(always)]
    pub(crate) fn new(spans: &'a Spans, groups: &'a Groups, pair: Pair, stream: &'a Box3) -> Option<Self> {
        let origin = groups.origin(pair.first);
        let lanes = [groups.group[0], groups.group[1], groups.group[2] * pair.count];
        let along = |a: usize| intersect(&spans.union(a, origin[a], lanes[a]), &stream[a]);
        let (x, y, z) = (along(0), along(1), along(2));
        if x.is_empty() || y.is_empty() || z.is_empty() {
            return None;
        }
        let start = z.start - (z.start - stream[2].start) % 2;
        Some(Meeting { spans, groups, pair, stream, seen: [x, y, start..z.end] })
    }

    /// The pieces whose scores are held at once.
    #[inline(always)]
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Box3> + use<> {
        cut(&self.seen, STRIP_SLOTS, STRIP_SLOTS)
    }

    /// What group `g` of the pair sees of a piece along the last axis.
    #[inline(always)]
    fn columns(&self, g: usize, piece: &Box3) -> Range<usize> {
        let origin = self.groups.origin(self.pair.first + g)[2];
        intersect(&self.spans.union(2, origin, self.groups.group[2]), &piece[2])
    }

    /// Numbers in the strip of one group.
    #[inline(always)]
    pub(crate) fn strip_len<S: Simd>(piece: &Box3) -> usize {
        piece[0].len() * piece[1].len() * piece[2].len().next_multiple_of(2) * S::LANES
    }

    /// The slots of group `g` in its strip.
    #[inline(always)]
    pub(crate) fn shape(&self, g: usize, piece: &Box3) -> StripShape {
        let columns = self.columns(g, piece);
        StripShape {
            x: piece[0].len(),
            y: piece[1].len(),
            pitch: piece[2].len().next_multiple_of(2),
            first: columns.start - piece[2].start,
            columns: columns.len(),
        }
    }

    /// Index of a row of the packed box, in rows.
    #[inline(always)]
    pub(crate) fn row(&self, x: usize, y: usize, z: usize) -> usize {
        let [sx, sy, sz] = self.stream;
        ((x - sx.start) * sy.len() + (y - sy.start)) * sz.len() + (z - sz.start)
    }

    /// Scores of a piece for both groups into their strips.
    #[inline(always)]
    pub(crate) fn scores<S: Simd, const PAIRS: bool>(
        &self,
        simd: S,
        operands: &ScoreOperands<'_>,
        piece: &Box3,
        list: &mut Vec<RowSlot>,
        strips: &mut [f32],
    ) {
        let a = self.columns(0, piece);
        let b = if self.pair.count == 2 { self.columns(1, piece) } else { a.end..a.end };
        // Rows that the first group alone, both, and the second alone see.
        let split = b.start.clamp(a.start, a.end);
        let runs = [(a.start..split, 0, 1), (split..a.end, 0, 2), (b.start.max(a.end)..b.end, 1, 1)];
        let step = operands.words * S::LANES;
        for (columns, first_group, groups) in runs {
            if columns.is_empty() {
                continue;
            }
            self.list_rows(piece, columns, operands.pitch, list);
            let job = Scores {
                lanes: &operands.lanes[self.pair.first * step..],
                words: operands.words,
                stream: operands.stream,
                rows: list,
                first_group,
                groups,
                strip: Self::strip_len::<S>(piece),
                scale: operands.scale,
            };
            scores::<S, PAIRS>(simd, &job, strips);
        }
    }

    /// All rows of a piece with the given columns.
    #[inline(always)]
    fn list_rows(&self, piece: &Box3, columns: Range<usize>, pitch: usize, list: &mut Vec<RowSlot>) {
        list.clear();
        let slots = piece[2].len().next_multiple_of(2);
        let mut slot = columns.start - piece[2].start;
        for x in piece[0].clone() {
            for y in piece[1].clone() {
                let row = self.row(x, y, columns.start);
                let of = |i| RowSlot { row: ((row + i) * pitch) as u32, slot: (slot + i) as u32 };
                list.extend((0..columns.len()).map(of));
                slot += slots;
            }
        }
    }

    /// Which lanes of group `g` see what of a piece.
    #[inline(always)]
    pub(crate) fn masks<'m>(&self, g: usize, piece: &Box3, buffer: &'m mut [Vec<u32>; 3]) -> LaneMasks<'m> {
        let origin = self.groups.origin(self.pair.first + g);
        let ranges = [piece[0].clone(), piece[1].clone(), self.columns(g, piece)];
        let mut all = true;
        for a in 0..3 {
            let present = self.groups.group[a].min(self.groups.lanes[a] - origin[a]);
            let (first, last) = (self.spans.at(a, origin[a]), self.spans.at(a, origin[a] + present - 1));
            all &= last.start <= ranges[a].start && first.end >= ranges[a].end;
        }
        if all {
            return LaneMasks { axes: None };
        }
        for (a, masks) in buffer.iter_mut().enumerate() {
            masks.clear();
            masks.resize(ranges[a].len(), 0);
            let present = self.groups.group[a].min(self.groups.lanes[a] - origin[a]);
            for i in 0..present {
                let span = intersect(&self.spans.at(a, origin[a] + i), &ranges[a]);
                let seen = span.start - ranges[a].start..span.end - ranges[a].start;
                masks[seen].iter_mut().for_each(|mask| *mask |= self.groups.bits[a][i]);
            }
        }
        let [x, y, z] = buffer;
        LaneMasks { axes: Some([x, y, z]) }
    }

    /// `sums[lane] += weights of lane x rows`, each lane of group `g` over exactly what it sees of the piece.
    ///
    /// `sums` holds one row of `width` for each lane of the group. With `PAIRS`, weights and rows are words of two
    /// neighbours along the last axis.
    #[inline(always)]
    pub(crate) fn weighted_sums<S: Simd, const PAIRS: bool>(
        &self,
        simd: S,
        g: usize,
        piece: &Box3,
        operands: &SumOperands<'_>,
        sums: &mut [f32],
    ) {
        let unit = if PAIRS { 2 } else { 1 };
        let origin = self.groups.origin(self.pair.first + g);
        let [gx, gy, gz] = self.groups.group;
        let [lx, ly, lz] = self.groups.lanes;
        let pitch = piece[2].len().next_multiple_of(2) / unit;
        let stream_row = self.stream[2].len().div_ceil(unit) * operands.width;
        for x in 0..gx.min(lx - origin[0]) {
            for y in 0..gy.min(ly - origin[1]) {
                let rows = [
                    intersect(&self.spans.at(0, origin[0] + x), &piece[0]),
                    intersect(&self.spans.at(1, origin[1] + y), &piece[1]),
                ];
                if rows[0].is_empty() || rows[1].is_empty() {
                    continue;
                }
                let (wx, wy) = (rows[0].start - piece[0].start, rows[1].start - piece[1].start);
                let weight_row = (wx * piece[1].len() + wy) * pitch;
                let (sx, sy) = (rows[0].start - self.stream[0].start, rows[1].start - self.stream[1].start);
                let first = (piece[2].start - self.stream[2].start) / unit;
                let row = (sx * self.stream[1].len() + sy) * stream_row + first * operands.width;
                let present = gz.min(lz - origin[2]);
                for z in (0..present).step_by(4) {
                    let lane = (x * gy + y) * gz + z;
                    let count = (present - z).min(4);
                    let windows = self.windows(origin[2] + z, count, piece, unit);
                    runs(&windows[..count], |columns, queries| {
                        let job = WeightedSum {
                            weights: operands.weights,
                            weights_start: (weight_row + columns.start) * S::LANES + lane + queries.start,
                            weights_strides: [piece[1].len() * pitch * S::LANES, pitch * S::LANES],
                            stream: operands.stream,
                            stream_start: row + columns.start * operands.width,
                            stream_strides: [self.stream[1].len() * stream_row, stream_row],
                            extents: [rows[0].len(), rows[1].len(), columns.len()],
                            queries: queries.len(),
                            width: operands.width,
                            sums_start: (lane + queries.start) * operands.width,
                            has_non_finite: operands.has_non_finite,
                        };
                        weighted_sum::<S, PAIRS>(simd, &job, sums);
                    });
                }
            }
        }
    }

    /// What up to four neighbouring lanes see of a piece along the last axis, in units from its start.
    #[inline(always)]
    fn windows(&self, lane: usize, count: usize, piece: &Box3, unit: usize) -> [Range<usize>; 4] {
        let mut windows = [0..0, 0..0, 0..0, 0..0];
        for (i, window) in windows[..count].iter_mut().enumerate() {
            let span = intersect(&self.spans.at(2, lane + i), &piece[2]);
            if !span.is_empty() {
                let (start, end) = (span.start - piece[2].start, span.end - piece[2].start);
                *window = start / unit..end.div_ceil(unit);
            } else {
                let at = (span.start - piece[2].start).div_ceil(unit);
                *window = at..at;
            }
        }
        windows
    }
}

/// Operands of [`Meeting::scores`].
pub(crate) struct ScoreOperands<'a> {
    /// All groups of the tile, `words` vectors each.
    pub lanes: &'a [f32],
    /// Words of a row.
    pub words: usize,
    /// The packed box.
    pub stream: &'a [f32],
    /// Words from one of its rows to the next.
    pub pitch: usize,
    /// Factor on each score.
    pub scale: f32,
}

/// Operands of [`Meeting::weighted_sums`].
pub(crate) struct SumOperands<'a> {
    /// The strip of the group.
    pub weights: &'a [f32],
    /// The packed box.
    pub stream: &'a [f32],
    /// Words of one of its rows.
    pub width: usize,
    /// Whether some number of the box is NaN or infinite; matters for pairs only.
    pub has_non_finite: bool,
}

/// Cuts what up to four neighbours see into runs that a part of them sees in common. Windows never fall.
#[inline(always)]
fn runs(windows: &[Range<usize>], mut run: impl FnMut(Range<usize>, Range<usize>)) {
    let mut at = 0;
    let mut first = 0;
    while first < windows.len() {
        if windows[first].end <= at || windows[first].is_empty() {
            first += 1;
            continue;
        }
        at = at.max(windows[first].start);
        let mut after = first + 1;
        let mut next = windows[first].end;
        while after < windows.len() {
            if windows[after].start > at {
                next = next.min(windows[after].start);
                break;
            }
            after += 1;
        }
        run(at..next, first..after);
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_each_window_once() {
        let cases: [&[Range<usize>]; 6] = [
            &[0..7, 1..8, 2..9, 3..10],
            &[0..3, 0..3, 0..3, 0..3],
            &[0..1, 1..2, 2..3, 3..4],
            &[0..1, 5..6, 5..9],
            &[2..2, 2..5, 4..5, 5..5],
            &[0..1, 0..2, 0..3, 0..4],
        ];
        for windows in cases {
            let mut seen = vec![[0; 16]; windows.len()];
            runs(windows, |columns, queries| {
                for q in queries {
                    columns.clone().for_each(|c| seen[q][c] += 1);
                }
            });
            for (window, seen) in windows.iter().zip(&seen) {
                for (c, &count) in seen.iter().enumerate() {
                    assert_eq!(count, usize::from(window.contains(&c)), "{windows:?} column {c}");
                }
            }
        }
    }
}
