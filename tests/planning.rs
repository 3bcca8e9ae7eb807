//! Tiles of a plan: they cover every neighbour, full ones hold nothing else, and the counts are those of a walk.

use natten::plan::{Coverage, KeyStart, TileCounts, Tiling, rank_tilings, tile_boxes};
use natten::window::{Axis, Residue};
use natten::{ElementType, Problem};
use natten_tests::Spec;
use natten_tests::dense::visible;
use natten_tests::suites::list;

const STARTS: [KeyStart; 2] = [KeyStart::Aligned, KeyStart::Dynamic];

/// Each query tile of a residue with its key tiles.
fn tiles(
    residue: &Residue,
    query_tile: usize,
    key_tile: usize,
    start: KeyStart,
    mut visit: impl FnMut(std::ops::Range<usize>, Vec<(std::ops::Range<usize>, Coverage)>),
) {
    for first in (0..residue.query_len).step_by(query_tile) {
        let queries = first..(first + query_tile).min(residue.query_len);
        visit(queries.clone(), residue.key_tiles(queries, key_tile, start).collect());
    }
}

fn residues(axis: &Axis) -> impl Iterator<Item = Residue> + '_ {
    (0..axis.dilation).map(|g| axis.residue(g)).filter(|residue| residue.query_len > 0)
}

fn axes() -> Vec<Axis> {
    let specs = [list::windows(), list::attention(), list::random(91, 150)].concat();
    let problems = specs.iter().map(|spec| spec.problem(ElementType::F32));
    problems.flat_map(|problem| problem.sequences().flat_map(|s| s.axes).collect::<Vec<_>>()).collect()
}

#[test]
fn key_tiles_cover_every_neighbour_once_and_full_ones_hold_nothing_else() {
    let (mut full, mut partial) = (0, 0);
    for axis in axes() {
        for residue in residues(&axis) {
            for (q, k) in [(1, 1), (4, 8), (8, 4), (16, 16), (3, 5)] {
                for start in STARTS {
                    tiles(&residue, q, k, start, |queries, tiles| {
                        for query in queries.clone() {
                            for key in residue.window(query) {
                                let holding = tiles.iter().filter(|(range, _)| range.contains(&key)).count();
                                assert_eq!(holding, 1, "{axis:?} {start:?}: query {query}, key {key}");
                            }
                        }
                        for (keys, coverage) in tiles {
                            check_coverage(&residue, queries.clone(), keys, coverage);
                            full += usize::from(coverage == Coverage::Full);
                            partial += usize::from(coverage == Coverage::Partial);
                        }
                    });
                }
            }
        }
    }
    assert!(full > 1000 && partial > 1000, "{full} full, {partial} partial");
}

fn check_coverage(
    residue: &Residue,
    queries: std::ops::Range<usize>,
    keys: std::ops::Range<usize>,
    coverage: Coverage,
) {
    let pairs = queries.clone().flat_map(|q| keys.clone().map(move |k| (q, k)));
    let seen = pairs.filter(|&(q, k)| residue.window(q).contains(&k)).count();
    let expected = match seen {
        0 => Coverage::Empty,
        seen if seen == queries.len() * keys.len() => Coverage::Full,
        _ => Coverage::Partial,
    };
    assert_eq!(coverage, expected, "{residue:?} queries {queries:?} keys {keys:?}");
    assert_ne!(coverage, Coverage::Empty, "a tile for nothing: {residue:?} {queries:?} {keys:?}");
}

/// The queries that see a box of keys are a box: what a backward by key tiles relies on.
#[test]
fn queries_of_keys_are_those_that_see_them() {
    for axis in axes() {
        for residue in residues(&axis) {
            for first in 0..residue.key_len {
                for len in [1, 2, 5] {
                    let keys = first..(first + len).min(residue.key_len);
                    let claimed = residue.queries_of(keys.clone());
                    for query in 0..residue.query_len {
                        let window = residue.window(query);
                        let sees = window.start < keys.end && keys.start < window.end;
                        assert_eq!(claimed.contains(&query), sees, "{axis:?} keys {keys:?} query {query}");
                    }
                }
            }
        }
    }
}

#[test]
fn scores_count_the_visible_pairs() {
    for spec in
        [list::windows(), list::shapes(), list::attention(), list::random(92, 100), list::empty()].concat()
    {
        let problem = spec.problem(ElementType::F32);
        let pairs: usize = visible(&problem).iter().map(Vec::len).sum();
        let expected = pairs * problem.batch() * problem.heads();
        assert_eq!(problem.scores(), expected as u64, "{spec:?}");
        let tiling = Tiling { query_tile: [1, 2, 8], key_tile: [2, 2, 4], key_start: KeyStart::Dynamic };
        let counts = TileCounts::of(&problem, &tiling);
        assert_eq!(counts.scores, pairs as u64, "{spec:?}");
        assert!(
            counts.issued >= counts.scores && counts.full_tiles <= counts.key_tiles,
            "{spec:?}: {counts:?}"
        );
    }
}

fn problem(shape: &[usize], kernel: &[usize]) -> Problem {
    Spec::na(shape, kernel).problem(ElementType::F32)
}

#[test]
fn every_problem_has_a_tiling() {
    for (shape, kernel) in [
        (&[1][..], &[1][..]),
        (&[1, 1, 1], &[1, 1, 1]),
        (&[1, 9], &[1, 3]),
        (&[9, 1], &[3, 1]),
        (&[4, 1, 1], &[2, 1, 1]),
        (&[5, 6, 7], &[3, 3, 3]),
    ] {
        let problem = problem(shape, kernel);
        for (q, k) in [(1, 1), (64, 32), (128, 128)] {
            let ranked = rank_tilings(&problem, q, k, KeyStart::Dynamic);
            assert!(!ranked.is_empty(), "{shape:?} has no tiling of {q} x {k}");
            for (tiling, _) in &ranked {
                assert_eq!(tiling.query_tile.iter().product::<usize>(), q);
                assert_eq!(tiling.key_tile.iter().product::<usize>(), k);
            }
            let issued: Vec<u64> = ranked.iter().map(|(_, counts)| counts.issued).collect();
            assert!(issued.is_sorted(), "{shape:?}: the best comes first");
        }
    }
}

#[test]
fn tile_boxes_leave_axes_of_one_token_alone() {
    for sides in tile_boxes(16, problem(&[5, 1, 6], &[3, 1, 3]).axes()) {
        assert_eq!(sides[1], 1, "{sides:?}");
    }
}
