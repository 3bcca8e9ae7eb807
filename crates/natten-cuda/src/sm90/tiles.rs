//! The boxes that the Hopper kernels cut queries and keys into: any with power-of-two sides, the cheapest of them.
//!
//! Costs are products over axes of sums along one axis, so each axis is summed up once for every pair of sides and the
//! combinations are only multiplied.

use std::cmp::{Ordering, Reverse};
use std::collections::{HashMap, HashSet};

use natten_core::Problem;
use natten_core::plan::{KeyStart, Tiling};
use natten_core::window::{Axis, Residue};

use super::classes::{Class, classes};
use super::kept::Kept;
use super::rates::predict;
use super::{keys, warpgroups};
use crate::registry::Kernel;

/// Queries of one warpgroup, log2.
const QUERY_LOG2: u32 = 6;

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
        query_tile(self.query_log2, self.side, warpgroups)
    }

    /// As a request names them: the box of all warpgroups' queries, and that of the keys.
    pub fn tiling(&self, warpgroups: usize) -> Tiling {
        Tiling {
            query_tile: self.query_tile(warpgroups),
            key_tile: self.key_log2.map(|log2| 1 << log2),
            key_start: KeyStart::Dynamic,
        }
    }
}

/// Sums along one axis for one pair of sides.
#[derive(Clone, Copy, Default)]
struct Sums {
    query_tiles: u64,
    key_tiles: u64,
    full: u64,
}

/// Sums for the sides of queries that were asked for, each worked out once.
struct AxisTable<'a> {
    axis: &'a Axis,
    by_side: HashMap<usize, [Sums; 8]>,
}

impl<'a> AxisTable<'a> {
    fn new(axis: &'a Axis) -> Self {
        AxisTable { axis, by_side: HashMap::new() }
    }

    fn get(&mut self, query_side: usize, key_log2: u32) -> Sums {
        let AxisTable { axis, by_side } = self;
        by_side.entry(query_side).or_insert_with(|| sum_axis(axis, query_side))[key_log2 as usize]
    }
}

fn sum_axis(axis: &Axis, side: usize) -> [Sums; 8] {
    let mut sums = [Sums::default(); 8];
    for (residue, times) in axis.residue_kinds() {
        for start in (0..residue.query_len).step_by(side) {
            let end = (start + side).min(residue.query_len);
            add_query_tile(&mut sums, &residue, start..end, times as u64);
        }
    }
    sums
}

/// Tiles begin at the first key seen.
fn add_query_tile(sums: &mut [Sums; 8], residue: &Residue, queries: std::ops::Range<usize>, times: u64) {
    let (seen, common) = (residue.keys_of(queries.clone()), residue.common_keys_of(queries));
    for (log2, sum) in sums.iter_mut().enumerate() {
        let tiles = (seen.end - seen.start).div_ceil(1 << log2);
        let first_full = (common.start - seen.start).div_ceil(1 << log2);
        let end_full = common.end.saturating_sub(seen.start) >> log2;
        sum.query_tiles += times;
        sum.key_tiles += times * tiles as u64;
        sum.full += times * end_full.saturating_sub(first_full) as u64;
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
    all.retain(|one| taken.insert((one.kernel.entry, one.boxes.tiling(warpgroups(one.kernel)))));
    all.into_iter().take(most).map(|candidate| (candidate.kernel, candidate.boxes)).collect()
}

/// The boxes of a kernel that a tiling asks for, if they are such.
pub(super) fn of_tiling(
    problem: &Problem,
    axes: &[Axis; 3],
    kernel: &Kernel,
    tiling: &Tiling,
) -> Option<Boxes> {
    let mut tables = axes.each_ref().map(AxisTable::new);
    let key_boxes = all_boxes(keys(kernel).ilog2());
    let key_log2 = key_boxes.into_iter().find(|log2| log2.map(|log2| 1 << log2) == tiling.key_tile)?;
    let query_boxes = all_boxes(QUERY_LOG2);
    // The innermost axis that the warpgroups can stand along.
    let sides = [2, 1, 0].into_iter().flat_map(|side| query_boxes.iter().map(move |&log2| (side, log2)));
    let is_asked = |side, log2| query_tile(log2, side, warpgroups(kernel)) == tiling.query_tile;
    let (side, query_log2) = sides.into_iter().find(|&(side, log2)| is_asked(side, log2))?;
    Some(count(problem, &mut tables, kernel, query_log2, side, key_log2))
}

/// Sides of the box that all warpgroups have together.
fn query_tile(query_log2: [u32; 3], side: usize, warpgroups: usize) -> [usize; 3] {
    std::array::from_fn(|axis| (if axis == side { warpgroups } else { 1 }) << query_log2[axis])
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
    let query_boxes = sensible(all_boxes(QUERY_LOG2), &longest_query);
    let mut tables = axes.each_ref().map(AxisTable::new);
    for &kernel in kernels {
        let key_boxes = sensible(all_boxes(keys(kernel).ilog2()), &longest_key);
        for &query_log2 in &query_boxes {
            let open = |&side: &usize| longest_query[side] > 1 << query_log2[side];
            let mut sides: Vec<usize> = (0..3).filter(open).collect();
            if sides.is_empty() {
                sides.push(2);
            }
            for side in sides {
                for &key_log2 in &key_boxes {
                    let boxes = count(problem, &mut tables, kernel, query_log2, side, key_log2);
                    let cost = predict(kernel, &boxes, &classes, heads, multiprocessors);
                    let runs = (key_log2[2], query_log2[2] + u32::from(side == 2));
                    visit(Candidate { kernel, boxes, cost, runs });
                }
            }
        }
    }
}

/// The boxes no side of which reaches past its axis by a factor of two; of those, the ones that do not cut an axis into more
/// pieces than are quickly counted. Either condition is waived where it leaves nothing.
fn sensible(boxes: Vec<[u32; 3]>, longest: &[usize; 3]) -> Vec<[u32; 3]> {
    const MOST_PIECES: usize = 4096;
    let keep = |boxes: Vec<[u32; 3]>, fits: fn(u32, usize) -> bool| {
        let all_fit =
            |log2: &&[u32; 3]| log2.iter().zip(longest).all(|(&log2, &longest)| fits(log2, longest));
        let some: Vec<_> = boxes.iter().filter(all_fit).copied().collect();
        if some.is_empty() { boxes } else { some }
    };
    let short = keep(boxes, |log2, longest| 1 << log2 < 2 * longest.max(1));
    keep(short, |log2, longest| longest >> log2 <= MOST_PIECES)
}

fn count(
    problem: &Problem,
    tables: &mut [AxisTable<'_>; 3],
    kernel: &Kernel,
    query_log2: [u32; 3],
    side: usize,
    key_log2: [u32; 3],
) -> Boxes {
    let mut product = Sums { query_tiles: 1, key_tiles: 1, full: 1 };
    for (a, table) in tables.iter_mut().enumerate() {
        let beside = if a == side { warpgroups(kernel) } else { 1 };
        let sums = table.get(beside << query_log2[a], key_log2[a]);
        product.query_tiles *= sums.query_tiles;
        product.key_tiles *= sums.key_tiles;
        product.full *= sums.full;
    }
    let (additional, keys) = (problem.additional_keys() as u64, keys(kernel) as u64);
    let key_tiles = product.key_tiles + product.query_tiles * additional.div_ceil(keys);
    Boxes {
        query_log2,
        side,
        key_log2,
        key_tiles,
        full_tiles: product.full + product.query_tiles * (additional / keys),
        query_tiles: product.query_tiles,
        issued: key_tiles * keys * 64 * warpgroups(kernel) as u64,
    }
}

/// All boxes of `2^log2` positions.
fn all_boxes(log2: u32) -> Vec<[u32; 3]> {
    (0..=log2).flat_map(|x| (0..=log2 - x).map(move |y| [x, y, log2 - x - y])).collect()
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
        let union = axis.kernel_size + (queries - 1) / axis.stride * axis.stride;
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
    use crate::registry::Facts;
    use crate::sm90::kernels;

    fn problem<const RANK: usize>(tokens: [usize; RANK], head_dim: usize, params: Params<RANK>) -> Problem {
        let shape: Vec<usize> = [1].into_iter().chain(tokens).chain([1, head_dim]).collect();
        let dense = |shape: &[usize]| natten_core::Layout::contiguous(shape).unwrap();
        let inputs = natten_core::Inputs::new(dense(&shape), dense(&shape), dense(&shape));
        Problem::new(&params.to_dyn(), &inputs, ElementType::Bf16).unwrap()
    }

    fn best(problem: &Problem) -> (&'static Kernel, Boxes) {
        let kernels: Vec<_> = kernels()
            .filter(|k| k.element_type() == ElementType::Bf16 && k.longest_row() == problem.head_dim())
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
                query_tile: boxes.query_tile(warpgroups(kernel)),
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

    /// Choosing must not take longer than the kernel: a long axis alone leaves one box, and no side of length 1.
    #[test]
    fn long_axes_leave_few_boxes() {
        let boxes = |axes: &[Axis; 3]| {
            sensible(all_boxes(QUERY_LOG2), &axes.each_ref().map(|axis| axis.query_extent))
        };
        let line = problem([1 << 22], 128, Params::new([2048]));
        assert_eq!(boxes(line.axes()), [[0, 0, 6]]);
        let strip = problem([4, 1 << 16], 128, Params::new([2, 99]));
        assert!(boxes(strip.axes()).iter().all(|log2| log2[0] == 0 && log2[1] <= 2 && log2[2] >= 4));
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
