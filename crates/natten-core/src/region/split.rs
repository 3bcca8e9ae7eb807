//! A whole cut into a part for each rank, evenly in work, and what ranks have to send each other.

use std::ops::Range;

use super::{Region, block_tokens, keys_needed};
use crate::params::DynParams;
use crate::problem::Problem;
use crate::window::Axis;

/// Most ranks of a split: more devices than share one call, few enough that asking for them by mistake returns.
pub const MAX_RANKS: usize = 1024;

/// Why a problem cannot be split so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// Nobody is to work.
    #[error("a split over 0 ranks")]
    NoRanks,
    /// More ranks than a split has.
    #[error("a split over {ranks} ranks, expected at most {max}")]
    TooManyRanks {
        /// Ranks asked for.
        ranks: usize,
        /// [`MAX_RANKS`].
        max: usize,
    },
    /// A split is along one axis or two.
    #[error("a split along {found} axes, expected 1 or 2")]
    AxisCount {
        /// Axes asked for.
        found: usize,
    },
    /// There is no such axis.
    #[error("a split along axis {axis}: there are {rank} token axes, counted from 0")]
    Axis {
        /// The axis asked for.
        axis: usize,
        /// Token axes there are.
        rank: usize,
    },
    /// Both axes are the same.
    #[error("a split along axis {axis} twice")]
    Repeated {
        /// The axis.
        axis: usize,
    },
    /// The grid has a value for each axis, at least 1.
    #[error("a grid of {found:?}, expected {rank} numbers of at least 1")]
    Grid {
        /// The grid asked for.
        found: Vec<usize>,
        /// Token axes there are.
        rank: usize,
    },
    /// What is split is a part itself, or its queries and keys are not the same tokens.
    #[error("axis {axis}: the call holds a part of it, only a whole is split")]
    NotWhole {
        /// The first such axis.
        axis: usize,
    },
    /// Ends of parts rise from part to part, and the last one is the axis'.
    #[error(
        "parts that end at {ends:?} along an axis of {extent} tokens: ends never fall, and the last is the extent"
    )]
    Ends {
        /// The ends asked for.
        ends: Vec<usize>,
        /// Tokens of the axis.
        extent: usize,
    },
    /// Packed sequences are split by sequence.
    #[error("packed sequences are not one whole")]
    Packed,
    /// Plain attention has no windows, and takes no regions.
    #[error("plain attention is not split, only neighborhood attention is")]
    PlainAttention,
    /// There is no such rank.
    #[error("rank {rank} of a split over {ranks}, counted from 0")]
    Rank {
        /// The rank asked for.
        rank: usize,
        /// Ranks there are.
        ranks: usize,
    },
    /// Parameters of another whole.
    #[error("parameters of {found} token axes for a split of {expected}")]
    Params {
        /// Token axes of the split.
        expected: usize,
        /// Those of the parameters.
        found: usize,
    },
}

/// A whole in parts, one for each rank. A rank has the queries of its box, and the keys and values of the same tokens; what
/// other keys its queries need it receives from those that have them.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    extents: Vec<usize>,
    parts: Vec<Part>,
}

/// The part of one rank. Boxes are tokens of the whole, a range for each token axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its queries, and the keys and values that it has.
    pub queries: Vec<Range<usize>>,
    /// The keys that its queries need, its own among them. None where it has no queries.
    pub keys: Vec<Range<usize>>,
    /// Visible pairs of one of its queries and a key, of one batch item and one head; with additional keys.
    pub scores: f64,
    /// What it gets, by rank.
    pub receives: Vec<Transfer>,
    /// What it gives, by rank.
    pub sends: Vec<Transfer>,
}

/// Keys and values that one rank sends another.
#[derive(Clone, Debug, PartialEq)]
pub struct Transfer {
    /// The other rank.
    pub rank: usize,
    /// The box of tokens.
    pub tokens: Vec<Range<usize>>,
    /// Of keys and values together, all batch items and heads; `u64::MAX` where there are more.
    pub bytes: u64,
}

impl Split {
    /// Cuts a whole along one axis or two, each at multiples of [`block_tokens`], into as many parts as there are ranks.
    ///
    /// Work is counted in visible pairs, of which a causal axis has fewer at its beginning: cuts are where the share of each
    /// rank's predecessors is nearest to what it should be. With two axes `ranks` is a product of parts along either: the one
    /// whose busiest rank has least to do, and of these the one whose ranks receive least. A rank beyond what the grid has
    /// room for has no queries.
    ///
    /// # Errors
    /// [`SplitError`] names what is wrong.
    ///
    /// # Examples
    /// ```
    /// use natten_core::region::Split;
    /// # use natten_core::{ElementType, Inputs, Layout, Params, Problem};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let layout = Layout::contiguous(&[1, 32, 8, 8, 4, 64])?;
    /// # let inputs = Inputs::new(layout, layout, layout);
    /// # let params = Params::new([5, 3, 3]).to_dyn();
    /// # let clip = Problem::new(&params, &inputs, ElementType::Bf16)?;
    /// let split = Split::new(&clip, 2, &[0])?;
    /// let second = &split.parts()[1];
    /// assert_eq!((second.queries[0].clone(), second.keys[0].clone()), (16..32, 14..32));
    /// assert_eq!(second.receives[0].tokens[0], 14..16);
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(problem: &Problem, ranks: usize, axes: &[usize]) -> Result<Self, SplitError> {
        Self::on_grid(problem, ranks, axes, &block_tokens(problem))
    }

    /// As [`Split::new`], cut at multiples of `grid`, a number of tokens for each token axis.
    ///
    /// # Errors
    /// As there.
    pub fn on_grid(
        problem: &Problem,
        ranks: usize,
        axes: &[usize],
        grid: &[usize],
    ) -> Result<Self, SplitError> {
        let whole = check(problem, ranks, axes, grid)?;
        let cuts = |axis: usize, parts: usize| cuts(problem, whole, axis, parts, grid[axis]);
        let grids: Vec<Vec<Vec<Range<usize>>>> = match *axes {
            [axis] => vec![vec![cuts(axis, ranks)]],
            _ => {
                let divisors = (1..=ranks).filter(|parts| ranks.is_multiple_of(*parts));
                divisors.map(|parts| vec![cuts(axes[0], parts), cuts(axes[1], ranks / parts)]).collect()
            }
        };
        let splits = grids.iter().map(|ranges| parts(problem, whole, axes, ranges));
        let best = splits.min_by(|a, b| {
            let of_work = most_work(a).total_cmp(&most_work(b));
            of_work.then_with(|| most_received(a).cmp(&most_received(b)))
        });
        Ok(Self::of_parts(problem, whole, best.expect("one is a divisor of any number of ranks")))
    }

    /// A whole cut along one axis where the caller says: the part of each rank ends at its number of `ends`, which may be anywhere,
    /// and begins where the one before ends. One that ends where it begins has no queries.
    ///
    /// # Errors
    /// As [`Split::new`]; [`SplitError::Ends`].
    pub fn at(problem: &Problem, axis: usize, ends: &[usize]) -> Result<Self, SplitError> {
        let whole = check(problem, ends.len(), &[axis], &block_tokens(problem))?;
        let extent = whole[axis].extent;
        if !ends.is_sorted() || ends.last() != Some(&extent) {
            return Err(SplitError::Ends { ends: ends.to_vec(), extent });
        }
        let starts = [0].into_iter().chain(ends.iter().copied());
        let ranges = starts.zip(ends).map(|(start, &end)| start..end).collect();
        Ok(Self::of_parts(problem, whole, parts(problem, whole, &[axis], &[ranges])))
    }

    fn of_parts(problem: &Problem, whole: &[Axis], mut parts: Vec<Part>) -> Self {
        exchange(problem, &mut parts);
        Split { extents: whole.iter().map(|axis| axis.extent).collect(), parts }
    }

    /// The parts, by rank: the second axis' vary fastest.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// What a rank calls with: the whole's parameters with its regions. Every rank has the same sizes but along the split axes.
    ///
    /// # Errors
    /// [`SplitError::Rank`] and [`SplitError::Params`], where there is no such rank or the parameters are of another whole.
    pub fn params(&self, params: &DynParams, rank: usize) -> Result<DynParams, SplitError> {
        let ranks = self.parts.len();
        let Part { queries, keys, .. } = self.parts.get(rank).ok_or(SplitError::Rank { rank, ranks })?;
        let (expected, found) = (self.extents.len(), params.rank());
        if found != expected {
            return Err(SplitError::Params { expected, found });
        }
        let each = self.extents.iter().zip(queries).zip(keys).enumerate();
        Ok(each.fold(*params, |params, (axis, ((&extent, queries), keys))| {
            params.region(axis, Region::of(extent).queries(queries.clone()).keys(keys.clone()))
        }))
    }
}

/// What the busiest rank has to do.
fn most_work(parts: &[Part]) -> f64 {
    parts.iter().fold(0.0, |most: f64, part| most.max(part.scores))
}

/// The most tokens that a rank receives.
fn most_received(parts: &[Part]) -> u128 {
    // Each key that is needed arrives once, but for those that are there.
    let received = parts.iter().map(|part| {
        let ranges = || part.keys.iter().zip(&part.queries);
        let needed = ranges().fold(1, |n: u128, (needed, _)| n.saturating_mul(needed.len() as u128));
        let own =
            ranges().fold(1, |n: u128, (needed, had)| n.saturating_mul(both(needed, had).len() as u128));
        needed.saturating_sub(own)
    });
    received.max().unwrap_or(0)
}

/// The tokens of both ranges; one that ends before it begins has none.
fn both(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    a.start.max(b.start)..a.end.min(b.end)
}

/// A part of every combination of a range of each of `axes`.
fn parts(problem: &Problem, whole: &[Axis], axes: &[usize], ranges: &[Vec<Range<usize>>]) -> Vec<Part> {
    let mut boxes: Vec<Vec<Range<usize>>> = vec![whole.iter().map(|axis| 0..axis.extent).collect()];
    for (&axis, ranges) in axes.iter().zip(ranges) {
        let with = |part: &Vec<Range<usize>>, range: &Range<usize>| {
            let mut part = part.clone();
            part[axis] = range.clone();
            part
        };
        boxes = boxes.iter().flat_map(|part| ranges.iter().map(move |range| with(part, range))).collect();
    }
    boxes.into_iter().map(|queries| Part::of(problem, whole, queries)).collect()
}

/// The token axes of a problem that can be split so.
fn check<'a>(
    problem: &'a Problem,
    ranks: usize,
    axes: &[usize],
    grid: &[usize],
) -> Result<&'a [Axis], SplitError> {
    let rank = problem.rank();
    if ranks == 0 {
        return Err(SplitError::NoRanks);
    }
    if ranks > MAX_RANKS {
        return Err(SplitError::TooManyRanks { ranks, max: MAX_RANKS });
    }
    if !(1..=2).contains(&axes.len()) {
        return Err(SplitError::AxisCount { found: axes.len() });
    }
    if let Some(&axis) = axes.iter().find(|&&axis| axis >= rank) {
        return Err(SplitError::Axis { axis, rank });
    }
    if axes.len() == 2 && axes[0] == axes[1] {
        return Err(SplitError::Repeated { axis: axes[0] });
    }
    if grid.len() != rank || grid.contains(&0) {
        return Err(SplitError::Grid { found: grid.to_vec(), rank });
    }
    if problem.is_packed() {
        return Err(SplitError::Packed);
    }
    if problem.is_plain() {
        return Err(SplitError::PlainAttention);
    }
    let whole = &problem.axes()[3 - rank..];
    match whole.iter().position(|axis| !axis.is_whole()) {
        Some(axis) => Err(SplitError::NotWhole { axis }),
        None => Ok(whole),
    }
}

/// An axis in so many ranges of about the same work, cut at multiples of `grid`.
fn cuts(problem: &Problem, whole: &[Axis], axis: usize, parts: usize, grid: usize) -> Vec<Range<usize>> {
    let extent = whole[axis].extent;
    let first = |tokens: usize| {
        let mut queries: Vec<Range<usize>> = whole.iter().map(|axis| 0..axis.extent).collect();
        queries[axis] = 0..tokens;
        work(problem, whole, &queries)
    };
    let total = first(extent);
    let mut ends: Vec<usize> = Vec::with_capacity(parts);
    for part in 1..parts {
        let wanted = total * part as f64 / parts as f64;
        // The first multiple with as much work, or the one before, whichever is nearer.
        let (mut low, mut high) = (0, extent.div_ceil(grid));
        while low < high {
            let middle = low + (high - low) / 2;
            let enough = first(extent.min(middle.saturating_mul(grid))) >= wanted;
            (low, high) = if enough { (low, middle) } else { (middle + 1, high) };
        }
        let at = |multiple: usize| extent.min(multiple.saturating_mul(grid));
        let [before, after] = [at(low.saturating_sub(1)), at(low)];
        let is_before_nearer = wanted - first(before) < first(after) - wanted;
        let end = if is_before_nearer { before } else { after };
        ends.push(end.max(ends.last().copied().unwrap_or(0)));
    }
    ends.push(extent);
    let starts = [0].into_iter().chain(ends.iter().copied());
    starts.zip(ends.iter().copied()).map(|(start, end)| start..end).collect()
}

/// Visible pairs of these queries: along each axis, and with all additional keys.
fn work(problem: &Problem, whole: &[Axis], queries: &[Range<usize>]) -> f64 {
    let along = whole.iter().zip(queries).map(|(axis, queries)| {
        let part = Axis { query_start: queries.start, query_extent: queries.len(), ..*axis };
        part.residue_kinds().map(|(residue, times)| residue.scores() as f64 * times as f64).sum::<f64>()
    });
    let tokens: f64 = queries.iter().map(|range| range.len() as f64).product();
    along.product::<f64>() + tokens * problem.additional_keys() as f64
}

impl Part {
    /// The part of these queries, which has heard of no other yet.
    fn of(problem: &Problem, whole: &[Axis], queries: Vec<Range<usize>>) -> Self {
        let is_empty = queries.iter().any(|range| range.is_empty());
        let needed = whole.iter().zip(&queries).map(|(axis, queries)| keys_needed(axis, queries.clone()));
        let keys = if is_empty { queries.clone() } else { needed.collect() };
        let scores = work(problem, whole, &queries);
        Part { queries, keys, scores, receives: Vec::new(), sends: Vec::new() }
    }
}

/// Fills in what ranks send each other.
fn exchange(problem: &Problem, parts: &mut [Part]) {
    let components = problem.head_dim().saturating_add(problem.head_dim_v());
    let of_token = [components, problem.element_type().size_bytes(), problem.heads_kv(), problem.batch()]
        .map(|n| n as u64);
    for to in 0..parts.len() {
        for from in (0..parts.len()).filter(|&from| from != to) {
            let ranges = parts[to].keys.iter().zip(&parts[from].queries);
            let ranges = ranges.map(|(needed, had)| both(needed, had));
            if ranges.clone().any(|range| range.is_empty()) {
                continue;
            }
            let tokens: Vec<Range<usize>> = ranges.collect();
            let count = tokens.iter().map(|range| range.len() as u64);
            let bytes = count.chain(of_token).fold(1, u64::saturating_mul);
            parts[from].sends.push(Transfer { rank: to, tokens: tokens.clone(), bytes });
            parts[to].receives.push(Transfer { rank: from, tokens, bytes });
        }
    }
}
