//! Into which slabs a problem is cut, so that two of them fit under a bound of memory.

use std::ops::Range;

use natten_core::Problem;
use natten_core::region::{block_tokens, keys_needed};
use natten_core::window::Axis;

use super::OutOfCoreError;

/// A problem cut along one token axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// The axis, counted from the problem's first.
    pub axis: usize,
    pub slabs: Vec<Slab>,
    /// Most queries and most keys of a slab, which its buffers hold.
    pub queries: usize,
    pub keys: usize,
    /// Bytes of all buffers.
    pub bytes: u64,
}

/// Slabs at most: with more, each would be too little for a device.
const MOST_SLABS: usize = 1 << 16;

/// Some queries along the axis and the keys that they need, in tokens of the whole. Both ends of either rise from slab to slab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slab {
    pub queries: Range<usize>,
    pub keys: Range<usize>,
}

/// Bytes that tensors have for each token along an axis.
struct Row {
    of_queries: u64,
    of_keys: u64,
    /// Of what all slabs share.
    shared: u64,
}

impl Row {
    fn of(problem: &Problem, axis: usize, with_lse: bool) -> Option<Self> {
        let axes = &problem.axes()[3 - problem.rank()..];
        let others = |extent: fn(&Axis) -> usize| {
            let extents =
                axes.iter().enumerate().filter(|&(a, _)| a != axis).map(|(_, of)| extent(of) as u64);
            extents.chain([problem.batch() as u64]).try_fold(1, u64::checked_mul)
        };
        let element = problem.element_type().size_bytes() as u64;
        let (heads, heads_kv) = (problem.heads() as u64, problem.heads_kv() as u64);
        let row = (problem.head_dim() + problem.head_dim_v()) as u64 * element;
        let lse = if with_lse { 4 } else { 0 };
        let list = (problem.batch() * problem.additional_keys()) as u64;
        Some(Row {
            of_queries: others(|axis| axis.query_extent)?.checked_mul(heads)?.checked_mul(row + lse)?,
            of_keys: others(|axis| axis.key_extent)?.checked_mul(heads_kv)?.checked_mul(row)?,
            shared: list.checked_mul(heads_kv)?.checked_mul(row)?,
        })
    }

    /// Of buffers for so many slabs at a time, each with room for so many tokens.
    fn bytes(&self, slabs: u64, queries: usize, keys: usize) -> Option<u64> {
        let one = self
            .of_queries
            .checked_mul(queries as u64)?
            .checked_add(self.of_keys.checked_mul(keys as u64)?)?;
        one.checked_mul(slabs)?.checked_add(self.shared)
    }
}

impl Plan {
    /// The cut into fewest slabs; among equals along the axis that comes first, whose slabs lie together in most tensors.
    ///
    /// # Errors
    /// [`OutOfCoreError::Memory`] with what the smallest slabs would take, where that is beyond the bound.
    pub fn of(problem: &Problem, with_lse: bool, bound: u64) -> Result<Self, OutOfCoreError> {
        let plans = (0..problem.rank()).map(|axis| Plan::along(problem, axis, with_lse, bound));
        let best = plans.reduce(|best, other| match (&best, &other) {
            (Ok(a), Ok(b)) if b.slabs.len() < a.slabs.len() => other,
            (Err(_), Ok(_)) => other,
            (Err(a), Err(b)) if b < a => other,
            _ => best,
        });
        best.unwrap_or(Err(u64::MAX)).map_err(|needed| OutOfCoreError::Memory { needed, bound })
    }

    /// The fewest slabs along an axis, or the bytes that the smallest would take.
    fn along(problem: &Problem, axis: usize, with_lse: bool, bound: u64) -> Result<Self, u64> {
        let of_axis = &problem.axes()[3 - problem.rank() + axis];
        let row = Row::of(problem, axis, with_lse).ok_or(u64::MAX)?;
        let fits = |slabs: &[Slab]| {
            let most = |tokens: fn(&Slab) -> usize| slabs.iter().map(tokens).max().unwrap_or(0);
            let (queries, keys) = (most(|slab| slab.queries.len()), most(|slab| slab.keys.len()));
            let bytes = row.bytes(slabs.len().min(2) as u64, queries, keys).unwrap_or(u64::MAX);
            (queries, keys, bytes)
        };
        // Slabs are blocks of queries that share windows, so many of them: the most that fit.
        let block = block_tokens(problem)[axis].min(of_axis.query_extent.max(1));
        let blocks = of_axis.query_extent.div_ceil(block).max(1);
        let least = blocks.div_ceil(MOST_SLABS);
        let (mut low, mut high) = (least, blocks);
        while low < high {
            let middle = high - (high - low) / 2;
            let (.., bytes) = fits(&slabs(of_axis, middle.saturating_mul(block)));
            (low, high) = if bytes <= bound { (middle, high) } else { (low, middle - 1) };
        }
        // Slabs as even as they can be, as many as there would be with the largest.
        let even = blocks.div_ceil(blocks.div_ceil(low));
        let slabs = slabs(of_axis, even.saturating_mul(block));
        let (queries, keys, bytes) = fits(&slabs);
        if bytes > bound { Err(bytes) } else { Ok(Plan { axis, slabs, queries, keys, bytes }) }
    }
}

/// An axis in slabs of so many queries.
fn slabs(axis: &Axis, queries: usize) -> Vec<Slab> {
    let (start, end) = (axis.query_start, axis.query_start + axis.query_extent);
    let starts = (start..end).step_by(queries.max(1));
    let slab = |first: usize| {
        let queries = first..end.min(first.saturating_add(queries));
        Slab { keys: keys_needed(axis, queries.clone()), queries }
    };
    starts.map(slab).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use natten_core::{ElementType, Inputs, Layout, Params};

    fn problem(tokens: [usize; 3], params: Params<3>) -> Problem {
        let [x, y, z] = tokens;
        let layout = Layout::contiguous(&[1, x, y, z, 2, 8]).unwrap();
        Problem::new(&params.to_dyn(), &Inputs::new(layout, layout, layout), ElementType::F32).unwrap()
    }

    /// Slabs are all queries in turn, and hold what these need; no fewer of them would fit.
    #[test]
    fn slabs_are_the_fewest_that_fit() {
        let shapes =
            [([40, 6, 5], Params::new([5, 3, 3])), ([9, 50, 7], Params::new([3, 4, 3]).stride([1, 4, 1]))];
        for (tokens, params) in shapes
            .into_iter()
            .chain([([4, 5, 60], Params::new([3, 3, 4]).dilation([1, 1, 3]).is_causal([false, false, true]))])
        {
            let problem = problem(tokens, params);
            let whole = Plan::of(&problem, true, u64::MAX).unwrap();
            assert_eq!(whole.slabs.len(), 1);
            let mut counts = Vec::new();
            for share in 2..40 {
                let bound = whole.bytes / share;
                let Ok(plan) = Plan::of(&problem, true, bound) else { continue };
                assert!(plan.bytes <= bound && plan.slabs.len() > 1);
                let axis = &problem.axes()[plan.axis];
                let mut next = 0;
                for (i, slab) in plan.slabs.iter().enumerate() {
                    assert_eq!(slab.queries.start, next);
                    assert!(slab.queries.len() <= plan.queries && slab.keys.len() <= plan.keys);
                    assert_eq!(slab.keys, keys_needed(axis, slab.queries.clone()));
                    next = slab.queries.end;
                    if i > 0 {
                        let before = &plan.slabs[i - 1].keys;
                        assert!(before.start <= slab.keys.start && before.end <= slab.keys.end);
                    }
                }
                assert_eq!(next, axis.query_extent);
                counts.push(plan.slabs.len());
            }
            assert!(counts.len() > 2 && counts.is_sorted(), "{counts:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let problem = problem([4, 4, 4], Params::new([4, 4, 4]));
        let row = 2 * 8 * 4;
        // Any slab of one token along an axis needs all keys: two slabs at a time, each of 16 queries with output and log-sum-exp.
        let needed = 2 * (64 * 2 * row + 16 * (2 * row + 8));
        let told = Plan::of(&problem, true, 100).unwrap_err();
        assert!(matches!(told, OutOfCoreError::Memory { needed: n, bound: 100 } if n == needed), "{told}");
        assert!(Plan::of(&problem, true, needed).is_ok());
        assert!(Plan::of(&problem, true, needed - 1).is_err());
    }
}
