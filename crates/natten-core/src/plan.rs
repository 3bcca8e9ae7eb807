//! Tile planning: which boxes of keys a box of queries visits, and how many in all.
//!
//! Work is done on tiles: boxes of tokens of one residue. The keys that a query tile sees are a box
//! ([`Residue::keys_of`]), so its key tiles form a grid, and every count is a product over axes of sums along
//! one axis. [`PlanTables`] has these sums of a problem for all tilings, each worked out once, and
//! [`tile_boxes`] the boxes there are. A plan of a million tokens takes microseconds.

mod along;
mod boxes;
mod scores;
mod tables;

use std::ops::Range;

use crate::packed::PackedSequence;
use crate::problem::Problem;
use crate::window::{Axis, Residue};

use along::KeyTiles;
pub use along::common_multiple;
pub use boxes::{abreast, box_log2, fitting_boxes, tile_boxes};
pub use tables::{PlanTables, QueryTile};

/// Where the first key tile of a query tile begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyStart {
    /// At a multiple of the tile: the keys are cut into tiles once and for all.
    Aligned,
    /// At the first key that the query tile sees.
    Dynamic,
}

/// How much of a tile of scores is visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coverage {
    /// No query of the tile sees any key of it.
    Empty,
    /// Some do not: a mask is needed.
    Partial,
    /// Every query sees every key: no mask.
    Full,
}

impl Coverage {
    /// Of two axes taken together.
    pub fn and(self, other: Coverage) -> Coverage {
        match (self, other) {
            (Coverage::Empty, _) | (_, Coverage::Empty) => Coverage::Empty,
            (Coverage::Full, Coverage::Full) => Coverage::Full,
            _ => Coverage::Partial,
        }
    }
}

impl Residue {
    /// How much of `queries x keys` is visible. A key past the end of the residue is visible to no query.
    pub fn coverage(&self, queries: Range<usize>, keys: Range<usize>) -> Coverage {
        if queries.is_empty() || keys.is_empty() {
            return Coverage::Empty;
        }
        let (seen, common) = (self.keys_of(queries.clone()), self.common_keys_of(queries));
        if keys.end <= seen.start || keys.start >= seen.end {
            Coverage::Empty
        } else if common.start <= keys.start && keys.end <= common.end {
            Coverage::Full
        } else {
            Coverage::Partial
        }
    }

    /// The key tiles that a non-empty range of queries visits. The last may reach past the keys seen, and past
    /// the end of the residue.
    pub fn key_tiles(
        self,
        queries: Range<usize>,
        tile: usize,
        start: KeyStart,
    ) -> impl Iterator<Item = (Range<usize>, Coverage)> {
        let (seen, tile) = (self.keys_of(queries.clone()), tile.max(1));
        let first = match start {
            KeyStart::Aligned => seen.start / tile * tile,
            KeyStart::Dynamic => seen.start,
        };
        (first..seen.end)
            .step_by(tile)
            .map(move |k| (k..k + tile, self.coverage(queries.clone(), k..k + tile)))
    }
}

/// A choice of tiles. Every side is at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiling {
    /// Box of queries, in tokens of one residue along each axis.
    pub query_tile: [usize; 3],
    /// Box of keys, in tokens of one residue along each axis.
    pub key_tile: [usize; 3],
    /// Where key tiles begin.
    pub key_start: KeyStart,
}

impl Tiling {
    /// What tilings of one problem are ranked by, the best having least: fewest pairs issued, then most full tiles, then
    /// the longest last axis, which is the contiguous one.
    pub fn order(&self, counts: &TileCounts) -> (u64, u64, usize) {
        let last_axis = self.query_tile[2].saturating_add(self.key_tile[2]);
        (counts.issued, u64::MAX - counts.full_tiles, usize::MAX - last_axis)
    }

    /// The same without sides of 0, which would be a mistake.
    fn checked(&self) -> Self {
        let is_side = |sides: [usize; 3]| sides.iter().all(|&side| side > 0);
        debug_assert!(
            is_side(self.query_tile) && is_side(self.key_tile),
            "a tile has a token along every axis"
        );
        let at_least_one = |sides: [usize; 3]| sides.map(|side| side.max(1));
        Tiling {
            query_tile: at_least_one(self.query_tile),
            key_tile: at_least_one(self.key_tile),
            key_start: self.key_start,
        }
    }
}

/// Sums along one axis, over its residues and query tiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct AxisCounts {
    query_tiles: u64,
    scores: u64,
    tiles: KeyTiles,
}

impl AxisCounts {
    fn of(axis: &Axis, query_side: usize, key_side: usize, start: KeyStart) -> Self {
        let (query_tiles, scores) = along::query_tiles_and_scores(axis, query_side);
        let [tiles] = along::key_tiles(axis, query_side, start, &[key_side]);
        AxisCounts { query_tiles, scores, tiles }
    }
}

/// What a tiling costs, for one batch item and one head.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TileCounts {
    /// Query tiles.
    pub query_tiles: u64,
    /// Key tiles, summed over query tiles.
    pub key_tiles: u64,
    /// Those that need no mask.
    pub full_tiles: u64,
    /// Key tiles of the query tile that has most.
    pub worst: u64,
    /// Visible pairs of a query and a key: what is useful.
    pub scores: u64,
    /// Pairs computed: key tiles times the two tile sizes.
    pub issued: u64,
    /// Pairs that dense attention computes.
    pub dense: u64,
}

impl TileCounts {
    /// Counts a problem's tiles, for one batch item and one head. Additional keys come as further key tiles of
    /// their own. What a `u64` does not hold is `u64::MAX`. [`PlanTables`] is quicker for many tilings of one problem.
    pub fn of(problem: &Problem, tiling: &Tiling) -> Self {
        let Tiling { query_tile, key_tile, key_start } = tiling.checked();
        problem.sequences().fold(TileCounts::default(), |total, PackedSequence { axes, .. }| {
            let along = |a: usize| AxisCounts::of(&axes[a], query_tile[a], key_tile[a], key_start);
            let counts = std::array::from_fn(along);
            let additional = problem.additional_keys();
            total.plus(&Self::combine(&axes, &counts, additional, [&query_tile, &key_tile]), 1)
        })
    }

    /// Of the counts along the axes of a sequence.
    #[inline]
    fn combine(
        axes: &[Axis; 3],
        counts: &[AxisCounts; 3],
        additional_keys: usize,
        [query_tile, key_tile]: [&[usize; 3]; 2],
    ) -> Self {
        let product = |f: fn(&AxisCounts) -> u64| counts.iter().map(f).fold(1, u64::saturating_mul);
        let tokens =
            |f: fn(&Axis) -> usize| axes.iter().map(|axis| f(axis) as u64).fold(1, u64::saturating_mul);
        let size = |sides: &[usize; 3]| sides.iter().map(|&side| side as u64).fold(1, u64::saturating_mul);
        let (query_size, key_size, additional) = (size(query_tile), size(key_tile), additional_keys as u64);
        let query_tiles = product(|a| a.query_tiles);
        let of_list = |tiles: u64| query_tiles.saturating_mul(tiles);
        let key_tiles = product(|a| a.tiles.all).saturating_add(of_list(additional.div_ceil(key_size)));
        let queries = tokens(|axis| axis.query_extent);
        TileCounts {
            query_tiles,
            key_tiles,
            full_tiles: product(|a| a.tiles.full).saturating_add(of_list(additional / key_size)),
            worst: product(|a| a.tiles.worst).saturating_add(additional.div_ceil(key_size)),
            scores: product(|a| a.scores).saturating_add(queries.saturating_mul(additional)),
            issued: key_tiles.saturating_mul(query_size).saturating_mul(key_size),
            dense: queries.saturating_mul(tokens(|axis| axis.key_extent).saturating_add(additional)),
        }
    }

    /// With those of another sequence, of which there are `times`.
    #[inline]
    fn plus(&self, other: &Self, times: u64) -> Self {
        let plus = |sum: u64, more: u64| sum.saturating_add(more.saturating_mul(times));
        TileCounts {
            query_tiles: plus(self.query_tiles, other.query_tiles),
            key_tiles: plus(self.key_tiles, other.key_tiles),
            full_tiles: plus(self.full_tiles, other.full_tiles),
            worst: self.worst.max(other.worst),
            scores: plus(self.scores, other.scores),
            issued: plus(self.issued, other.issued),
            dense: plus(self.dense, other.dense),
        }
    }

    /// Key tiles per query tile.
    pub fn mean(&self) -> f64 {
        self.key_tiles as f64 / self.query_tiles as f64
    }

    /// Share of key tiles that need no mask.
    pub fn full_share(&self) -> f64 {
        self.full_tiles as f64 / self.key_tiles as f64
    }

    /// Arithmetic done over arithmetic asked for; 1 is perfect block sparsity.
    pub fn issued_over_useful(&self) -> f64 {
        self.issued as f64 / self.scores as f64
    }

    /// Dense arithmetic over arithmetic done.
    pub fn speedup(&self) -> f64 {
        self.dense as f64 / self.issued as f64
    }

    /// Dense arithmetic over arithmetic asked for: what no tiling exceeds.
    pub fn flop_speedup(&self) -> f64 {
        self.dense as f64 / self.scores as f64
    }
}

impl Problem {
    /// Visible pairs of a query and a key over batch and heads, `u64::MAX` when there are more. A forward does `2 (head_dim + head_dim_v)`
    /// floating-point operations on each, a backward 2.5 times that.
    pub fn scores(&self) -> u64 {
        let of_sequence = |axes: &[Axis; 3]| {
            let along = |axis: &Axis| {
                let kinds = axis.residue_kinds().map(|(r, n)| (n as u64).saturating_mul(r.scores()));
                kinds.fold(0, u64::saturating_add)
            };
            axes.iter().map(along).fold(1, u64::saturating_mul)
        };
        let windows =
            self.sequences().map(|sequence| of_sequence(&sequence.axes)).fold(0, u64::saturating_add);
        let additional = (self.query_tokens() as u64).saturating_mul(self.additional_keys() as u64);
        windows
            .saturating_add(additional)
            .saturating_mul((self.batch() as u64).saturating_mul(self.heads() as u64))
    }

    /// Floating-point operations of a forward on the visible pairs alone.
    pub fn useful_flops(&self) -> f64 {
        self.scores() as f64 * 2.0 * (self.head_dim() + self.head_dim_v()) as f64
    }
}

/// The tilings of `query_tokens x key_tokens` (powers of two), best first as by [`Tiling::order`].
pub fn rank_tilings(
    problem: &Problem,
    query_tokens: usize,
    key_tokens: usize,
    key_start: KeyStart,
) -> Vec<(Tiling, TileCounts)> {
    PlanTables::of(problem).ranked(query_tokens, key_tokens, key_start)
}

fn u64_or_max(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
