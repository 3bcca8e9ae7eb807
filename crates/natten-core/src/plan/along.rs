//! Tiles along one axis: counted in runs of query tiles whose windows start alike, and where windows slide, one period of
//! them for all. A strip of millions of tokens takes no longer than a short one.

use std::ops::Range;

use super::{KeyStart, u64_or_max};
use crate::window::{Axis, Residue};

/// Sides of keys that a row has: `2^0` to `2^8`.
pub(super) const KEY_SIDES: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// Sums along one axis over its residues and query tiles, for one side of keys. What a `u64` does not hold is `u64::MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyTiles {
    /// Key tiles.
    pub all: u64,
    /// Those every key of which is seen by every query of the tile.
    pub full: u64,
    /// Key tiles of the query tile that has most.
    pub worst: u64,
    /// Keys copied: a last tile that would reach beyond the keys seen is moved back, and only one that is longer than all
    /// of them is copied in part.
    pub copied: u64,
}

/// An axis cut into query tiles, with its key tiles of every side in [`KEY_SIDES`].
#[derive(Clone, Copy, Debug)]
pub(super) struct AxisRow {
    axis: Axis,
    query_side: usize,
    start: KeyStart,
    pub query_tiles: u64,
    /// Visible pairs of a query and a key.
    pub scores: u64,
    by_key_side: [KeyTiles; KEY_SIDES.len()],
}

impl AxisRow {
    pub fn new(axis: &Axis, query_side: usize, start: KeyStart) -> Self {
        let (query_tiles, scores) = query_tiles_and_scores(axis, query_side);
        let by_key_side = key_tiles(axis, query_side, start, &KEY_SIDES);
        AxisRow { axis: *axis, query_side, start, query_tiles, scores, by_key_side }
    }

    /// The key tiles of a side, which are at hand for small powers of two.
    #[inline]
    pub fn key_tiles(&self, side: usize) -> KeyTiles {
        if side.is_power_of_two() && side <= KEY_SIDES[KEY_SIDES.len() - 1] {
            return self.by_key_side[side.trailing_zeros() as usize];
        }
        let [found] = key_tiles(&self.axis, self.query_side, self.start, &[side]);
        found
    }
}

/// Query tiles of an axis, and its visible pairs.
pub(super) fn query_tiles_and_scores(axis: &Axis, query_side: usize) -> (u64, u64) {
    axis.residue_kinds().fold((0u64, 0u64), |(tiles, scores), (residue, times)| {
        let times = times as u64;
        let more = (residue.query_len.div_ceil(query_side) as u64).saturating_mul(times);
        (tiles.saturating_add(more), scores.saturating_add(residue.scores().saturating_mul(times)))
    })
}

/// The key tiles of several sides.
pub(super) fn key_tiles<const SIDES: usize>(
    axis: &Axis,
    query_side: usize,
    start: KeyStart,
    key_sides: &[usize; SIDES],
) -> [KeyTiles; SIDES] {
    let mut sums = [KeyTiles::default(); SIDES];
    for (residue, times) in axis.residue_kinds().filter(|(residue, _)| residue.key_len > 0) {
        let cut = Cut { residue, query_side };
        let alignment = match start {
            KeyStart::Aligned => key_sides.iter().fold(1, |all, &side| common_multiple(all, side)),
            KeyStart::Dynamic => 1,
        };
        for (tiles, rounds) in cut.parts(alignment) {
            cut.each_run(tiles, |run| {
                for (sum, &side) in sums.iter_mut().zip(key_sides) {
                    sum.add(&run.key_tiles(side, start), (rounds as u64).saturating_mul(times as u64));
                }
            });
        }
    }
    sums
}

impl KeyTiles {
    fn add(&mut self, run: &KeyTiles, times: u64) {
        let plus = |sum: u64, more: u64| sum.saturating_add(more.saturating_mul(times));
        *self = KeyTiles {
            all: plus(self.all, run.all),
            full: plus(self.full, run.full),
            worst: self.worst.max(run.worst),
            copied: plus(self.copied, run.copied),
        };
    }
}

/// A residue cut into query tiles.
struct Cut {
    residue: Residue,
    query_side: usize,
}

/// Query tiles, one after the other, whose windows start alike. Of causal ones, each sees [`Run::step`] keys more than the
/// one before; all others see the same.
struct Run {
    tiles: usize,
    /// Where the windows of the first and of the last query of each tile start: not at the same key in a single tile only.
    starts: Range<usize>,
    /// Where the windows of the first tile's first and last query end.
    ends: Range<usize>,
    step: usize,
}

impl Cut {
    /// All query tiles in parts, with how often each is to be counted. Where windows slide, tiles repeat after a number of
    /// whole strides, which is also one of whole key tiles where these are aligned.
    fn parts(&self, alignment: usize) -> impl Iterator<Item = (Range<usize>, usize)> + use<> {
        let Cut { residue, query_side } = self;
        let tiles = residue.query_len.div_ceil(*query_side);
        let sliding = residue.sliding();
        let (first, end) = (sliding.start.div_ceil(*query_side), sliding.end / query_side);
        let tokens = [residue.stride, alignment].into_iter().fold(*query_side, common_multiple);
        let period = (tokens / query_side).max(1);
        let rounds = end.saturating_sub(first) / period;
        let parts = if rounds > 1 {
            let after = first + period * rounds;
            [(0..first, 1), (first..first + period, rounds), (after..tiles, 1)]
        } else {
            [(0..tiles, 1), (0..0, 0), (0..0, 0)]
        };
        parts.into_iter().filter(|(tiles, _)| !tiles.is_empty())
    }

    fn each_run(&self, tiles: Range<usize>, mut visit: impl FnMut(&Run)) {
        let Cut { residue, query_side } = self;
        let mut tile = tiles.start;
        while tile < tiles.end {
            let first = tile * query_side;
            let last = first + (query_side - 1).min(residue.query_len - 1 - first);
            let (head, tail) = (residue.window(first), residue.window(last));
            let starts_alike = head.start == tail.start;
            let alike = if starts_alike { (residue.starts_alike(first) - first) / query_side } else { 1 };
            // Causal windows grow where queries rise, and no run goes over an end of those.
            let grows = residue.is_causal && residue.rising().contains(&first);
            let run = Run {
                tiles: alike.clamp(1, tiles.end - tile),
                starts: head.start..tail.start,
                ends: head.end..tail.end,
                step: if grows { *query_side } else { 0 },
            };
            visit(&run);
            tile += run.tiles;
        }
    }
}

impl Residue {
    /// The end of the queries from `i` on whose windows start where that of `i` does, or of some of them.
    fn starts_alike(&self, i: usize) -> usize {
        let sliding = self.sliding();
        match i {
            // Queries before the first key, which see none.
            i if self.is_causal && i < self.rising().start => self.rising().start,
            i if i < sliding.start => sliding.start,
            i if i < sliding.end => self.next_block(i).min(sliding.end),
            _ => self.query_len,
        }
    }
}

impl Run {
    /// Sums over the run's tiles.
    fn key_tiles(&self, side: usize, start: KeyStart) -> KeyTiles {
        let first = match start {
            KeyStart::Aligned => self.starts.start / side * side,
            KeyStart::Dynamic => self.starts.start,
        };
        let tiles = self.tiles as u64;
        let seen = self.ends.end.saturating_sub(first);
        // Tiles that begin before the last query's window are not full, those that end after the first query's neither.
        let ragged = (self.starts.end - first).div_ceil(side);
        let common = self.ends.start.saturating_sub(first);
        if self.step == 0 || self.tiles == 1 {
            let each = seen.div_ceil(side) as u64;
            return KeyTiles {
                all: each.saturating_mul(tiles),
                full: ((common / side).saturating_sub(ragged) as u64).saturating_mul(tiles),
                worst: each,
                copied: (seen.min(side) as u64).saturating_mul(each).saturating_mul(tiles),
            };
        }
        let progression = Progression { terms: tiles, step: self.step as u64 };
        let side_u64 = side as u64;
        let all = progression.quotients(seen.saturating_add(side - 1) as u64, side_u64);
        // The first of the run's tiles have no full one.
        let ragged = ragged.saturating_mul(side);
        let none = ragged.saturating_sub(common).div_ceil(self.step).min(self.tiles);
        let some = Progression { terms: tiles - none as u64, ..progression };
        let full = some.quotients((common + none * self.step).saturating_sub(ragged) as u64, side_u64);
        // The first of them see less than a tile of keys.
        let short = side.saturating_sub(seen).div_ceil(self.step).min(self.tiles) as u64;
        let of_short = Progression { terms: short, ..progression }.quotients(seen as u64, 1);
        KeyTiles {
            all,
            full,
            worst: (seen + (self.tiles - 1) * self.step).div_ceil(side) as u64,
            copied: (all - short).saturating_mul(side_u64).saturating_add(of_short),
        }
    }
}

/// Numbers `first + n * step` for each `n` below `terms`.
#[derive(Clone, Copy)]
struct Progression {
    terms: u64,
    step: u64,
}

impl Progression {
    /// The sum of their quotients by `divisor`, rounded down: as Euclid's algorithm goes, taking out what divides and
    /// counting the lattice points below the line the other way round.
    fn quotients(self, first: u64, divisor: u64) -> u64 {
        let [mut terms, mut step, mut first, mut divisor] =
            [self.terms, self.step, first, divisor].map(u128::from);
        let mut sum = 0u128;
        while terms > 0 {
            let pairs = terms * (terms - 1) / 2;
            sum = sum.saturating_add((step / divisor).saturating_mul(pairs));
            sum = sum.saturating_add((first / divisor).saturating_mul(terms));
            (step, first) = (step % divisor, first % divisor);
            let reach = step.saturating_mul(terms).saturating_add(first);
            (terms, first) = (reach / divisor, reach % divisor);
            (step, divisor) = (divisor, step);
        }
        u64_or_max(sum)
    }
}

/// The least common multiple of two numbers, `usize::MAX` where it is larger.
pub fn common_multiple(a: usize, b: usize) -> usize {
    let (mut divisor, mut rest) = (a, b);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    (a / divisor.max(1)).saturating_mul(b)
}

#[cfg(test)]
mod tests;
