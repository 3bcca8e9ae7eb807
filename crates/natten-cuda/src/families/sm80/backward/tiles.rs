//! The boxes that a pass over keys cuts keys and queries into, and how many there are: a box of keys meets the queries whose
//! windows hold one of them, which are a box too.
//!
//! Every count is a product over axes of sums along one axis, each worked out once for a side of keys and all sides of
//! queries. The pass over queries is cut as a forward is (../tiles.rs).

use natten_core::plan::{Tiling, box_log2, fitting_boxes};
use natten_core::window::Axis;

use crate::registry::Tile;
use crate::starts::starts;

/// Sides of a box that there are: `2^0` to `2^7`.
const SIDES: usize = 8;

/// Ctas that a pass over keys should have: where there are fewer boxes of keys, several ctas share the queries of one. The
/// count depends on the problem alone, so that bits do not depend on the device.
const MOST_SHARED: usize = 256;

/// Query tiles along an axis that a cta should have at least.
const LEAST_TILES: usize = 4;

/// What a pass computes, for one head of one batch item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Tiles of rows.
    pub rows: u64,
    /// Tiles of columns, summed over those of rows.
    pub columns: u64,
    /// Those that need no mask.
    pub full: u64,
}

/// How a pass over keys is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cut {
    /// Keys of a cta.
    pub keys: [usize; 3],
    /// Queries of a tile.
    pub queries: [usize; 3],
    pub counts: Counts,
    /// Query tiles along each axis that a box of keys meets, on average.
    met: [usize; 3],
}

/// Ctas that share the queries of a box of keys, in parts along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    pub count: usize,
    pub axis: usize,
}

impl Cut {
    /// How many ctas share a box of keys, with so many heads of keys of all batch items.
    pub fn split(&self, heads: usize) -> Split {
        let axis = (0..3).max_by_key(|&a| self.met[a]).unwrap_or(2);
        let boxes = usize::try_from(self.counts.rows).unwrap_or(usize::MAX).saturating_mul(heads).max(1);
        let count = MOST_SHARED.div_ceil(boxes).min(self.met[axis] / LEAST_TILES).max(1);
        // Where there are half as many boxes already, sums in memory cost more than they bring.
        Split { count: if boxes > MOST_SHARED / 2 { 1 } else { count }, axis }
    }
}

/// The cut with fewest pairs; among equals, the one with fewest masks, then with long runs along the axis that lies densest
/// in memory.
pub(super) fn best(tile: Tile, axes: &[Axis; 3]) -> Option<Cut> {
    let keys = axes.map(|axis| axis.key_extent.div_ceil(axis.dilation));
    let queries = axes.map(|axis| axis.query_extent.div_ceil(axis.dilation));
    let query_boxes = fitting_boxes(tile.queries, &queries);
    let mut tables: [[Option<[Counts; SIDES]>; SIDES]; 3] = Default::default();
    let mut best: Option<Cut> = None;
    for keys in fitting_boxes(tile.keys, &keys) {
        let along: [[Counts; SIDES]; 3] = std::array::from_fn(|a| {
            *tables[a][keys[a].ilog2() as usize].get_or_insert_with(|| sum_axis(&axes[a], keys[a]))
        });
        for &queries in &query_boxes {
            let cut = cut(keys, queries, &along);
            let order = |cut: &Cut| {
                let Counts { columns, full, .. } = cut.counts;
                (columns, u64::MAX - full, usize::MAX - cut.keys[2] - cut.queries[2])
            };
            if best.as_ref().is_none_or(|best| order(&cut) < order(best)) {
                best = Some(cut);
            }
        }
    }
    best
}

/// The cut into these boxes, if they are of the tile's size.
pub(super) fn asked(tiling: &Tiling, tile: Tile, axes: &[Axis; 3]) -> Option<Cut> {
    let Tiling { query_tile: queries, key_tile: keys, .. } = *tiling;
    box_log2(&queries, tile.queries).zip(box_log2(&keys, tile.keys))?;
    let along = std::array::from_fn(|a| sum_axis(&axes[a], keys[a]));
    Some(cut(keys, queries, &along))
}

fn cut(keys: [usize; 3], queries: [usize; 3], along: &[[Counts; SIDES]; 3]) -> Cut {
    let mut cut = Cut { keys, queries, counts: Counts { rows: 1, columns: 1, full: 1 }, met: [0; 3] };
    for (a, sums) in along.iter().enumerate() {
        let Counts { rows, columns, full } = sums[queries[a].ilog2() as usize];
        cut.counts.rows = cut.counts.rows.saturating_mul(rows);
        cut.counts.columns = cut.counts.columns.saturating_mul(columns);
        cut.counts.full = cut.counts.full.saturating_mul(full);
        cut.met[a] = (columns / rows.max(1)) as usize;
    }
    cut
}

/// Sums over boxes of so many keys along an axis, by the side of queries.
fn sum_axis(axis: &Axis, side: usize) -> [Counts; SIDES] {
    let mut sums = [Counts::default(); SIDES];
    for (residue, times) in axis.residue_kinds() {
        for (start, count) in starts(residue.key_len, side) {
            let times = times as u64 * count;
            let first = residue.inverse_window(start);
            let last = residue.inverse_window((start + side).min(residue.key_len) - 1);
            let met = last.end.saturating_sub(first.start);
            let [begin, end] = [last.start, first.end].map(|at| at.saturating_sub(first.start));
            for (log2, sum) in sums.iter_mut().enumerate() {
                sum.rows += times;
                sum.columns += times * met.div_ceil(1 << log2) as u64;
                sum.full += times * (end >> log2).saturating_sub(begin.div_ceil(1 << log2)) as u64;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use natten_core::plan::Coverage;
    use natten_core::{ElementType, Inputs, Layout, Params, Problem};

    fn problem(tokens: [usize; 3], params: Params<3>) -> Problem {
        let shape: Vec<usize> = [1].into_iter().chain(tokens).chain([1, 64]).collect();
        let layout = Layout::contiguous(&shape).unwrap();
        Problem::new(&params.to_dyn(), &Inputs::new(layout, layout, layout), ElementType::Bf16).unwrap()
    }

    /// Each tile's coverage says what is full and that nothing else is met.
    #[test]
    fn queries_are_counted_as_a_walk_does() {
        let plain = Params::new([5, 9, 7]);
        for problem in [
            problem([11, 19, 30], plain),
            problem([11, 19, 30], plain.stride([2, 3, 1]).dilation([1, 2, 3])),
            problem([11, 19, 30], plain.stride([1, 4, 2]).is_causal([true, false, true])),
            problem([1, 40, 41], Params::new([1, 3, 41]).stride([1, 3, 41])),
        ] {
            for axis in problem.axes() {
                for (side, log2) in [(1, 0), (2, 1), (8, 2), (64, 5)] {
                    let mut walked = Counts::default();
                    for residue in (0..axis.dilation).map(|g| axis.residue(g)) {
                        for start in (0..residue.key_len).step_by(side) {
                            let keys = start..(start + side).min(residue.key_len);
                            let queries = residue.queries_of(keys.clone());
                            walked.rows += 1;
                            for first in queries.clone().step_by(1 << log2) {
                                let tile = first..first + (1 << log2);
                                walked.columns += 1;
                                let exists = tile.end <= residue.query_len;
                                let tile = tile.start..tile.end.min(residue.query_len);
                                let is_full = residue.coverage(tile, keys.clone()) == Coverage::Full;
                                walked.full += u64::from(exists && is_full);
                            }
                        }
                    }
                    assert_eq!(sum_axis(axis, side)[log2], walked, "{axis:?} {side} {log2}");
                }
            }
        }
    }

    /// Block-sparse windows have no masked tile.
    #[test]
    fn block_sparse_windows_are_full() {
        let problem = problem([30, 48, 80], Params::new([18, 24, 24]).stride([16, 8, 8]));
        let counts = best(Tile { queries: 32, keys: 64 }, problem.axes()).unwrap().counts;
        assert_eq!(counts.columns, counts.full);
    }

    /// Few boxes of keys with many queries are shared, by a count that the problem alone decides.
    #[test]
    fn few_boxes_are_shared() {
        let tile = Tile { queries: 32, keys: 64 };
        let line =
            |tokens, window| best(tile, problem([1, 1, tokens], Params::new([1, 1, window])).axes()).unwrap();
        assert_eq!(line(4096, 4096).split(1), Split { count: 4, axis: 2 });
        assert_eq!(line(4096, 4096).split(4).count, 1);
        assert_eq!(line(4096, 256).split(1).count, 2);
        assert_eq!(line(4096, 64).split(1).count, 1);
        assert_eq!(line(64, 64).split(1).count, 1);
    }
}
