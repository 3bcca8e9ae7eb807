//! The boxes that the Hopper kernels cut queries and keys into: any with power-of-two sides, the cheapest of them.

use std::cmp::{Ordering, Reverse};
use std::collections::HashSet;

use natten_core::Problem;
use natten_core::plan::{KeyStart, PlanTables, TileCounts, Tiling, abreast, box_log2, fitting_boxes};
use natten_core::window::Axis;

use super::Kernel;
use super::classes::{Class, classes};
use super::kept::Kept;
use super::rates::predict;

/// Queries of one warpgroup.
const QUERIES: usize = 64;

/// A choice of boxes, in positions of one residue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boxes {
    /// Sides of one warpgroup's queries, log2; they add up to 6.
    pub query_log2: [u32; 3],
    /// The axis along which the warpgroups' boxes stand side by side.
    pub side: usize,
    /// Sides of a key tile, log2.
    pub key_log2: [u32; 3],
    /// Key tiles, over all query tiles of one head and batch item.
    pub key_tiles: u64,
    /// Those of them that need no mask.
    pub full_tiles: u64,
    /// Query tiles.
    pub query_tiles: u64,
    /// Scores computed, over all query tiles of one head and batch item.
    pub issued: u64,
}

impl Boxes {
    /// Queries of a whole thread block along each axis.
    pub fn query_tile(&self, warpgroups: usize) -> [usize; 3] {
        abreast(self.query_log2.map(|log2| 1 << log2), self.side, warpgroups)
    }

    /// As a request names them: the box of all warpgroups' queries, and that of the keys.
    pub fn tiling(&self, warpgroups: usize) -> Tiling {
        Tiling {
            query_tile: self.query_tile(warpgroups),
            key_tile: self.key_log2.map(|log2| 1 << log2),
            key_start: KeyStart::Dynamic,
        }
    }

    fn new(query_box: [usize; 3], side: usize, key_box: [usize; 3], counts: &TileCounts) -> Self {
        Boxes {
            query_log2: query_box.map(usize::ilog2),
            side,
            key_log2: key_box.map(usize::ilog2),
            key_tiles: counts.key_tiles,
            full_tiles: counts.full_tiles,
            query_tiles: counts.query_tiles,
            issued: counts.issued,
        }
    }
}

/// What a choice depends on.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    axes: [Axis; 3],
    additional_keys: usize,
    heads: usize,
    multiprocessors: u32,
    kernels: Vec<&'static str>,
}

type Choice = (&'static Kernel, Boxes);

static CHOICES: Kept<Key, Choice> = Kept::new();

/// The cheapest of the kernels, of which there is at least one, and its boxes.
pub(crate) fn choose(
    problem: &Problem,
    axes: &[Axis; 3],
    kernels: &[&'static Kernel],
    multiprocessors: u32,
) -> Choice {
    let key = Key {
        axes: *axes,
        additional_keys: problem.additional_keys(),
        heads: problem.batch() * problem.heads(),
        multiprocessors,
        kernels: kernels.iter().map(|kernel| kernel.entry).collect(),
    };
    CHOICES.get_or(key, || search(problem, axes, kernels, multiprocessors))
}

fn search(problem: &Problem, axes: &[Axis; 3], kernels: &[&'static Kernel], multiprocessors: u32) -> Choice {
    let mut best: Option<Candidate> = None;
    each_candidate(problem, axes, kernels, multiprocessors, |candidate| {
        if best.as_ref().is_none_or(|best| candidate.order() < best.order()) {
            best = Some(candidate);
        }
    });
    best.map(|best| (best.kernel, best.boxes)).expect("a kernel has some box")
}

/// The `most` cheapest, cheapest first.
pub(super) fn ranked(
    problem: &Problem,
    axes: &[Axis; 3],
    kernels: &[&'static Kernel],
    multiprocessors: u32,
    most: usize,
) -> Vec<Choice> {
    let mut all = Vec::new();
    each_candidate(problem, axes, kernels, multiprocessors, |candidate| all.push(candidate));
    all.sort_by(|a, b| a.order().partial_cmp(&b.order()).unwrap_or(Ordering::Equal));
    // Which axis the warpgroups stand along makes no other tiling.
    let mut taken = HashSet::new();
    all.retain(|one| taken.insert((one.kernel.entry, one.boxes.tiling(one.kernel.warpgroups))));
    all.into_iter().take(most).map(|candidate| (candidate.kernel, candidate.boxes)).collect()
}

/// The boxes of a kernel that a tiling asks for, if they are such.
pub(super) fn of_tiling(
    problem: &Problem,
    axes: &[Axis; 3],
    kernel: &Kernel,
    tiling: &Tiling,
) -> Option<Boxes> {
    box_log2(&tiling.key_tile, kernel.keys)?;
    // The innermost axis that the warpgroups can stand along.
    let (side, query_box) = [2, 1, 0].into_iter().find_map(|side| {
        let mut one = tiling.query_tile;
        one[side] /= kernel.warpgroups;
        let is_asked = abreast(one, side, kernel.warpgroups) == tiling.query_tile;
        (is_asked && box_log2(&one, QUERIES).is_some()).then_some((side, one))
    })?;
    let tables = PlanTables::of_axes(axes, problem.additional_keys());
    let counts = tables.counts(&Tiling { key_start: KeyStart::Dynamic, ..*tiling });
    Some(Boxes::new(query_box, side, tiling.key_tile, &counts))
}

/// A way to cut the problem.
struct Candidate {
    kernel: &'static Kernel,
    boxes: Boxes,
    cost: f64,
    runs: (u32, u32),
}

impl Candidate {
    /// Cheapest first; among equals, long runs along the axis that lies densest in memory.
    fn order(&self) -> (f64, Reverse<(u32, u32)>) {
        (self.cost, Reverse(self.runs))
    }
}

fn each_candidate(
    problem: &Problem,
    axes: &[Axis; 3],
    kernels: &[&'static Kernel],
    multiprocessors: u32,
    mut visit: impl FnMut(Candidate),
) {
    let heads = problem.batch() * problem.heads();
    let classes = classes(axes);
    let longest_query = axes.each_ref().map(|axis| axis.query_extent.div_ceil(axis.dilation));
    let longest_key = axes.each_ref().map(|axis| axis.key_extent.div_ceil(axis.dilation));
    let query_boxes = fitting_boxes(QUERIES, &longest_query);
    let tables = PlanTables::of_axes(axes, problem.additional_keys());
    for &kernel in kernels {
        let key_boxes = fitting_boxes(kernel.keys, &longest_key);
        for &query_box in &query_boxes {
            let open = |&side: &usize| longest_query[side] > query_box[side];
            let mut sides: Vec<usize> = (0..3).filter(open).collect();
            if sides.is_empty() {
                sides.push(2);
            }
            for side in sides {
                let tile = abreast(query_box, side, kernel.warpgroups);
                let of_queries = tables.query_tile(tile, KeyStart::Dynamic);
                for &key_box in &key_boxes {
                    let boxes = Boxes::new(query_box, side, key_box, &of_queries.counts(key_box));
                    let cost = predict(kernel, &boxes, &classes, heads, multiprocessors);
                    let runs = (boxes.key_log2[2], boxes.query_log2[2] + u32::from(side == 2));
                    visit(Candidate { kernel, boxes, cost, runs });
                }
            }
        }
    }
}

/// How many tiles along each axis make the box of neighbours that all multiprocessors work on at a time: about as many as
/// there are multiprocessors, whose windows unite to few keys, so that these stay in the second-level cache. Boxes of the
/// first two axes divide them evenly.
///
/// `sides` are a tile's queries along each axis, `tiles` the tiles there are.
pub(crate) fn neighbours(
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
    use natten_core::plan::{KeyStart, TileCounts, Tiling};
    use natten_core::{ElementType, Params, Problem};

    use super::*;
    use crate::sm90::KERNELS;

    fn problem<const RANK: usize>(tokens: [usize; RANK], head_dim: usize, params: Params<RANK>) -> Problem {
        let shape: Vec<usize> = [1].into_iter().chain(tokens).chain([1, head_dim]).collect();
        let dense = |shape: &[usize]| natten_core::Layout::contiguous(shape).unwrap();
        let inputs = natten_core::Inputs::new(dense(&shape), dense(&shape), dense(&shape));
        Problem::new(&params.to_dyn(), &inputs, ElementType::Bf16).unwrap()
    }

    fn best(problem: &Problem) -> (&'static Kernel, Boxes) {
        let kernels: Vec<_> = KERNELS
            .iter()
            .filter(|k| k.element_type == ElementType::Bf16 && k.head_dim == problem.head_dim())
            .collect();
        choose(problem, problem.axes(), &kernels, 132)
    }

    #[test]
    fn counts_are_the_planners() {
        for params in [Params::new([5, 9, 7]), Params::new([5, 9, 7]).stride([2, 3, 1]).dilation([1, 2, 3])] {
            let problem = problem([11, 19, 30], 64, params);
            let (kernel, boxes) = best(&problem);
            let sides = |log2: [u32; 3]| log2.map(|log2| 1usize << log2);
            let tiling = Tiling {
                query_tile: boxes.query_tile(kernel.warpgroups),
                key_tile: sides(boxes.key_log2),
                key_start: KeyStart::Dynamic,
            };
            let counts = TileCounts::of(&problem, &tiling);
            let found = (boxes.query_tiles, boxes.key_tiles, boxes.full_tiles, boxes.issued);
            assert_eq!(found, (counts.query_tiles, counts.key_tiles, counts.full_tiles, counts.issued));
        }
    }

    #[test]
    fn block_sparse_windows_have_no_masked_tile() {
        let video = problem([30, 48, 80], 128, Params::new([18, 24, 24]).stride([16, 8, 8]));
        let (_, boxes) = best(&video);
        assert_eq!(boxes.key_tiles, boxes.full_tiles);
        assert_eq!(boxes.key_tiles / boxes.query_tiles, 81);
    }

    /// Choosing must not take longer than the kernel, however long the axis.
    #[test]
    fn long_axes_are_cut_as_short_ones_are() {
        let strip = |tokens| best(&problem([4, tokens], 128, Params::new([2, 99]))).1;
        let (short, long) = (strip(1 << 14), strip(1 << 26));
        assert_eq!(
            (short.query_log2, short.side, short.key_log2),
            (long.query_log2, long.side, long.key_log2)
        );
        let line = best(&problem([1 << 26], 128, Params::new([2048]))).1;
        assert_eq!((line.query_log2, line.query_tiles), ([0, 0, 6], 1 << 19));
        let single = problem([1], 128, Params::new([1]));
        assert_eq!(best(&single).1.query_tiles, 1);
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
