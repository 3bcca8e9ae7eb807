//! All small axes and their parts, for tests.

use std::ops::Range;

use super::Axis;

/// Every whole axis of so many tokens.
pub(crate) fn axes(extent: usize) -> impl Iterator<Item = Axis> {
    let windows = (1..=extent).flat_map(move |d| (1..=extent / d).map(move |w| (d, w)));
    let strides = windows.flat_map(|(d, w)| (1..=w).map(move |s| (d, w, s)));
    strides.flat_map(move |(dilation, kernel_size, stride)| {
        let whole = Axis::whole(extent);
        [false, true].map(|is_causal| Axis { kernel_size, stride, dilation, is_causal, ..whole })
    })
}

/// Every range of so many tokens, empty ones too.
pub(crate) fn ranges(extent: usize) -> impl Iterator<Item = Range<usize>> {
    (0..=extent).flat_map(move |start| (start..=extent).map(move |end| start..end))
}

/// Every two ranges: of queries and of keys.
pub(crate) fn pairs_of_ranges(extent: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    ranges(extent).flat_map(move |queries| ranges(extent).map(move |keys| (queries.clone(), keys)))
}

/// The part of an axis with these queries and these keys.
pub(crate) fn part(axis: &Axis, queries: &Range<usize>, keys: &Range<usize>) -> Axis {
    let (query_start, query_extent) = (queries.start, queries.len());
    Axis { query_start, query_extent, key_start: keys.start, key_extent: keys.len(), ..*axis }
}

/// Parts of an axis as calls hold them: queries with the keys that they need, and with more of them.
pub(crate) fn parts(axis: &Axis) -> impl Iterator<Item = Axis> + use<> {
    let axis = *axis;
    ranges(axis.extent).flat_map(move |queries| {
        let needed = crate::region::keys_needed(&axis, queries.clone());
        let more = needed.start / 2..(needed.end + 2).min(axis.extent).max(needed.start / 2);
        [needed, more].map(|keys| part(&axis, &queries, &keys))
    })
}
