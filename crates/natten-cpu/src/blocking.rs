//! Choosing the blocking of a problem by its cost: the group of lanes in a vector, the lane tile whose sums are held at
//! once, the axis along which a task walks over tiles and how far, the row block that is packed at once.
//! docs/performance.md has the arithmetic behind it.
//!
//! Extents of a whole that a call holds a part of may be any, so what is multiplied of them is in floating point, or stays at the
//! largest number.
//!
//! Only how far a task walks depends on the number of threads. What a tile computes does not depend on where a walk
//! began, so results do not depend on it either.

use natten_core::Problem;
use natten_core::plan::{KeyStart, TileCounts, Tiling, tile_boxes};
use natten_core::window::Axis;

/// Bytes of rows that are packed at once where a task does not walk: leaves room in a second-level cache of 1 MiB for
/// lanes, sums and the next row block.
const ROW_BLOCK_BYTES: usize = 256 << 10;

/// Bytes of packed rows that a walking task keeps.
const RING_BYTES: usize = 512 << 10;

/// Lanes of a tile of a task that does not walk, over all its heads. Large tiles share the keys around them.
const LANES_IN_TILE: usize = 512;

/// Lanes that a task walks over, at most: the heads of a tile follow each other, and find its pages again.
const WALK_LANES: usize = 4096;

/// What the lanes of a task are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Queries, for the output.
    Forward,
    /// Queries, for their gradients.
    Queries,
    /// Keys, for theirs; a task has all heads that read them.
    Keys,
}

/// The block sizes of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocking {
    /// Lanes of one vector along each axis; the product is the vector's length.
    pub group: [usize; 3],
    /// Lanes of a tile, whose sums are held at once, along each axis; multiples of the group's.
    pub tile: [usize; 3],
    /// Lanes of a task: the tile's, but for the axis that the task walks along.
    pub task: [usize; 3],
    /// Heads of a task that share keys and values.
    pub heads: usize,
    /// Rows packed at once, where the task does not walk.
    pub row_block: usize,
}

/// What blocks are chosen for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    /// Lanes of a vector.
    pub lanes: usize,
    /// Whether tiles multiply, see [`tile_cost`].
    pub tiles: bool,
    /// Bytes of a packed row, all operands together.
    pub row_bytes: usize,
    /// Threads that share the tasks.
    pub threads: usize,
}

impl Blocking {
    /// For this machine's vectors and threads. A part of a whole whose queries begin and end between the whole's tiles has these
    /// tiles, and so the whole's results bit by bit; other parts are cut as suits them.
    pub(crate) fn choose(problem: &Problem, pass: Pass, machine: &Machine) -> Self {
        let of_whole = problem.has_region().then(|| Self::tiles(&problem.of_whole(), pass, machine));
        let tiles = match of_whole.filter(|whole| pass != Pass::Keys && whole.holds_whole_tiles(problem)) {
            Some(whole) => whole,
            None => Self::tiles(problem, pass, machine),
        };
        let Some(w) = tiles.walk() else { return tiles };
        let axes = lane_axes(problem, pass);
        let costs = Costs::new(problem, axes, tiles.heads, machine.row_bytes);
        costs.cheapest(lengths(&axes, &tiles, w), &[machine.threads]).unwrap_or(tiles)
    }

    /// All but how far tasks walk, which does not depend on the number of threads.
    fn tiles(problem: &Problem, pass: Pass, machine: &Machine) -> Self {
        let Machine { lanes, tiles, row_bytes, .. } = *machine;
        let axes = lane_axes(problem, pass);
        let group = choose_group(problem, &axes, lanes, tiles);
        let heads = match pass {
            Pass::Forward | Pass::Queries => problem.heads_per_kv().min(4),
            Pass::Keys => problem.heads_per_kv(),
        };
        let costs = Costs::new(problem, axes, heads, row_bytes);
        // A backward has two operands and two sums for each lane. Its heads come one after the other.
        let lanes = if pass == Pass::Forward { LANES_IN_TILE / heads } else { LANES_IN_TILE / 2 };
        let tile = choose_tile(problem, &axes, group, lanes);
        let still =
            Blocking { group, tile, task: tile, heads, row_block: (ROW_BLOCK_BYTES / row_bytes).max(16) };
        if pass == Pass::Keys && heads > 1 {
            // The rows are another head's queries at every tile: nothing to keep.
            return still;
        }
        let walks = walks(axes, &still, RING_BYTES / row_bytes);
        costs.cheapest(walks.chain([still]), &[1, 2, 4, 8, 16]).unwrap_or(still)
    }

    /// Whether the queries of a part are whole tiles of its whole, or end where that does.
    fn holds_whole_tiles(&self, part: &Problem) -> bool {
        part.axes().iter().zip(self.tile).all(|(axis, tile)| {
            let (tokens, end) = (tile.saturating_mul(axis.dilation), axis.query_start + axis.query_extent);
            let is_cut = |token: usize| token.is_multiple_of(tokens) || token == axis.extent;
            is_cut(axis.query_start) && is_cut(end)
        })
    }

    /// Tokens of a tile along each axis, at whose multiples a whole can be cut into parts with the same tiles.
    pub(crate) fn grain(problem: &Problem, pass: Pass, machine: &Machine) -> [usize; 3] {
        let whole = problem.of_whole();
        let tile = Self::tiles(&whole, pass, machine).tile;
        std::array::from_fn(|a| tile[a].saturating_mul(whole.axes()[a].dilation))
    }

    /// The axis that a task walks along, if it does.
    pub(crate) fn walk(&self) -> Option<usize> {
        (0..3).find(|&a| self.tile[a] < self.task[a])
    }
}

/// The axes with as many queries as keys, where that matters: a part may hold many more keys than queries, and its lanes are the
/// one or the other.
fn lane_axes(problem: &Problem, pass: Pass) -> [Axis; 3] {
    let lanes = |axis: &Axis| if pass == Pass::Keys { axis.key_extent } else { axis.query_extent };
    problem.axes().map(|axis| match problem.has_region() {
        true => Axis { query_extent: lanes(&axis), key_extent: lanes(&axis), ..axis },
        false => axis,
    })
}

/// Positions of one residue of an axis, at most; one where there are none.
fn extent(axis: &Axis) -> usize {
    axis.query_extent.max(axis.key_extent).div_ceil(axis.dilation).max(1)
}

/// What `lanes` neighbours see along an axis, at most.
fn seen(axis: &Axis, lanes: usize) -> usize {
    let (_, most) = axis.union_of_windows(lanes);
    most.min(axis.extent.div_ceil(axis.dilation).max(extent(axis)))
}

/// An axis in parts of equal length, multiples of the group: whole, or near one of a few lengths, so that there are few
/// to weigh at any extent.
fn parts(extent: usize, group: usize) -> impl Iterator<Item = usize> {
    let part = move |near: usize| extent.div_ceil(extent.div_ceil(near).max(1)).next_multiple_of(group);
    let mut last = 0;
    [usize::MAX, 64, 48, 32, 24, 16, 12, 8].into_iter().map(part).filter(move |&part| {
        let differs = part != last;
        last = part;
        differs
    })
}

/// The ways to walk that keep at most `capacity` packed rows.
fn walks(axes: [Axis; 3], still: &Blocking, capacity: usize) -> impl Iterator<Item = Blocking> + use<> {
    let still = *still;
    // Not the last axis: rows along it are one line.
    (0..2).filter(move |&w| extent(&axes[w]) > still.group[w]).flat_map(move |w| {
        let others = parts(extent(&axes[1 - w]), still.group[1 - w]);
        let across = others
            .flat_map(move |other| parts(extent(&axes[2]), still.group[2]).map(move |last| (other, last)));
        across.flat_map(move |(other, last)| {
            let mut tile = [0, 0, last];
            tile[1 - w] = other;
            let tiles = [1, 2, 4].into_iter().filter_map(move |groups| {
                let mut tile = tile;
                tile[w] = groups * still.group[w];
                (product((0..3).map(|a| seen(&axes[a], tile[a]))) <= capacity).then_some(tile)
            });
            tiles.flat_map(move |tile| lengths(&axes, &Blocking { tile, ..still }, w))
        })
    })
}

/// Walks of equal lengths along axis `w` with the same tiles.
fn lengths(axes: &[Axis; 3], tiles: &Blocking, w: usize) -> impl Iterator<Item = Blocking> + use<> {
    let (extent, tiles) = (extent(&axes[w]), *tiles);
    let across = product((0..3).filter(|&a| a != w).map(|a| tiles.tile[a]));
    let fewest = extent.saturating_mul(across).div_ceil(WALK_LANES).max(1);
    let lengths = [1, 2, 3, 4, 6, 8, 12, 16_usize];
    let lengths = lengths.map(|n| extent.div_ceil(fewest.saturating_mul(n)).next_multiple_of(tiles.group[w]));
    lengths.into_iter().filter(move |&length| length > tiles.tile[w]).map(move |length| {
        let mut task = tiles.tile;
        task[w] = length;
        Blocking { task, ..tiles }
    })
}

/// The cost of a blocking beside the products themselves, in cycles for each query.
struct Costs<'a> {
    problem: &'a Problem,
    axes: [Axis; 3],
    heads: usize,
    /// Packing a row.
    row: f64,
    /// The products.
    products: f64,
}

/// Cycles for each tile and row block: lists, windows, the calls.
const TILE_CYCLES: f64 = 1500.0;

impl<'a> Costs<'a> {
    fn new(problem: &'a Problem, axes: [Axis; 3], heads: usize, row_bytes: usize) -> Self {
        let window: f64 = axes.iter().map(|axis| seen(axis, 1) as f64).product();
        let components = (problem.head_dim() + problem.head_dim_v()) as f64;
        // Six cycles for each cache line packed, and products at about half the peak of 16 multiply-adds.
        Costs {
            problem,
            axes,
            heads,
            row: row_bytes as f64 / 64.0 * 6.0,
            products: window * components / 8.0,
        }
    }

    /// The cheapest for these numbers of threads.
    fn cheapest(&self, blockings: impl Iterator<Item = Blocking>, threads: &[usize]) -> Option<Blocking> {
        let costs = blockings.map(|blocking| (self.of(&blocking, threads), blocking));
        costs.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, blocking)| blocking)
    }

    fn of(&self, blocking: &Blocking, threads: &[usize]) -> f64 {
        let axes = &self.axes;
        let lanes = |sides: &[usize; 3]| {
            (0..3).map(|a| sides[a].min(extent(&axes[a])) as f64).product::<f64>() * self.heads as f64
        };
        let rows: f64 = (0..3).map(|a| seen(&axes[a], blocking.task[a]) as f64).product();
        let row_blocks = match blocking.walk() {
            Some(w) => blocking.task[w].div_ceil(blocking.tile[w]) as f64,
            None => (rows / blocking.row_block as f64).ceil(),
        };
        let packing = rows * self.row / lanes(&blocking.task);
        let tiles = row_blocks * TILE_CYCLES / lanes(&blocking.task);
        (self.products + packing + tiles) * self.idle(&blocking.task, threads)
    }

    /// The time of a call over that of threads that are never idle, the mean for these numbers of threads: each task takes
    /// as long as a whole one, and threads are late by an eighth of one.
    fn idle(&self, task: &[usize; 3], threads: &[usize]) -> f64 {
        let axes = &self.axes;
        let count = |a: usize| extent(&axes[a]).div_ceil(task[a]);
        let padding = |a: usize| {
            count(a).saturating_mul(task[a]).max(extent(&axes[a])) as f64 / extent(&axes[a]) as f64
        };
        let tasks = tasks(self.problem, axes, task);
        let rounds = threads.iter().map(|&threads| {
            let whole = tasks.div_ceil(threads).saturating_mul(threads) as f64;
            (whole + (threads - 1) as f64 / 8.0) / tasks as f64
        });
        (0..3).map(padding).product::<f64>() * rounds.sum::<f64>() / threads.len() as f64
    }
}

/// Boxes of lanes of so many positions in all residues, over batch and heads.
fn tasks(problem: &Problem, axes: &[Axis; 3], sides: &[usize; 3]) -> usize {
    let along = (0..3).flat_map(|a| [extent(&axes[a]).div_ceil(sides[a]), axes[a].dilation]);
    product(along.chain([problem.batch(), problem.heads_kv()]))
}

/// The product, or the largest number.
fn product(numbers: impl Iterator<Item = usize>) -> usize {
    numbers.fold(1, usize::saturating_mul)
}

/// The group that issues least: scores are computed for the union of its lanes' windows, weighted sums are exact
/// but slower for fewer neighbours along the last axis.
fn choose_group(problem: &Problem, axes: &[Axis; 3], lanes: usize, tiles: bool) -> [usize; 3] {
    let boxes = tile_boxes(lanes, axes);
    let fallback = [1, 1, lanes];
    if boxes.len() < 2 {
        return boxes.first().copied().unwrap_or(fallback);
    }
    if tiles {
        let cheaper = |a: &[usize; 3], b: &[usize; 3]| {
            tile_cost(problem, axes, a).total_cmp(&tile_cost(problem, axes, b))
        };
        return boxes.into_iter().min_by(cheaper).unwrap_or(fallback);
    }
    let cost = |group: &[usize; 3]| {
        let tiling = Tiling { query_tile: *group, key_tile: [1; 3], key_start: KeyStart::Dynamic };
        let counts = TileCounts::of(problem, &tiling);
        // Too many to be counted: away from the ends of axes the union of windows says as much.
        let is_beyond = counts.issued == u64::MAX;
        let union: f64 = (0..3).map(|a| seen(&axes[a], group[a]) as f64).product();
        let sharing = [1.7, 1.25, 1.0][group[2].min(4).ilog2() as usize];
        // A group without a neighbour along the last axis has no one to share broadcasts with.
        let alone = if extent(&axes[2]) <= group[2] { 1.25 } else { 1.0 };
        let issued = (counts.issued as f64 * 1.2 * alone * problem.head_dim() as f64)
            + counts.scores as f64 * sharing * problem.head_dim_v() as f64;
        (issued as u64, if is_beyond { union } else { 0.0 })
    };
    let cheaper = |a: &[usize; 3], b: &[usize; 3]| {
        let (a, b) = (cost(a), cost(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    };
    boxes.into_iter().min_by(cheaper).unwrap_or(fallback)
}

/// Cycles of a group of sixteen queries on a machine with tiles, times the number of groups. Powers are computed for each key of
/// the union of windows, and products for tiles of its lines: sixteen keys for scores, 32 for sums, each sixteen cycles on a unit
/// of its own. What both take at the same time is not known, so they are added up.
fn tile_cost(problem: &Problem, axes: &[Axis; 3], group: &[usize; 3]) -> f64 {
    let groups = (0..3).map(|a| extent(&axes[a]).div_ceil(group[a]) as f64 * axes[a].dilation as f64);
    let [x, y, z] = std::array::from_fn(|a| seen(&axes[a], group[a]));
    let scores = z.div_ceil(16) as f64 * (problem.head_dim().div_ceil(32) * 16) as f64;
    let sums = z.div_ceil(32) as f64 * (problem.head_dim_v().div_ceil(16) * 16) as f64;
    groups.product::<f64>() * x as f64 * y as f64 * (9.0 * z as f64 + scores + sums)
}

/// Doubles the axis along which it costs least halo until the tile is large enough.
fn choose_tile(problem: &Problem, axes: &[Axis; 3], group: [usize; 3], lanes: usize) -> [usize; 3] {
    let extent = |a: usize| extent(&axes[a]);
    let mut tile = group;
    loop {
        let size: usize = tile.iter().product();
        // Halo of the tile in keys, for each query, were it doubled along `a`.
        let halo = |a: usize| {
            let doubled = |b: usize| if a == b { 2 * tile[b] } else { tile[b] };
            let keys = |b: usize| (doubled(b) + axes[b].kernel_size - 1).min(extent(b)) as f64;
            (0..3).map(keys).product::<f64>() / (2 * size) as f64
        };
        let growable = (0..3).filter(|&a| tile[a] < extent(a));
        let Some(a) = growable.min_by(|&a, &b| halo(a).total_cmp(&halo(b)).then(b.cmp(&a))) else {
            return tile;
        };
        let mut doubled = tile;
        doubled[a] *= 2;
        // Fewer than 16 tasks would leave cores idle; two groups along the last axis share every load of a key.
        let paired = tile[2] >= (2 * group[2]).min(extent(2));
        if 2 * size > lanes.max(2 * group.iter().product::<usize>())
            || (paired && tasks(problem, axes, &doubled) < 16)
        {
            return tile;
        }
        tile = doubled;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use natten_core::{DynParams, ElementType, Inputs, Layout, Params};

    fn problem(shape: &[usize], kernel_size: [usize; 2]) -> Problem {
        let layout = Layout::contiguous(shape).unwrap();
        let params = DynParams::from(&Params::new(kernel_size));
        Problem::new(&params, &Inputs::new(layout, layout, layout), ElementType::F32).unwrap()
    }

    #[test]
    fn tiles_are_whole_groups() {
        for (shape, window) in
            [([1, 64, 64, 8, 64], [13, 13]), ([1, 56, 56, 4, 32], [7, 7]), ([1, 3, 5, 1, 8], [1, 5])]
        {
            let choose = |threads| {
                let machine = Machine { lanes: 8, tiles: false, row_bytes: 512, threads };
                Blocking::choose(&problem(&shape, window), Pass::Forward, &machine)
            };
            for blocking in [1, 2, 3, 64].map(choose) {
                assert_eq!(blocking.group.iter().product::<usize>(), 8);
                for a in 0..3 {
                    assert_eq!(blocking.task[a] % blocking.group[a], 0);
                    assert_eq!(blocking.tile[a] % blocking.group[a], 0);
                }
                // All that results depend on.
                let one = choose(1);
                assert_eq!((blocking.group, blocking.tile), (one.group, one.tile));
            }
        }
    }

    /// Wholes of any extent, on every pass and kind of machine: a part has blocks, and a whole a grain that is not 0.
    #[test]
    fn wholes_without_end_have_blocks() {
        const EXTENTS: [usize; 6] = [1, 7, 1 << 20, 1 << 31, 1 << 62, isize::MAX as usize];
        let mut state = 1u64;
        let mut draw = |most: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (bits, number) = ((state >> 58) as u32, (state >> 8) as usize | (state as usize) << 50);
            1 + (number >> (bits % 64)) % most
        };
        for _ in 0..2000 {
            let mut params = Vec::new();
            let mut regions = Vec::new();
            for _ in 0..3 {
                let extent = EXTENTS[draw(6) - 1];
                let dilation = draw(extent);
                let kernel_size = draw(extent / dilation);
                let (stride, is_causal) = (draw(kernel_size), draw(2) == 1);
                let kernel_size = natten_core::KernelSize::Tokens(kernel_size);
                params.push(natten_core::AxisParams { kernel_size, stride, dilation, is_causal });
                let start = draw(extent) - 1;
                regions.push(natten_core::Region::of(extent).queries(start..start).keys(0..0));
            }
            let layout = Layout::contiguous(&[draw(4) - 1, 0, 0, 0, 4, 8]).unwrap();
            let params = DynParams::new(&params, None, natten_core::KernelSizePolicy::Exact);
            let params = (0..3).fold(params, |params, a| params.region(a, regions[a]));
            let inputs = Inputs::new(layout, layout, layout);
            let problem = Problem::new(&params, &inputs, ElementType::Bf16).unwrap();
            let whole = problem.of_whole();
            assert!(whole.query_tokens() > 0 && whole.key_tokens() > 0);
            for (pass, tiles) in
                [(Pass::Forward, false), (Pass::Forward, true), (Pass::Queries, false), (Pass::Keys, false)]
            {
                for lanes in if tiles { [16, 16] } else { [1, 8] } {
                    let machine = Machine { lanes, tiles, row_bytes: 512, threads: 3 };
                    let grain = Blocking::grain(&problem, pass, &machine);
                    assert!(grain.iter().all(|&tokens| tokens > 0), "{problem:?}: {grain:?}");
                    for problem in [&problem, &whole] {
                        let blocking = Blocking::choose(problem, pass, &machine);
                        assert_eq!(blocking.group.iter().product::<usize>(), lanes, "{problem:?}");
                        assert!(
                            (0..3).all(|a| blocking.task[a] >= blocking.tile[a]),
                            "{problem:?}: {blocking:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn threads_share_equal_walks() {
        let rows = |threads| {
            let machine = Machine { lanes: 8, tiles: false, row_bytes: 256, threads };
            Blocking::choose(&problem(&[1, 56, 56, 4, 32], [7, 7]), Pass::Forward, &machine).task[1]
        };
        assert_eq!([1, 2, 16].map(rows), [56, 28, 14]);
    }
}
