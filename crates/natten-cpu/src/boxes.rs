//! Boxes of positions, and how a problem is cut into them: boxes of lanes (queries in a forward, keys in the second half
//! of a backward) and the boxes of rows (the other side) that they see.

use std::ops::Range;

use natten_core::Problem;
use natten_core::window::{Axis, Residue};

/// A box of positions.
pub(crate) type Box3 = [Range<usize>; 3];

/// Number of positions in a box.
pub(crate) fn volume(extents: &Box3) -> usize {
    extents.iter().map(ExactSizeIterator::len).product()
}

/// The windows of one axis of one residue: what a lane sees along it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AxisWindow {
    residue: Residue,
    /// Lanes are keys, and rows are the queries that see them.
    inverse: bool,
}

impl AxisWindow {
    fn lane_len(&self) -> usize {
        if self.inverse { self.residue.key_len } else { self.residue.query_len }
    }

    /// The rows that a lane sees; may be empty.
    #[inline]
    pub(crate) fn of(&self, lane: usize) -> Range<usize> {
        let range = match self.inverse {
            true => self.residue.inverse_window(lane),
            false => self.residue.window(lane),
        };
        range.start..range.end.max(range.start)
    }
}

/// A box of lanes along one axis.
#[derive(Clone, Debug)]
pub(crate) struct AxisLanes {
    /// Their windows.
    pub window: AxisWindow,
    /// Positions of the lanes.
    pub lanes: Range<usize>,
    /// First token of the residue, for lanes.
    pub lane_token: usize,
    /// First token of the residue, for rows.
    pub row_token: usize,
    /// Tokens from one position to the next.
    pub dilation: usize,
}

impl AxisLanes {
    /// What some of its lanes sees.
    #[inline(always)]
    pub(crate) fn seen(&self) -> Range<usize> {
        self.window.of(self.lanes.start).start..self.window.of(self.lanes.end - 1).end
    }
}

/// One box of lanes.
pub(crate) type LaneBox = [AxisLanes; 3];

/// A box of lanes along the last axis alone, for lanes without windows.
pub(crate) fn plain_box(lanes: Range<usize>) -> LaneBox {
    [0..1, 0..1, lanes].map(|lanes| AxisLanes {
        window: AxisWindow { residue: Axis::UNIT.residue(0), inverse: false },
        lanes,
        lane_token: 0,
        row_token: 0,
        dilation: 1,
    })
}

/// The lanes of each task of a problem, found by number so that no list of them is kept.
pub(crate) struct TaskBoxes {
    sequences: Vec<Sequence>,
    count: usize,
}

struct Sequence {
    first: usize,
    axes: [Axis; 3],
    starts: [[usize; 2]; 3],
    along: [AxisTiles; 3],
}

/// The tiles along one axis: runs of residues that have as many each.
#[derive(Clone, Copy, Debug)]
struct AxisTiles {
    runs: [TileRun; Axis::MOST_RESIDUE_RUNS],
    count: usize,
}

/// Residues with the same number of tiles.
#[derive(Clone, Copy, Debug, Default)]
struct TileRun {
    /// The first of them.
    residue: usize,
    /// Number of its first tile.
    first: usize,
    /// Tiles of each.
    of_residue: usize,
}

impl AxisTiles {
    /// Lanes of an axis in tiles of at most `tile` positions of a residue.
    fn new(axis: &Axis, tile: usize, inverse: bool) -> Self {
        debug_assert!(axis.residue_runs().count() <= Axis::MOST_RESIDUE_RUNS);
        let mut tiles = AxisTiles { runs: [TileRun::default(); Axis::MOST_RESIDUE_RUNS], count: 0 };
        for (to, run) in tiles.runs.iter_mut().zip(axis.residue_runs()) {
            let window = AxisWindow { residue: axis.residue(run.start), inverse };
            let of_residue = window.lane_len().div_ceil(tile);
            *to = TileRun { residue: run.start, first: tiles.count, of_residue };
            tiles.count += run.len() * of_residue;
        }
        tiles
    }

    /// The residue of tile `index`, and its number there.
    fn locate(&self, index: usize) -> (usize, usize) {
        // Runs without tiles begin where the next one does.
        let has_begun = |run: &&TileRun| run.of_residue > 0 && run.first <= index;
        let run = self.runs.iter().rfind(has_begun).copied().unwrap_or_default();
        let (residue, number) = ((index - run.first) / run.of_residue, (index - run.first) % run.of_residue);
        (run.residue + residue, number)
    }
}

impl TaskBoxes {
    /// Cuts the queries (or the keys, if `inverse`) of every residue of every sequence into boxes of at most
    /// `tile` positions.
    pub(crate) fn new(problem: &Problem, tile: [usize; 3], inverse: bool) -> Self {
        let mut count = 0;
        let mut sequences = Vec::with_capacity(problem.sequences().len());
        for packed in problem.sequences() {
            let along = std::array::from_fn(|a| AxisTiles::new(&packed.axes[a], tile[a], inverse));
            // Without lanes along one axis there may be any number along another.
            let total = along.iter().map(|tiles: &AxisTiles| tiles.count).fold(1, usize::saturating_mul);
            let starts = [packed.query_start, packed.key_start];
            let starts = if inverse { [starts[1], starts[0]] } else { starts };
            let starts = [[0, 0], [0, 0], starts];
            if total > 0 {
                sequences.push(Sequence { first: count, axes: packed.axes, starts, along });
            }
            count += total;
        }
        TaskBoxes { sequences, count }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Box number `index`.
    pub(crate) fn get(&self, index: usize, tile: [usize; 3], inverse: bool) -> LaneBox {
        let after = self.sequences.partition_point(|sequence| sequence.first <= index);
        let sequence = &self.sequences[after - 1];
        let mut rest = index - sequence.first;
        let mut along = [(0, 0); 3];
        for a in (0..3).rev() {
            let tiles = &sequence.along[a];
            along[a] = tiles.locate(rest % tiles.count);
            rest /= tiles.count;
        }
        std::array::from_fn(|a| {
            let ((residue, number), axis) = (along[a], &sequence.axes[a]);
            let window = AxisWindow { residue: axis.residue(residue), inverse };
            let start = number * tile[a];
            let tokens = [axis.first_query(residue), axis.first_key(residue)];
            let [lane_token, row_token] = if inverse { [tokens[1], tokens[0]] } else { tokens };
            AxisLanes {
                window,
                lanes: start..(start + tile[a]).min(window.lane_len()),
                lane_token: sequence.starts[a][0] + lane_token,
                row_token: sequence.starts[a][1] + row_token,
                dilation: axis.dilation,
            }
        })
    }
}

/// What each lane of a tile sees, by axis. Windows never fall from one lane to the next.
#[derive(Clone, Debug, Default)]
pub(crate) struct TileWindows {
    axes: [Vec<Range<usize>>; 3],
}

impl TileWindows {
    /// Reads those of a box of lanes.
    pub(crate) fn read_tile(&mut self, tile: &LaneBox) {
        for (windows, axis) in self.axes.iter_mut().zip(tile) {
            windows.clear();
            windows.extend(axis.lanes.clone().map(|lane| axis.window.of(lane)));
        }
    }

    /// Reads those of one axis.
    pub(crate) fn read_axis(&mut self, a: usize, axis: &AxisLanes) {
        let windows = &mut self.axes[a];
        windows.clear();
        windows.extend(axis.lanes.clone().map(|lane| axis.window.of(lane)));
    }

    /// Every lane sees everything.
    pub(crate) fn set_all(&mut self, tile: &LaneBox, rows: &Box3) {
        for ((windows, axis), range) in self.axes.iter_mut().zip(tile).zip(rows) {
            windows.clear();
            windows.resize(axis.lanes.len(), range.clone());
        }
    }

    /// What each of `count` lanes from `lane` on sees along an axis; fewer where the tile ends.
    #[inline(always)]
    pub(crate) fn of(&self, axis: usize, lane: usize, count: usize) -> &[Range<usize>] {
        let windows = &self.axes[axis];
        &windows[lane..(lane + count).min(windows.len())]
    }

    /// What some of `count` lanes from `lane` on sees along an axis. Lanes past the tile see nothing.
    #[inline(always)]
    pub(crate) fn union(&self, axis: usize, lane: usize, count: usize) -> Range<usize> {
        let windows = &self.axes[axis];
        let last = (lane + count).min(windows.len()) - 1;
        windows[lane].start..windows[last].end
    }

    /// What the whole tile sees.
    pub(crate) fn all(&self) -> Box3 {
        std::array::from_fn(|a| self.union(a, 0, self.axes[a].len()))
    }
}

/// The part of a range that lies within another; where there is none, the end of `within` that is closer.
#[inline(always)]
pub(crate) fn intersect(range: &Range<usize>, within: &Range<usize>) -> Range<usize> {
    let start = range.start.clamp(within.start, within.end);
    start..range.end.clamp(start, within.end)
}

/// Cuts a box into boxes of at most `most` positions, and at most `most_last` along the last axis, as equal as
/// may be. Cuts of the last axis are even numbers of positions, so that pairs stay together; so is `most_last`.
#[inline(always)]
pub(crate) fn cut(whole: &Box3, most: usize, most_last: usize) -> Boxes {
    let len = [whole[0].len(), whole[1].len(), whole[2].len()];
    if len[0] * len[1] * len[2] <= most && len[2] <= most_last {
        return Boxes::new(whole, len);
    }
    let even = |len: usize, most: usize| {
        let most = most.clamp(1, len.max(1));
        len.max(1).div_ceil(len.max(1).div_ceil(most))
    };
    let z = even(len[2], (most & !1).min(most_last)).next_multiple_of(2);
    let y = even(len[1], most / z);
    let x = even(len[0], most / (z * y));
    Boxes::new(whole, [x, y, z])
}

/// The boxes of [`cut`], last axis fastest.
#[derive(Clone, Debug)]
pub(crate) struct Boxes {
    whole: Box3,
    steps: [usize; 3],
    /// Where the next box starts; `None` after the last.
    next: Option<[usize; 3]>,
}

impl Boxes {
    #[inline(always)]
    fn new(whole: &Box3, steps: [usize; 3]) -> Self {
        let next = (!whole.iter().any(Range::is_empty)).then(|| whole.each_ref().map(|range| range.start));
        Boxes { whole: whole.clone(), steps, next }
    }
}

impl Iterator for Boxes {
    type Item = Box3;

    #[inline(always)]
    fn next(&mut self) -> Option<Box3> {
        let start = self.next?;
        let end: [usize; 3] = std::array::from_fn(|a| (start[a] + self.steps[a]).min(self.whole[a].end));
        let mut next = start;
        self.next = None;
        for a in (0..3).rev() {
            if end[a] < self.whole[a].end {
                next[a] = end[a];
                self.next = Some(next);
                break;
            }
            next[a] = self.whole[a].start;
        }
        Some(std::array::from_fn(|a| start[a]..end[a]))
    }
}
