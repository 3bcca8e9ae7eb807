//! Tile counts against a walk over every pair, and against the figures published for NATTEN's simulator.

use super::*;
use crate::element::ElementType;
use crate::layout::Layout;
use crate::operands::Inputs;
use crate::params::{AttentionParams, AxisParams, DynParams, KernelSize, KernelSizePolicy, Params};
use crate::region::Region;
use crate::window::small::{axes, pairs_of_ranges, part, parts};

fn problem(extents: &[usize], windows: &[usize], strides: &[usize]) -> Problem {
    let axes: Vec<AxisParams> = windows
        .iter()
        .zip(strides)
        .map(|(&w, &stride)| AxisParams {
            kernel_size: KernelSize::Tokens(w),
            stride,
            dilation: 1,
            is_causal: false,
        })
        .collect();
    let shape: Vec<usize> = [1].iter().chain(extents).chain(&[1, 64]).copied().collect();
    let layout = Layout::contiguous(&shape).unwrap();
    let params = DynParams::new(&axes, None, KernelSizePolicy::Exact);
    Problem::new(&params, &Inputs::new(layout, layout, layout), ElementType::F32).unwrap()
}

fn boxed(sides: &[usize]) -> [usize; 3] {
    let mut padded = [1; 3];
    padded[3 - sides.len()..].copy_from_slice(sides);
    padded
}

struct Row {
    extents: &'static [usize],
    window: &'static [usize],
    stride: &'static [usize],
    query_tile: &'static [usize],
    key_tile: &'static [usize],
    aligned: Expected,
    dynamic: Option<Expected>,
}

/// Mean and worst key tiles per query tile, share of full ones, issued over useful; as printed, so to half a
/// unit of the last digit given.
#[derive(Clone, Copy)]
struct Expected(f64, u64, f64, f64);

fn check(row: &Row, start: KeyStart, expected: Expected) {
    let problem = problem(row.extents, row.window, row.stride);
    let tiling =
        Tiling { query_tile: boxed(row.query_tile), key_tile: boxed(row.key_tile), key_start: start };
    let counts = TileCounts::of(&problem, &tiling);
    let what = format!("{:?} {:?} {:?} {tiling:?}: {counts:?}", row.extents, row.window, row.stride);
    assert!((counts.mean() - expected.0).abs() <= 0.0501, "mean {}: {what}", counts.mean());
    assert_eq!(counts.worst, expected.1, "worst: {what}");
    assert!((counts.full_share() - expected.2).abs() <= 0.00501, "full {}: {what}", counts.full_share());
    let ratio = counts.issued_over_useful();
    let half_a_digit = if expected.3 < 10.0 { 0.00501 } else { 0.0501 };
    assert!((ratio - expected.3).abs() <= half_a_digit, "issued/useful {ratio}: {what}");
}

/// The counts published for Hunyuan Video, FLUX and Cosmos windows, and the classic 2-D ones.
#[test]
fn published_tile_counts() {
    const W16: &[usize] = &[16, 16];
    const SQUARE: &[usize] = &[64, 64];
    const VIDEO: &[usize] = &[30, 48, 80];
    const COSMOS: &[usize] = &[16, 44, 80];
    let row = |extents, window, stride, query_tile, key_tile, aligned, dynamic| Row {
        extents,
        window,
        stride,
        query_tile,
        key_tile,
        aligned,
        dynamic,
    };
    let rows = [
        row(&[32768], &[2048], &[1], &[128], &[128], Expected(16.9, 17, 0.89, 1.06), None),
        row(&[32768], &[2048], &[1], &[256], &[128], Expected(17.9, 18, 0.79, 1.12), None),
        row(&[32768], &[2048], &[2048], &[128], &[128], Expected(16.0, 16, 1.0, 1.0), None),
        row(
            SQUARE,
            W16,
            &[1, 1],
            &[16, 8],
            &[16, 8],
            Expected(6.9, 9, 0.0, 3.44),
            Some(Expected(5.5, 6, 0.0, 2.75)),
        ),
        row(
            SQUARE,
            W16,
            &[1, 1],
            &[8, 16],
            &[16, 8],
            Expected(6.1, 8, 0.02, 3.06),
            Some(Expected(6.1, 8, 0.02, 3.06)),
        ),
        row(SQUARE, W16, &[1, 1], &[8, 8], &[8, 8], Expected(7.6, 9, 0.21, 1.89), None),
        row(
            SQUARE,
            W16,
            &[1, 1],
            &[16, 16],
            &[16, 8],
            Expected(8.8, 12, 0.0, 4.38),
            Some(Expected(7.0, 8, 0.0, 3.50)),
        ),
        row(
            SQUARE,
            W16,
            &[8, 8],
            &[8, 8],
            &[8, 8],
            Expected(7.6, 9, 0.21, 1.89),
            Some(Expected(4.0, 4, 1.0, 1.0)),
        ),
        row(
            SQUARE,
            W16,
            &[8, 8],
            &[16, 8],
            &[8, 16],
            Expected(6.1, 8, 0.02, 3.06),
            Some(Expected(3.0, 3, 0.33, 1.50)),
        ),
        row(SQUARE, W16, &[16, 16], &[16, 8], &[16, 8], Expected(2.0, 2, 1.0, 1.0), None),
        row(
            &[256, 256],
            &[80, 80],
            &[1, 1],
            &[16, 8],
            &[16, 8],
            Expected(68.1, 77, 0.50, 1.36),
            Some(Expected(61.5, 66, 0.64, 1.23)),
        ),
        row(
            &[256, 256],
            &[80, 80],
            &[1, 1],
            &[16, 16],
            &[16, 8],
            Expected(72.5, 84, 0.43, 1.45),
            Some(Expected(65.4, 72, 0.56, 1.31)),
        ),
        row(&[256, 256], &[80, 80], &[16, 16], &[16, 8], &[16, 8], Expected(50.0, 50, 1.0, 1.0), None),
        row(
            VIDEO,
            &[18, 24, 24],
            &[1, 1, 1],
            &[2, 8, 8],
            &[2, 8, 8],
            Expected(165.4, 250, 0.17, 2.04),
            Some(Expected(131.0, 160, 0.34, 1.62)),
        ),
        row(
            VIDEO,
            &[18, 24, 24],
            &[1, 1, 1],
            &[4, 8, 8],
            &[2, 8, 8],
            Expected(171.6, 275, 0.15, 2.26),
            Some(Expected(135.8, 176, 0.31, 1.79)),
        ),
        row(VIDEO, &[18, 24, 24], &[1, 8, 8], &[2, 8, 8], &[2, 8, 8], Expected(84.6, 90, 0.91, 1.04), None),
        row(VIDEO, &[18, 24, 24], &[16, 8, 8], &[2, 8, 8], &[2, 8, 8], Expected(81.0, 81, 1.0, 1.0), None),
        row(VIDEO, &[18, 24, 24], &[16, 8, 8], &[4, 8, 8], &[2, 8, 8], Expected(81.0, 81, 1.0, 1.07), None),
        row(
            VIDEO,
            &[30, 40, 40],
            &[1, 1, 1],
            &[2, 8, 8],
            &[2, 8, 8],
            Expected(480.0, 630, 0.58, 1.28),
            Some(Expected(448.0, 540, 0.69, 1.19)),
        ),
        row(
            COSMOS,
            &[16, 32, 48],
            &[1, 1, 1],
            &[4, 4, 8],
            &[4, 4, 8],
            Expected(211.8, 252, 0.82, 1.10),
            None,
        ),
        row(
            COSMOS,
            &[16, 32, 48],
            &[1, 1, 1],
            &[16, 2, 4],
            &[16, 2, 4],
            Expected(201.8, 221, 0.90, 1.05),
            None,
        ),
        row(
            COSMOS,
            &[16, 24, 16],
            &[1, 1, 1],
            &[2, 8, 8],
            &[2, 8, 8],
            Expected(93.3, 120, 0.19, 2.12),
            Some(Expected(78.4, 96, 0.31, 1.78)),
        ),
        row(
            &[56, 56],
            &[7, 7],
            &[1, 1],
            &[8, 8],
            &[8, 8],
            Expected(7.4, 9, 0.0, 9.62),
            Some(Expected(4.0, 4, 0.0, 5.22)),
        ),
        row(
            &[56, 56],
            &[7, 7],
            &[1, 1],
            &[16, 8],
            &[16, 8],
            Expected(6.8, 9, 0.0, 20.3),
            // Published as 10.5, rounded from 10.45: it is 3.5 * 128^2 * 28 tiles / (56^2 * 49) = 10.449.
            Some(Expected(3.5, 4, 0.0, 10.45)),
        ),
    ];
    for row in &rows {
        check(row, KeyStart::Aligned, row.aligned);
        if let Some(dynamic) = row.dynamic {
            check(row, KeyStart::Dynamic, dynamic);
        }
    }
}

/// Every count against a walk over tiles, and every tile against a walk over its pairs.
#[test]
fn counts_match_a_walk() {
    for extent in [1, 2, 5, 9, 14, 17] {
        for dilation in 1..=3.min(extent) {
            for w in 1..=extent / dilation {
                for s in 1..=w {
                    for is_causal in [false, true] {
                        let whole = Axis::whole(extent);
                        let axis = Axis { kernel_size: w, stride: s, dilation, is_causal, ..whole };
                        for (query_tile, key_tile) in [(1, 1), (4, 2), (2, 4), (8, 8)] {
                            for start in [KeyStart::Aligned, KeyStart::Dynamic] {
                                walk(&axis, query_tile, key_tile, start);
                            }
                        }
                    }
                }
            }
        }
    }
    for (query_extent, key_extent) in [(1, 9), (9, 1), (7, 12), (12, 7), (5, 0), (20, 3)] {
        let axis = Axis::causal_from_end(query_extent, key_extent);
        for start in [KeyStart::Aligned, KeyStart::Dynamic] {
            walk(&axis, 4, 2, start);
            walk(&axis, 2, 4, start);
        }
    }
}

/// Of parts too, and visible pairs whatever keys a part holds.
#[test]
fn counts_of_parts_match_a_walk() {
    for (turn, axis) in (1..=11).flat_map(axes).flat_map(|axis| parts(&axis)).enumerate() {
        let (query_tile, key_tile) = [(1, 1), (4, 2), (2, 4), (8, 8), (3, 3)][turn % 5];
        walk(&axis, query_tile, key_tile, [KeyStart::Aligned, KeyStart::Dynamic][turn / 5 % 2]);
    }
    for axis in (1..=8).flat_map(axes) {
        for (queries, keys) in pairs_of_ranges(axis.extent) {
            for (residue, _) in part(&axis, &queries, &keys).residue_kinds() {
                let visible: usize = (0..residue.query_len).map(|i| residue.window(i).len()).sum();
                assert_eq!(residue.scores(), visible as u64, "{residue:?}");
            }
        }
    }
}

fn walk(axis: &Axis, query_tile: usize, key_tile: usize, start: KeyStart) {
    let mut expected = AxisCounts::default();
    for g in 0..axis.dilation {
        let residue = axis.residue(g);
        for q in (0..residue.query_len).step_by(query_tile) {
            let queries = q..(q + query_tile).min(residue.query_len);
            let mut tiles = 0;
            let mut visible_in_tiles = 0;
            for (keys, coverage) in residue.key_tiles(queries.clone(), key_tile, start) {
                let sees = |i: usize, k: usize| residue.window(i).contains(&k);
                let pairs = queries.clone().flat_map(|i| keys.clone().map(move |k| (i, k)));
                let visible = pairs.filter(|&(i, k)| sees(i, k)).count();
                let all = queries.len() * keys.len();
                let walked = match visible {
                    0 => Coverage::Empty,
                    n if n == all => Coverage::Full,
                    _ => Coverage::Partial,
                };
                assert_eq!(coverage, walked, "{axis:?} {queries:?} {keys:?}");
                assert_ne!(coverage, Coverage::Empty, "a tile in the box that nobody sees");
                tiles += 1;
                expected.tiles.full += u64::from(coverage == Coverage::Full);
                visible_in_tiles += visible as u64;
            }
            expected.query_tiles += 1;
            expected.tiles.all += tiles;
            expected.tiles.worst = expected.tiles.worst.max(tiles);
            expected.scores += visible_in_tiles;
            let seen = residue.keys_of(queries).len();
            expected.tiles.copied += match start {
                KeyStart::Dynamic => tiles * seen.min(key_tile) as u64,
                // Counted from the first tile's first key on, not a thing that a kernel does.
                KeyStart::Aligned => 0,
            };
        }
    }
    let mut counts = AxisCounts::of(axis, query_tile, key_tile, start);
    if start == KeyStart::Aligned {
        counts.tiles.copied = 0;
    }
    assert_eq!(counts, expected, "{axis:?}");
}

/// What a problem's tables say is what each of its tilings says, packed sequences and additional keys included.
#[test]
fn tables_say_what_tilings_say() {
    let params = AttentionParams::new().is_causal(true);
    let layout = |tokens: usize| Layout::contiguous(&[1, tokens, 2, 64]).unwrap();
    let inputs = Inputs::new(layout(400), layout(400), layout(400));
    let sequences = crate::Sequences::from_lengths(&[7, 0, 193, 193, 7], &[7, 2, 191, 191, 9]).unwrap();
    let packed = Problem::packed_attention(&params, &sequences, &inputs, ElementType::F32).unwrap();
    let additional = Inputs { additional: Some([layout(77); 2]), ..inputs };
    let attention = Problem::attention(&params, &additional, ElementType::F32).unwrap();
    for problem in [packed, attention, problem(&[30, 48, 80], &[18, 24, 24], &[16, 8, 8])] {
        let tables = PlanTables::of(&problem);
        for start in [KeyStart::Dynamic, KeyStart::Aligned] {
            let ranked = tables.ranked(64, 32, start);
            assert_eq!(tables.best(64, 32, start), ranked.first().copied());
            for (tiling, counts) in ranked {
                assert_eq!(counts, TileCounts::of(&problem, &tiling), "{tiling:?}");
                let of_queries = tables.query_tile(tiling.query_tile, start);
                assert_eq!(of_queries.key_tiles(tiling.key_tile), counts.key_tiles);
                assert_eq!(of_queries.full_tiles(tiling.key_tile), counts.full_tiles);
                assert_eq!(of_queries.query_tiles(), counts.query_tiles);
            }
        }
        let odd = Tiling { query_tile: [2, 3, 192], key_tile: [1, 5, 300], key_start: KeyStart::Dynamic };
        assert_eq!(tables.counts(&odd), TileCounts::of(&problem, &odd));
        assert!(tables.keys_copied(&odd) <= tables.counts(&odd).key_tiles * 1500);
    }
}

/// Views without strides may claim any number of tokens.
#[test]
fn counts_saturate() {
    let tokens = |tokens: usize| Layout::strided(&[1, tokens, 1, 1], &[0, 0, 0, 1]).unwrap();
    let few = tokens(10);
    let params = AttentionParams::new();
    let endless = tokens(usize::MAX / 2);
    let additional = Inputs { additional: Some([endless; 2]), ..Inputs::new(few, few, few) };
    let long = Inputs::new(endless, endless, endless);
    for inputs in [additional, long, Inputs { additional: Some([endless; 2]), ..long }] {
        let problem = Problem::attention(&params, &inputs, ElementType::F32).unwrap();
        for tile in [1, 64, usize::MAX] {
            let tiling =
                Tiling { query_tile: [1, 1, tile], key_tile: [1, 1, tile], key_start: KeyStart::Dynamic };
            let counts = TileCounts::of(&problem, &tiling);
            assert_eq!(PlanTables::of(&problem).counts(&tiling), counts);
            assert!(counts.issued == u64::MAX || tile == 1, "{counts:?}");
            assert!(counts.scores > u64::MAX / 4, "{counts:?}");
        }
        assert!(!rank_tilings(&problem, 64, 64, KeyStart::Aligned).is_empty());
    }
}

#[test]
fn causal_attention_counts_its_triangle() {
    for (queries, keys) in [(5, 5), (3, 9), (9, 3), (4, 0)] {
        let query = Layout::contiguous(&[2, queries, 4, 8]).unwrap();
        let key = Layout::contiguous(&[2, keys, 2, 8]).unwrap();
        let params = AttentionParams::new().is_causal(true);
        let inputs = Inputs::new(query, key, key);
        let problem = Problem::attention(&params, &inputs, ElementType::F32).unwrap();
        let visible: usize = (0..queries).map(|i| keys.min(i + 1)).sum();
        assert_eq!(problem.scores(), (visible * 8) as u64);
    }
}

#[test]
fn ranking_prefers_what_issues_least() {
    let problem = problem(&[16, 44, 80], &[16, 24, 16], &[1, 1, 1]);
    let ranked = rank_tilings(&problem, 128, 128, KeyStart::Aligned);
    let (best, counts) = &ranked[0];
    assert_eq!((best.query_tile, best.key_tile), ([16, 4, 2], [16, 4, 2]));
    assert!((counts.issued_over_useful() - 1.18).abs() < 0.005);
    assert!(ranked.windows(2).all(|pair| pair[0].1.issued <= pair[1].1.issued));
}

/// Without queries along one axis no key is needed along another, and its windows may be longer than all keys there are.
#[test]
fn parts_without_queries_have_no_tiles() {
    let params = Params::new([3, 5]).stride([1, 2]);
    for (extent, keys) in [(9, 0..1), (9, 7..7), (1 << 62, 3..5)] {
        let params = params
            .region(0, Region::of(9).queries(4..4).keys(2..7))
            .region(1, Region::of(extent).queries(4..8).keys(keys.clone()))
            .to_dyn();
        let [query, key] =
            [[1, 0, 4, 1, 64], [1, 5, keys.len(), 1, 64]].map(|s| Layout::contiguous(&s).unwrap());
        let part = Problem::new(&params, &Inputs::new(query, key, key), ElementType::F32).unwrap();
        assert_eq!((part.scores(), part.query_tokens()), (0, 0));
        for key_start in [KeyStart::Aligned, KeyStart::Dynamic] {
            let tiling = Tiling { query_tile: [1, 2, 4], key_tile: [1, 4, 4], key_start };
            let counts = TileCounts::of(&part, &tiling);
            assert_eq!((counts.query_tiles, counts.key_tiles, counts.scores), (0, 0, 0), "{part:?}");
            assert!(!rank_tilings(&part, 64, 64, key_start).is_empty());
        }
    }
}
