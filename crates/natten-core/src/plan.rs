//! Tile planning: which boxes of keys a box of queries visits, and how many in all.
//!
//! Work is done on tiles: boxes of tokens of one residue. The keys that a query tile sees are a box
//! ([`Residue::keys_of`]), so its key tiles form a grid, and every count is a product over axes of sums along
//! one axis. A plan of a million tokens takes microseconds.

use std::collections::HashMap;
use std::ops::Range;

use crate::problem::Problem;
use crate::window::{Axis, Residue};

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

    /// Visible pairs of a query and a key; `u64::MAX` when there are more.
    pub fn scores(&self) -> u64 {
        u64::try_from(self.scores_u128()).unwrap_or(u64::MAX)
    }

    fn scores_u128(&self) -> u128 {
        let (len, w, s) = (self.query_len as u128, self.kernel_size as u128, self.stride as u128);
        if !self.is_causal {
            return len * w;
        }
        // Query i has keys up to min(i, key_len - 1) ...
        let keys = self.key_len as u128;
        let rising = len.min(keys);
        let ends = rising * (rising + 1) / 2 + (len - rising) * keys;
        // ... less the start of its block: max((block + 1) s - w, 0), the last block's leader being the last query.
        let blocks = len / s;
        let skipped_blocks = (w / s).min(blocks);
        let moving = blocks - skipped_blocks;
        let starts = s * (s * (skipped_blocks + 1 + blocks) * moving / 2 - w * moving);
        let ragged = (len % s) * len.saturating_sub(w);
        ends - starts - ragged
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

/// Sums along one axis, over its residues and query tiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct AxisCounts {
    query_tiles: u64,
    key_tiles: u64,
    full: u64,
    worst: u64,
    scores: u64,
}

impl AxisCounts {
    fn of(axis: &Axis, query_tile: usize, key_tile: usize, start: KeyStart) -> Self {
        debug_assert!(query_tile > 0 && key_tile > 0, "a tile has at least one token along every axis");
        let (query_tile, key_tile) = (query_tile.max(1), key_tile.max(1));
        let mut counts = AxisCounts::default();
        for (residue, multiplicity) in axis.residue_kinds() {
            let times = multiplicity as u64;
            for q in (0..residue.query_len).step_by(query_tile) {
                let queries = q..(q + query_tile).min(residue.query_len);
                let (tiles, full) = count_key_tiles(&residue, queries, key_tile, start);
                counts.query_tiles += times;
                counts.key_tiles += times * tiles;
                counts.full += times * full;
                counts.worst = counts.worst.max(tiles);
            }
            counts.scores += times * residue.scores();
        }
        counts
    }
}

/// Key tiles of one query tile along one axis, and the full ones among them, without walking them.
fn count_key_tiles(residue: &Residue, queries: Range<usize>, tile: usize, start: KeyStart) -> (u64, u64) {
    let seen = residue.keys_of(queries.clone());
    let common = residue.common_keys_of(queries);
    let first = match start {
        KeyStart::Aligned => seen.start / tile * tile,
        KeyStart::Dynamic => seen.start,
    };
    let tiles = seen.end.saturating_sub(first).div_ceil(tile);
    // Tiles first + n * tile that lie inside `common`.
    let lowest = common.start.saturating_sub(first).div_ceil(tile);
    let highest = common.end.saturating_sub(first) / tile;
    (tiles as u64, highest.saturating_sub(lowest) as u64)
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
    /// their own.
    pub fn of(problem: &Problem, tiling: &Tiling) -> Self {
        Self::with(problem, tiling, |_, axis, query_tile, key_tile| {
            AxisCounts::of(axis, query_tile, key_tile, tiling.key_start)
        })
    }

    /// [`TileCounts::of`] with the counts along one axis from elsewhere.
    fn with(
        problem: &Problem,
        tiling: &Tiling,
        mut along: impl FnMut(usize, &Axis, usize, usize) -> AxisCounts,
    ) -> Self {
        problem.sequences().fold(TileCounts::default(), |total, sequence| {
            let axes = std::array::from_fn(|i| {
                along(i, &sequence.axes[i], tiling.query_tile[i], tiling.key_tile[i])
            });
            let extents = sequence.axes.map(|a| (a.query_extent as u64, a.key_extent as u64));
            total.plus(&Self::combine(
                axes,
                extents,
                problem.additional_keys() as u64,
                tiling.query_tile.iter().product::<usize>() as u64,
                tiling.key_tile.iter().product::<usize>() as u64,
            ))
        })
    }

    fn combine(axes: [AxisCounts; 3], extents: [(u64, u64); 3], additional: u64, q: u64, k: u64) -> Self {
        let product = |f: fn(&AxisCounts) -> u64| axes.iter().map(f).product::<u64>();
        let query_tiles = product(|a| a.query_tiles);
        let queries: u64 = extents.iter().map(|e| e.0).product();
        let keys: u64 = extents.iter().map(|e| e.1).product::<u64>() + additional;
        let key_tiles = product(|a| a.key_tiles) + query_tiles * additional.div_ceil(k);
        TileCounts {
            query_tiles,
            key_tiles,
            full_tiles: product(|a| a.full) + query_tiles * (additional / k),
            worst: product(|a| a.worst) + additional.div_ceil(k),
            scores: product(|a| a.scores) + queries * additional,
            issued: key_tiles * q * k,
            dense: queries * keys,
        }
    }

    fn plus(&self, other: &Self) -> Self {
        TileCounts {
            query_tiles: self.query_tiles + other.query_tiles,
            key_tiles: self.key_tiles + other.key_tiles,
            full_tiles: self.full_tiles + other.full_tiles,
            worst: self.worst.max(other.worst),
            scores: self.scores + other.scores,
            issued: self.issued + other.issued,
            dense: self.dense + other.dense,
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

/// All boxes of `size` tokens with power-of-two sides, `size` itself a power of two (none for 0). Axes of one token get 1;
/// if all have one token, the box extends along the last.
pub fn tile_boxes(size: usize, axes: &[Axis; 3]) -> Vec<[usize; 3]> {
    let mut boxes = Vec::new();
    let Some(log2) = size.checked_ilog2() else { return boxes };
    for x in 0..=log2 {
        for y in 0..=log2 - x {
            let sides = [1 << x, 1 << y, 1 << (log2 - x - y)];
            let wasted =
                |(axis, &side): (&Axis, &usize)| side > 1 && axis.query_extent.max(axis.key_extent) == 1;
            if !axes.iter().zip(&sides).any(wasted) {
                boxes.push(sides);
            }
        }
    }
    // A problem of a single token has no axis to spend the size on.
    if boxes.is_empty() {
        boxes.push([1, 1, size]);
    }
    boxes
}

/// The tilings of `query_tokens x key_tokens` (powers of two), best first: fewest pairs issued, then most full
/// tiles, then the longest last axis, which is the contiguous one.
pub fn rank_tilings(
    problem: &Problem,
    query_tokens: usize,
    key_tokens: usize,
    key_start: KeyStart,
) -> Vec<(Tiling, TileCounts)> {
    let key_boxes = tile_boxes(key_tokens, problem.axes());
    // Hundreds of tilings share a few dozen pairs of sides along each axis.
    let mut known = HashMap::new();
    let mut count = |tiling: &Tiling| {
        if problem.is_packed() {
            return TileCounts::of(problem, tiling);
        }
        TileCounts::with(problem, tiling, |i, axis, query_tile, key_tile| {
            *known
                .entry((i, query_tile, key_tile))
                .or_insert_with(|| AxisCounts::of(axis, query_tile, key_tile, key_start))
        })
    };
    let mut ranked: Vec<(Tiling, TileCounts)> = tile_boxes(query_tokens, problem.axes())
        .into_iter()
        .flat_map(|query_tile| {
            key_boxes.iter().map(move |&key_tile| Tiling { query_tile, key_tile, key_start })
        })
        .map(|tiling| (tiling, count(&tiling)))
        .collect();
    let order = |(tiling, counts): &(Tiling, TileCounts)| {
        (counts.issued, u64::MAX - counts.full_tiles, usize::MAX - tiling.query_tile[2] - tiling.key_tile[2])
    };
    ranked.sort_by_key(order);
    ranked
}

#[cfg(test)]
mod tests;
