//! What a pair of groups sees of a piece, in the order the kernels walk it: rows for scores, runs for sums.
//!
//! Neighbouring pairs mostly see the same pattern, shifted along the last axis. Patterns are therefore relative to the
//! piece's first column and kept from one pair to the next; only the masks of each axis are compared.

use std::ops::Range;

use crate::arch::Simd;
use crate::arch::scores::{JobRows, Of, RowList};
use crate::arch::sums::Run;
use crate::strips::{Meeting, StripShape};
use crate::tasks::{Box3, intersect};

/// The pattern, and where it lies.
#[derive(Debug, Default)]
pub(crate) struct Sighting {
    key: Key,
    /// Whether `key` and all that follows from it are of the present box.
    valid: bool,
    candidate: Key,
    rows: RowList,
    /// Ends of the rows that the first group alone, both, and the second alone see.
    ends: [usize; 3],
    runs: Vec<Run>,
    /// Four lanes along the last axis: which of the group, and whose runs.
    quads: [Vec<(usize, Range<usize>)>; 2],
    lane_rows: Vec<LaneRow>,
    shift: usize,
    first_line: usize,
}

/// All that a pattern depends on inside one packed box.
#[derive(Debug, Default, PartialEq, Eq)]
struct Key {
    /// Lanes that see each coordinate of the piece, one bit a lane, the second group's after the first's.
    seen: [Vec<u32>; 3],
    /// Lanes that exist, likewise.
    present: u32,
    x: Range<usize>,
    y: Range<usize>,
    columns: [Range<usize>; 2],
}

/// Lanes of a group that differ along the last axis alone, and the lines of the piece that they see.
#[derive(Debug)]
pub(crate) struct LaneRow {
    /// Number in the group.
    pub index: usize,
    /// Lines along the first axis, from the piece's start.
    pub x: Range<usize>,
    /// Lines along the second axis.
    pub y: Range<usize>,
}

impl Sighting {
    /// Forgets the pattern: the packed box has changed.
    pub(crate) fn clear(&mut self) {
        self.valid = false;
    }

    /// Looks at a piece. Sums take `unit` neighbours along the last axis at once.
    #[inline(always)]
    pub(crate) fn look(&mut self, meeting: &Meeting<'_>, piece: &Box3, unit: usize) {
        let stream = &meeting.stream.extents;
        self.shift = piece[2].start - stream[2].start;
        self.first_line =
            (piece[0].start - stream[0].start) * stream[1].len() + (piece[1].start - stream[1].start);
        self.candidate.set(meeting, piece);
        if self.valid && self.candidate == self.key {
            return;
        }
        std::mem::swap(&mut self.key, &mut self.candidate);
        self.valid = true;
        self.list_rows(meeting);
        self.find_runs(meeting, piece, unit);
    }

    /// Rows of the scores, and whose they are.
    #[inline(always)]
    pub(crate) fn runs(&self) -> [(JobRows<'_>, Of); 3] {
        let [first, both, second] = self.ends;
        [
            (self.rows.part(0..first), Of::First),
            (self.rows.part(first..both), Of::Both),
            (self.rows.part(both..second), Of::Second),
        ]
    }

    /// The runs of each four lanes of group `g`, with the four's number.
    #[inline(always)]
    pub(crate) fn sum_runs(&self, g: usize) -> impl Iterator<Item = (usize, &[Run])> {
        self.quads[g].iter().map(|(quad, runs)| (*quad, &self.runs[runs.clone()]))
    }

    /// The rows of lanes of a group.
    #[inline(always)]
    pub(crate) fn lane_rows(&self) -> &[LaneRow] {
        &self.lane_rows
    }

    /// Rows from the first column of the packed box to that of the piece.
    #[inline(always)]
    pub(crate) fn shift(&self) -> usize {
        self.shift
    }

    /// Number of the piece's first line in the packed box.
    #[inline(always)]
    pub(crate) fn first_line(&self) -> usize {
        self.first_line
    }

    /// Lines of the piece along the second axis.
    #[inline(always)]
    pub(crate) fn extent_y(&self) -> usize {
        self.key.y.len()
    }

    /// Slots of a line of the strip.
    #[inline(always)]
    pub(crate) fn pitch(&self) -> usize {
        self.key.seen[2].len().next_multiple_of(2)
    }

    /// Numbers in the strip of the pair.
    #[inline(always)]
    pub(crate) fn strip_len<S: Simd>(&self) -> usize {
        self.key.x.len() * self.key.y.len() * self.pitch() * 2 * S::LANES
    }

    /// The slots of group `g` in its strip.
    #[inline(always)]
    pub(crate) fn shape(&self, g: usize) -> StripShape {
        let columns = &self.key.columns[g];
        StripShape {
            x: self.key.x.len(),
            y: self.key.y.len(),
            pitch: self.pitch(),
            first: columns.start,
            columns: columns.len(),
        }
    }

    /// Lists the rows of all lines: those of the first group alone, of both, of the second alone.
    #[inline(always)]
    fn list_rows(&mut self, meeting: &Meeting<'_>) {
        let [a, b] = &self.key.columns;
        let split = b.start.clamp(a.start, a.end);
        let parts = [a.start..split, split..a.end, b.start.max(a.end)..b.end.max(a.end)];
        let (pitch, len) = (self.pitch(), meeting.stream.extents[2].len());
        self.rows.clear();
        for (part, end) in parts.into_iter().zip(&mut self.ends) {
            let mut slots = 0;
            for (x, seen_x) in self.key.x.clone().zip(&self.key.seen[0]) {
                for (y, seen_y) in self.key.y.clone().zip(&self.key.seen[1]) {
                    let (row, seen) = (meeting.line(x, y) * len, seen_x & seen_y);
                    let seen = self.key.seen[2][part.clone()].iter().map(|&z| seen & z);
                    self.rows.extend((row + part.start) as u32, (slots + part.start) as u32, seen);
                    slots += pitch;
                }
            }
            *end = self.rows.len();
        }
    }

    /// Finds what lanes of the groups see in common.
    #[inline(always)]
    fn find_runs(&mut self, meeting: &Meeting<'_>, piece: &Box3, unit: usize) {
        let Meeting { groups, spans, pair, .. } = meeting;
        self.runs.clear();
        for g in 0..2 {
            self.quads[g].clear();
            if g >= pair.count || self.key.columns[g].is_empty() {
                continue;
            }
            let origin = groups.origin(pair.first + g)[2];
            let present = groups.present(2, origin);
            for lane in (0..present).step_by(4) {
                let mut windows = [0..0, 0..0, 0..0, 0..0];
                let count = (present - lane).min(4);
                for (i, window) in windows[..count].iter_mut().enumerate() {
                    let span = intersect(&spans.at(2, origin + lane + i), &piece[2]);
                    let (start, end) = (span.start - piece[2].start, span.end - piece[2].start);
                    // An empty window keeps its place in the order.
                    let first = if span.is_empty() { start.div_ceil(unit) } else { start / unit };
                    *window = first..end.div_ceil(unit).max(first);
                }
                let first = self.runs.len();
                runs(&windows[..count], |columns, lanes| {
                    self.runs.push(Run { first: columns.start, len: columns.len(), lanes });
                });
                self.quads[g].push((lane / 4, first..self.runs.len()));
            }
        }
        let origin = groups.origin(pair.first);
        self.lane_rows.clear();
        for x in 0..groups.present(0, origin[0]) {
            for y in 0..groups.present(1, origin[1]) {
                let along = |a: usize, lane: usize| {
                    let seen = intersect(&spans.at(a, origin[a] + lane), &piece[a]);
                    seen.start - piece[a].start..seen.end - piece[a].start
                };
                let index = x * groups.group[1] + y;
                self.lane_rows.push(LaneRow { index, x: along(0, x), y: along(1, y) });
            }
        }
    }
}

impl Key {
    /// Reads what the pair sees of the piece along each axis.
    #[inline(always)]
    fn set(&mut self, meeting: &Meeting<'_>, piece: &Box3) {
        let Meeting { groups, pair, .. } = meeting;
        (self.x, self.y) = (piece[0].clone(), piece[1].clone());
        self.columns = [0..0, 0..0];
        self.seen.iter_mut().zip(piece).for_each(|(seen, range)| {
            seen.clear();
            seen.resize(range.len(), 0);
        });
        self.present = 0;
        for g in 0..pair.count {
            let half = g * groups.lane_count();
            let origin = groups.origin(pair.first + g);
            let mut present = groups.all_bits();
            for (a, &start) in origin.iter().enumerate() {
                // Both groups have the same lanes along the first two axes.
                present &= self.add(meeting, piece, (a, start), half);
            }
            self.present |= present << half;
            let columns = meeting.columns(g, piece);
            self.columns[g] = columns.start - piece[2].start..columns.end - piece[2].start;
        }
        if pair.count == 1 {
            self.columns[1] = self.columns[0].end..self.columns[0].end;
        }
    }

    /// Adds the lanes of a group along an axis; returns those that exist.
    #[inline(always)]
    fn add(&mut self, meeting: &Meeting<'_>, piece: &Box3, (a, origin): (usize, usize), half: usize) -> u32 {
        let Meeting { groups, spans, .. } = meeting;
        let mut all = 0;
        for i in 0..groups.present(a, origin) {
            let bits = groups.bits[a][i];
            let span = intersect(&spans.at(a, origin + i), &piece[a]);
            let seen = span.start - piece[a].start..span.end - piece[a].start;
            self.seen[a][seen].iter_mut().for_each(|seen| *seen |= bits << half);
            all |= bits;
        }
        all
    }
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
