//! A score tile: the scores of one or two neighbouring lane groups for some rows of a packed row block, and the two
//! products around it that forward and backward share.
//!
//! ```text
//! scores[slot][lane]  of the lanes of both groups, at most `score_tile_rows` slots, one for each row
//! sums[lane] +=       weights of the tile times its rows, each lane over exactly its own window
//! ```
//!
//! Two groups side by side share the loads of all rows that both see. Sums never touch what a lane does not see,
//! so a NaN there is harmless; scores of such rows are computed and then replaced.

use crate::arch::Simd;
use crate::arch::prefetch::PrefetchQueue;
use crate::arch::scores::{Scores, scores};
use crate::arch::sums::{WeightedSum, weighted_sum};
use crate::score_block::ScoreBlock;
use crate::tile_mask::TileMask;

impl ScoreBlock<'_> {
    /// The scores of a tile for both groups, and the largest one of each lane if `SOFTMAX`; scores of what a lane does
    /// not see are minus infinity then.
    #[inline(always)]
    pub(crate) fn scores<S: Simd, const PAIRS: bool, const SOFTMAX: bool>(
        &self,
        simd: S,
        operands: &ScoreOperands<'_>,
        mask: &TileMask<'_>,
        prefetch: &mut PrefetchQueue,
        (tile, maxima): (&mut [f32], &mut [f32]),
    ) {
        let of_pair = operands.words * 2 * S::LANES;
        for (rows, of) in mask.score_rows() {
            if rows.is_empty() {
                continue;
            }
            let args = Scores {
                lanes: &operands.lanes[self.pair.index * of_pair..],
                words: operands.words,
                packed: operands.packed,
                pitch: operands.pitch,
                rows,
                starts: mask.starts,
                of,
                scale: operands.scale,
            };
            scores::<S, PAIRS, SOFTMAX>(simd, &args, prefetch, tile, maxima);
        }
    }

    /// `sums[lane] += weights of lane x rows`, each lane of group `g` over exactly what it sees of the tile.
    ///
    /// `sums` holds one row of `width` for each lane of the group; what they hold counts for nothing if `overwrite`. With
    /// `PAIRS`, weights and rows are words of two neighbours along the last axis.
    #[inline(always)]
    pub(crate) fn weighted_sums<S: Simd, const PAIRS: bool>(
        &self,
        simd: S,
        (g, mask): (usize, &TileMask<'_>),
        operands: &SumOperands<'_>,
        sums: &mut [f32],
    ) {
        let unit = if PAIRS { 2 } else { 1 };
        let width = operands.width;
        let gz = self.groups.group[2];
        let line = mask.pitch() / unit * 2 * S::LANES;
        let line_len = self.packed.extents[2].len().div_ceil(unit) * width;
        let (rows, queries) = (mask.lane_rows(), gz.min(4));
        let in_twos = S::MANY_REGISTERS && queries == 4 && width <= 2 * S::WIDE;
        for (quad, runs) in mask.sum_runs(g) {
            let mut first = 0;
            while first < rows.len() {
                let row = &rows[first];
                let next = rows.get(first + 1).filter(|next| in_twos && row.is_followed_by(next));
                first += 1 + usize::from(next.is_some());
                let lane = row.index * gz + quad * 4;
                let args = WeightedSum {
                    weights: operands.weights,
                    weights_start: (row.x.start * mask.extent_y() + row.y.start) * line + g * S::LANES + lane,
                    weights_strides: [mask.extent_y() * line, line],
                    packed: operands.packed,
                    column: mask.shift / unit * width,
                    lines: &self.packed.lines[mask.first_line..],
                    lines_pitch: self.packed.extents[1].len(),
                    line_len,
                    x: row.x.clone(),
                    y: row.y.clone(),
                    next_y: next.map(|next| next.y.clone()),
                    row_lanes: gz,
                    runs,
                    queries,
                    width,
                    sums_start: lane * width,
                    overwrite: operands.overwrite,
                    has_non_finite: operands.has_non_finite,
                };
                weighted_sum::<S, PAIRS>(simd, &args, sums);
            }
        }
    }
}

/// Operands of [`ScoreBlock::scores`].
pub(crate) struct ScoreOperands<'a> {
    /// All pairs of the tile, `words` vectors over the lanes of two groups each.
    pub lanes: &'a [f32],
    /// Words of a row.
    pub words: usize,
    /// The packed row block.
    pub packed: &'a [f32],
    /// Words from one of its rows to the next.
    pub pitch: usize,
    /// Factor on each score.
    pub scale: f32,
}

/// Operands of [`ScoreBlock::weighted_sums`].
pub(crate) struct SumOperands<'a> {
    /// The score tile of the pair, as weights.
    pub weights: &'a [f32],
    /// The packed row block.
    pub packed: &'a [f32],
    /// Words of one of its rows.
    pub width: usize,
    /// Whether the sums start here.
    pub overwrite: bool,
    /// Whether some number of the row block is NaN or infinite; matters for pairs only.
    pub has_non_finite: bool,
}
