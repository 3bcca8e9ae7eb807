//! The boxes that the backward passes cut rows and columns into: any with power-of-two sides, the cheapest of them.
//!
//! A pass over queries meets keys by their windows, a pass over keys meets queries by the inverse windows. Every count is a
//! product over axes of sums along one axis, each worked out once for a side of rows and all sides of columns.

use std::array;
use std::ops::Range;

use natten_core::plan::{abreast, fitting_boxes};
use natten_core::window::Axis;

use super::cost::{self, Launches};
use super::pass::{Counts, Rows, Work};
use super::splits::Splits;
use crate::classes::classes;
use crate::starts::starts;

/// Rows of an item, in one box or two.
const ROWS: usize = 128;
const MOST_BOXES: usize = 2;

/// Sides that there are of an item's rows, and of a tile's columns at most: `2^0` to `2^7`.
const SIDES: usize = ROWS.ilog2() as usize + 1;

/// How a pass is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cut {
    /// Rows of one box, how many boxes there are, and the axis along which they stand side by side.
    pub row_box: [usize; 3],
    pub boxes: usize,
    pub side: usize,
    /// Columns of a tile.
    pub column_box: [usize; 3],
    pub counts: Counts,
    /// How the column tiles of an item are split.
    pub splits: Splits,
    /// Predicted time.
    pub microseconds: f64,
}

impl Cut {
    /// Rows of a cta along each axis.
    pub fn row_tile(&self) -> [usize; 3] {
        abreast(self.row_box, self.side, self.boxes)
    }

    /// Pairs computed, for one head of one batch item.
    pub fn issued(&self) -> f64 {
        let columns: usize = self.column_box.iter().product();
        self.counts.met as f64 * (ROWS / self.boxes * columns) as f64
    }
}

/// The cheapest cut; among equals, the one with long runs along the axis that lies densest in memory.
pub(super) fn best(work: &Work<'_>) -> Option<Cut> {
    let boxes = work.design.boxes;
    let classes = classes(work.axes, work.rows);
    let positions = |of: fn(Rows, &Axis) -> usize| {
        work.axes.each_ref().map(|axis| of(work.rows, axis).div_ceil(axis.dilation))
    };
    let (rows, columns) = (positions(Rows::extent), positions(Rows::columns));
    let mut tables =
        work.axes.each_ref().map(|axis| Table { axis, rows: work.rows, boxes, by_side: [None; SIDES] });
    let column_boxes = fitting_boxes(work.columns, &columns);
    let mut best: Option<Cut> = None;
    for row_box in fitting_boxes(ROWS / boxes, &rows) {
        let mut sides: Vec<usize> = (0..3).filter(|&side| rows[side] > row_box[side]).collect();
        if sides.is_empty() || boxes == 1 {
            sides = vec![2];
        }
        for side in sides {
            let row_tile = abreast(row_box, side, boxes);
            let launches = Launches::of(work, &classes, &row_tile, 1);
            let [x, y, z] = &mut tables;
            let sums = [x.sums(row_tile[0]), y.sums(row_tile[1]), z.sums(row_tile[2])];
            for &column_box in &column_boxes {
                let counts = count(&sums, &column_box, side, work);
                let microseconds = launches.predict(&counts);
                let cut =
                    Cut { row_box, boxes, side, column_box, counts, splits: Splits::NONE, microseconds };
                let order = |cut: &Cut| (cut.microseconds, usize::MAX - cut.column_box[2] - cut.row_box[2]);
                if best.as_ref().is_none_or(|best| order(&cut) < order(best)) {
                    best = Some(cut);
                }
            }
        }
    }
    let mut best = best?;
    let [x, y, z] = &mut tables;
    let [i, j, k] = best.row_tile();
    let along = [x.sums(i), y.sums(j), z.sums(k)];
    let columns = array::from_fn(|a| {
        let sums = &along[a][best.column_box[a].ilog2() as usize];
        sums.columns as f64 / sums.rows.max(1) as f64
    });
    best.splits = Splits::of(work, &classes, &best, columns);
    if best.splits.is_partial() {
        let launches = Launches::of(work, &classes, &best.row_tile(), best.splits.count);
        best.microseconds = launches.predict(&best.counts) + cost::sums(work, best.splits.count);
    }
    Some(best)
}

/// The counts of all axes together; boxes of rows stand side by side along axis `side`.
fn count(along: &[&[Counts; SIDES]; 3], column_box: &[usize; 3], side: usize, work: &Work<'_>) -> Counts {
    let mut product = Counts { rows: 1, columns: 1, full: 1, met: 1 };
    for (a, (sums, columns)) in along.iter().zip(column_box).enumerate() {
        let sums = &sums[columns.ilog2() as usize];
        product.rows = product.rows.saturating_mul(sums.rows);
        product.columns = product.columns.saturating_mul(sums.columns);
        product.full = product.full.saturating_mul(sums.full);
        product.met = product.met.saturating_mul(if a == side { sums.met } else { sums.columns });
    }
    if work.rows == Rows::Queries {
        let (tiles, full) = (work.additional.div_ceil(work.columns), work.additional / work.columns);
        let of_rows = |tiles: usize| product.rows.saturating_mul(tiles as u64);
        let (tiles, full) = (of_rows(tiles), of_rows(full));
        product.columns = product.columns.saturating_add(tiles);
        product.full = product.full.saturating_add(full);
        product.met = product.met.saturating_add(tiles.saturating_mul(work.design.boxes as u64));
    }
    product
}

/// Sums along an axis by the side of rows, each worked out when first asked for.
struct Table<'a> {
    axis: &'a Axis,
    rows: Rows,
    boxes: usize,
    by_side: [Option<[Counts; SIDES]>; SIDES],
}

impl Table<'_> {
    fn sums(&mut self, side: usize) -> &[Counts; SIDES] {
        let Table { axis, rows, boxes, by_side } = self;
        by_side[side.ilog2() as usize].get_or_insert_with(|| sum_axis(axis, *rows, *boxes, side))
    }
}

fn sum_axis(axis: &Axis, rows: Rows, boxes: usize, side: usize) -> [Counts; SIDES] {
    let mut sums = [Counts::default(); SIDES];
    for (residue, times) in axis.residue_kinds() {
        let len = rows.len(&residue);
        for (start, count) in starts(len, side) {
            let times = times as u64 * count;
            let end = (start + side).min(len);
            let (some, all) = rows.meet(&residue, start..end);
            let tiles = |log2: usize, met: &Range<usize>| {
                // Tiles are cut from the first column that the item meets on.
                let [begin, end] = [met.start, met.end].map(|at| at.saturating_sub(some.start));
                if begin < end { end.div_ceil(1 << log2) - (begin >> log2) } else { 0 }
            };
            let [begin, last] = [all.start, all.end].map(|at| at.saturating_sub(some.start));
            // Of the boxes, where they stand side by side along this axis.
            let rows_of_one = (side / boxes).max(1);
            let mut firsts = (start..end).step_by(rows_of_one);
            let boxes: [Option<Range<usize>>; MOST_BOXES] = array::from_fn(|_| {
                let first = firsts.next()?;
                Some(rows.meet(&residue, first..(first + rows_of_one).min(end)).0)
            });
            for (log2, sum) in sums.iter_mut().enumerate() {
                sum.rows += times;
                sum.columns += times * tiles(log2, &some) as u64;
                sum.full += times * (last >> log2).saturating_sub(begin.div_ceil(1 << log2)) as u64;
                sum.met += times * boxes.iter().flatten().map(|met| tiles(log2, met) as u64).sum::<u64>();
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
        let (head_dim, columns, multiprocessors) = (64, 64, 132);
        let design = &crate::families::sm90::BACKWARD;
        Work { design, axes, rows, head_dim, columns, heads: 1, sharing: 1, additional: 0, multiprocessors }
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
                                // The boxes that there are.
                                let rows = (side / 2).max(1);
                                let boxes =
                                    keys.clone().step_by(rows).map(|at| at..(at + rows).min(keys.end));
                                let meets = |rows| {
                                    let met = residue.queries_of(rows);
                                    met.start.max(tile.start) < met.end.min(tile.end)
                                };
                                walked.met += boxes.filter(|rows| meets(rows.clone())).count() as u64;
                                let exists = tile.end <= residue.query_len;
                                let tile = tile.start..tile.end.min(residue.query_len);
                                let is_full = residue.coverage(tile, keys.clone()) == Coverage::Full;
                                walked.full += u64::from(exists && is_full);
                            }
                        }
                    }
                    assert_eq!(sum_axis(axis, Rows::Keys, 2, side)[log2], walked, "{axis:?} {side} {log2}");
                }
            }
        }
    }

    /// Of small windows' tiles, boxes leave out a quarter and more.
    #[test]
    fn boxes_leave_out_what_they_do_not_meet() {
        let problem = problem([16, 32, 48], Params::new([3, 7, 7]));
        for (rows, share) in [(Rows::Queries, 0.75), (Rows::Keys, 0.78)] {
            let Counts { columns, met, .. } = best(&work(&problem, rows)).unwrap().counts;
            let found = met as f64 / (2 * columns) as f64;
            assert!(found < share, "{rows:?}: {found}");
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
