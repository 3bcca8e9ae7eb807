//! The tilings to compare: those asked for, or every box of the size that an architecture works on.

use natten::Problem;
use natten::plan::{KeyStart, PlanTables, TileCounts, Tiling, tile_boxes};
use serde_json::{Value, json};

use super::{StartName, TileFlags};
use crate::error::CliError;

/// Largest tile: beyond it, products of tile sizes and counts could overflow.
const MAX_TILE: usize = 1 << 16;

/// What is fixed and what is free.
#[derive(Clone, Debug)]
pub struct TileChoice {
    query_tile: Option<[usize; 3]>,
    key_tile: Option<[usize; 3]>,
    starts: Vec<KeyStart>,
    tokens: (usize, usize),
}

/// A tiling with its counts.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    rank: usize,
    pub tiling: Tiling,
    pub counts: TileCounts,
}

impl TileChoice {
    /// `tokens` are the queries and keys of a tile where none is asked for.
    pub fn new(flags: &TileFlags, rank: usize, tokens: (usize, usize)) -> Result<Self, CliError> {
        let starts = match flags.kv_start {
            None => vec![KeyStart::Dynamic, KeyStart::Aligned],
            Some(StartName::Aligned) => vec![KeyStart::Aligned],
            Some(StartName::Dynamic) => vec![KeyStart::Dynamic],
        };
        Ok(TileChoice {
            query_tile: fixed("q-tile", &flags.q_tile, rank)?,
            key_tile: fixed("kv-tile", &flags.kv_tile, rank)?,
            starts,
            tokens,
        })
    }

    /// Whether something is fixed that could be chosen.
    pub fn is_fixed(&self) -> bool {
        self.query_tile.is_some() || self.key_tile.is_some() || self.starts.len() == 1
    }

    /// The tiling, when both boxes are asked for.
    pub fn tiling(&self) -> Option<Tiling> {
        Some(Tiling {
            query_tile: self.query_tile?,
            key_tile: self.key_tile?,
            key_start: *self.starts.first()?,
        })
    }

    /// The same sizes with nothing fixed.
    pub fn freed(&self) -> Self {
        let starts = vec![KeyStart::Dynamic, KeyStart::Aligned];
        TileChoice { query_tile: None, key_tile: None, starts, tokens: self.tokens }
    }

    /// Every tiling in question, best first: least issued, then most full tiles, then the longest last axis.
    pub fn ranked(&self, problem: &Problem) -> Vec<Plan> {
        let boxes = |fixed: Option<[usize; 3]>, tokens| {
            fixed.map_or_else(|| tile_boxes(tokens, problem.axes()), |sides| vec![sides])
        };
        let (query_boxes, key_boxes) =
            (boxes(self.query_tile, self.tokens.0), boxes(self.key_tile, self.tokens.1));
        let tables = PlanTables::of(problem);
        let mut plans = Vec::new();
        for &query_tile in &query_boxes {
            let of_queries: Vec<_> =
                self.starts.iter().map(|&start| (start, tables.query_tile(query_tile, start))).collect();
            for &key_tile in &key_boxes {
                for (key_start, of_queries) in &of_queries {
                    let tiling = Tiling { query_tile, key_tile, key_start: *key_start };
                    plans.push(Plan { rank: problem.rank(), tiling, counts: of_queries.counts(key_tile) });
                }
            }
        }
        plans.sort_by_key(Plan::order);
        plans
    }
}

/// A box from a flag, one entry an axis or one for all; `None` when the flag is absent.
fn fixed(flag: &'static str, sides: &[usize], rank: usize) -> Result<Option<[usize; 3]>, CliError> {
    let mut padded = [1; 3];
    match sides.len() {
        0 => return Ok(None),
        1 => padded[3 - rank..].fill(sides[0]),
        found if found == rank => padded[3 - rank..].copy_from_slice(sides),
        found => return Err(CliError::AxisCount { flag, found, axes: rank }),
    }
    let tokens = padded.iter().try_fold(1usize, |product, &side| product.checked_mul(side));
    match tokens {
        Some(1..=MAX_TILE) => Ok(Some(padded)),
        _ => Err(CliError::Tile { flag }),
    }
}

impl Plan {
    /// What plans are ranked by, the best having least.
    pub fn order(&self) -> (u64, u64, usize) {
        self.tiling.order(&self.counts)
    }

    /// The same tiling of another problem of the same rank, whose tables these are.
    pub fn recount(&self, tables: &PlanTables) -> Self {
        Plan { counts: tables.counts(&self.tiling), ..*self }
    }

    /// The sides of a box along the axes that the caller has.
    fn sides(&self, sides: [usize; 3]) -> Vec<usize> {
        sides[3 - self.rank..].to_vec()
    }

    /// `2 x 8 x 8`.
    pub fn box_text(&self, sides: [usize; 3]) -> String {
        crate::problem_args::times(&self.sides(sides))
    }

    /// The flag's word for where key tiles begin.
    pub fn start_name(&self) -> &'static str {
        match self.tiling.key_start {
            KeyStart::Aligned => "aligned",
            KeyStart::Dynamic => "dynamic",
        }
    }

    /// Dense key tiles over those of the worst query tile: how NATTEN's simulator states a speed-up.
    pub fn worst_speedup(&self, problem: &Problem) -> f64 {
        let tile = self.tiling.key_tile;
        let along = |i: usize| problem.axes()[i].key_extent.div_ceil(tile[i]);
        let additional = problem.additional_keys().div_ceil(tile.iter().product());
        ((0..3).map(along).product::<usize>() + additional) as f64 / self.counts.worst as f64
    }

    /// Bytes of key and value tiles that query tiles read between them, from caches for the most part.
    pub fn loaded_bytes(&self, problem: &Problem) -> f64 {
        let rows = self.counts.key_tiles as f64 * self.tiling.key_tile.iter().product::<usize>() as f64;
        let width = (problem.head_dim() + problem.head_dim_v()) * problem.element_type().size_bytes();
        rows * width as f64 * (problem.batch() * problem.heads()) as f64
    }

    /// The plan for a JSON report.
    pub fn to_json(self, problem: &Problem) -> Value {
        let counts = &self.counts;
        json!({
            "q_tile": self.sides(self.tiling.query_tile),
            "kv_tile": self.sides(self.tiling.key_tile),
            "kv_start": self.start_name(),
            "q_tiles": counts.query_tiles,
            "kv_tiles_mean": counts.mean(),
            "kv_tiles_worst": counts.worst,
            "full_tile_share": counts.full_share(),
            "issued_over_useful": counts.issued_over_useful(),
            "flop_speedup": counts.flop_speedup(),
            "predicted_speedup": counts.speedup(),
            "predicted_speedup_worst": self.worst_speedup(problem),
            "kv_loaded_bytes": self.loaded_bytes(problem),
        })
    }
}
