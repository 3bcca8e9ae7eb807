//! The block of the score matrix that a pair of lane groups and a packed row block span, and the score tiles in which it
//! is computed: as many rows as the first-level cache has room for scores of.

use crate::boxes::{Box3, Boxes, TileWindows, cut, intersect};
use crate::groups::{Groups, Pair};
use crate::packed::PackedRows;

/// Rows whose scores are held at once, at most.
const SCORE_TILE_ROWS: usize = 512;

/// Scores of a group of lanes that are held at once: what lets a score tile stay in a first-level cache.
const SCORE_TILE_NUMBERS: usize = 4096;

/// Rows of a score tile of groups of so many lanes.
const fn score_tile_rows(lanes: usize) -> usize {
    let rows = SCORE_TILE_NUMBERS / lanes;
    if rows < SCORE_TILE_ROWS { rows } else { SCORE_TILE_ROWS }
}

/// A pair of lane groups and the part of a packed row block that it sees.
pub(crate) struct ScoreBlock<'a> {
    pub windows: &'a TileWindows,
    pub groups: &'a Groups,
    pub pair: Pair,
    /// The packed row block.
    pub packed: &'a PackedRows,
    /// The part of it that the pair sees, its last axis aligned to pairs.
    pub seen: Box3,
}

impl<'a> ScoreBlock<'a> {
    /// `None` where the pair sees nothing of the box.
    #[inline(always)]
    pub(crate) fn new(
        windows: &'a TileWindows,
        groups: &'a Groups,
        pair: Pair,
        packed: &'a PackedRows,
    ) -> Option<Self> {
        let origin = groups.origin(pair.first);
        let lanes = [groups.group[0], groups.group[1], groups.group[2] * pair.count];
        let whole = &packed.extents;
        let along = |a: usize| intersect(&windows.union(a, origin[a], lanes[a]), &whole[a]);
        let (x, y, z) = (along(0), along(1), along(2));
        if x.is_empty() || y.is_empty() || z.is_empty() {
            return None;
        }
        let start = z.start - (z.start - whole[2].start) % 2;
        Some(ScoreBlock { windows, groups, pair, packed, seen: [x, y, start..z.end] })
    }

    /// The score tiles whose scores are held at once.
    #[inline(always)]
    pub(crate) fn score_tiles(&self) -> Boxes {
        let rows = score_tile_rows(self.groups.lane_count());
        cut(&self.seen, rows, rows)
    }

    /// Index of a line of the packed box.
    #[inline(always)]
    pub(crate) fn line(&self, x: usize, y: usize) -> usize {
        let [sx, sy, _] = &self.packed.extents;
        self.packed.lines[(x - sx.start) * sy.len() + (y - sy.start)] as usize
    }
}
