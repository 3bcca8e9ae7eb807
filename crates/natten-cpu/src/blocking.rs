//! Choosing the blocks of a problem: the group of lanes in a vector, the tile of groups in a task, the box of the
//! stream that is packed at once. docs/performance.md has the arithmetic behind it.
//!
//! Nothing here depends on the number of threads, so results do not either.

use natten_core::Problem;
use natten_core::plan::{KeyStart, TileCounts, Tiling, tile_boxes};

/// Bytes of the stream that are packed at once: well inside a second-level cache of 1 MiB, beside the lanes.
const STREAM_BYTES: usize = 384 << 10;

/// Scores of a group of lanes that are held at once, in vectors: what lets a strip stay in a first-level cache.
pub(crate) const STRIP_SLOTS: usize = 512;

/// Lanes of a task, over all its heads. Large tiles share the keys around them; small ones are more tasks.
const LANES_IN_TASK: usize = 256;

/// The blocks of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocking {
    /// Lanes of one vector along each axis; the product is the vector's length.
    pub group: [usize; 3],
    /// Lanes of a task along each axis, multiples of the group's.
    pub tile: [usize; 3],
    /// Heads of a task that share keys and values.
    pub heads: usize,
    /// Positions of the stream packed at once.
    pub stream: usize,
}

impl Blocking {
    /// For vectors of `lanes` lanes and rows of `row_bytes` of the stream (all operands packed together).
    pub(crate) fn choose(problem: &Problem, lanes: usize, row_bytes: usize) -> Self {
        let group = choose_group(problem, lanes);
        let heads = problem.heads_per_kv().min(4);
        let tile = choose_tile(problem, group, LANES_IN_TASK / heads);
        Blocking { group, tile, heads, stream: (STREAM_BYTES / row_bytes).max(16) }
    }
}

/// The group that issues least: scores are computed for the union of its lanes' windows, weighted sums are exact
/// but slower for fewer neighbours along the last axis.
fn choose_group(problem: &Problem, lanes: usize) -> [usize; 3] {
    let boxes = tile_boxes(lanes, problem.axes());
    let fallback = [1, 1, lanes];
    if boxes.len() < 2 {
        return boxes.first().copied().unwrap_or(fallback);
    }
    let cost = |group: &[usize; 3]| {
        let tiling = Tiling { query_tile: *group, key_tile: [1; 3], key_start: KeyStart::Dynamic };
        let counts = TileCounts::of(problem, &tiling);
        let sharing = [1.7, 1.25, 1.0][group[2].min(4).ilog2() as usize];
        let issued = (counts.issued as f64 * 1.2 * problem.head_dim() as f64)
            + counts.scores as f64 * sharing * problem.head_dim_v() as f64;
        issued as u64
    };
    boxes.into_iter().min_by_key(cost).unwrap_or(fallback)
}

/// Doubles the axis along which it costs least halo until the task is large enough.
fn choose_tile(problem: &Problem, group: [usize; 3], lanes: usize) -> [usize; 3] {
    let axes = problem.axes();
    let extent = |a: usize| axes[a].query_extent.max(axes[a].key_extent).div_ceil(axes[a].dilation);
    let tasks = |tile: &[usize; 3]| {
        let along = |a: usize| extent(a).div_ceil(tile[a]) * axes[a].dilation;
        problem.batch() * problem.heads_kv() * (0..3).map(along).product::<usize>()
    };
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
        if 2 * size > lanes.max(2 * group.iter().product::<usize>()) || (paired && tasks(&doubled) < 16) {
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
            let blocking = Blocking::choose(&problem(&shape, window), 8, 512);
            assert_eq!(blocking.group.iter().product::<usize>(), 8);
            for a in 0..3 {
                assert_eq!(blocking.tile[a] % blocking.group[a], 0);
            }
        }
    }
}
