//! The boxes of queries and keys that a kernel on tiles works with: the best ones, quickly, and what they read.
//!
//! Every count is a product over axes of sums along one axis. Each axis is summed up once for a side of queries and all
//! sides of keys, and the hundreds of combinations are only multiplied.

use natten_core::Problem;
use natten_core::plan::{KeyStart, TileCounts, Tiling, rank_tilings, tile_boxes};
use natten_core::window::Axis;

use crate::registry::Tile;

/// Most pieces that an axis is cut into where other boxes are left: a side that cuts finer wastes least on paper, and takes
/// longer to count than it saves.
const MOST_PIECES: usize = 4096;

/// Sums along one axis over its query tiles, for one pair of sides.
#[derive(Clone, Copy, Default)]
struct Sums {
    key_tiles: u64,
    full: u64,
    /// Keys copied: a last tile that would reach beyond the keys seen is moved back, and only one that is longer than all
    /// of them is copied in part.
    copied: u64,
}

/// Sides of keys up to 2^7.
type BySide = [Sums; 8];

fn sum_axis(axis: &Axis, query_side: usize) -> BySide {
    let mut sums = BySide::default();
    for (residue, times) in axis.residue_kinds() {
        for start in (0..residue.query_len).step_by(query_side) {
            let queries = start..(start + query_side).min(residue.query_len);
            let (seen, common) = (residue.keys_of(queries.clone()), residue.common_keys_of(queries));
            let count = seen.end.saturating_sub(seen.start);
            let (first, last) =
                (common.start.saturating_sub(seen.start), common.end.saturating_sub(seen.start));
            for (log2, sum) in sums.iter_mut().enumerate() {
                let tiles = count.div_ceil(1 << log2);
                let full = (last >> log2).saturating_sub(first.div_ceil(1 << log2));
                sum.key_tiles += (times * tiles) as u64;
                sum.full += (times * full) as u64;
                sum.copied += (times * tiles * count.min(1 << log2)) as u64;
            }
        }
    }
    sums
}

/// Sums of an axis by the side of queries, each worked out when first asked for.
struct AxisTable<'a> {
    axis: &'a Axis,
    by_side: [Option<BySide>; 8],
}

impl AxisTable<'_> {
    fn get(&mut self, query_side: usize, key_side: usize) -> Sums {
        let AxisTable { axis, by_side } = self;
        let sums = by_side[query_side.ilog2() as usize].get_or_insert_with(|| sum_axis(axis, query_side));
        sums[key_side.ilog2() as usize]
    }
}

/// The boxes that issue fewest pairs; among those, with most full tiles, then longest along the last axis, which lies
/// densest in memory. A problem of single tokens has no box without waste; it gets a flat one.
pub(crate) fn best(problem: &Problem, tile: Tile) -> (Tiling, TileCounts) {
    if problem.is_packed() {
        let ranked = rank_tilings(problem, tile.queries, tile.keys, KeyStart::Dynamic);
        if let Some(best) = ranked.into_iter().next() {
            return best;
        }
    }
    let axes = problem.axes();
    let mut tables = axes.each_ref().map(|axis| AxisTable { axis, by_side: [None; 8] });
    let key_tiles = tile_boxes(tile.keys, axes);
    let mut best = None;
    for query_tile in coarse(tile_boxes(tile.queries, axes), axes) {
        for &key_tile in &key_tiles {
            let (mut tiles, mut full) = (1, 1);
            for (a, table) in tables.iter_mut().enumerate() {
                let sums = table.get(query_tile[a], key_tile[a]);
                tiles *= sums.key_tiles;
                full *= sums.full;
            }
            let cost = (tiles, u64::MAX - full, usize::MAX - query_tile[2] - key_tile[2]);
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                best = Some((cost, Tiling { query_tile, key_tile, key_start: KeyStart::Dynamic }));
            }
        }
    }
    let flat = Tiling {
        query_tile: [1, 1, tile.queries],
        key_tile: [1, 1, tile.keys],
        key_start: KeyStart::Dynamic,
    };
    let tiling = best.map_or(flat, |(_, tiling)| tiling);
    (tiling, TileCounts::of(problem, &tiling))
}

/// Those of `boxes` that do not cut an axis into more pieces than are quickly counted; all, if none is left.
fn coarse(boxes: Vec<[usize; 3]>, axes: &[Axis; 3]) -> Vec<[usize; 3]> {
    let fits = |sides: &&[usize; 3]| {
        axes.iter().zip(*sides).all(|(axis, &side)| axis.query_extent.div_ceil(side) <= MOST_PIECES)
    };
    let few: Vec<_> = boxes.iter().filter(fits).copied().collect();
    if few.is_empty() { boxes } else { few }
}

/// Bytes that a kernel on tiles reads from global memory in one forward pass, exactly: each query once, and for each query
/// tile the rows of its key tiles, keys and values both.
pub fn bytes_read(problem: &Problem, tiling: &Tiling) -> u64 {
    let additional = problem.additional_keys() as u64;
    let keys = tiling.key_tile.iter().product::<usize>() as u64;
    let (mut query_rows, mut key_rows) = (0, 0);
    for sequence in problem.sequences() {
        let axes = &sequence.axes;
        query_rows += axes.iter().map(|axis| axis.query_extent as u64).product::<u64>();
        let copied =
            |a: usize| sum_axis(&axes[a], tiling.query_tile[a])[tiling.key_tile[a].ilog2() as usize].copied;
        let tiles = |a: usize| -> u64 {
            let along = |(residue, times): (natten_core::window::Residue, usize)| {
                (times * residue.query_len.div_ceil(tiling.query_tile[a])) as u64
            };
            axes[a].residue_kinds().map(along).sum()
        };
        key_rows += (0..3).map(copied).product::<u64>();
        key_rows += (0..3).map(tiles).product::<u64>() * additional.div_ceil(keys) * additional.min(keys);
    }
    let (dim, dim_v) = (problem.head_dim() as u64, problem.head_dim_v() as u64);
    let elements = query_rows * dim + key_rows * (dim + dim_v);
    elements * (problem.batch() * problem.heads() * problem.element_type().size_bytes()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use natten_core::{ElementType, Inputs, Layout, Params};

    fn problem(tokens: [usize; 3], params: Params<3>) -> Problem {
        let shape: Vec<usize> = [1].into_iter().chain(tokens).chain([1, 64]).collect();
        let layout = Layout::contiguous(&shape).unwrap();
        Problem::new(&params.to_dyn(), &Inputs::new(layout, layout, layout), ElementType::Bf16).unwrap()
    }

    #[test]
    fn the_best_is_the_planners_best() {
        for (tokens, params) in [
            ([16, 44, 80], Params::new([16, 24, 16])),
            ([30, 48, 80], Params::new([18, 24, 24]).stride([16, 8, 8])),
            ([1, 64, 64], Params::new([1, 16, 16])),
            ([1, 1, 3000], Params::new([1, 1, 200]).is_causal([false, false, true])),
            ([11, 19, 30], Params::new([5, 9, 7]).stride([2, 3, 1]).dilation([1, 2, 3])),
            ([1, 1, 1], Params::new([1, 1, 1])),
        ] {
            let problem = problem(tokens, params);
            for tile in [Tile { queries: 128, keys: 64 }, Tile { queries: 64, keys: 32 }] {
                let ranked = rank_tilings(&problem, tile.queries, tile.keys, KeyStart::Dynamic);
                assert_eq!(best(&problem, tile), ranked[0], "{tokens:?}");
            }
        }
    }

    /// Choosing must not take longer than the kernel.
    #[test]
    fn long_axes_are_not_cut_finely() {
        let strip = problem([1, 4, 1 << 20], Params::new([1, 2, 99]));
        let boxes = coarse(tile_boxes(128, strip.axes()), strip.axes());
        assert!(!boxes.is_empty());
        let (tiling, _) =
            best(&problem([1, 4, 1 << 16], Params::new([1, 2, 99])), Tile { queries: 128, keys: 64 });
        assert!((1 << 16) / tiling.query_tile[2] <= MOST_PIECES);
    }

    /// Rows read by a walk over query tiles and their key tiles.
    #[test]
    fn rows_read_match_a_walk() {
        let problem = problem([1, 14, 30], Params::new([1, 5, 11]).dilation([1, 1, 2]));
        let tiling = Tiling { query_tile: [1, 8, 4], key_tile: [1, 4, 8], key_start: KeyStart::Dynamic };
        let mut rows = 0;
        let [_, y, z] = problem.axes().map(|axis| {
            let mut found = Vec::new();
            for g in 0..axis.dilation {
                let residue = axis.residue(g);
                let side = if axis.dilation == 2 { 4 } else { 8 };
                for start in (0..residue.query_len).step_by(side) {
                    let queries = start..(start + side).min(residue.query_len);
                    let (keys, tile) = (residue.keys_of(queries).len(), if side == 4 { 8 } else { 4 });
                    found.push(keys.div_ceil(tile) * keys.min(tile));
                }
            }
            found
        });
        y.iter().for_each(|y| z.iter().for_each(|z| rows += y * z));
        assert_eq!(bytes_read(&problem, &tiling), (2 * 64 * (14 * 30 + 2 * rows)) as u64);
    }
}
