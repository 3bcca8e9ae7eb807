//! Passes of few items: each item's column tiles are split among several, whose partial sums are added up in order.
//!
//! How many there are follows from the problem and its tiles alone, never from the device at hand: sums of as many partial
//! sums are the same bits on a device of any size.

use std::array;

use natten_core::Problem;

use super::cost::{self, Launches};
use super::pass::{Rows, Work};
use super::tiles::Cut;
use crate::classes::Class;

/// Column tiles that a split has at least on average.
const LEAST_TILES: f64 = 4.0;
/// Splits at most.
const MOST: usize = 64;
/// What splitting must save at least of a pass: adding up is a launch more, and memory that the call did not need.
const WORTH: f64 = 0.9;

/// How the column tiles of an item are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Splits {
    pub count: usize,
    /// The axis that is split; 3: the heads that share keys.
    pub axis: usize,
}

impl Splits {
    /// Results are written as they are.
    pub const NONE: Splits = Splits { count: 1, axis: 3 };

    /// The quickest for a cut whose items meet so many column tiles along each axis, on average.
    pub fn of(work: &Work<'_>, classes: &[Class], cut: &Cut, columns: [f64; 3]) -> Self {
        let work = Work { multiprocessors: work.design.multiprocessors, ..*work };
        let row_tile = cut.row_tile();
        let [x, y, z] = columns;
        let things = [x, y, z, work.sharing as f64];
        let axis = (0..4).rev().max_by(|&a, &b| f64::total_cmp(&things[a], &things[b])).unwrap_or(3);
        let tiles: f64 = things.iter().product();
        let most = (tiles / LEAST_TILES).min(things[axis]).min(MOST as f64) as usize;
        let time = |count: usize| {
            let sums = if count > 1 { cost::sums(&work, count) } else { 0.0 };
            Launches::of(&work, classes, &row_tile, count).predict(&cut.counts) + sums
        };
        let whole = time(1);
        let best = (2..=most).map(|count| (time(count), count)).min_by(|a, b| f64::total_cmp(&a.0, &b.0));
        match best {
            Some((time, count)) if time < WORTH * whole => Splits { count, axis },
            _ => Splits::NONE,
        }
    }

    /// Partial sums, where there are any.
    pub fn is_partial(&self) -> bool {
        self.count > 1
    }
}

/// The gradients of a side of a problem that a pass writes: so many rows, of a length each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub tokens: [usize; 3],
    pub heads: usize,
    /// Of one or two gradients; 0 where there is none.
    pub lengths: [usize; 2],
}

impl Written {
    /// What the pass over the rows of one mask writes.
    pub fn of(problem: &Problem, rows: Rows, tokens: [usize; 3]) -> Self {
        match rows {
            Rows::Queries => Written { tokens, heads: problem.heads(), lengths: [problem.head_dim(), 0] },
            Rows::Keys => Written {
                tokens,
                heads: problem.heads_kv(),
                lengths: [problem.head_dim(), problem.head_dim_v()],
            },
        }
    }

    fn rows(&self, problem: &Problem) -> usize {
        problem.batch() * self.tokens.iter().product::<usize>() * self.heads
    }

    /// Where the partial sums of each gradient begin behind those before, in bytes, and where they end.
    pub fn places(&self, problem: &Problem, splits: &Splits) -> [usize; 3] {
        if !splits.is_partial() {
            return [0; 3];
        }
        let of_split = |i: usize| self.rows(problem) * self.lengths[i] * 4;
        let bytes = |i: usize| (of_split(i) * splits.count).next_multiple_of(256);
        let first = bytes(0);
        [0, first, first + bytes(1)]
    }

    /// Elements from the partial sums of one split to the next.
    pub fn split_strides(&self, problem: &Problem) -> [i64; 2] {
        array::from_fn(|i| (self.rows(problem) * self.lengths[i]) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tiles::best;
    use super::*;
    use natten_core::window::Axis;

    fn line(queries: usize, keys: usize) -> [Axis; 3] {
        [Axis::UNIT, Axis::UNIT, Axis::attention(queries, keys)]
    }

    fn splits(axes: &[Axis; 3], rows: Rows, sharing: usize, multiprocessors: u32) -> Splits {
        let (head_dim, columns) = (128, 64);
        let design = &crate::families::sm90::BACKWARD;
        let work =
            Work { design, axes, rows, head_dim, columns, heads: 1, sharing, additional: 0, multiprocessors };
        best(&work).unwrap().splits
    }

    /// Few row tiles with many columns are split, along the axis or by heads, as many times on any device.
    #[test]
    fn few_items_are_split() {
        for (axes, rows, sharing, axis) in [
            (line(4096, 4096), Rows::Queries, 1, 2),
            (line(4096, 4096), Rows::Keys, 1, 2),
            (line(1 << 20, 40), Rows::Keys, 1, 2),
            (line(128, 128), Rows::Keys, 64, 3),
        ] {
            let found = splits(&axes, rows, sharing, 132);
            assert!(found.count > 1 && found.axis == axis, "{found:?}: {axes:?} {rows:?}");
            assert_eq!(found, splits(&axes, rows, sharing, 7));
        }
    }

    #[test]
    fn what_is_many_or_small_is_not_split() {
        for (axes, rows) in [
            (line(1 << 17, 1 << 17), Rows::Queries),
            (line(1 << 17, 1 << 17), Rows::Keys),
            (line(128, 512), Rows::Queries),
            (line(40, 1 << 20), Rows::Keys),
        ] {
            assert_eq!(splits(&axes, rows, 1, 132), Splits::NONE, "{axes:?} {rows:?}");
        }
    }
}
