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

/// Some queries along the axis and the keys that they need, in tokens of the whole. Beginnings rise from slab to slab, and so do ends of
/// queries; keys may end earlier than the slab's before, where residues are uneven.
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

/// What a plan must keep to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of all buffers.
    pub memory_bytes: u64,
    /// Slabs that there should be at least, so that little of the copies is alone.
    pub slabs: usize,
}

impl Plan {
    /// The cut into fewest slabs, but as many as there should be, or else into most; among equals along the axis that comes first, whose
    /// slabs lie together in most tensors. Slabs that are shorter than what they share with their neighbours are made for want of memory
    /// only.
    ///
    /// # Errors
    /// [`OutOfCoreError::Memory`] with what would have to fit at least.
    pub fn of(problem: &Problem, with_lse: bool, limits: &Limits) -> Result<Self, OutOfCoreError> {
        let plans = (0..problem.rank()).map(|axis| Plan::along(problem, axis, with_lse, limits));
        let order = |plan: &Plan| {
            let count = plan.slabs.len();
            if count < limits.slabs { (1, usize::MAX - count) } else { (0, count) }
        };
        let best = plans.reduce(|best, other| match (&best, &other) {
            (Ok(a), Ok(b)) if order(b) < order(a) => other,
            (Err(_), Ok(_)) => other,
            (Err(a), Err(b)) if b < a => other,
            _ => best,
        });
        let bound = limits.memory_bytes;
        best.unwrap_or(Err(u64::MAX)).map_err(|needed| OutOfCoreError::Memory { needed, bound })
    }

    /// The cut along an axis, or the bytes that would have to fit at least.
    fn along(problem: &Problem, axis: usize, with_lse: bool, limits: &Limits) -> Result<Self, u64> {
        let of_axis = &problem.axes()[3 - problem.rank() + axis];
        let row = Row::of(problem, axis, with_lse).ok_or(u64::MAX)?;
        let block = block_tokens(problem)[axis].min(of_axis.extent.max(1));
        let blocks = of_axis.query_extent.div_ceil(block).max(1);
        let cut = |blocks: usize| {
            let slabs = slabs(of_axis, block, blocks.saturating_mul(block));
            let most = |tokens: fn(&Slab) -> usize| slabs.iter().map(tokens).max().unwrap_or(0);
            let (queries, keys) = (most(|slab| slab.queries.len()), most(|slab| slab.keys.len()));
            let bytes = row.bytes(slabs.len().min(2) as u64, queries, keys).unwrap_or(u64::MAX);
            Plan { axis, slabs, queries, keys, bytes }
        };
        let fits = |plan: &Plan| plan.bytes <= limits.memory_bytes;
        let shared = (of_axis.kernel_size - 1).saturating_mul(of_axis.dilation);
        let wanted = limits.slabs.min(of_axis.query_extent / shared.max(block)).max(1);
        let preferred = cut(blocks.div_ceil(wanted));
        if fits(&preferred) {
            return Ok(preferred);
        }
        // Of two slabs or more, which have buffers for two each, longer ones take more.
        let (mut low, mut high) = (blocks.div_ceil(MOST_SLABS), blocks.div_ceil(wanted.max(2)));
        while low < high {
            let middle = high - (high - low) / 2;
            (low, high) = if fits(&cut(middle)) { (middle, high) } else { (low, middle - 1) };
        }
        // Slabs as even as they can be, as many as there would be with the longest.
        let even = cut(blocks.div_ceil(blocks.div_ceil(low.max(1))));
        let one = cut(usize::MAX);
        match (fits(&even), fits(&one)) {
            (true, _) => Ok(even),
            (_, true) => Ok(one),
            _ => Err(even.bytes.min(one.bytes)),
        }
    }

    /// Tokens of a slab's keys that the slab before it has.
    pub fn shared(&self, slab: usize) -> Range<usize> {
        let keys = &self.slabs[slab].keys;
        let end = slab.checked_sub(1).map_or(keys.start, |before| self.slabs[before].keys.end);
        keys.start..end.clamp(keys.start, keys.end)
    }
}

/// An axis in slabs of so many queries, a multiple of a block of those that share windows, between such blocks of the whole.
fn slabs(axis: &Axis, block: usize, queries: usize) -> Vec<Slab> {
    let (start, end) = (axis.query_start, axis.query_start + axis.query_extent);
    let mut slabs = Vec::new();
    let (mut first, mut cut) = (start, (start / block * block).saturating_add(queries.max(block)));
    while first < end {
        let queries_of = first..end.min(cut);
        slabs.push(Slab { keys: keys_needed(axis, queries_of.clone()), queries: queries_of });
        (first, cut) = (cut, cut.saturating_add(queries.max(block)));
    }
    slabs
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
            let limits = |memory_bytes: u64| Limits { memory_bytes, slabs: 1 };
            let whole = Plan::of(&problem, true, &limits(u64::MAX)).unwrap();
            assert_eq!(whole.slabs.len(), 1);
            // What fits at once is not cut, and a byte less is.
            assert_eq!(Plan::of(&problem, true, &limits(whole.bytes)).unwrap(), whole);
            assert!(
                Plan::of(&problem, true, &limits(whole.bytes - 1)).is_ok_and(|plan| plan.slabs.len() > 1)
            );
            let several = Plan::of(&problem, true, &Limits { memory_bytes: u64::MAX, slabs: 4 }).unwrap();
            assert!((2..=4).contains(&several.slabs.len()), "{several:?}");
            let mut counts = Vec::new();
            for share in 2..40 {
                let bound = whole.bytes / share;
                let Ok(plan) = Plan::of(&problem, true, &limits(bound)) else { continue };
                assert!(plan.bytes <= bound && plan.slabs.len() > 1);
                let axis = &problem.axes()[plan.axis];
                let mut next = 0;
                for (i, slab) in plan.slabs.iter().enumerate() {
                    assert_eq!(slab.queries.start, next);
                    assert!(slab.queries.len() <= plan.queries && slab.keys.len() <= plan.keys);
                    assert_eq!(slab.keys, keys_needed(axis, slab.queries.clone()));
                    next = slab.queries.end;
                    assert!(i == 0 || plan.slabs[i - 1].keys.start <= slab.keys.start);
                    assert!(slab.queries.start % block_tokens(&problem)[plan.axis] == 0);
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
        let limits = |memory_bytes: u64| Limits { memory_bytes, slabs: 8 };
        let row = 2 * 8 * 4;
        // Any slab of one token along an axis needs all keys, two slabs at a time: more than all at once.
        let needed = 64 * 2 * row + 64 * (2 * row + 8);
        let told = Plan::of(&problem, true, &limits(100)).unwrap_err();
        assert!(matches!(told, OutOfCoreError::Memory { needed: n, bound: 100 } if n == needed), "{told}");
        assert_eq!(Plan::of(&problem, true, &limits(needed)).unwrap().slabs.len(), 1);
        assert!(Plan::of(&problem, true, &limits(needed - 1)).is_err());
    }

    /// Slabs of a part lie between the blocks of the whole.
    #[test]
    fn parts_are_cut_as_wholes_are() {
        let whole = problem([60, 4, 4], Params::new([6, 3, 3]).stride([3, 1, 1]).dilation([2, 1, 1]));
        let part = whole.part(0, 20..51, 6..60).unwrap();
        let plan = Plan::of(&part, false, &Limits { memory_bytes: u64::MAX, slabs: 3 }).unwrap();
        let ends: Vec<usize> = plan.slabs.iter().map(|slab| slab.queries.end).collect();
        assert!(ends.len() > 1 && ends[..ends.len() - 1].iter().all(|end| end % 6 == 0), "{ends:?}");
        assert_eq!((plan.slabs[0].queries.start, ends[ends.len() - 1]), (20, 51));
    }
}
