//! Parts of a whole: queries and keys that are boxes of a larger token space, with the windows of that space.
//!
//! A call whose queries are the tokens `q0..q1` of an axis, and whose keys are the tokens `k0..k1`, gives what the whole gives
//! there: windows, the blocks of a stride, the residues of a dilation, borders and causality are those of the whole. That is
//! how an operator is spread over devices, computed in parts that memory has room for, or continued frame by frame.
//!
//! ```
//! use natten_core::{Params, Region};
//! use natten_core::region::keys_needed;
//!
//! # fn main() -> Result<(), natten_core::ProblemError> {
//! // Frames 16..20 of a clip of 33, each with the rows and columns around it.
//! let window = Params::new([5, 7, 7]);
//! let frames = window.to_dyn().axis(0, 33)?;
//! assert_eq!(keys_needed(&frames, 16..20), 14..22);
//! let params = window.region(0, Region::of(33).queries(16..20).keys(14..22));
//! # let _ = params;
//! # Ok(())
//! # }
//! ```

use std::ops::Range;

use crate::checks::expect;
use crate::error::{ProblemError, Role, TensorAxis};
use crate::problem::Problem;
use crate::window::{Axis, Residue};

mod error;
mod split;

pub use error::RegionError;
pub use split::{MAX_RANKS, Part, Split, SplitError, Transfer};

/// The part of a token axis that a call holds: its queries are some of the whole's tokens, its keys others or the same.
///
/// Both are ranges of tokens, not of positions in a residue: with a dilation they may begin and end at any residue. Nothing is
/// checked here; [`Problem::new`] holds it against the tensors and the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    extent: usize,
    queries: [usize; 2],
    keys: [usize; 2],
}

impl Region {
    /// All of an axis of so many tokens, until said otherwise.
    pub const fn of(extent: usize) -> Self {
        Region { extent, queries: [0, extent], keys: [0, extent] }
    }

    /// The queries are these tokens of the whole. None at all make an empty output.
    pub const fn queries(self, tokens: Range<usize>) -> Self {
        Region { queries: [tokens.start, tokens.end], ..self }
    }

    /// The keys are these tokens of the whole: all that the queries need ([`keys_needed`]), or more.
    pub const fn keys(self, tokens: Range<usize>) -> Self {
        Region { keys: [tokens.start, tokens.end], ..self }
    }

    /// Tokens of the whole axis.
    pub const fn extent(&self) -> usize {
        self.extent
    }

    /// The tokens that are queries.
    pub const fn query_range(&self) -> Range<usize> {
        self.queries[0]..self.queries[1]
    }

    /// The tokens that are keys.
    pub const fn key_range(&self) -> Range<usize> {
        self.keys[0]..self.keys[1]
    }

    /// The part of a whole axis that is this region.
    pub(crate) fn part_of(&self, whole: Axis) -> Axis {
        let ([query_start, query_end], [key_start, key_end]) = (self.queries, self.keys);
        let (query_extent, key_extent) = (query_end - query_start, key_end - key_start);
        Axis { query_start, query_extent, key_start, key_extent, ..whole }
    }

    /// Checks the ranges against the whole, and the tensors' extents along the axis against the ranges.
    pub(crate) fn check(&self, axis: usize, queries: usize, keys: usize) -> Result<(), ProblemError> {
        let extent = self.extent;
        expect_countable(axis, extent)?;
        for (tensor, [start, end]) in [(Role::Query, self.queries), (Role::Key, self.keys)] {
            if start > end {
                return Err(RegionError::Reversed { tensor, axis, start, end }.into());
            }
            if end > extent {
                return Err(RegionError::Outside { tensor, axis, start, end, extent }.into());
            }
        }
        for (tensor, [start, end], found) in
            [(Role::Query, self.queries, queries), (Role::Key, self.keys, keys)]
        {
            if end - start != found {
                return Err(RegionError::Extent { tensor, axis, start, end, found }.into());
            }
        }
        Ok(())
    }
}

/// Whether a whole has so few tokens that windows can be computed on it: as many as the largest tensor at most.
pub(crate) fn expect_countable(axis: usize, extent: usize) -> Result<(), ProblemError> {
    match isize::try_from(extent) {
        Ok(_) => Ok(()),
        Err(_) => Err(RegionError::TooLong { axis, extent, limit: isize::MAX as usize }.into()),
    }
}

/// The smallest range of an axis that holds every key which these queries need; empty if there are no queries. All are tokens
/// of the whole: what part of it the axis itself holds does not matter. Queries beyond the whole are none.
///
/// In each residue the keys are a range, from the start of the first query's window to the end of the last one's; residues
/// that are alike are asked once ([`Axis::residue_runs`]).
///
/// # Examples
/// ```
/// use natten_core::Params;
/// use natten_core::region::keys_needed;
/// # fn main() -> Result<(), natten_core::ProblemError> {
/// let axis = Params::new([5]).dilation(3).to_dyn().axis(0, 40)?;
/// // Two steps of three tokens to either side, and as many from the border as there are.
/// assert_eq!(keys_needed(&axis, 12..20), 6..26);
/// assert_eq!(keys_needed(&axis, 0..1), 0..13);
/// # Ok(())
/// # }
/// ```
pub fn keys_needed(axis: &Axis, queries: Range<usize>) -> Range<usize> {
    let queries = within(queries, query_end(axis));
    let all = Axis { key_start: 0, key_extent: axis.extent, ..*axis };
    let part = Axis { query_start: queries.start, query_extent: queries.len(), ..all };
    hull(&part, queries.start, |residue| {
        (residue.query_len > 0).then(|| residue.keys_of(0..residue.query_len))
    })
}

/// The smallest range of an axis that holds every query which sees one of these keys; empty if there are no keys. Tokens as in
/// [`keys_needed`]: keys beyond the whole are none.
///
/// The whole of plain attention that is not causal ([`Axis::attention`]) are its keys, and queries are as many as there are
/// where these are more.
///
/// # Examples
/// ```
/// use natten_core::Params;
/// use natten_core::region::queries_seeing;
/// # fn main() -> Result<(), natten_core::ProblemError> {
/// let axis = Params::new([5]).is_causal(true).to_dyn().axis(0, 40)?;
/// assert_eq!(queries_seeing(&axis, 12..14), 12..18);
/// # Ok(())
/// # }
/// ```
pub fn queries_seeing(axis: &Axis, keys: Range<usize>) -> Range<usize> {
    let keys = within(keys, axis.extent);
    let all = Axis { query_start: 0, query_extent: query_end(axis), ..*axis };
    let part = Axis { key_start: keys.start, key_extent: keys.len(), ..all };
    hull(&part, keys.start, |residue| (residue.key_len > 0).then(|| residue.queries_of(0..residue.key_len)))
}

/// Where the queries of a whole end: with it, but for those of plain attention, which may be more than its keys.
fn query_end(axis: &Axis) -> usize {
    axis.extent.max(axis.query_start + axis.query_extent)
}

/// What a range has of the tokens up to `end`; none of a range that ends before it begins.
fn within(range: Range<usize>, end: usize) -> Range<usize> {
    let start = range.start.min(end);
    start..range.end.clamp(start, end)
}

/// The tokens between the lowest and the highest of ranges of positions, one of each residue; none from `empty` on.
fn hull(axis: &Axis, empty: usize, of: impl Fn(&Residue) -> Option<Range<usize>>) -> Range<usize> {
    let mut found: Option<Range<usize>> = None;
    for run in axis.residue_runs() {
        let Some(positions) = of(&axis.residue(run.start)).filter(|positions| !positions.is_empty()) else {
            continue;
        };
        // All residues of a run have the same positions.
        let start = positions.start * axis.dilation + run.start;
        let end = (positions.end - 1) * axis.dilation + run.end;
        let (low, high) = found.map_or((start, end), |range| (range.start.min(start), range.end.max(end)));
        found = Some(low..high);
    }
    found.unwrap_or(empty..empty)
}

/// The first key of an axis that a query needs and the call does not hold, and the first query that does, tokens of the whole.
pub(crate) fn missing_key(axis: &Axis) -> Option<(usize, usize)> {
    let missing = axis.residue_runs().filter_map(|run| {
        let part = axis.residue(run.start);
        let all = Residue { key_start: 0, key_len: part.len, ..part };
        if part.query_len == 0 {
            return None;
        }
        let (needed, held) = (all.keys_of(0..all.query_len), part.key_start..part.key_start + part.key_len);
        let position = if needed.start < held.start {
            needed.start
        } else if needed.end > held.end {
            needed.start.max(held.end)
        } else {
            return None;
        };
        let query = all.query_start + all.inverse_window(position).start;
        Some((position * axis.dilation + run.start, query * axis.dilation + run.start))
    });
    missing.min()
}

/// For each token axis, tokens in a block of queries that share a window, in every residue: `stride * dilation`. Cuts at its
/// multiples split no block, and residues are as uneven in the parts as they are in the whole.
///
/// Parts need not be cut there; those that are waste least on tiles at their borders. It says nothing about bits: where a backend
/// gives the same ones for parts as for the whole is for it to say, since that depends on its tiles (`Cpu::grain` of natten-cpu).
pub fn block_tokens(problem: &Problem) -> Vec<usize> {
    let axes = problem.axes()[3 - problem.rank()..].iter();
    axes.map(|axis| axis.stride.saturating_mul(axis.dilation)).collect()
}

/// Checks a region against the tensors' extents along its axis; without one, that keys are as many as queries.
pub(crate) fn check_extents(
    region: Option<&Region>,
    axis: usize,
    queries: usize,
    keys: usize,
) -> Result<(), ProblemError> {
    match region {
        Some(region) => region.check(axis, queries, keys),
        None => expect(Role::Key, TensorAxis::Token(axis), queries, keys),
    }
}

#[cfg(test)]
mod tests;
