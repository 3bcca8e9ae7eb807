//! What each token is to a query: seen, of another residue, in a tile computed for nothing.

use natten::plan::{Coverage, Tiling};
use natten::window::Axis;

/// A query among its tokens.
#[derive(Clone, Debug)]
pub struct View {
    /// Token axes that the caller has; the last ones of the three.
    pub rank: usize,
    pub axes: [Axis; 3],
    /// A token of the whole, as all tokens here.
    pub query: [usize; 3],
    /// The tiles to show, if any.
    pub tiling: Option<Tiling>,
}

/// What a token is to the query, from least to most of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    /// No key of the part.
    NotHeld,
    /// Of another residue: out of sight whatever the window.
    Other,
    /// Of the same residue, outside the window.
    Unseen,
    /// In a tile that needs a mask: computed and thrown away.
    Masked,
    /// Seen, through a tile that needs a mask if tiles are shown.
    Seen,
    /// Seen, in a tile that needs no mask.
    Full,
    /// The query itself.
    Query,
}

impl View {
    /// What `token` is to the query.
    pub fn cell(&self, token: [usize; 3]) -> Cell {
        if token == self.query {
            return Cell::Query;
        }
        let along = |i: usize| self.along(i, self.query[i], token[i]);
        let all = [along(0), along(1), along(2)];
        if all.iter().any(|part| part.is_not_held) {
            return Cell::NotHeld;
        }
        if all.iter().any(|part| part.is_other_residue) {
            return Cell::Other;
        }
        let is_seen = all.iter().all(|part| part.is_seen);
        let tile = all.iter().fold(Coverage::Full, |tile, part| tile.and(part.tile));
        match (is_seen, tile) {
            (true, Coverage::Full) if self.tiling.is_some() => Cell::Full,
            (true, _) => Cell::Seen,
            (false, Coverage::Empty) => Cell::Unseen,
            (false, _) if self.tiling.is_some() => Cell::Masked,
            (false, _) => Cell::Unseen,
        }
    }

    /// What the query is to itself, by the rule for any other token.
    pub fn own_cell(&self) -> Cell {
        let tile =
            (0..3).fold(Coverage::Full, |tile, i| tile.and(self.along(i, self.query[i], self.query[i]).tile));
        if self.tiling.is_some() && tile == Coverage::Full { Cell::Full } else { Cell::Seen }
    }

    fn along(&self, i: usize, query: usize, key: usize) -> Along {
        let axis = &self.axes[i];
        let (g, position) = axis.place_of_query(query - axis.query_start);
        let residue = axis.residue(g);
        if !(axis.key_start..axis.key_start + axis.key_extent).contains(&key) {
            return Along {
                is_not_held: true,
                is_other_residue: false,
                is_seen: false,
                tile: Coverage::Empty,
            };
        }
        let (of_key, at) = axis.place_of_key(key - axis.key_start);
        let tile = self.tiling.map_or(Coverage::Empty, |tiling| {
            let side = tiling.query_tile[i];
            let start = position / side * side;
            let queries = start..(start + side).min(residue.query_len);
            let mut tiles = residue.key_tiles(queries, tiling.key_tile[i], tiling.key_start);
            tiles.find(|(keys, _)| keys.contains(&at)).map_or(Coverage::Empty, |(_, coverage)| coverage)
        });
        Along {
            is_not_held: false,
            is_other_residue: of_key != g,
            is_seen: residue.window(position).contains(&at),
            tile,
        }
    }

    /// Whether a token is a query with the same window: in the same block of `stride` queries, or the same query
    /// tile when tiles are shown.
    pub fn is_companion(&self, token: [usize; 3]) -> bool {
        self.has_blocks()
            && (0..3).all(|i| {
                let axis = &self.axes[i];
                let Some(of_token) = token[i].checked_sub(axis.query_start) else { return false };
                let of_query = self.query[i] - axis.query_start;
                // Blocks of a stride are the whole's, tiles the part's.
                let block = |query: usize| match self.tiling {
                    Some(tiling) => axis.place_of_query(query).1 / tiling.query_tile[i],
                    None => (axis.query_start + query) / axis.dilation / axis.stride,
                };
                let same_residue = token[i] % axis.dilation == self.query[i] % axis.dilation;
                of_token < axis.query_extent && same_residue && block(of_token) == block(of_query)
            })
    }

    /// Whether queries are grouped at all.
    pub fn has_blocks(&self) -> bool {
        self.tiling.is_some() || self.axes.iter().any(|axis| axis.stride > 1)
    }

    /// The same view for another query.
    pub fn with_query(&self, query: [usize; 3]) -> Self {
        View { query, ..self.clone() }
    }

    /// Whether it is of a part of a whole.
    pub fn is_part(&self) -> bool {
        !self.axes.iter().all(Axis::is_whole)
    }

    /// Keys that the query sees.
    pub fn keys_seen(&self) -> usize {
        let along = |i: usize| {
            let axis = &self.axes[i];
            let (g, position) = axis.place_of_query(self.query[i] - axis.query_start);
            axis.residue(g).window(position).len()
        };
        along(0) * along(1) * along(2)
    }

    /// Parameters of the caller's axes in words.
    pub fn caption(&self) -> String {
        let axes = &self.axes[3 - self.rank..];
        let list =
            |f: fn(&Axis) -> usize| crate::problem_args::times(&axes.iter().map(f).collect::<Vec<_>>());
        let mut text = crate::problem_args::tokens_and_window(axes);
        text += &format!(", stride {}, dilation {}", list(|a| a.stride), list(|a| a.dilation));
        if axes.iter().any(|axis| axis.is_causal) {
            let flags = axes.iter().map(|axis| if axis.is_causal { "causal" } else { "open" });
            text += &format!(", {}", flags.collect::<Vec<_>>().join(" x "));
        }
        text
    }
}

/// What one axis says about a pair.
struct Along {
    is_not_held: bool,
    is_other_residue: bool,
    is_seen: bool,
    tile: Coverage,
}
