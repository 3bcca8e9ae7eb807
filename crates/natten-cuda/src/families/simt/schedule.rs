//! How items are dealt to lane groups and ctas, and partial gradients to splits.
//!
//! A lane group's block of items should have a small union of windows (every load serves all its items), a cta's box
//! likewise (its lane groups meet in L1). Both are grown a doubling at a time along the axis where the
//! union grows least.

use natten_core::Problem;
use natten_core::window::Axis;

use crate::error::CudaError;
use crate::params::{Decomposition, Divisor, to_i32};
use crate::registry::{Facts, Kernel};

/// Which tokens are the items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Items {
    Queries,
    Keys,
}

impl Items {
    fn extent(self, axis: &Axis) -> usize {
        match self {
            Items::Queries => axis.query_extent,
            Items::Keys => axis.key_extent,
        }
    }
}

/// What the decomposition of a pass depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work<'a> {
    pub items: Items,
    pub axes: &'a [Axis; 3],
    /// Heads of the items' side.
    pub heads: usize,
    /// Neighbouring heads that read the same keys.
    pub heads_sharing: usize,
    pub batch: usize,
    /// Bytes of one row.
    pub row_bytes: usize,
}

impl<'a> Work<'a> {
    /// A pass over the queries of a problem, or over its keys, on these axes.
    pub fn of(problem: &Problem, axes: &'a [Axis; 3], items: Items) -> Self {
        let of_queries = items == Items::Queries;
        Work {
            items,
            axes,
            heads: if of_queries { problem.heads() } else { problem.heads_kv() },
            heads_sharing: if of_queries { problem.heads_per_kv() } else { 1 },
            batch: problem.batch(),
            row_bytes: problem.head_dim() * problem.element_type().size_bytes(),
        }
    }

    /// Items of the longest residue along each axis.
    fn longest(&self) -> [usize; 3] {
        self.axes.map(|axis| self.items.extent(&axis).div_ceil(axis.dilation).max(1))
    }
}

/// Sides of the block of items that a lane group takes at once, log2.
pub(crate) fn blocks(kernel: &Kernel, work: &Work<'_>) -> [u32; 3] {
    let longest = work.longest();
    let [_, items] = kernel.walk();
    let mut block = [0; 3];
    for _ in 0..items.ilog2() {
        block[cheapest(work.axes, &longest, &block)] += 1;
    }
    block
}

/// The decomposition and the number of ctas.
pub(crate) fn decompose(kernel: &Kernel, work: &Work<'_>) -> Result<(Decomposition, u32), CudaError> {
    let (longest, block) = (work.longest(), blocks(kernel, work));
    let [lanes, _] = kernel.walk();
    let groups_log2 = (kernel.threads as usize / lanes).ilog2();
    let heads_log2 = heads_per_cta(work).min(groups_log2);
    let mut cta = [0; 3];
    for _ in heads_log2..groups_log2 {
        let both = std::array::from_fn(|a| block[a] + cta[a]);
        cta[cheapest(work.axes, &longest, &both)] += 1;
    }

    let mut plan = Decomposition {
        block_log2: block.map(|log2| log2 as i32),
        cta_log2: cta.map(|log2| log2 as i32),
        cta_heads_log2: heads_log2 as i32,
        heads: to_i32("the number of heads", work.heads)?,
        ..Decomposition::default()
    };
    let mut total = work.batch as u128;
    for axis in 0..3 {
        let tiles = work.axes[axis].dilation * longest[axis].div_ceil(1 << (block[axis] + cta[axis]));
        plan.tiles[axis] = Divisor::new("the tiles of an axis", tiles)?;
        total *= tiles as u128;
    }
    let head_tiles = work.heads.div_ceil(1 << heads_log2);
    plan.head_tiles = Divisor::new("the tiles of heads", head_tiles)?;
    total *= head_tiles as u128;
    let limit = i32::MAX as u128;
    if total > limit {
        return Err(CudaError::TooLarge { what: "the number of ctas", value: total, limit });
    }
    Ok((plan, total as u32))
}

/// Heads that a cta takes side by side, log2: enough for whole cache lines of short rows, and those that
/// share their keys.
fn heads_per_cta(work: &Work<'_>) -> u32 {
    const LINE_BYTES: usize = 128;
    let for_lines = (LINE_BYTES / work.row_bytes.max(1)).max(1).ilog2();
    let sharing = work.heads_sharing.trailing_zeros().min(2);
    for_lines.max(sharing).min(work.heads.max(1).ilog2())
}

/// The axis along which doubling the box enlarges the union of its windows least; the innermost among equals.
fn cheapest(axes: &[Axis; 3], longest: &[usize; 3], log2: &[u32; 3]) -> usize {
    let growth = |a: usize| {
        let window = axes[a].kernel_size as f64;
        let size = |log2: u32| window + f64::from(1u32 << log2) - 1.0;
        size(log2[a] + 1) / size(log2[a])
    };
    // Where the box already covers the axis, doubling would only idle lanes.
    let (open, covered): (Vec<usize>, Vec<usize>) = (0..3).rev().partition(|&a| longest[a] > 1 << log2[a]);
    let candidates = if open.is_empty() { covered } else { open };
    let first = candidates[0];
    candidates.into_iter().fold(first, |best, a| if growth(a) < growth(best) { a } else { best })
}

/// Rows of queries (runs along the last axis) that each split of the pass over additional keys takes, and how many
/// splits there are. It depends on the problem alone, so that sums come out the same on every device.
pub(crate) fn splits(axes: &[Axis; 3], additional_keys: usize) -> (usize, usize) {
    const TARGET_SPLITS: usize = 64;
    const MIN_QUERIES: usize = 256;
    let rows = axes[0].query_extent * axes[1].query_extent;
    let row_queries = axes[2].query_extent.max(1);
    let busy = TARGET_SPLITS.div_ceil(additional_keys.div_ceil(64).max(1));
    let rows_per_split = rows.div_ceil(busy).max(MIN_QUERIES.div_ceil(row_queries)).max(1);
    (rows_per_split, rows.div_ceil(rows_per_split).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Operation, kernels_of};

    fn axis(extent: usize, kernel_size: usize, dilation: usize) -> Axis {
        Axis { kernel_size, dilation, ..Axis::whole(extent) }
    }

    fn decomposed(axes: [Axis; 3], heads: usize, row_bytes: usize) -> (Decomposition, u32) {
        let kernel = kernels_of("simt", Operation::Forward).find(|k| k.max_head_dim == 64).unwrap();
        let work = Work { items: Items::Queries, axes: &axes, heads, heads_sharing: 1, batch: 2, row_bytes };
        decompose(kernel, &work).unwrap()
    }

    #[test]
    fn blocks_grow_where_the_union_grows_least() {
        let (plan, grid) = decomposed([axis(16, 3, 1), axis(32, 7, 1), axis(48, 7, 1)], 16, 128);
        assert_eq!(plan.block_log2, [0, 1, 1]);
        assert_eq!(plan.cta_log2.iter().sum::<i32>(), 5);
        let boxes: u32 = plan.tiles.iter().map(|tiles| tiles.value).product();
        assert_eq!(grid, boxes * 16 * 2);
    }

    #[test]
    fn short_axes_leave_the_rest_to_others() {
        let (plan, _) = decomposed([Axis::UNIT, Axis::UNIT, axis(100, 7, 1)], 1, 128);
        assert_eq!((plan.block_log2, plan.cta_log2), ([0, 0, 2], [0, 0, 5]));
        let (plan, grid) = decomposed([Axis::UNIT, Axis::UNIT, Axis::UNIT], 4, 16);
        assert_eq!(plan.cta_heads_log2, 2);
        assert_eq!(grid, 2);
    }

    #[test]
    fn residues_are_tiled_each() {
        let (plan, _) = decomposed([Axis::UNIT, axis(512, 9, 16), axis(512, 9, 16)], 4, 16);
        assert!(plan.tiles[2].value.is_multiple_of(16) && plan.tiles[1].value.is_multiple_of(16));
    }

    #[test]
    fn splits_cover_all_rows() {
        for (x, y, z, keys) in [(1, 1, 1, 1), (1, 1, 100_000, 5), (7, 9, 11, 130), (64, 256, 384, 5)] {
            let (rows, count) = splits(&[axis(x, 1, 1), axis(y, 1, 1), axis(z, 1, 1)], keys);
            assert!(rows * count >= x * y && rows * (count - 1) < x * y && count <= 64);
        }
    }
}
