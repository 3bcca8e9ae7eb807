//! The boxes that the backward passes cut rows and columns into: any with power-of-two sides, the cheapest of them.
//!
//! A pass over queries meets keys by their windows, a pass over keys meets queries by the inverse windows. Every count is a
//! product over axes of sums along one axis, each worked out once for a side of rows and all sides of columns.

use natten_core::plan::{abreast, fitting_boxes};
use natten_core::window::Axis;

use super::cost::Launches;
use super::pass::{Counts, Rows, Work};
use crate::classes::classes;

/// Rows of one warpgroup.
pub(super) const ROWS: usize = 64;
/// Consumer warpgroups of a cta.
pub(super) const WARPGROUPS: usize = 2;
/// Columns of a tile.
pub(super) const COLUMNS: usize = 64;

/// Sides of columns that there are: `2^0` to `2^6`.
const SIDES: usize = COLUMNS.ilog2() as usize + 1;

/// Sides of an item's rows that there are: `2^0` to `2^7`.
const ROW_SIDES: usize = (WARPGROUPS * ROWS).ilog2() as usize + 1;

/// How a pass is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cut {
    /// Rows of one warpgroup.
    pub row_box: [usize; 3],
    /// The axis along which the warpgroups' boxes stand side by side.
    pub side: usize,
    /// Columns of a tile.
    pub column_box: [usize; 3],
    pub counts: Counts,
    /// Predicted time.
    pub microseconds: f64,
}

impl Cut {
    /// Rows of a cta along each axis.
    pub fn row_tile(&self) -> [usize; 3] {
        abreast(self.row_box, self.side, WARPGROUPS)
    }

    /// Pairs computed, for one head of one batch item.
    pub fn issued(&self) -> f64 {
        self.counts.columns as f64 * (WARPGROUPS * ROWS * COLUMNS) as f64
    }
}

/// The cheapest cut; among equals, the one with long runs along the axis that lies densest in memory.
pub(super) fn best(work: &Work<'_>) -> Option<Cut> {
    let classes = classes(work.axes);
    let positions = |of: fn(Rows, &Axis) -> usize| {
        work.axes.each_ref().map(|axis| of(work.rows, axis).div_ceil(axis.dilation))
    };
    let (rows, columns) = (positions(Rows::extent), positions(Rows::columns));
    let mut tables =
        work.axes.each_ref().map(|axis| Table { axis, rows: work.rows, by_side: [None; ROW_SIDES] });
    let column_boxes = fitting_boxes(COLUMNS, &columns);
    let mut best: Option<Cut> = None;
    for row_box in fitting_boxes(ROWS, &rows) {
        let mut sides: Vec<usize> = (0..3).filter(|&side| rows[side] > row_box[side]).collect();
        if sides.is_empty() {
            sides.push(2);
        }
        for side in sides {
            let row_tile = abreast(row_box, side, WARPGROUPS);
            let launches = Launches::of(work, &classes, &row_tile);
            let [x, y, z] = &mut tables;
            let sums = [x.sums(row_tile[0]), y.sums(row_tile[1]), z.sums(row_tile[2])];
            for &column_box in &column_boxes {
                let counts = count(&sums, &column_box, work);
                let microseconds = launches.predict(&counts);
                let cut = Cut { row_box, side, column_box, counts, microseconds };
                let order = |cut: &Cut| (cut.microseconds, usize::MAX - cut.column_box[2] - cut.row_box[2]);
                if best.as_ref().is_none_or(|best| order(&cut) < order(best)) {
                    best = Some(cut);
                }
            }
        }
    }
    best
}

fn count(along: &[&[Counts; SIDES]; 3], column_box: &[usize; 3], work: &Work<'_>) -> Counts {
    let mut product = Counts { rows: 1, columns: 1, full: 1 };
    for (sums, side) in along.iter().zip(column_box) {
        let sums = &sums[side.ilog2() as usize];
        product.rows = product.rows.saturating_mul(sums.rows);
        product.columns = product.columns.saturating_mul(sums.columns);
        product.full = product.full.saturating_mul(sums.full);
    }
    if work.rows == Rows::Queries {
        let (tiles, full) = (work.additional.div_ceil(COLUMNS), work.additional / COLUMNS);
        product.columns = product.columns.saturating_add(product.rows.saturating_mul(tiles as u64));
        product.full = product.full.saturating_add(product.rows.saturating_mul(full as u64));
    }
    product
}

/// Sums along an axis by the side of rows, each worked out when first asked for.
struct Table<'a> {
    axis: &'a Axis,
    rows: Rows,
    by_side: [Option<[Counts; SIDES]>; ROW_SIDES],
}

impl Table<'_> {
    fn sums(&mut self, side: usize) -> &[Counts; SIDES] {
        let Table { axis, rows, by_side } = self;
        by_side[side.ilog2() as usize].get_or_insert_with(|| sum_axis(axis, *rows, side))
    }
}

fn sum_axis(axis: &Axis, rows: Rows, side: usize) -> [Counts; SIDES] {
    let mut sums = [Counts::default(); SIDES];
    for (residue, times) in axis.residue_kinds() {
        let (len, times) = (rows.len(&residue), times as u64);
        for start in (0..len).step_by(side) {
            let (some, all) = rows.meet(&residue, start..(start + side).min(len));
            let met = some.end.saturating_sub(some.start);
            let [begin, end] = [all.start, all.end].map(|at| at.saturating_sub(some.start));
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
    use natten_core::plan::{Coverage, KeyStart, TileCounts, Tiling};
    use natten_core::{ElementType, Inputs, Layout, Params, Problem};

    fn problem(tokens: [usize; 3], params: Params<3>) -> Problem {
        let shape: Vec<usize> = [1].into_iter().chain(tokens).chain([1, 64]).collect();
        let layout = Layout::contiguous(&shape).unwrap();
        Problem::new(&params.to_dyn(), &Inputs::new(layout, layout, layout), ElementType::Bf16).unwrap()
    }

    fn masks() -> Vec<Problem> {
        let plain = Params::new([5, 9, 7]);
        vec![
            problem([11, 19, 30], plain),
            problem([11, 19, 30], plain.stride([2, 3, 1]).dilation([1, 2, 3])),
            problem([11, 19, 30], plain.stride([1, 4, 2]).is_causal([true, false, true])),
            problem([1, 1, 300], Params::new([1, 1, 300])),
            problem([1, 40, 41], Params::new([1, 3, 41]).stride([1, 3, 41])),
        ]
    }

    fn work(problem: &Problem, rows: Rows) -> Work<'_> {
        let axes = problem.axes();
        Work { axes, rows, head_dim: 64, heads: 1, sharing: 1, additional: 0, multiprocessors: 132 }
    }

    /// In the pass over queries the counts are the planner's.
    #[test]
    fn keys_are_counted_as_the_planner_does() {
        for problem in masks() {
            let cut = best(&work(&problem, Rows::Queries)).unwrap();
            let (query_tile, key_tile) = (cut.row_tile(), cut.column_box);
            let tiling = Tiling { query_tile, key_tile, key_start: KeyStart::Dynamic };
            let counts = TileCounts::of(&problem, &tiling);
            let found = (cut.counts.rows, cut.counts.columns, cut.counts.full);
            assert_eq!(found, (counts.query_tiles, counts.key_tiles, counts.full_tiles), "{problem:?}");
        }
    }

    /// In the pass over keys each tile's coverage says what is full and that nothing else is met.
    #[test]
    fn queries_are_counted_as_a_walk_does() {
        for problem in masks() {
            for axis in problem.axes() {
                for (side, log2) in [(1, 0), (2, 1), (8, 2), (128, 5)] {
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
                    assert_eq!(sum_axis(axis, Rows::Keys, side)[log2], walked, "{axis:?} {side} {log2}");
                }
            }
        }
    }

    /// Block-sparse windows have no masked tile in either pass.
    #[test]
    fn block_sparse_windows_are_full() {
        let problem = problem([30, 48, 80], Params::new([18, 24, 24]).stride([16, 8, 8]));
        for rows in [Rows::Queries, Rows::Keys] {
            let cut = best(&work(&problem, rows)).unwrap();
            assert_eq!(cut.counts.columns, cut.counts.full, "{rows:?} {cut:?}");
        }
    }
}
