//! Windows, inverses and residues of all small axes against an independent statement of the mask.

use super::small::{axes, pairs_of_ranges, part, ranges};
use super::*;

/// An independent statement of the mask: of the `w` consecutive members of the query's residue, those whose
/// part left of the leader is closest to `w div 2`; causal ones end at the query and start `w` before the
/// last query of its block.
fn sees(axis: &Axis, q: usize, k: usize) -> bool {
    let (w, s, d) = (axis.kernel_size as i64, axis.stride as i64, axis.dilation);
    if q % d != k % d {
        return false;
    }
    let members: Vec<usize> = (0..axis.extent).filter(|x| x % d == q % d).collect();
    let n = members.len() as i64;
    let at = members.iter().position(|&x| x == q).unwrap() as i64;
    let target = members.iter().position(|&x| x == k).unwrap() as i64;
    let block: Vec<i64> = (0..n).filter(|p| p / s == at / s).collect();
    if axis.is_causal {
        let last = (at / s * s + s - 1).min(n - 1);
        return target <= at && target > last - w;
    }
    let centre = (block[0] + s / 2).min(n - 1);
    let start = (0..=n - w).min_by_key(|&start| (centre - start - w / 2).abs()).unwrap();
    (start..start + w).contains(&target)
}

#[test]
fn windows_and_inverses_match_brute_force() {
    let mut checked = 0usize;
    for axis in (1..=24).flat_map(axes) {
        for q in 0..axis.extent {
            let (g, i) = axis.place_of_query(q);
            let window = axis.residue(g).window(i);
            assert!(window.start < window.end && window.end <= axis.residue(g).key_len, "{axis:?} query {q}");
        }
        checked += check_axis(&axis, &|q, k| sees(&axis, q, k));
    }
    assert!(checked > 500_000, "only {checked} pairs were checked");
}

/// Any queries and any keys of every small axis, those included that the queries do not need or that would need others.
#[test]
fn parts_see_what_the_whole_sees() {
    let mut checked = 0usize;
    for axis in (1..=8).flat_map(axes) {
        let table: Vec<Vec<bool>> =
            (0..axis.extent).map(|q| (0..axis.extent).map(|k| sees(&axis, q, k)).collect()).collect();
        for (queries, keys) in pairs_of_ranges(axis.extent) {
            checked += check_axis(&part(&axis, &queries, &keys), &|q, k| table[q][k]);
        }
    }
    assert!(checked > 2_000_000, "only {checked} pairs were checked");
}

/// A part sees the same in the shortened whole, which is no longer than the keys and the queries make it.
#[test]
fn shortened_axes_see_the_same() {
    let mut shorter = 0usize;
    for axis in (1..=13).flat_map(axes) {
        assert_eq!(axis.shortened(), axis);
        for queries in ranges(axis.extent) {
            let needed = crate::region::keys_needed(&axis, queries.clone());
            for keys in [needed, 0..axis.extent] {
                let part = part(&axis, &queries, &keys);
                let short = part.shortened();
                assert_eq!(short.shortened(), short, "{part:?}");
                assert_eq!([short.query_extent, short.key_extent], [part.query_extent, part.key_extent]);
                shorter += usize::from(short != part);
                for (residue, of_short) in (0..axis.dilation).map(|g| (part.residue(g), short.residue(g))) {
                    let lens = |of: &Residue| [of.query_len, of.key_len];
                    assert_eq!(lens(&residue), lens(&of_short), "{part:?}");
                    for i in 0..residue.query_len {
                        assert_eq!(residue.window(i), of_short.window(i), "{part:?} query {i}");
                    }
                    for k in 0..residue.key_len {
                        assert_eq!(residue.inverse_window(k), of_short.inverse_window(k), "{part:?} key {k}");
                    }
                }
            }
        }
    }
    assert!(shorter > 50_000, "only {shorter} were shortened");
    let far = Axis { query_start: 3 << 50, key_start: 3 << 50, kernel_size: 7, ..Axis::whole(usize::MAX) };
    let near = Axis { query_extent: 4, key_extent: 9, is_causal: true, ..far }.shortened();
    assert!(near.extent < 30, "{near:?}");
}

/// Holds windows and inverses, and where their tokens are, to `sees` of tokens of the whole.
fn check_axis(axis: &Axis, sees: &dyn Fn(usize, usize) -> bool) -> usize {
    for q in 0..axis.query_extent {
        let (g, i) = axis.place_of_query(q);
        assert_eq!(q, axis.first_query(g) + i * axis.dilation, "{axis:?} query {q}");
        assert_eq!((axis.query_start + q) % axis.dilation, g, "{axis:?} query {q}");
        let residue = axis.residue(g);
        let window = residue.window(i);
        assert!(window.start <= window.end && window.end <= residue.key_len, "{axis:?} query {q}");
        for k in 0..axis.key_extent {
            let (of_key, position) = axis.place_of_key(k);
            assert_eq!(k, axis.first_key(of_key) + position * axis.dilation, "{axis:?} key {k}");
            let expected = sees(axis.query_start + q, axis.key_start + k);
            assert_eq!(of_key == g && window.contains(&position), expected, "{axis:?} query {q} key {k}");
            if of_key == g {
                let inverse = residue.inverse_window(position);
                assert!(inverse.start <= inverse.end && inverse.end <= residue.query_len, "{axis:?} key {k}");
                assert_eq!(inverse.contains(&i), expected, "{axis:?} inverse, query {q} key {k}");
            }
        }
    }
    axis.query_extent * axis.key_extent
}

/// Before the sliding queries windows start alike, after them too, and between them windows move along; ends of causal
/// windows rise where they are said to.
#[test]
fn windows_slide_between_the_ends() {
    for axis in (1..=30).flat_map(axes).filter(|axis| axis.dilation == 1) {
        check_slide(&axis);
        let len = axis.extent;
        let starts = [0, 1, len / 3, len / 2, len.saturating_sub(2)];
        for queries in
            starts.into_iter().flat_map(|start| [start..len, start..(start + len / 2 + 1).min(len)])
        {
            if !queries.is_empty() {
                let needed = crate::region::keys_needed(&axis, queries.clone());
                check_slide(&part(&axis, &queries, &needed));
                check_slide(&part(&axis, &queries, &(needed.start / 2..len)));
            }
        }
    }
    let line = Axis { kernel_size: 7, ..Axis::whole(100) };
    assert_eq!(line.residue(0).sliding(), 3..97);
    assert_eq!(part(&line, &(40..99), &(30..100)).residue(0).sliding(), 0..57);
    assert_eq!(Axis { is_causal: true, ..line }.residue(0).sliding(), 6..100);
}

fn check_slide(axis: &Axis) {
    let residue = axis.residue(0);
    let (sliding, rising, len) = (residue.sliding(), residue.rising(), residue.query_len);
    assert!(sliding.end <= len, "{residue:?}");
    for i in 0..len {
        let window = residue.window(i);
        if i < sliding.start {
            assert_eq!(window.start, residue.window(0).start, "{residue:?} query {i}");
        } else if i >= sliding.end {
            assert_eq!(window.start, residue.window(len - 1).start, "{residue:?} query {i}");
        } else if i + residue.stride < sliding.end {
            let next = residue.window(i + residue.stride);
            let moved = window.start + residue.stride..window.end + residue.stride;
            assert_eq!(next, moved, "{residue:?} query {i}");
        }
        if residue.is_causal && i > rising.start {
            let more = residue.window(i).end - residue.window(i - 1).end;
            assert_eq!(more, usize::from(i < rising.end), "{residue:?} query {i}");
        }
        let next = residue.next_block(i);
        assert!(
            next > i && (residue.query_start + next).is_multiple_of(residue.stride),
            "{residue:?} query {i}"
        );
    }
}

#[test]
fn plain_attention_is_a_window_of_its_own() {
    for (queries, keys) in (0..9).flat_map(|queries| (0..9).map(move |keys| (queries, keys))) {
        let open = Axis::attention(queries, keys);
        let [from_start, from_end] =
            [Axis::causal_from_start, Axis::causal_from_end].map(|axis| axis(queries, keys));
        assert_eq!(from_end.query_offset(), keys as isize - queries as isize);
        assert!(open.is_full() && !open.residue(0).is_causal);
        for axis in [open, from_start, from_end] {
            let sees = |queries: usize, keys: usize, i: usize, j: usize| match axis {
                axis if !axis.is_causal => true,
                axis if axis == from_end && from_end != from_start => j + queries <= i + keys,
                _ => j <= i,
            };
            let residue = axis.residue(0);
            for i in 0..queries {
                let window = residue.window(i);
                let expected = (0..keys).filter(|&j| sees(queries, keys, i, j)).count();
                assert_eq!(window, 0..expected, "{axis:?} query {i}");
            }
            for j in 0..keys {
                let start = (0..queries).filter(|&i| !sees(queries, keys, i, j)).count();
                assert_eq!(residue.inverse_window(j), start..queries, "{axis:?} key {j}");
            }
            if axis.is_causal {
                let rises =
                    |i: usize| residue.window(i).end > if i > 0 { residue.window(i - 1).end } else { 0 };
                let rising = residue.rising();
                let first = rising.start;
                assert!((first + 1..queries).all(|i| rising.contains(&i) == rises(i)), "{axis:?} {rising:?}");
            }
        }
    }
}

#[test]
fn residue_kinds_cover_the_axis() {
    for axis in
        (1..=9).flat_map(|extent| (1..=extent).map(move |d| Axis { dilation: d, ..Axis::whole(extent) }))
    {
        assert!(axis.residue_runs().count() <= 2, "{axis:?}");
        for (queries, keys) in pairs_of_ranges(axis.extent) {
            let part = part(&axis, &queries, &keys);
            let mut next = 0;
            for run in part.residue_runs() {
                assert_eq!(run.start, next, "{part:?}");
                assert!(run.clone().all(|g| part.residue(g) == part.residue(run.start)), "{part:?} {run:?}");
                next = run.end;
            }
            assert_eq!(next, axis.dilation, "{part:?}");
            let total = |f: fn(&Residue) -> usize| {
                part.residue_kinds().map(|(r, count)| f(&r) * count).sum::<usize>()
            };
            assert_eq!(total(|r| r.query_len), queries.len(), "{part:?}");
            assert_eq!(total(|r| r.key_len), keys.len(), "{part:?}");
        }
    }
}
