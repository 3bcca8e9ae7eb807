//! The boxes that queries and keys are cut into: any with power-of-two sides, the cheapest of them.

use std::cmp::{Ordering, Reverse};
use std::collections::HashSet;

use natten_core::plan::{KeyStart, PlanTables, Tiling, abreast, box_log2, fitting_boxes};
use natten_core::window::Axis;

use super::cost::{Cut, RatesOf, predict};
use super::{box_queries, warpgroups};
use crate::classes::{Class, classes};
use crate::family::Bid;
use crate::registry::{Facts, Kernel};

/// Keys of a tile.
fn keys(kernel: &Kernel) -> usize {
    kernel.tile().map_or(1, |tile| tile.keys)
}

/// What is to be cut: one mask.
pub(super) struct Work<'a> {
    pub axes: &'a [Axis; 3],
    pub tables: &'a PlanTables,
    /// Batch items times heads.
    pub heads: usize,
    pub multiprocessors: u32,
    pub rates: RatesOf,
}

/// A way to cut it. Cheapest first; among equals, long runs along the axis that lies densest in memory.
struct Candidate {
    bid: Bid,
    runs: Reverse<(u32, u32)>,
}

impl Candidate {
    fn order(&self) -> (f64, Reverse<(u32, u32)>) {
        (self.bid.microseconds, self.runs)
    }
}

/// The `most` cheapest boxes for a kernel, cheapest first. There is one at least.
pub(super) fn ranked(kernel: &'static Kernel, work: &Work<'_>, most: usize) -> Vec<Bid> {
    let mut best: Option<Candidate> = None;
    let mut all = Vec::new();
    each_candidate(kernel, work, |candidate| {
        if most > 1 {
            all.push(candidate);
        } else if best.as_ref().is_none_or(|best| candidate.order() < best.order()) {
            best = Some(candidate);
        }
    });
    all.sort_by(|a, b| a.order().partial_cmp(&b.order()).unwrap_or(Ordering::Equal));
    // Which axis the warpgroups stand along makes no other tiling.
    let mut taken = HashSet::new();
    all.retain(|one| taken.insert(one.bid.tiling));
    best.into_iter().chain(all).take(most).map(|candidate| candidate.bid).collect()
}

/// The boxes that a tiling asks for, if it is one of the kernel's.
pub(super) fn of_tiling(kernel: &'static Kernel, work: &Work<'_>, tiling: &Tiling) -> Option<Bid> {
    box_log2(&tiling.key_tile, keys(kernel))?;
    // The innermost axis that the warpgroups can stand along.
    let side = [2, 1, 0].into_iter().find(|&side| query_box(kernel, tiling, side).is_some())?;
    let tiling = Tiling { key_start: KeyStart::Dynamic, ..*tiling };
    let of_queries = work.tables.query_tile(tiling.query_tile, KeyStart::Dynamic);
    let key_tiles = of_queries.key_tiles(tiling.key_tile);
    let full_tiles = of_queries.full_tiles(tiling.key_tile);
    let query_tiles = of_queries.query_tiles();
    let cut = Cut { sides: &tiling.query_tile, query_tiles, key_tiles, full_tiles };
    let microseconds =
        predict(&(work.rates)(kernel), &cut, &classes(work.axes), work.heads, work.multiprocessors);
    Some(Bid { kernel, tiling: Some(tiling), side, microseconds })
}

/// Sides of one warpgroup's box, log2, of those that stand side by side along an axis; nothing if they cannot.
pub(super) fn query_box(kernel: &Kernel, tiling: &Tiling, side: usize) -> Option<[u32; 3]> {
    let mut one = tiling.query_tile;
    one[side] /= warpgroups(kernel);
    let is_all = abreast(one, side, warpgroups(kernel)) == tiling.query_tile;
    box_log2(&one, box_queries(kernel)).filter(|_| is_all)
}

fn each_candidate(kernel: &'static Kernel, work: &Work<'_>, mut visit: impl FnMut(Candidate)) {
    let Work { axes, tables, heads, multiprocessors, .. } = *work;
    let rates = (work.rates)(kernel);
    let classes = classes(axes);
    let longest_query = axes.each_ref().map(|axis| axis.query_extent.div_ceil(axis.dilation));
    let longest_key = axes.each_ref().map(|axis| axis.key_extent.div_ceil(axis.dilation));
    let key_boxes = fitting_boxes(keys(kernel), &longest_key);
    for query_box in fitting_boxes(box_queries(kernel), &longest_query) {
        let open = |&side: &usize| longest_query[side] > query_box[side];
        let mut sides: Vec<usize> = (0..3).filter(open).collect();
        if sides.is_empty() {
            sides.push(2);
        }
        for side in sides {
            let query_tile = abreast(query_box, side, warpgroups(kernel));
            let of_queries = tables.query_tile(query_tile, KeyStart::Dynamic);
            let query_tiles = of_queries.query_tiles();
            for &key_tile in &key_boxes {
                let (key_tiles, full_tiles) =
                    (of_queries.key_tiles(key_tile), of_queries.full_tiles(key_tile));
                let cut = Cut { sides: &query_tile, query_tiles, key_tiles, full_tiles };
                let microseconds = predict(&rates, &cut, &classes, heads, multiprocessors);
                let tiling = Some(Tiling { query_tile, key_tile, key_start: KeyStart::Dynamic });
                let runs = (key_tile[2].ilog2(), query_box[2].ilog2() + u32::from(side == 2));
                visit(Candidate { bid: Bid { kernel, tiling, side, microseconds }, runs: Reverse(runs) });
            }
        }
    }
}

/// How many tiles along each axis make the box of neighbours that all multiprocessors work on at a time: about as many as
/// there are multiprocessors, whose windows unite to few keys, so that these stay in the second-level cache. Boxes of the
/// first two axes divide them evenly.
///
/// `sides` are a tile's queries along each axis, `tiles` the tiles there are.
pub(super) fn neighbours(
    class: &Class,
    sides: &[usize; 3],
    tiles: &[usize; 3],
    multiprocessors: usize,
) -> [usize; 3] {
    let keys = |a: usize, count: usize| {
        let (axis, residues) = (&class.axes[a], class.residues[a]);
        let queries = count.div_ceil(residues) * sides[a];
        let (union, _) = axis.union_of_windows(queries);
        (count.min(residues) * union.min(axis.key_extent.div_ceil(axis.dilation))) as f64
    };
    let candidates = |a: usize| {
        let pieces = (0..usize::BITS - 1).flat_map(|log2| [1 << log2, 3 << log2]);
        let sizes = pieces.map(move |pieces| tiles[a].div_ceil(pieces));
        sizes.take_while(|&size| size > 1).chain([1]).filter(|&size| size == 1 || size <= multiprocessors)
    };
    let mut best = (f64::INFINITY, *tiles);
    for x in candidates(0) {
        for y in candidates(1) {
            let few = (multiprocessors / (x * y)).clamp(1, tiles[2]);
            for z in [few, (few + 1).min(tiles[2])] {
                // Too few, and others run beside them; too many, and some run after them: with other keys either way.
                let waves = (x * y * z) as f64 / multiprocessors as f64;
                let cost = keys(0, x) * keys(1, y) * keys(2, z) * waves.max(1.0 / waves).powi(2);
                if cost < best.0 {
                    best = (cost, [x, y, z]);
                }
            }
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use natten_core::plan::TileCounts;
    use natten_core::{ElementType, Params, Problem};

    use super::*;
    use crate::registry::Facts;
    use crate::registry::{Operation, kernels_of};

    fn problem<const RANK: usize>(tokens: [usize; RANK], head_dim: usize, params: Params<RANK>) -> Problem {
        let shape: Vec<usize> = [1].into_iter().chain(tokens).chain([1, head_dim]).collect();
        let dense = |shape: &[usize]| natten_core::Layout::contiguous(shape).unwrap();
        let inputs = natten_core::Inputs::new(dense(&shape), dense(&shape), dense(&shape));
        Problem::new(&params.to_dyn(), &inputs, ElementType::Bf16).unwrap()
    }

    fn best(problem: &Problem) -> (Bid, TileCounts) {
        let tables = PlanTables::of(problem);
        let work = Work {
            axes: problem.axes(),
            tables: &tables,
            heads: 1,
            multiprocessors: 132,
            rates: crate::families::sm90::rates,
        };
        let of_type = |kernel: &&Kernel| kernel.element_type() == ElementType::Bf16;
        let kernels = kernels_of("sm90", Operation::Forward).filter(of_type);
        let kernels = kernels.filter(|kernel| kernel.longest_row() == problem.head_dim());
        let bids = kernels.map(|kernel| ranked(kernel, &work, 1)[0]);
        let best = bids.reduce(|a, b| if b.microseconds < a.microseconds { b } else { a }).unwrap();
        (best, TileCounts::of(problem, &best.tiling.unwrap()))
    }

    #[test]
    fn block_sparse_windows_have_no_masked_tile() {
        let video = problem([30, 48, 80], 128, Params::new([18, 24, 24]).stride([16, 8, 8]));
        let (_, counts) = best(&video);
        assert_eq!(counts.key_tiles, counts.full_tiles);
        assert_eq!(counts.key_tiles / counts.query_tiles, 81);
    }

    /// Choosing must not take longer than the kernel, however long the axis.
    #[test]
    fn long_axes_are_cut_as_short_ones_are() {
        let strip = |tokens| best(&problem([4, tokens], 128, Params::new([2, 99]))).0;
        let (short, long) = (strip(1 << 14), strip(1 << 26));
        assert_eq!((short.tiling, short.side), (long.tiling, long.side));
        let (line, counts) = best(&problem([1 << 26], 128, Params::new([2048])));
        assert_eq!((line.tiling.unwrap().query_tile, counts.query_tiles), ([1, 1, 128], 1 << 19));
    }

    /// What a bid says can be asked for, and is read back.
    #[test]
    fn tilings_are_read_back() {
        let problem = problem([11, 19, 30], 64, Params::new([5, 9, 7]).stride([2, 3, 1]));
        let tables = PlanTables::of(&problem);
        let work = Work {
            axes: problem.axes(),
            tables: &tables,
            heads: 1,
            multiprocessors: 132,
            rates: crate::families::sm90::rates,
        };
        for kernel in kernels_of("sm90", Operation::Forward) {
            for bid in ranked(kernel, &work, 40) {
                let tiling = bid.tiling.unwrap();
                assert!(query_box(kernel, &tiling, bid.side).is_some());
                let again = of_tiling(kernel, &work, &tiling).unwrap();
                assert_eq!((again.tiling, again.microseconds), (bid.tiling, bid.microseconds));
            }
        }
    }

    /// Neighbours are few along axes whose windows overlap little, and all where the keys are all the same anyway.
    #[test]
    fn neighbours_see_the_same_keys() {
        let around = |problem: &Problem, sides: [usize; 3]| {
            let [class] = classes(problem.axes())[..] else { panic!("even dilations") };
            neighbours(&class, &sides, &class.tiles(&sides), 132)
        };
        let video = problem([30, 48, 80], 128, Params::new([18, 24, 24]).stride([16, 8, 8]));
        // Eight tiles of two share a window along the first axis.
        assert_eq!(around(&video, [2, 8, 8]), [8, 6, 3]);
        assert_eq!(around(&problem([32768], 128, Params::new([2048])), [1, 1, 128]), [1, 1, 132]);
        assert_eq!(around(&problem([100], 128, Params::new([20])), [1, 1, 128]), [1, 1, 1]);
        // Tiles of one residue lie side by side only every 16 tiles.
        let dilated = around(&problem([512, 512], 64, Params::new([9, 9]).dilation([16, 16])), [1, 8, 16]);
        assert!((100..=180).contains(&dilated.iter().product::<usize>()), "{dilated:?}");
        let sliding = problem([30, 48, 80], 128, Params::new([18, 24, 24]));
        assert_eq!(around(&sliding, [2, 8, 8]), [15, 3, 3]);
    }
}
