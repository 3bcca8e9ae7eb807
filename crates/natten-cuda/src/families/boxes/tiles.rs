//! The boxes that queries and keys are cut into, the cheapest of them. Those of queries have power-of-two sides. Those of keys have
//! any that a tile has room for: what a box of queries sees is seldom a power of two.

use std::cmp::{Ordering, Reverse};
use std::collections::HashSet;

use natten_core::plan::{KeyStart, Tiling, abreast, box_log2, fitting_boxes};
use natten_core::window::Axis;

use super::along::{Along, AxisCounts};
use super::cost::{Cut, RatesOf, predict};
use super::{box_queries, keys_of, warpgroups};
use crate::classes::{Class, Rows, classes};
use crate::family::Bid;
use crate::registry::Kernel;

/// What is to be cut: one mask.
pub(super) struct Work<'a> {
    pub axes: &'a [Axis; 3],
    pub additional_keys: usize,
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
    let keys = tiling.key_tile.iter().try_fold(1usize, |keys, &side| keys.checked_mul(side));
    keys.filter(|&keys| takes(kernel, work, keys))?;
    let tiling = Tiling { key_start: KeyStart::Dynamic, ..*tiling };
    let (classes, mut tables) = (classes(work.axes, Rows::Queries), Tables::new(work.axes));
    let sides = (0..3).filter(|&side| query_box(kernel, &tiling, side).is_some());
    let candidates = sides.map(|side| candidate(kernel, work, &classes, (tiling, side), &mut tables));
    let best = candidates.min_by(|a, b| a.order().partial_cmp(&b.order()).unwrap_or(Ordering::Equal));
    best.map(|candidate| candidate.bid)
}

/// What a tiling costs with the warpgroups side by side along an axis.
fn candidate(
    kernel: &'static Kernel,
    work: &Work<'_>,
    classes: &[Class],
    (tiling, side): (Tiling, usize),
    tables: &mut Tables<'_>,
) -> Candidate {
    let cut = tables.cut(kernel, work, (&tiling, side));
    let microseconds = predict(&(work.rates)(kernel), &cut, classes, work.heads, work.multiprocessors);
    let queries = tiling.query_tile[2] / boxes_along(kernel, 2, side);
    let runs = Reverse((tiling.key_tile[2].ilog2(), queries.ilog2() + u32::from(side == 2)));
    Candidate { bid: Bid { kernel, tiling: Some(tiling), side, microseconds }, runs }
}

/// How a tiling cuts the mask, with the warpgroups along an axis.
pub(super) fn cut_of(kernel: &Kernel, work: &Work<'_>, tiling: &Tiling, side: usize) -> Cut {
    Tables::new(work.axes).cut(kernel, work, (tiling, side))
}

/// Whether the kernel takes boxes of so many keys. Rows of a tile behind those of its box are zeros, which additional keys would
/// overwrite.
fn takes(kernel: &Kernel, work: &Work<'_>, keys: usize) -> bool {
    let most = keys_of(kernel);
    keys == most || (1..most).contains(&keys) && work.additional_keys == 0
}

/// Sides of one warpgroup's box, log2, of those that stand side by side along an axis; nothing if they cannot.
pub(super) fn query_box(kernel: &Kernel, tiling: &Tiling, side: usize) -> Option<[u32; 3]> {
    let mut one = tiling.query_tile;
    one[side] /= warpgroups(kernel);
    let is_all = abreast(one, side, warpgroups(kernel)) == tiling.query_tile;
    box_log2(&one, box_queries(kernel)).filter(|_| is_all)
}

fn each_candidate(kernel: &'static Kernel, work: &Work<'_>, mut visit: impl FnMut(Candidate)) {
    let axes = work.axes;
    let classes = classes(axes, Rows::Queries);
    let longest_query = axes.each_ref().map(|axis| axis.query_extent.div_ceil(axis.dilation));
    let longest_key = axes.each_ref().map(|axis| axis.key_extent.div_ceil(axis.dilation));
    let powers = fitting_boxes(keys_of(kernel), &longest_key);
    let mut tables = Tables::new(axes);
    for query_box in fitting_boxes(box_queries(kernel), &longest_query) {
        let open = |&side: &usize| longest_query[side] > query_box[side];
        let mut sides: Vec<usize> = (0..3).filter(open).collect();
        if sides.is_empty() {
            sides.push(2);
        }
        for side in sides {
            let query_tile = abreast(query_box, side, warpgroups(kernel));
            let most =
                [0, 1, 2].map(|a| tables.along(a, query_box[a], boxes_along(kernel, a, side)).most_keys);
            let others =
                if work.additional_keys == 0 { snug_boxes(keys_of(kernel), most) } else { Vec::new() };
            for &key_tile in powers.iter().chain(&others) {
                let tiling = Tiling { query_tile, key_tile, key_start: KeyStart::Dynamic };
                visit(candidate(kernel, work, &classes, (tiling, side), &mut tables));
            }
        }
    }
}

/// Boxes of at most `size` keys that cut `most` keys along each axis into as many tiles as a longer side would: along axes 0 and 1 the
/// shortest sides for a number of tiles, along axis 2 what is left.
fn snug_boxes(size: usize, most: [usize; 3]) -> Vec<[usize; 3]> {
    // The shortest side that cuts `most` keys into no more tiles than `side` does.
    let shortest = |a: usize, side: usize| most[a].max(1).div_ceil(most[a].max(1).div_ceil(side));
    let sides = |a: usize, room: usize| {
        let mut side = room;
        std::iter::from_fn(move || {
            let found = (side > 0).then(|| shortest(a, side))?;
            side = found - 1;
            Some(found)
        })
    };
    let pairs = sides(0, size).flat_map(|x| sides(1, size / x).map(move |y| (x, y)));
    pairs.map(|(x, y)| [x, y, shortest(2, size / (x * y))]).collect()
}

/// Boxes of the warpgroups along an axis, where they stand side by side along `side`.
fn boxes_along(kernel: &Kernel, axis: usize, side: usize) -> usize {
    if axis == side { warpgroups(kernel) } else { 1 }
}

/// What is counted along each axis, kept for the many tilings that share it.
struct Tables<'a> {
    axes: &'a [Axis; 3],
    rows: [Vec<Row>; 3],
}

/// An axis cut into tiles of so many boxes of so many queries, with the counts that were asked for by their sides of keys.
struct Row {
    queries: usize,
    boxes: usize,
    along: Along,
    counts: Vec<Option<AxisCounts>>,
}

impl<'a> Tables<'a> {
    fn new(axes: &'a [Axis; 3]) -> Self {
        Tables { axes, rows: [const { Vec::new() }; 3] }
    }

    fn row(&mut self, a: usize, queries: usize, boxes: usize) -> &mut Row {
        let rows = &mut self.rows[a];
        let place = rows.iter().position(|row| (row.queries, row.boxes) == (queries, boxes));
        let place = place.unwrap_or_else(|| {
            let along = Along::new(&self.axes[a], queries, boxes);
            rows.push(Row { queries, boxes, along, counts: Vec::new() });
            rows.len() - 1
        });
        &mut rows[place]
    }

    fn along(&mut self, a: usize, queries: usize, boxes: usize) -> &Along {
        &self.row(a, queries, boxes).along
    }

    /// How a tiling cuts the mask, with the warpgroups along an axis.
    fn cut(&mut self, kernel: &Kernel, work: &Work<'_>, (tiling, side): (&Tiling, usize)) -> Cut {
        let keys = keys_of(kernel);
        let is_filled = tiling.key_tile.iter().product::<usize>() == keys;
        let warpgroups = warpgroups(kernel) as u64;
        let mut cut = Cut { sides: tiling.query_tile, query_tiles: 1, key_tiles: 1, full_tiles: 1, met: 1 };
        for a in 0..3 {
            let boxes = boxes_along(kernel, a, side);
            let row = self.row(a, tiling.query_tile[a] / boxes, boxes);
            let counts = row.counts(tiling.key_tile[a]);
            cut.query_tiles = cut.query_tiles.saturating_mul(row.along.query_tiles);
            cut.key_tiles = cut.key_tiles.saturating_mul(counts.all);
            cut.full_tiles = cut.full_tiles.saturating_mul(if is_filled { counts.full } else { 0 });
            cut.met = cut.met.saturating_mul(if a == side { counts.met } else { counts.all });
        }
        let of_list = |tiles: usize| cut.query_tiles.saturating_mul(tiles as u64);
        let (all, full) =
            (of_list(work.additional_keys.div_ceil(keys)), of_list(work.additional_keys / keys));
        cut.key_tiles = cut.key_tiles.saturating_add(all);
        cut.full_tiles = cut.full_tiles.saturating_add(full);
        cut.met = cut.met.saturating_add(all.saturating_mul(warpgroups));
        cut
    }
}

impl Row {
    fn counts(&mut self, side: usize) -> AxisCounts {
        if self.counts.len() <= side {
            self.counts.resize(side + 1, None);
        }
        *self.counts[side].get_or_insert_with(|| self.along.counts(side))
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
        let work = Work {
            axes: problem.axes(),
            additional_keys: 0,
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
        let work = Work {
            axes: problem.axes(),
            additional_keys: 0,
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

    /// Boxes with no key, or more than a tile has room for, are none of a kernel's, and an axis of any length is counted.
    #[test]
    fn odd_boxes_and_lengths_are_no_panic() {
        let video = problem([11, 19, 30], 64, Params::new([5, 9, 7]));
        let long = [Axis::UNIT, Axis::UNIT, Axis { kernel_size: 1 << 60, ..Axis::whole(1 << 61) }];
        let work = |axes| Work {
            axes,
            additional_keys: 0,
            heads: 1,
            multiprocessors: 132,
            rates: crate::families::sm90::rates,
        };
        let kernel = kernels_of("sm90", Operation::Forward).next().unwrap();
        for key_tile in [[0, 1, 1], [usize::MAX, 2, 1], [1 << 32, 1 << 32, 1], [3, 43, 1]] {
            let tiling = Tiling { query_tile: [1, 8, 16], key_tile, key_start: KeyStart::Dynamic };
            assert!(of_tiling(kernel, &work(video.axes()), &tiling).is_none(), "{key_tile:?}");
        }
        assert!(!ranked(kernel, &work(&long), 3).is_empty());
    }

    /// Neighbours are few along axes whose windows overlap little, and all where the keys are all the same anyway.
    #[test]
    fn neighbours_see_the_same_keys() {
        let around = |problem: &Problem, sides: [usize; 3]| {
            let [class] = classes(problem.axes(), Rows::Queries)[..] else { panic!("even dilations") };
            neighbours(&class, &sides, &Rows::Queries.tiles(&class, &sides), 132)
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
