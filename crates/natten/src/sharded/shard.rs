//! What one rank does of a problem that is split along an axis: which of its queries need only its own keys, which do not, and
//! what goes to and comes from whom. Numbers alone, no tensors.

use std::ops::Range;

use natten_core::region::{Part, Split, keys_needed};
use natten_core::window::Axis;
use natten_core::{DynParams, Region};

/// One rank's share of the work. All ranges are tokens of the whole along the split axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shard {
    /// The split axis among the token axes.
    pub axis: usize,
    /// Tokens of the whole axis.
    pub extent: usize,
    /// The rank's own tokens: its queries, and the keys and values that it has.
    pub own: Range<usize>,
    /// Its queries that need its own keys alone; perhaps none.
    pub interior: Range<usize>,
    /// The others, at most two ranges of them.
    pub borders: Vec<Border>,
    /// Which of its own keys and values go to whom, by rank.
    pub sends: Vec<(usize, Range<usize>)>,
}

/// Queries that need keys of other ranks, and those keys.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Border {
    pub queries: Range<usize>,
    /// All keys that they need, own ones among them.
    pub keys: Range<usize>,
    /// Which of them come from whom, in order.
    pub receives: Vec<(usize, Range<usize>)>,
}

impl Shard {
    /// The share of one rank of a split along `axis`. Interior and borders meet at multiples of `grid`.
    pub fn of(split: &Split, rank: usize, (axis, whole): (usize, &Axis), grid: usize) -> Self {
        let part = &split.parts()[rank];
        let own = part.queries[axis].clone();
        let interior = interior(whole, &own, grid);
        let sends = part.sends.iter().map(|sent| (sent.rank, sent.tokens[axis].clone())).collect();
        let of = |queries: Range<usize>| Border::of(whole, part, axis, queries);
        let (left, right) = (of(own.start..interior.start), of(interior.end..own.end));
        // Each border has the halo of its own side, unless dilated windows reach past the whole shard.
        let is_apart = left.keys.end <= own.end && right.keys.start >= own.start;
        let (interior, mut borders) = match is_apart && !interior.is_empty() {
            true => (interior, vec![left, right]),
            false => (own.start..own.start, vec![of(own.clone())]),
        };
        borders.retain(|border| !border.queries.is_empty());
        Shard { axis, extent: whole.extent, own, interior, borders, sends }
    }

    /// Which of its own keys are among those that a border needs.
    pub fn own_of(&self, border: &Border) -> Range<usize> {
        let start = border.keys.start.max(self.own.start);
        start..border.keys.end.min(self.own.end).max(start)
    }

    /// The whole's parameters for a call with these queries and keys.
    pub fn params(&self, whole: &DynParams, queries: &Range<usize>, keys: &Range<usize>) -> DynParams {
        whole.region(self.axis, Region::of(self.extent).queries(queries.clone()).keys(keys.clone()))
    }
}

impl Border {
    fn of(whole: &Axis, part: &Part, axis: usize, queries: Range<usize>) -> Self {
        let keys = keys_needed(whole, queries.clone());
        let within = |range: &Range<usize>| range.start.max(keys.start)..range.end.min(keys.end);
        let receives = part.receives.iter().map(|received| (received.rank, within(&received.tokens[axis])));
        let mut receives: Vec<_> = receives.filter(|(_, range)| !range.is_empty()).collect();
        receives.sort_by_key(|(_, range)| range.start);
        Border { queries, keys, receives }
    }
}

/// The largest range of own queries that need own keys alone, cut at multiples of `grid` where it does not end with the shard.
///
/// Fewer queries never need more keys, so either end is found by bisection.
fn interior(whole: &Axis, own: &Range<usize>, grid: usize) -> Range<usize> {
    let cuts = own.start / grid + 1..own.end.div_ceil(grid);
    let at = |cut: usize| cut.saturating_mul(grid);
    let needs_left = |start: usize| keys_needed(whole, start..own.end).start < own.start;
    let start = match needs_left(own.start) {
        false => own.start,
        true => match first(cuts.clone(), |cut| !needs_left(at(cut))) {
            Some(cut) => at(cut),
            None => return own.start..own.start,
        },
    };
    let needs_right = |end: usize| keys_needed(whole, start..end).end > own.end;
    let end = match needs_right(own.end) {
        false => own.end,
        true => match first(cuts, |cut| needs_right(at(cut).max(start))) {
            // The one before is the last that does not.
            Some(cut) => at(cut - 1).clamp(start, own.end),
            None => at(own.end.div_ceil(grid) - 1).clamp(start, own.end),
        },
    };
    if start < end { start..end } else { own.start..own.start }
}

/// The first of a range for which what is false before it is true.
fn first(range: Range<usize>, is: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut low, mut high) = (range.start, range.end);
    while low < high {
        let middle = low + (high - low) / 2;
        (low, high) = if is(middle) { (low, middle) } else { (middle + 1, high) };
    }
    (low < range.end).then_some(low)
}

#[cfg(test)]
mod tests {
    use natten_core::{ElementType, Inputs, Layout, Params, Problem};

    use super::*;

    /// Every cut of small axes: interiors are the largest there are, borders get what they lack, and from whom the split says.
    #[test]
    fn interiors_are_as_large_as_they_can_be_and_borders_get_what_they_lack() {
        let (mut interiors, mut pairs) = (0, 0);
        for extent in 1..=16_usize {
            for (window, dilation) in (1..=extent).flat_map(|w| (1..=extent / w).map(move |d| (w, d))) {
                for (stride, is_causal) in [(1, false), (1, true), (window.min(2), false), (window, true)] {
                    let params = Params::new([window]).dilation(dilation).stride(stride).is_causal(is_causal);
                    let layout = Layout::contiguous(&[1, extent, 1, 4]).unwrap();
                    let inputs = Inputs::new(layout, layout, layout);
                    let problem = Problem::new(&params.to_dyn(), &inputs, ElementType::F32).unwrap();
                    let axis = &problem.axes()[2];
                    for ends in
                        [vec![extent / 4, 3 * extent / 4, extent], vec![extent / 3, extent / 2, extent]]
                    {
                        let split = Split::at(&problem, 0, &ends).unwrap();
                        for (rank, grid) in (0..ends.len()).flat_map(|rank| [(rank, 1), (rank, 3)]) {
                            let shard = Shard::of(&split, rank, (0, axis), grid);
                            check(axis, &split, &shard, rank, grid);
                            interiors += usize::from(!shard.interior.is_empty());
                            pairs += usize::from(shard.borders.len() == 2);
                        }
                    }
                }
            }
        }
        assert!(interiors > 100 && pairs > 100, "{interiors} interiors, {pairs} between two borders");
    }

    fn check(axis: &Axis, split: &Split, shard: &Shard, rank: usize, grid: usize) {
        let (own, what) = (&shard.own, format!("rank {rank}, grid {grid}, {axis:?}: {shard:?}"));
        let is_own = |queries: &Range<usize>| {
            let needed = keys_needed(axis, queries.clone());
            needed.is_empty() || (needed.start >= own.start && needed.end <= own.end)
        };
        let is_cut = |at: usize| at.is_multiple_of(grid) || at == own.start || at == own.end;
        assert!(is_own(&shard.interior), "{what}");
        let mut queries: Vec<_> = shard.borders.iter().map(|border| border.queries.clone()).collect();
        queries.push(shard.interior.clone());
        queries.retain(|range| !range.is_empty());
        queries.sort_by_key(|range| range.start);
        assert!(queries.windows(2).all(|pair| pair[0].end == pair[1].start), "{what}");
        let covered =
            queries.first().map_or(own.start..own.start, |first| first.start..queries.last().unwrap().end);
        assert!(covered == *own || own.is_empty(), "{what}");
        assert!(queries.iter().all(|range| is_cut(range.start) && is_cut(range.end)), "{what}");
        // No larger range between cuts would do, unless none between two borders is possible.
        if !shard.interior.is_empty() {
            let Range { start, end } = shard.interior;
            assert!(
                (own.start..start)
                    .filter(|&at| is_cut(at))
                    .all(|at| !is_own(&(at..own.end)) || end < own.end),
                "{what}"
            );
            assert!((end + 1..=own.end).filter(|&at| is_cut(at)).all(|at| !is_own(&(start..at))), "{what}");
        }
        let part = &split.parts()[rank];
        let mut received: Vec<_> = part.receives.iter().map(|r| (r.rank, r.tokens[0].clone())).collect();
        received.sort_by_key(|(_, range)| range.start);
        let found: Vec<_> = shard.borders.iter().flat_map(|border| border.receives.clone()).collect();
        assert_eq!(found, received, "{what}");
        for border in &shard.borders {
            assert_eq!(border.keys, keys_needed(axis, border.queries.clone()), "{what}");
            let mut at = border.keys.start;
            for (_, range) in &border.receives {
                // Own keys fill what lies between.
                assert!(range.start == at || (at..range.start).all(|key| own.contains(&key)), "{what}");
                at = range.end;
            }
            assert!((at..border.keys.end).all(|key| own.contains(&key)), "{what}");
        }
    }
}
