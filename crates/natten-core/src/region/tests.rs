//! Needs, their inverse and splits against walks over every pair.

use super::*;
use crate::element::ElementType;
use crate::layout::Layout;
use crate::operands::Inputs;
use crate::params::{AttentionParams, DynParams, Params};
use crate::window::small::{axes, pairs_of_ranges, ranges};

/// Tokens from the lowest to the highest that are asked for.
fn hull_of(tokens: impl Iterator<Item = usize>) -> Option<Range<usize>> {
    tokens.fold(None, |hull: Option<Range<usize>>, token| {
        let hull = hull.unwrap_or(token..token + 1);
        Some(hull.start.min(token)..hull.end.max(token + 1))
    })
}

/// Whole windows were held to an independent statement of the mask (window/tests.rs).
fn pairs(axis: &Axis) -> Vec<(usize, usize)> {
    let of_query = |q: usize| {
        let (g, i) = axis.place_of_query(q);
        axis.residue(g).window(i).map(move |p| (q, axis.first_key(g) + p * axis.dilation))
    };
    (0..axis.extent).flat_map(of_query).collect()
}

#[test]
fn needs_are_what_a_walk_finds() {
    for axis in (1..=13).flat_map(axes) {
        let pairs = pairs(&axis);
        for range in ranges(axis.extent) {
            let keys = hull_of(pairs.iter().filter(|(q, _)| range.contains(q)).map(|&(_, k)| k));
            let queries = hull_of(pairs.iter().filter(|(_, k)| range.contains(k)).map(|&(q, _)| q));
            let empty = range.start..range.start;
            assert_eq!(
                keys_needed(&axis, range.clone()),
                keys.unwrap_or(empty.clone()),
                "{axis:?} {range:?}"
            );
            assert_eq!(queries_seeing(&axis, range.clone()), queries.unwrap_or(empty), "{axis:?} {range:?}");
        }
    }
}

/// Ranges of tokens that there are not.
#[test]
fn tokens_beyond_the_whole_are_none() {
    for axis in (1..=6).flat_map(axes) {
        for (asked, is) in
            [(2..usize::MAX, 2.min(axis.extent)..axis.extent), (0..axis.extent + 3, 0..axis.extent)]
        {
            assert_eq!(keys_needed(&axis, asked.clone()), keys_needed(&axis, is.clone()), "{axis:?}");
            assert_eq!(queries_seeing(&axis, asked), queries_seeing(&axis, is), "{axis:?}");
        }
        #[expect(clippy::reversed_empty_ranges, reason = "it is what is asked")]
        for nothing in [usize::MAX - 1..usize::MAX, usize::MAX..0, 4..2] {
            let start = nothing.start.min(axis.extent);
            assert_eq!(keys_needed(&axis, nothing.clone()), start..start, "{axis:?}");
            assert_eq!(queries_seeing(&axis, nothing), start..start, "{axis:?}");
        }
    }
    // The queries of plain attention may be more than its keys.
    let plain = Axis::attention(9, 4);
    assert_eq!((keys_needed(&plain, 7..9), queries_seeing(&plain, 1..2)), (0..4, 0..9));
    let causal = Axis::causal_from_end(9, 4);
    assert_eq!((keys_needed(&causal, 7..9), queries_seeing(&causal, 6..7)), (0..9, 6..9));
    let params = Params::new([3]).to_dyn();
    assert!(params.axis(0, isize::MAX as usize).is_ok());
    let (axis, extent, limit) = (0, usize::MAX, isize::MAX as usize);
    assert_eq!(params.axis(0, extent), Err(RegionError::TooLong { axis, extent, limit }.into()));
}

/// Views that claim more than any memory has.
#[test]
fn bytes_beyond_counting_are_the_most_there_are() {
    let params = Params::new([3, 1]).to_dyn();
    for (batch, bytes) in [(1 << 60, u64::MAX), (0, 0)] {
        let layout = Layout::contiguous(&[batch, 4, 1, 1, 1]).unwrap();
        let inputs = Inputs::new(layout, layout, layout);
        let whole = Problem::new(&params, &inputs, ElementType::F64).unwrap();
        for axes in [&[0][..], &[0, 1]] {
            let split = Split::new(&whole, 4, axes).unwrap();
            let mut transfers = split.parts().iter().flat_map(|part| &part.receives);
            assert!(transfers.clone().count() > 0 && transfers.all(|transfer| transfer.bytes == bytes));
        }
    }
    let layout = Layout::contiguous(&[1 << 61, 3, 1, 1, 1]).unwrap();
    let whole = Problem::new(&params, &Inputs::new(layout, layout, layout), ElementType::F64).unwrap();
    assert!(Split::new(&whole, 3, &[0, 1]).is_ok());
}

#[test]
fn the_first_missing_key_is_named() {
    for axis in (1..=8).flat_map(axes) {
        let pairs = pairs(&axis);
        for (queries, keys) in pairs_of_ranges(axis.extent) {
            let missing =
                pairs.iter().filter(|(q, k)| queries.contains(q) && !keys.contains(k)).map(|&(q, k)| (k, q));
            let region = Region::of(axis.extent).queries(queries.clone()).keys(keys.clone());
            let found = missing_key(&region.part_of(axis));
            assert_eq!(found, missing.min(), "{axis:?} {queries:?} {keys:?}");
        }
    }
}

fn problem(shape: &[usize], params: &DynParams) -> Problem {
    let layout = Layout::contiguous(shape).unwrap();
    Problem::new(params, &Inputs::new(layout, layout, layout), ElementType::F32).unwrap()
}

/// Every token has one rank, every key that a rank needs is its own or arrives once, and both sides agree on it.
#[test]
fn splits_cover_the_whole_and_exchange_what_is_needed() {
    let windows = [
        Params::new([3, 5]).to_dyn(),
        Params::new([4, 3]).stride([3, 2]).is_causal([true, false]).to_dyn(),
        Params::new([3, 2]).dilation([2, 5]).stride([2, 1]).is_causal([false, true]).to_dyn(),
    ];
    for params in windows {
        let whole = problem(&[2, 17, 20, 2, 8], &params);
        for (ranks, axes) in (1..=7).flat_map(|n| [&[0][..], &[1], &[0, 1], &[1, 0]].map(|axes| (n, axes))) {
            let split = Split::new(&whole, ranks, axes).unwrap();
            assert_eq!(split.parts().len(), ranks);
            check_split(&whole, &params, &split);
        }
    }
}

fn check_split(whole: &Problem, params: &DynParams, split: &Split) {
    let axes = &whole.axes()[1..];
    let mut owner = vec![None; 17 * 20];
    for (rank, part) in split.parts().iter().enumerate() {
        for (x, y) in part.queries[0].clone().flat_map(|x| part.queries[1].clone().map(move |y| (x, y))) {
            assert_eq!(owner[x * 20 + y].replace(rank), None, "token {x} {y}");
        }
    }
    assert!(owner.iter().all(Option::is_some));
    let mut scores = 0.0;
    for (rank, part) in split.parts().iter().enumerate() {
        scores += part.scores;
        let mut has = vec![0; 17 * 20];
        let mine = |range: &[Range<usize>]| {
            let (xs, ys) = (range[0].clone(), range[1].clone());
            xs.flat_map(move |x| ys.clone().map(move |y| x * 20 + y))
        };
        mine(&part.queries).for_each(|token| has[token] += 1);
        for transfer in &part.receives {
            mine(&transfer.tokens).for_each(|token| {
                assert_eq!(owner[token], Some(transfer.rank), "token {token} to {rank}");
                has[token] += 1;
            });
            let tokens = transfer.tokens.iter().map(|range| range.len() as u64).product::<u64>();
            assert_eq!(transfer.bytes, tokens * 2 * 2 * 16 * 4);
            let sent = &split.parts()[transfer.rank].sends;
            let same = |other: &&Transfer| other.rank == rank && other.tokens == transfer.tokens;
            assert_eq!(sent.iter().filter(same).count(), 1, "{transfer:?} to {rank}");
        }
        mine(&part.keys).for_each(|token| assert_eq!(has[token], 1, "token {token} at {rank}"));
        let sent: usize = split.parts().iter().map(|part| part.sends.len()).sum();
        assert_eq!(sent, split.parts().iter().map(|part| part.receives.len()).sum::<usize>());
        // What a rank is to call is a problem, and would not be with a key less.
        let shape = |range: &[Range<usize>]| {
            let tokens = range.iter().map(ExactSizeIterator::len);
            Layout::contiguous(&[2].into_iter().chain(tokens).chain([2, 8]).collect::<Vec<_>>()).unwrap()
        };
        let [query, key] = [&part.queries, &part.keys].map(|range| shape(range));
        let inputs = Inputs::new(query, key, key);
        let called = Problem::new(&split.params(params, rank).unwrap(), &inputs, ElementType::F32).unwrap();
        assert_eq!(called.scores(), part.scores as u64 * 2 * 2);
        for (axis, of_axis) in axes.iter().enumerate() {
            if !part.queries.iter().any(|range| range.is_empty()) {
                assert_eq!(part.keys[axis], keys_needed(of_axis, part.queries[axis].clone()));
            }
        }
    }
    assert_eq!(scores as u64 * 2 * 2, whole.scores());
}

/// Parts that end where the caller says, empty ones among them, are parts like others.
#[test]
fn splits_end_where_the_caller_says() {
    let params = Params::new([4, 3]).stride([3, 1]).dilation([1, 2]).is_causal([true, false]).to_dyn();
    let whole = problem(&[2, 17, 20, 2, 8], &params);
    for ends in [&[17][..], &[1, 17], &[0, 5, 6, 6, 17], &[17, 17]] {
        let split = Split::at(&whole, 0, ends).unwrap();
        let found: Vec<usize> = split.parts().iter().map(|part| part.queries[0].end).collect();
        assert_eq!(found, ends);
        check_split(&whole, &params, &split);
    }
    for ends in [&[16][..], &[18], &[9, 5, 17]] {
        let error = SplitError::Ends { ends: ends.to_vec(), extent: 17 };
        assert_eq!(Split::at(&whole, 0, ends), Err(error));
    }
    assert_eq!(Split::at(&whole, 0, &[]), Err(SplitError::NoRanks));
    assert_eq!(Split::at(&whole, 2, &[17]), Err(SplitError::Axis { axis: 2, rank: 2 }));
}

/// A causal axis gives its first rank more queries, one that is open as many.
#[test]
fn work_is_shared_evenly() {
    let ends = |params: &DynParams, shape: &[usize], ranks: usize| {
        let split = Split::new(&problem(shape, params), ranks, &[0]).unwrap();
        split.parts().iter().map(|part| part.queries[0].end).collect::<Vec<_>>()
    };
    assert_eq!(ends(&Params::new([5]).to_dyn(), &[1, 100, 1, 8], 4), [25, 50, 75, 100]);
    assert_eq!(ends(&Params::new([100]).is_causal(true).to_dyn(), &[1, 100, 1, 8], 2), [71, 100]);
    // Blocks of 4 in residues of 3 stay whole, and ranks beyond them have nothing to do.
    assert_eq!(
        ends(&Params::new([5]).stride(4).dilation(3).to_dyn(), &[1, 30, 1, 8], 5),
        [12, 12, 24, 24, 30]
    );
    // Of four ranks on two axes, two by two exchange least.
    let square = problem(&[1, 64, 64, 1, 8], &Params::new([9, 9]).to_dyn());
    let split = Split::new(&square, 4, &[0, 1]).unwrap();
    assert_eq!(split.parts()[3].queries, [32..64, 32..64]);
    assert_eq!(split.parts()[3].receives.len(), 3);
}

#[test]
fn splits_that_make_no_sense_are_refused() {
    let params = Params::new([3, 3]).to_dyn();
    let whole = problem(&[1, 8, 8, 1, 4], &params);
    let refused = |ranks, axes: &[usize]| Split::new(&whole, ranks, axes).unwrap_err();
    assert_eq!(refused(0, &[0]), SplitError::NoRanks);
    let most = MAX_RANKS;
    assert_eq!(refused(usize::MAX, &[0]), SplitError::TooManyRanks { ranks: usize::MAX, max: most });
    assert_eq!(Split::new(&whole, most, &[0, 1]).unwrap().parts().len(), most);
    assert_eq!(refused(2, &[]), SplitError::AxisCount { found: 0 });
    assert_eq!(refused(2, &[2]), SplitError::Axis { axis: 2, rank: 2 });
    assert_eq!(refused(2, &[1, 1]), SplitError::Repeated { axis: 1 });
    let grid = Split::on_grid(&whole, 2, &[0], &[4, 0]).unwrap_err();
    assert_eq!(grid, SplitError::Grid { found: vec![4, 0], rank: 2 });
    let split = Split::new(&whole, 2, &[0]).unwrap();
    for rank in [2, usize::MAX] {
        assert_eq!(split.params(&params, rank), Err(SplitError::Rank { rank, ranks: 2 }));
    }
    let another = Params::new([3]).to_dyn();
    assert_eq!(split.params(&another, 0), Err(SplitError::Params { expected: 2, found: 1 }));
    let layout = Layout::contiguous(&[1, 8, 1, 4]).unwrap();
    let inputs = Inputs::new(layout, layout, layout);
    let plain = Problem::attention(&AttentionParams::new(), &inputs, ElementType::F32).unwrap();
    assert_eq!(Split::new(&plain, 2, &[0]), Err(SplitError::PlainAttention));
    let part = params.region(1, Region::of(8).queries(0..2).keys(0..3));
    let [query, key] = [2, 3].map(|n| Layout::contiguous(&[1, 8, n, 1, 4]).unwrap());
    let part = Problem::new(&part, &Inputs::new(query, key, key), ElementType::F32).unwrap();
    assert_eq!(Split::new(&part, 2, &[0]), Err(SplitError::NotWhole { axis: 1 }));
}

/// A part of a problem is the problem with that region, and what it does not hold is told.
#[test]
fn problems_have_parts() {
    let params = Params::new([3, 5]).to_dyn();
    let whole = problem(&[2, 8, 20, 2, 4], &params);
    let layout = |tokens: usize| Layout::contiguous(&[2, 8, tokens, 2, 4]).unwrap();
    let region = Region::of(20).queries(6..11).keys(4..14);
    let inputs = Inputs::new(layout(5), layout(10), layout(10));
    let expected = Problem::new(&params.region(1, region), &inputs, ElementType::F32).unwrap();
    let part = whole.part(1, 6..11, 4..14).unwrap();
    assert_eq!(part, expected);
    assert_eq!(whole.part(1, 0..20, 0..20).unwrap(), whole);
    let within = part.part(1, 8..9, 6..11).unwrap();
    assert_eq!((within.axes()[2].query_start, within.axes()[2].key_extent), (8, 5));
    let refused = |problem: &Problem, axis, queries, keys| problem.part(axis, queries, keys).unwrap_err();
    let not_held = RegionError::NotHeld { tensor: Role::Query, axis: 1, start: 5, end: 9, from: 6, to: 11 };
    assert_eq!(refused(&part, 1, 5..9, 4..14), not_held.into());
    let not_held = RegionError::NotHeld { tensor: Role::Key, axis: 1, start: 4, end: 15, from: 4, to: 14 };
    assert_eq!(refused(&part, 1, 6..9, 4..15), not_held.into());
    let missing = RegionError::KeyNotHeld { axis: 1, key: 4, query: 6, start: 5, end: 14 };
    assert_eq!(refused(&part, 1, 6..9, 5..14), missing.into());
    #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
    let reversed = refused(&whole, 0, 3..2, 0..8);
    assert_eq!(reversed, RegionError::Reversed { tensor: Role::Query, axis: 0, start: 3, end: 2 }.into());
    assert_eq!(refused(&whole, 2, 0..1, 0..1), ProblemError::NoSuchAxis { axis: 2, rank: 2 });
}
