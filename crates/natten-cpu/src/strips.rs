//! What forward and backward share: one or two neighbouring groups of lanes meet a packed box of the stream.
//!
//! ```text
//! strip[slot][lane]   scores of a piece of the box for the lanes of both groups, at most STRIP_SLOTS rows
//! sums[lane] +=       weights of the strip times rows of the stream, each lane over exactly its own window
//! ```
//!
//! Two groups side by side share the loads of all rows that both see. Sums never touch what a lane does not see,
//! so a NaN there is harmless; scores of such rows are computed and then replaced.

use crate::arch::Simd;
use crate::arch::prefetch::Ahead;
use crate::arch::scores::{Scores, scores};
use crate::arch::sums::{WeightedSum, weighted_sum};
use crate::blocking::STRIP_SLOTS;
use crate::groups::{Groups, Pair};
use crate::packed::Packed;
use crate::sighting::Sighting;
use crate::tasks::{Box3, Boxes, Spans, cut, intersect};

/// A pair of groups and the part of a packed box that it sees.
pub(crate) struct Meeting<'a> {
    pub spans: &'a Spans,
    pub groups: &'a Groups,
    pub pair: Pair,
    /// The packed box.
    pub stream: &'a Packed,
    /// The part of it that the pair sees, its last axis aligned to pairs.
    pub seen: Box3,
}

/// The slots of a group in its strip: `[x][y]` rows of `pitch` slots, of which `columns` from `first` on are the
/// group's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StripShape {
    /// Rows along the first axis.
    pub x: usize,
    /// Rows along the second axis.
    pub y: usize,
    /// Slots of a row.
    pub pitch: usize,
    /// First slot of the group.
    pub first: usize,
    /// Slots of the group.
    pub columns: usize,
}

impl<'a> Meeting<'a> {
    /// `None` where the pair sees nothing of the box.
    #[inline(always)]
    pub(crate) fn new(spans: &'a Spans, groups: &'a Groups, pair: Pair, stream: &'a Packed) -> Option<Self> {
        let origin = groups.origin(pair.first);
        let lanes = [groups.group[0], groups.group[1], groups.group[2] * pair.count];
        let whole = &stream.extents;
        let along = |a: usize| intersect(&spans.union(a, origin[a], lanes[a]), &whole[a]);
        let (x, y, z) = (along(0), along(1), along(2));
        if x.is_empty() || y.is_empty() || z.is_empty() {
            return None;
        }
        let start = z.start - (z.start - whole[2].start) % 2;
        Some(Meeting { spans, groups, pair, stream, seen: [x, y, start..z.end] })
    }

    /// The pieces whose scores are held at once.
    #[inline(always)]
    pub(crate) fn pieces(&self) -> Boxes {
        cut(&self.seen, STRIP_SLOTS, STRIP_SLOTS)
    }

    /// Index of a line of the packed box.
    #[inline(always)]
    pub(crate) fn line(&self, x: usize, y: usize) -> usize {
        let [sx, sy, _] = &self.stream.extents;
        self.stream.lines[(x - sx.start) * sy.len() + (y - sy.start)] as usize
    }

    /// Scores of a piece for both groups into the strip, and the largest one of each lane if `SOFTMAX`; scores of
    /// what a lane does not see are minus infinity then.
    #[inline(always)]
    pub(crate) fn scores<S: Simd, const PAIRS: bool, const SOFTMAX: bool>(
        &self,
        simd: S,
        operands: &ScoreOperands<'_>,
        sighting: &Sighting<'_>,
        ahead: &mut Ahead,
        (strip, maxima): (&mut [f32], &mut [f32]),
    ) {
        let of_pair = operands.words * 2 * S::LANES;
        for (rows, of) in sighting.runs() {
            if rows.is_empty() {
                continue;
            }
            let job = Scores {
                lanes: &operands.lanes[self.pair.index * of_pair..],
                words: operands.words,
                stream: operands.stream,
                pitch: operands.pitch,
                rows,
                starts: sighting.starts,
                of,
                scale: operands.scale,
            };
            scores::<S, PAIRS, SOFTMAX>(simd, &job, ahead, strip, maxima);
        }
    }

    /// `sums[lane] += weights of lane x rows`, each lane of group `g` over exactly what it sees of the piece.
    ///
    /// `sums` holds one row of `width` for each lane of the group; what they hold counts for nothing if `fresh`. With
    /// `PAIRS`, weights and rows are words of two neighbours along the last axis.
    #[inline(always)]
    pub(crate) fn weighted_sums<S: Simd, const PAIRS: bool>(
        &self,
        simd: S,
        (g, sighting): (usize, &Sighting<'_>),
        operands: &SumOperands<'_>,
        sums: &mut [f32],
    ) {
        let unit = if PAIRS { 2 } else { 1 };
        let width = operands.width;
        let gz = self.groups.group[2];
        let line = sighting.pitch() / unit * 2 * S::LANES;
        let line_len = self.stream.extents[2].len().div_ceil(unit) * width;
        for (quad, runs) in sighting.sum_runs(g) {
            for row in sighting.lane_rows() {
                let lane = row.index * gz + quad * 4;
                let job = WeightedSum {
                    weights: operands.weights,
                    weights_start: (row.x.start * sighting.extent_y() + row.y.start) * line
                        + g * S::LANES
                        + lane,
                    weights_strides: [sighting.extent_y() * line, line],
                    stream: operands.stream,
                    column: sighting.shift / unit * width,
                    lines: &self.stream.lines[sighting.first_line..],
                    lines_pitch: self.stream.extents[1].len(),
                    line_len,
                    x: row.x.clone(),
                    y: row.y.clone(),
                    runs,
                    queries: gz.min(4),
                    width,
                    sums_start: lane * width,
                    fresh: operands.fresh,
                    has_non_finite: operands.has_non_finite,
                };
                weighted_sum::<S, PAIRS>(simd, &job, sums);
            }
        }
    }
}

/// Operands of [`Meeting::scores`].
pub(crate) struct ScoreOperands<'a> {
    /// All pairs of the tile, `words` vectors over the lanes of two groups each.
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
    /// The strip of the pair.
    pub weights: &'a [f32],
    /// The packed box.
    pub stream: &'a [f32],
    /// Words of one of its rows.
    pub width: usize,
    /// Whether the sums start here.
    pub fresh: bool,
    /// Whether some number of the box is NaN or infinite; matters for pairs only.
    pub has_non_finite: bool,
}
