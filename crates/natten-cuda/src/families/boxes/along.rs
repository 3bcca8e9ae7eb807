//! What tiles of queries meet along one axis, for boxes of one warpgroup each that stand side by side, and keys of any side.
//!
//! Most tiles see the same pattern, only elsewhere. So patterns are found once, each with how often it occurs, and counted for
//! as many sides of keys as are asked for.

use std::collections::HashMap;

use natten_core::window::Axis;

use crate::starts::starts;

/// Sums over the tiles of queries of an axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AxisCounts {
    /// Tiles of keys.
    pub all: u64,
    /// Those that every query sees whole.
    pub full: u64,
    /// Tiles of keys that the boxes see something of, each box for itself.
    pub met: u64,
}

/// Boxes side by side in a tile of queries, at most.
const MOST_BOXES: usize = 3;

/// What a tile of queries sees along an axis, counted from its first key on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pattern {
    keys: usize,
    /// From where to where all of its queries see the keys.
    seen_by_all: (usize, usize),
    /// From where to where each of the boxes does; those that have no query see nothing.
    boxes: [(usize, usize); MOST_BOXES],
}

/// An axis cut into tiles of queries.
#[derive(Clone, Debug)]
pub(super) struct Along {
    patterns: Vec<(Pattern, u64)>,
    /// Tiles of queries.
    pub query_tiles: u64,
    /// The most keys that a tile sees.
    pub most_keys: usize,
}

impl Along {
    /// Tiles of `boxes` boxes, each of so many queries.
    pub fn new(axis: &Axis, queries: usize, boxes: usize) -> Self {
        let mut patterns: HashMap<Pattern, u64> = HashMap::new();
        let side = queries * boxes;
        for (residue, times) in axis.residue_kinds() {
            for (start, count) in starts(residue.query_len, side) {
                let end = (start + side).min(residue.query_len);
                let sees = |queries: std::ops::Range<usize>| {
                    let (first, last) = (residue.window(queries.start), residue.window(queries.end - 1));
                    (first.start..last.end, last.start..first.end)
                };
                let (some, all) = sees(start..end);
                let from_first = |met: std::ops::Range<usize>| {
                    (met.start.saturating_sub(some.start), met.end.saturating_sub(some.start))
                };
                let mut pattern = Pattern {
                    keys: some.end.saturating_sub(some.start),
                    seen_by_all: from_first(all),
                    boxes: [(0, 0); MOST_BOXES],
                };
                for (met, first) in pattern.boxes.iter_mut().zip((start..end).step_by(queries)).take(boxes) {
                    *met = from_first(sees(first..(first + queries).min(end)).0);
                }
                let occurs = patterns.entry(pattern).or_default();
                *occurs = occurs.saturating_add(count.saturating_mul(times as u64));
            }
        }
        Along {
            query_tiles: patterns.values().copied().fold(0, u64::saturating_add),
            most_keys: patterns.keys().map(|pattern| pattern.keys).max().unwrap_or(0),
            patterns: patterns.into_iter().collect(),
        }
    }

    /// The counts with tiles of so many keys.
    pub fn counts(&self, side: usize) -> AxisCounts {
        let mut sum = AxisCounts::default();
        for (pattern, times) in &self.patterns {
            let tiles = |(begin, end): (usize, usize)| {
                if begin < end { (end.div_ceil(side) - begin / side) as u64 } else { 0 }
            };
            let (begin, end) = pattern.seen_by_all;
            // An axis that is too long for the kernels is counted before it is refused.
            let add = |sum: &mut u64, tiles: u64| *sum = sum.saturating_add(times.saturating_mul(tiles));
            add(&mut sum.all, tiles((0, pattern.keys)));
            add(&mut sum.full, (end / side).saturating_sub(begin.div_ceil(side)) as u64);
            add(&mut sum.met, pattern.boxes.iter().map(|&met| tiles(met)).fold(0, u64::saturating_add));
        }
        sum
    }
}
