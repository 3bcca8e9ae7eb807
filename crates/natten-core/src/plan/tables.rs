//! The sums along a problem's axes, kept for everybody who asks about its tilings.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::along::{AxisRow, KeyTiles};
use super::{AxisCounts, KeyStart, TileCounts, Tiling, tile_boxes};
use crate::problem::Problem;
use crate::window::Axis;

/// What tilings of a problem cost. Sums along an axis are worked out for a side of queries and all sides of keys when
/// they are first asked for, and kept: hundreds of tilings share a few dozen of them. Make one for a problem and pass it
/// to whoever plans.
#[derive(Debug)]
pub struct PlanTables {
    /// The axes as the problem has them.
    axes: [Axis; 3],
    additional_keys: usize,
    /// The problem, or the packed sequences that differ.
    sequences: Vec<Sequence>,
}

/// Sequences of the same extents.
#[derive(Debug)]
struct Sequence {
    times: u64,
    axes: [AxisTable; 3],
}

/// The rows of one axis that were asked for, by their sides of queries.
#[derive(Debug)]
struct AxisTable {
    axis: Axis,
    rows: Mutex<Vec<(usize, KeyStart, Arc<AxisRow>)>>,
}

impl AxisTable {
    fn row(&self, query_side: usize, start: KeyStart) -> Arc<AxisRow> {
        // A panic elsewhere leaves the list whole.
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((.., row)) = rows.iter().find(|(side, at, _)| (*side, *at) == (query_side, start)) {
            return Arc::clone(row);
        }
        let row = Arc::new(AxisRow::new(&self.axis, query_side, start));
        rows.push((query_side, start, Arc::clone(&row)));
        row
    }
}

impl PlanTables {
    /// Tables of a problem, with nothing in them yet.
    pub fn of(problem: &Problem) -> Self {
        let sequences = problem.sequences().map(|sequence| sequence.axes);
        PlanTables { axes: *problem.axes(), ..Self::of_sequences(sequences, problem.additional_keys()) }
    }

    /// Tables of one mask, such as that of a packed sequence.
    pub fn of_axes(axes: &[Axis; 3], additional_keys: usize) -> Self {
        Self::of_sequences([*axes].into_iter(), additional_keys)
    }

    fn of_sequences(all: impl Iterator<Item = [Axis; 3]>, additional_keys: usize) -> Self {
        let mut places = HashMap::new();
        let mut sequences: Vec<Sequence> = Vec::new();
        for axes in all {
            let place = *places.entry(axes).or_insert(sequences.len());
            if place == sequences.len() {
                let axes = axes.map(|axis| AxisTable { axis, rows: Mutex::default() });
                sequences.push(Sequence { times: 0, axes });
            }
            sequences[place].times += 1;
        }
        let axes =
            sequences.first().map_or([Axis::UNIT; 3], |first| first.axes.each_ref().map(|table| table.axis));
        PlanTables { axes, additional_keys, sequences }
    }

    /// A box of queries, for its counts with any box of keys. Every side is at least 1.
    pub fn query_tile(&self, sides: [usize; 3], start: KeyStart) -> QueryTile<'_> {
        let sides = Tiling { query_tile: sides, key_tile: [1; 3], key_start: start }.checked().query_tile;
        let rows = |sequence: &Sequence| std::array::from_fn(|a| sequence.axes[a].row(sides[a], start));
        QueryTile { tables: self, sides, rows: self.sequences.iter().map(rows).collect() }
    }

    /// As [`TileCounts::of`].
    pub fn counts(&self, tiling: &Tiling) -> TileCounts {
        self.query_tile(tiling.query_tile, tiling.key_start).counts(tiling.key_tile)
    }

    /// Every tiling of `query_tokens x key_tokens` (powers of two) with its counts.
    pub fn tilings(
        &self,
        query_tokens: usize,
        key_tokens: usize,
        key_start: KeyStart,
    ) -> impl Iterator<Item = (Tiling, TileCounts)> {
        let key_tiles = tile_boxes(key_tokens, &self.axes);
        tile_boxes(query_tokens, &self.axes).into_iter().flat_map(move |query_tile| {
            let of_queries = self.query_tile(query_tile, key_start);
            let counted = |&key_tile: &[usize; 3]| {
                (Tiling { query_tile, key_tile, key_start }, of_queries.counts(key_tile))
            };
            key_tiles.iter().map(counted).collect::<Vec<_>>()
        })
    }

    /// [`PlanTables::tilings`], best first as by [`Tiling::order`].
    pub fn ranked(
        &self,
        query_tokens: usize,
        key_tokens: usize,
        key_start: KeyStart,
    ) -> Vec<(Tiling, TileCounts)> {
        let mut ranked: Vec<_> = self.tilings(query_tokens, key_tokens, key_start).collect();
        ranked.sort_by_key(|(tiling, counts)| tiling.order(counts));
        ranked
    }

    /// The first of [`PlanTables::ranked`]; nothing for tiles of 0 tokens.
    pub fn best(
        &self,
        query_tokens: usize,
        key_tokens: usize,
        key_start: KeyStart,
    ) -> Option<(Tiling, TileCounts)> {
        let key_tiles = tile_boxes(key_tokens, &self.axes);
        let mut best: Option<((u64, u64, usize), Tiling)> = None;
        for query_tile in tile_boxes(query_tokens, &self.axes) {
            let of_queries = self.query_tile(query_tile, key_start);
            for &key_tile in &key_tiles {
                // As by `Tiling::order`, whose pairs are so many times the key tiles for all.
                let all = of_queries.key_tiles(key_tile);
                if best.as_ref().is_some_and(|((least, ..), _)| all > *least) {
                    continue;
                }
                let full = of_queries.full_tiles(key_tile);
                let order = (all, u64::MAX - full, usize::MAX - query_tile[2].saturating_add(key_tile[2]));
                if best.as_ref().is_none_or(|(least, _)| order < *least) {
                    best = Some((order, Tiling { query_tile, key_tile, key_start }));
                }
            }
        }
        best.map(|(_, tiling)| (tiling, self.counts(&tiling)))
    }

    /// Keys that all query tiles copy between them, for one batch item and one head: whole key tiles, but for those longer
    /// than all keys that the query tile sees. A last tile that would reach beyond these is moved back.
    pub fn keys_copied(&self, tiling: &Tiling) -> u64 {
        let Tiling { query_tile, key_tile, key_start } = tiling.checked();
        let list = self.additional_keys as u64;
        let size = key_tile.iter().map(|&side| side as u64).fold(1, u64::saturating_mul);
        self.sequences.iter().fold(0, |sum, sequence| {
            let counts = sequence.counts(query_tile, key_tile, key_start);
            let product = |f: fn(&AxisCounts) -> u64| counts.iter().map(f).fold(1, u64::saturating_mul);
            let of_list = list.div_ceil(size).saturating_mul(list.min(size));
            let copied = product(|axis| axis.tiles.copied)
                .saturating_add(product(|axis| axis.query_tiles).saturating_mul(of_list));
            copied.saturating_mul(sequence.times).saturating_add(sum)
        })
    }
}

impl Sequence {
    fn counts(&self, query_tile: [usize; 3], key_tile: [usize; 3], start: KeyStart) -> [AxisCounts; 3] {
        std::array::from_fn(|a| of_row(&self.axes[a].row(query_tile[a], start), key_tile[a]))
    }
}

#[inline]
fn of_row(row: &AxisRow, key_side: usize) -> AxisCounts {
    AxisCounts { query_tiles: row.query_tiles, scores: row.scores, tiles: row.key_tiles(key_side) }
}

/// A box of queries with its sums along every axis. Made by [`PlanTables::query_tile`].
#[derive(Debug)]
pub struct QueryTile<'a> {
    tables: &'a PlanTables,
    sides: [usize; 3],
    /// For each of the tables' sequences.
    rows: Vec<[Arc<AxisRow>; 3]>,
}

impl QueryTile<'_> {
    /// The counts with a box of keys. Every side is at least 1.
    #[inline]
    pub fn counts(&self, key_tile: [usize; 3]) -> TileCounts {
        let key_tile = key_tile.map(|side| side.max(1));
        let sequences = self.tables.sequences.iter().zip(&self.rows);
        sequences.fold(TileCounts::default(), |total, (sequence, rows)| {
            let axes = sequence.axes.each_ref().map(|table| table.axis);
            let counts = std::array::from_fn(|a| of_row(&rows[a], key_tile[a]));
            let tiles = [&self.sides, &key_tile];
            total.plus(
                &TileCounts::combine(&axes, &counts, self.tables.additional_keys, tiles),
                sequence.times,
            )
        })
    }

    /// Key tiles with a box of keys: of [`QueryTile::counts`] what tilings are compared by first.
    #[inline]
    pub fn key_tiles(&self, key_tile: [usize; 3]) -> u64 {
        self.sum(key_tile, |tiles| tiles.all, |additional, size| additional.div_ceil(size))
    }

    /// Those of them that need no mask.
    #[inline]
    pub fn full_tiles(&self, key_tile: [usize; 3]) -> u64 {
        self.sum(key_tile, |tiles| tiles.full, |additional, size| additional / size)
    }

    /// Some of the tiles with a box of keys, and of those of additional keys, so many to a query tile.
    #[inline]
    fn sum(
        &self,
        key_tile: [usize; 3],
        of_window: fn(&KeyTiles) -> u64,
        of_list: fn(u64, u64) -> u64,
    ) -> u64 {
        let sequences = self.tables.sequences.iter().zip(&self.rows);
        let of_window = sequences.fold(0u64, |sum, (sequence, rows)| {
            let along = rows.iter().zip(&key_tile);
            let tiles = along.fold(1u64, |tiles, (row, &side)| {
                tiles.saturating_mul(of_window(&row.key_tiles(side.max(1))))
            });
            sum.saturating_add(tiles.saturating_mul(sequence.times))
        });
        let additional = self.tables.additional_keys as u64;
        if additional == 0 {
            return of_window;
        }
        let size = key_tile.iter().fold(1u64, |size, &side| size.saturating_mul(side.max(1) as u64));
        of_window.saturating_add(self.query_tiles().saturating_mul(of_list(additional, size)))
    }

    /// Query tiles.
    pub fn query_tiles(&self) -> u64 {
        self.tables.sequences.iter().zip(&self.rows).fold(0, |sum, (sequence, rows)| {
            let tiles = rows.iter().fold(1u64, |tiles, row| tiles.saturating_mul(row.query_tiles));
            sum.saturating_add(tiles.saturating_mul(sequence.times))
        })
    }
}
