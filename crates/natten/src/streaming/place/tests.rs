//! Where a cache is in its stream, for all small axes: nothing that a query needs is left out, and nothing more is kept.

use super::*;
use natten_core::{AxisParams, KernelSize, KernelSizePolicy};

fn params(window: usize, stride: usize, dilation: usize) -> DynParams {
    let kernel_size = KernelSize::Tokens(window);
    let axis = AxisParams { kernel_size, stride, dilation, is_causal: true };
    DynParams::new(&[axis], None, KernelSizePolicy::Exact)
}

/// Every axis of few tokens: window, stride, dilation.
fn axes() -> impl Iterator<Item = [usize; 3]> {
    (1..6).flat_map(|w| (1..=w).flat_map(move |s| (1..5).map(move |d| [w, s, d])))
}

/// The first key that some of the queries need, by the definition, with tokens of the stream.
fn first_key([w, s, d]: [usize; 3], length: Option<usize>, queries: Range<usize>) -> usize {
    let first = queries.clone().map(|x| {
        let (g, i) = (x % d, x / d);
        let leader = i / s * s + s - 1;
        let last = length.map_or(usize::MAX, |length| length / d + usize::from(g < length % d) - 1);
        (leader.min(last) + 1).saturating_sub(w) * d + g
    });
    first.min().unwrap_or(queries.start)
}

/// `(w - 1) d` frames are enough before any append, and some append needs as many; with the stride said, only some do.
#[test]
fn the_history_is_what_is_needed_and_no_more() {
    for axis in axes() {
        let [w, s, d] = axis;
        for length in (w * d..w * d + 3 * s * d + 2).map(Some).chain([None]) {
            let end = length.unwrap_or(6 * w * d);
            let appends =
                (0..end).flat_map(|start| (start..=end.min(start + 2 * d + 1)).map(move |end| start..end));
            let needed =
                |queries: Range<usize>| queries.start.saturating_sub(first_key(axis, length, queries));
            let most = appends.map(needed).max().expect("an append");
            let stated = length.map_or(Length::Unbounded, Length::Tokens);
            let place = Place::new(&params(w, s, d), stated).expect("a stream");
            assert_eq!(place.history(), (w - 1) * d);
            assert_eq!(most, place.history(), "{axis:?} of {length:?}");
        }
    }
}

/// Moved numbers: the region of every step of every stream has the keys and the windows that the stream itself has there.
#[test]
fn regions_are_the_streams() {
    for axis in axes() {
        let [w, s, d] = axis;
        for (length, step) in
            (w * d..w * d + 2 * s * d + 3).map(Some).chain([None]).flat_map(|l| [(l, 1), (l, 3)])
        {
            let stated = length.map_or(Length::Unbounded, Length::Tokens);
            let mut place = Place::new(&params(w, s, d), stated).expect("a stream");
            let end = length.unwrap_or(5 * w * s * d + 7);
            let mut start = 0;
            while start < end {
                let queries = start..end.min(start + step);
                place = place.after(queries.len()).expect("frames of the stream");
                assert_eq!(place.frames(), queries.end as u64);
                let (region, origin) = (place.region(), place.origin as usize);
                let moved = |range: Range<usize>| range.start + origin..range.end + origin;
                let what = format!("{axis:?} of {length:?} at {queries:?}: {place:?}");
                assert_eq!(moved(region.query_range()), queries, "{what}");
                let keys = first_key(axis, length, queries.clone())..queries.end;
                assert_eq!(moved(region.key_range()), keys, "{what}");
                let whole = params(w, s, d).axis(0, region.extent()).expect("the window fits");
                for query in region.query_range() {
                    let residue = whole.residue(query % d);
                    let first = residue.window(query / d).start * d + query % d;
                    let x = query + origin;
                    assert_eq!(first + origin, first_key(axis, length, x..x + 1), "{what}, query {x}");
                }
                start = queries.end;
            }
            assert!(place.newest().end <= w * d + s * d + step, "{place:?}");
        }
    }
}

/// Far from the beginning the regions of steps repeat every `s d` frames.
#[test]
fn regions_repeat() {
    for [w, s, d] in axes() {
        for length in [Length::Unbounded, Length::Tokens(1000)] {
            let mut place = Place::new(&params(w, s, d), length).expect("a stream");
            let mut regions = Vec::new();
            for _ in 0..300 {
                place = place.after(1).expect("frames of the stream");
                regions.push(place.region());
            }
            let settled = w * d + s * d;
            assert_eq!(regions[settled..300 - s * d], regions[settled + s * d..], "{w} {s} {d}");
        }
    }
}

/// The count of frames ends before the stream does, and the windows do not care.
#[test]
fn a_stream_outlives_its_count() {
    let mut place = Place::new(&params(5, 2, 3), Length::Unbounded).expect("a stream");
    place = (0..100).fold(place, |place, _| place.after(4).expect("no end"));
    let late = Place { origin: u64::MAX - 7, ..place };
    let (late, place) = [late, place].map(|place| place.after(4).expect("no end")).into();
    assert_eq!((late.frames(), late.region()), (u64::MAX, place.region()));
}

#[test]
fn what_no_stream_has() {
    let endless = |params: DynParams| Place::new(&params, Length::Unbounded);
    let axis = |kernel_size| AxisParams { kernel_size, is_causal: true, ..AxisParams::new(1) };
    let whole = DynParams::new(&[axis(KernelSize::Whole)], None, KernelSizePolicy::Exact);
    assert!(matches!(endless(whole), Err(StreamError::EndlessWindow)));
    let longest = DynParams::new(&[axis(KernelSize::Tokens(usize::MAX))], None, KernelSizePolicy::Clamp);
    assert!(matches!(endless(longest), Err(StreamError::EndlessWindow)));
    assert!(matches!(Place::new(&whole, Length::Tokens(9)), Ok(place) if place.history() == 8));
    let forward = DynParams::new(&[AxisParams::new(3)], None, KernelSizePolicy::Exact);
    assert!(matches!(endless(forward), Err(StreamError::NotCausal)));
    let tooth = Place::new(&params(4, 1, 3), Length::Tokens(11));
    assert_eq!(
        tooth.expect_err("12 frames").to_string(),
        "axis 0: kernel_size 4 x dilation 3 exceeds the token extent 11"
    );
}
