//! The Ampere backward kernels' parameters: `kernels/include/natten/params_sm80_backward.h`, mirrored field by field.
//!
//! Field comments are there. The tests hold sizes and offsets against the header's assertions.
#![allow(missing_docs)]

use bytemuck::{Pod, Zeroable};

use crate::params::{Divisor, Geometry, ListStrides, Strides};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct BackwardTileParams {
    pub row: [u64; 2],
    pub column: [u64; 2],
    pub additional: [u64; 2],
    pub d_row: [u64; 2],
    pub statistics: u64,
    pub row_strides: [Strides; 2],
    pub column_strides: [Strides; 2],
    pub d_row_strides: [Strides; 2],
    pub statistics_strides: Strides,
    pub additional_strides: [ListStrides; 2],
    pub partial_strides: [i64; 2],
    pub geometry: Geometry,
    pub tiles: [Divisor; 3],
    pub heads: Divisor,
    pub row_log2: [i32; 3],
    pub column_log2: [i32; 3],
    pub splits: i32,
    pub split_axis: i32,
    pub padding: i32,
}

impl BackwardTileParams {
    /// The same pass with the axis along which column tiles are longest moved to the end: to the kernels an axis is as good as
    /// another, but they want tiles of two columns or more along the last.
    pub fn longest_axis_last(mut self) -> Self {
        let longest = (0..3).max_by_key(|&axis| self.column_log2[axis]).unwrap_or(2);
        self.geometry.axes[longest..].rotate_left(1);
        self.tiles[longest..].rotate_left(1);
        self.row_log2[longest..].rotate_left(1);
        self.column_log2[longest..].rotate_left(1);
        let of_rows = self.row_strides.iter_mut().chain(&mut self.d_row_strides);
        for strides in of_rows.chain(&mut self.column_strides).chain([&mut self.statistics_strides]) {
            strides.axis[longest..].rotate_left(1);
        }
        let split = self.split_axis as usize;
        self.split_axis = match split {
            split if split == longest => 2,
            split if split > longest => split as i32 - 1,
            split => split as i32,
        };
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    /// The same numbers that the header asserts.
    #[test]
    fn layout_is_the_headers() {
        let header = include_str!("../../../../../../kernels/include/natten/params_sm80_backward.h");
        let says = |line: String| assert!(header.contains(&line), "the header does not assert {line}");
        says(format!("sizeof(BackwardTileParams) == {}", size_of::<BackwardTileParams>()));
        macro_rules! offsets {
            ($($field:ident)*) => {
                $(says(format!(
                    "NATTEN_OFFSET(BackwardTileParams, {}, {});",
                    stringify!($field), offset_of!(BackwardTileParams, $field)
                ));)*
            };
        }
        offsets!(d_row statistics statistics_strides partial_strides geometry tiles column_log2 splits);
    }

    /// Everything that belongs to an axis moves with it.
    #[test]
    fn the_longest_axis_goes_last() {
        let strides = Strides { axis: [1, 2, 3], ..Strides::default() };
        let params = BackwardTileParams {
            row_strides: [strides; 2],
            column_strides: [strides; 2],
            d_row_strides: [strides; 2],
            statistics_strides: strides,
            row_log2: [4, 5, 6],
            ..BackwardTileParams::default()
        };
        for (column_log2, order) in [([3, 1, 1], [1, 2, 0]), ([1, 3, 2], [0, 2, 1]), ([1, 2, 3], [0, 1, 2])] {
            for split in 0..3 {
                let turned =
                    BackwardTileParams { column_log2, split_axis: split, ..params }.longest_axis_last();
                assert_eq!(turned.row_log2, order.map(|a| params.row_log2[a]));
                assert_eq!(turned.column_log2, order.map(|a| column_log2[a]));
                let moved = Strides { axis: order.map(|a| strides.axis[a]), ..strides };
                for of in [turned.row_strides, turned.column_strides, turned.d_row_strides] {
                    assert_eq!(of, [moved; 2]);
                }
                assert_eq!(turned.statistics_strides, moved);
                assert_eq!(order[turned.split_axis as usize], split as usize);
            }
        }
    }
}
