//! Rows of axes against a walk over their query tiles, which in turn agrees with one over pairs (plan/tests.rs).

use super::*;
use crate::window::small::{axes, parts};

/// The key tiles of an axis by a walk over its query tiles, residue by residue.
fn walk_tiles(axis: &Axis, query_side: usize, key_side: usize, start: KeyStart) -> KeyTiles {
    let mut sum = KeyTiles::default();
    for residue in (0..axis.dilation).map(|g| axis.residue(g)).filter(|residue| residue.key_len > 0) {
        for q in (0..residue.query_len).step_by(query_side) {
            let queries = q..(q + query_side).min(residue.query_len);
            let (seen, common) = (residue.keys_of(queries.clone()), residue.common_keys_of(queries));
            let first = match start {
                KeyStart::Aligned => seen.start / key_side * key_side,
                KeyStart::Dynamic => seen.start,
            };
            let tiles = (seen.end - first).div_ceil(key_side);
            let full = (common.end.saturating_sub(first) / key_side)
                .saturating_sub((common.start - first).div_ceil(key_side));
            sum.all += tiles as u64;
            sum.full += full as u64;
            sum.worst = sum.worst.max(tiles as u64);
            sum.copied += (tiles * (seen.end - first).min(key_side)) as u64;
        }
    }
    sum
}

fn check_row(axis: &Axis, query_side: usize, start: KeyStart) {
    let row = AxisRow::new(axis, query_side, start);
    let residues = (0..axis.dilation).map(|g| axis.residue(g));
    let query_tiles: usize = residues.clone().map(|residue| residue.query_len.div_ceil(query_side)).sum();
    let scores: u64 = residues.map(|residue| residue.scores()).sum();
    assert_eq!((row.query_tiles, row.scores), (query_tiles as u64, scores), "{axis:?} {query_side}");
    for key_side in [1, 2, 4, 8, 16, 32, 64, 128, 256, 3, 12] {
        let told = format!("{axis:?} {start:?}: {query_side} queries, {key_side} keys");
        assert_eq!(row.key_tiles(key_side), walk_tiles(axis, query_side, key_side, start), "{told}");
    }
}

/// Every axis of up to 40 tokens, cut with sides that are powers of two, and one, two or three of these.
#[test]
fn rows_match_a_walk() {
    let sides = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 192];
    let starts = [KeyStart::Dynamic, KeyStart::Aligned];
    let mut turn = 0;
    for extent in 1..=40 {
        for dilation in 1..=extent {
            for kernel_size in 1..=extent / dilation {
                for stride in 1..=kernel_size {
                    for is_causal in [false, true] {
                        let whole = Axis::whole(extent);
                        let axis = Axis { kernel_size, stride, dilation, is_causal, ..whole };
                        // Each axis with a few of the sides, all in turn.
                        turn += 5;
                        check_row(&axis, sides[turn % sides.len()], starts[turn % 2]);
                        check_row(&axis, sides[(turn / 12 + 7) % sides.len()], starts[turn / 2 % 2]);
                    }
                }
            }
        }
    }
    for axis in attention_axes(26) {
        for side in sides {
            starts.into_iter().for_each(|start| check_row(&axis, side, start));
        }
    }
}

/// Plain attention, and windows over fewer or more keys than queries.
fn attention_axes(most: usize) -> Vec<Axis> {
    let mut axes = Vec::new();
    for query_extent in 0..=most {
        for key_extent in 0..=most {
            let open = Axis::attention(query_extent, key_extent);
            axes.extend([open, Axis::causal_from_start(query_extent, key_extent)]);
            axes.push(Axis::causal_from_end(query_extent, key_extent));
            for (dilation, stride) in [(1, 1), (1, 3), (2, 2), (3, 1), (5, 2)] {
                let kernel_size = (key_extent / dilation).min(stride + 2);
                if kernel_size >= stride && query_extent > 0 {
                    axes.push(Axis { kernel_size, stride, dilation, ..open });
                }
            }
        }
    }
    axes
}

/// Parts of every axis of up to 14 tokens, and of a few that are longer.
#[test]
fn rows_of_parts_match_a_walk() {
    let sides = [1, 2, 3, 4, 8, 12];
    let starts = [KeyStart::Dynamic, KeyStart::Aligned];
    let mut turn = 0;
    let small = (1..=14).flat_map(axes);
    let longer = [(41, 7, 3, 1, false), (43, 9, 4, 1, true), (50, 5, 2, 4, false), (51, 6, 5, 3, true)];
    let longer = longer.map(|(extent, kernel_size, stride, dilation, is_causal)| Axis {
        kernel_size,
        stride,
        dilation,
        is_causal,
        ..Axis::whole(extent)
    });
    for axis in small.chain(longer).flat_map(|axis| parts(&axis)) {
        // Each part with one of the sides, all in turn.
        turn += 5;
        check_row(&axis, sides[turn % sides.len()], starts[turn / 7 % 2]);
    }
}

/// Long enough for many periods of any side and stride.
#[test]
fn rows_of_long_axes_match_a_walk() {
    for (extent, kernel_size, stride, dilation) in [
        (5000, 99, 1, 1),
        (5003, 1000, 7, 1),
        (4999, 4999, 64, 1),
        (5001, 2500, 97, 2),
        (5001, 600, 600, 3),
        (10_000, 33, 33, 10),
        (4096, 2048, 2047, 1),
    ] {
        for is_causal in [false, true] {
            let axis = Axis { kernel_size, stride, dilation, is_causal, ..Axis::whole(extent) };
            for side in [1, 2, 3, 8, 24, 64, 100, 128, 192, 384] {
                check_row(&axis, side, KeyStart::Dynamic);
                check_row(&axis, side, KeyStart::Aligned);
            }
        }
    }
    for [query_extent, key_extent] in [[4000, 9001], [9001, 4000], [5000, 5000]] {
        let causal =
            [Axis::causal_from_start, Axis::causal_from_end].map(|axis| axis(query_extent, key_extent));
        for (side, axis) in [1, 3, 64, 192].into_iter().flat_map(|n| causal.map(|axis| (n, axis))) {
            check_row(&axis, side, KeyStart::Dynamic);
            check_row(&axis, side, KeyStart::Aligned);
        }
    }
}

/// Walked tile by tile, these would never end.
#[test]
fn endless_axes_are_counted() {
    let extent = 1 << 50;
    for (kernel_size, stride, is_causal) in
        [(99, 1, false), (1 << 49, 1, true), (1 << 50, 1 << 49, false), ((1 << 40) + 1, 12_345, true)]
    {
        let axis = Axis { kernel_size, stride, is_causal, ..Axis::whole(extent) };
        for side in [1, 64, 192] {
            let row = AxisRow::new(&axis, side, KeyStart::Dynamic);
            assert_eq!(row.query_tiles, (extent as u64).div_ceil(side as u64));
            assert!(
                row.key_tiles(128).all >= row.query_tiles && row.key_tiles(1).all >= row.scores / side as u64
            );
            AxisRow::new(&axis, side, KeyStart::Aligned);
        }
    }
}
