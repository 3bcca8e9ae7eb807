//! The mask of a score tile, in the order in which the micro-kernels visit it: rows for scores, runs for sums.
//!
//! Most tiles of a call have one of a few mask patterns: that of the middle, those of the borders. A pattern is relative
//! to the tile's first line and column, so the last few are cached, whatever tile comes next; only the windows of the
//! lanes are compared.

use std::ops::Range;

use crate::arch::Simd;
use crate::arch::scores::{PairPart, RowList, ScoreRows};
use crate::arch::sums::Run;
use crate::boxes::Box3;
use crate::groups::Groups;
use crate::score_block::ScoreBlock;

/// A cache of mask patterns.
#[derive(Debug, Default)]
pub(crate) struct TileMasks {
    patterns: Vec<Pattern>,
    /// The one to replace next.
    oldest: usize,
    /// What the patterns hold for: lanes of a group, and neighbours that sums take at once.
    geometry: ([usize; 3], usize),
    candidate: PatternKey,
    starts: Vec<u32>,
}

/// Patterns in the cache: the middle and the borders of a plane, and along one axis the places where a row block ends in the
/// windows of a pair.
const CACHED_PATTERNS: usize = 48;

/// The unit of [`TileMasks::mask`] where a unit multiplies tiles: groups come one by one, and have sixteen lanes.
pub(crate) const TILES: usize = 32;

/// The mask of one score tile: a pattern, and where it lies.
#[derive(Clone, Copy)]
pub(crate) struct TileMask<'a> {
    pattern: &'a Pattern,
    /// The packed row at which each line of the tile starts.
    pub starts: &'a [u32],
    /// Rows from the first column of the packed box to that of the tile.
    pub shift: usize,
    /// Number of the tile's first line in the packed box.
    pub first_line: usize,
}

/// What a pair sees of a tile, wherever that is.
#[derive(Debug, Default)]
struct Pattern {
    key: PatternKey,
    /// Coordinates of the tile's last axis that each group sees.
    columns: [Range<usize>; 2],
    rows: RowList,
    /// Ends of the rows that the first group alone, both, and the second alone see.
    ends: [usize; 3],
    runs: Vec<Run>,
    /// Four lanes along the last axis: which of the group, and whose runs.
    quads: [Vec<(usize, Range<usize>)>; 2],
    lane_rows: Vec<LaneRow>,
    /// For [`TILES`]: the lanes that see each two neighbours of a line, see [`TileMask::seen_pairs`].
    seen_pairs: Vec<u32>,
}

/// All that a pattern depends on.
#[derive(Debug, Default, PartialEq, Eq)]
struct PatternKey {
    /// Extents of the tile.
    extents: [usize; 3],
    /// What each lane sees along each axis, from the tile's start; along the last one, those of both groups.
    windows: [Vec<[u16; 2]>; 3],
}

/// Lanes of a group that differ along the last axis alone, and the lines of the tile that they see.
#[derive(Debug)]
pub(crate) struct LaneRow {
    /// Number in the group.
    pub index: usize,
    /// Lines along the first axis, from the tile's start.
    pub x: Range<usize>,
    /// Lines along the second axis.
    pub y: Range<usize>,
}

impl LaneRow {
    /// Whether another row of lanes is the next of the group, sees the same lines along the first axis, and along the second begins
    /// and ends no earlier than this one.
    #[inline(always)]
    pub(crate) fn is_followed_by(&self, next: &LaneRow) -> bool {
        self.index + 1 == next.index
            && self.x == next.x
            && self.y.start <= next.y.start
            && self.y.end <= next.y.end
    }
}

/// The slots of a group in its score tile: `[x][y]` lines of `pitch` slots, of which `columns` from `first` on are the
/// group's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreTileShape {
    /// Lines along the first axis.
    pub x: usize,
    /// Lines along the second axis.
    pub y: usize,
    /// Slots of a line.
    pub pitch: usize,
    /// First slot of the group.
    pub first: usize,
    /// Slots of the group.
    pub columns: usize,
}

impl TileMasks {
    /// The mask of a tile, from the cache if it has the pattern. Sums take `unit` neighbours along the last axis at once, or are
    /// those of [`TILES`], for which pairs are listed alone.
    #[inline(always)]
    pub(crate) fn mask(&mut self, block: &ScoreBlock<'_>, tile: &Box3, unit: usize) -> TileMask<'_> {
        let geometry = (block.groups.group, unit);
        if self.geometry != geometry {
            self.geometry = geometry;
            self.patterns.clear();
        }
        self.candidate.set(block, tile);
        let known = self.patterns.iter().position(|pattern| pattern.key == self.candidate);
        let index = known.unwrap_or_else(|| self.insert(block, unit));
        let [x, y, z] = &block.packed.extents;
        let (shift, len) = (tile[2].start - z.start, z.len());
        self.starts.clear();
        for x in tile[0].clone() {
            let lines = tile[1].clone().map(|y| (block.line(x, y) * len + shift) as u32);
            self.starts.extend(lines);
        }
        let first_line = (tile[0].start - x.start) * y.len() + (tile[1].start - y.start);
        TileMask { pattern: &self.patterns[index], starts: &self.starts, shift, first_line }
    }

    /// Builds the pattern of the candidate in place of the oldest; returns where.
    #[inline(never)]
    fn insert(&mut self, block: &ScoreBlock<'_>, unit: usize) -> usize {
        if self.patterns.len() < CACHED_PATTERNS {
            self.oldest = self.patterns.len();
            self.patterns.push(Pattern::default());
        }
        let index = self.oldest;
        self.oldest = (index + 1) % CACHED_PATTERNS;
        let pattern = &mut self.patterns[index];
        std::mem::swap(&mut pattern.key, &mut self.candidate);
        if unit == TILES {
            pattern.list_pairs(block.groups);
        } else {
            pattern.list_rows(block.groups);
            pattern.find_runs(block.groups, unit);
        }
        index
    }
}

impl<'a> TileMask<'a> {
    /// Rows of the scores, and whose they are.
    #[inline(always)]
    pub(crate) fn score_rows(&self) -> [(ScoreRows<'a>, PairPart); 3] {
        let Pattern { rows, ends: [first, both, second], .. } = self.pattern;
        [
            (rows.part(0..*first), PairPart::First),
            (rows.part(*first..*both), PairPart::Both),
            (rows.part(*both..*second), PairPart::Second),
        ]
    }

    /// The runs of each four lanes of group `g`, with the four's number.
    #[inline(always)]
    pub(crate) fn sum_runs(&self, g: usize) -> impl Iterator<Item = (usize, &'a [Run])> {
        let pattern = self.pattern;
        pattern.quads[g].iter().map(|(quad, runs)| (*quad, &pattern.runs[runs.clone()]))
    }

    /// The rows of lanes of a group.
    #[inline(always)]
    pub(crate) fn lane_rows(&self) -> &'a [LaneRow] {
        &self.pattern.lane_rows
    }

    /// Lines of the tile along the second axis.
    #[inline(always)]
    pub(crate) fn extent_y(&self) -> usize {
        self.pattern.key.extents[1]
    }

    /// The lanes of the first group, of at most sixteen, that see two neighbours of each line, one bit a lane: those of the even
    /// column in the low half, those of the odd one in the high half. The group's columns begin in the first pair of a line and
    /// end in its last.
    #[inline(always)]
    pub(crate) fn seen_pairs(&self) -> &'a [u32] {
        &self.pattern.seen_pairs
    }

    /// Slots of a line of the score tile.
    #[inline(always)]
    pub(crate) fn pitch(&self) -> usize {
        self.pattern.key.pitch()
    }

    /// Numbers in the score tile of the pair.
    #[inline(always)]
    pub(crate) fn scores_len<S: Simd>(&self) -> usize {
        self.starts.len() * self.pitch() * 2 * S::LANES
    }

    /// The slots of group `g` in its score tile.
    #[inline(always)]
    pub(crate) fn shape(&self, g: usize) -> ScoreTileShape {
        let Pattern { key: PatternKey { extents: [x, y, _], .. }, columns, .. } = self.pattern;
        ScoreTileShape {
            x: *x,
            y: *y,
            pitch: self.pitch(),
            first: columns[g].start,
            columns: columns[g].len(),
        }
    }
}

impl Pattern {
    /// Lists the rows of all lines: those of the first group alone, of both, of the second alone.
    fn list_rows(&mut self, groups: &Groups) {
        let seen = self.key.seen(groups);
        self.columns = self.key.columns(groups);
        let [a, b] = &self.columns;
        let split = b.start.clamp(a.start, a.end);
        let parts = [a.start..split, split..a.end, b.start.max(a.end)..b.end.max(a.end)];
        let pitch = self.key.pitch();
        self.rows.clear();
        for (part, end) in parts.into_iter().zip(&mut self.ends) {
            let of_lines = seen[0].iter().flat_map(|x| seen[1].iter().map(move |y| x & y));
            for (line, of_line) in of_lines.enumerate() {
                let seen = seen[2][part.clone()].iter().map(|of_column| of_line & of_column);
                self.rows.extend(line, part.start, line * pitch + part.start, seen);
            }
            *end = self.rows.len();
        }
    }

    /// Lists what the first group sees, two neighbours at a time.
    fn list_pairs(&mut self, groups: &Groups) {
        let seen = self.key.seen(groups);
        self.columns = self.key.columns(groups);
        let columns = &self.columns[0];
        self.seen_pairs.clear();
        for of_line in seen[0].iter().flat_map(|x| seen[1].iter().map(move |y| x & y)) {
            let of_column = |column: usize| seen[2].get(column).map_or(0, |seen| seen & of_line);
            let pairs = (columns.start / 2..columns.end.div_ceil(2)).map(|pair| 2 * pair);
            self.seen_pairs.extend(pairs.map(|column| of_column(column) | of_column(column + 1) << 16));
        }
    }

    /// Finds what lanes of the groups see in common.
    fn find_runs(&mut self, groups: &Groups, unit: usize) {
        self.runs.clear();
        self.quads.iter_mut().for_each(Vec::clear);
        for (g, lanes) in self.key.windows[2].chunks(groups.group[2]).enumerate() {
            if self.columns[g].is_empty() {
                continue;
            }
            for (quad, lanes) in lanes.chunks(4).enumerate() {
                let mut windows = [0..0, 0..0, 0..0, 0..0];
                for (window, &[start, end]) in windows.iter_mut().zip(lanes) {
                    let (start, end) = (usize::from(start), usize::from(end));
                    // An empty window keeps its place in the order.
                    let first = if start == end { start.div_ceil(unit) } else { start / unit };
                    *window = first..end.div_ceil(unit).max(first);
                }
                let first = self.runs.len();
                runs(&windows[..lanes.len()], |columns, lanes| {
                    self.runs.push(Run { first: columns.start, len: columns.len(), lanes });
                });
                self.quads[g].push((quad, first..self.runs.len()));
            }
        }
        self.lane_rows.clear();
        let range = |&[start, end]: &[u16; 2]| usize::from(start)..usize::from(end);
        for (i, x) in self.key.windows[0].iter().enumerate() {
            for (j, y) in self.key.windows[1].iter().enumerate() {
                let index = i * groups.group[1] + j;
                self.lane_rows.push(LaneRow { index, x: range(x), y: range(y) });
            }
        }
    }
}

impl PatternKey {
    /// Slots of a line of the score tile.
    #[inline(always)]
    fn pitch(&self) -> usize {
        self.extents[2].next_multiple_of(2)
    }

    /// Reads what the pair sees of the tile.
    #[inline(always)]
    fn set(&mut self, block: &ScoreBlock<'_>, tile: &Box3) {
        let ScoreBlock { groups, pair, windows, .. } = block;
        let mut lanes = groups.group;
        lanes[2] *= pair.count;
        let origin = groups.origin(pair.first);
        for a in 0..3 {
            let Range { start: from, end: to } = tile[a];
            self.extents[a] = to - from;
            self.windows[a].clear();
            self.windows[a].extend(windows.of(a, origin[a], lanes[a]).iter().map(|span| {
                let start = span.start.clamp(from, to);
                [start - from, span.end.clamp(start, to) - from].map(|at| at as u16)
            }));
        }
    }

    /// The lanes that see each coordinate of the tile, one bit a lane, the second group's after the first's.
    fn seen(&self, groups: &Groups) -> [Vec<u32>; 3] {
        let (bits, second) = (groups.bits(), groups.lane_count());
        let mut seen = self.extents.map(|extent| vec![0; extent]);
        for (a, (seen, windows)) in seen.iter_mut().zip(&self.windows).enumerate() {
            for (of_group, shift) in windows.chunks(groups.group[a]).zip([0, second]) {
                for (&[start, end], bits) in of_group.iter().zip(bits[a]) {
                    let bits = match a {
                        2 => bits << shift,
                        // Both groups have the same lanes along the first two axes.
                        _ => bits | bits << second,
                    };
                    seen[usize::from(start)..usize::from(end)].iter_mut().for_each(|seen| *seen |= bits);
                }
            }
        }
        seen
    }

    /// What each group sees along the last axis. Windows never fall.
    fn columns(&self, groups: &Groups) -> [Range<usize>; 2] {
        let mut groups = self.windows[2].chunks(groups.group[2]);
        let mut next = || match groups.next() {
            Some([[start, end]]) | Some([[start, _], .., [_, end]]) => usize::from(*start)..usize::from(*end),
            _ => 0..0,
        };
        let first = next();
        let second = next();
        let none = first.end..first.end;
        [first, if second.is_empty() { none } else { second }]
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
