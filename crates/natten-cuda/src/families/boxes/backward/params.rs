//! The parameters of backward kernels on boxes: `kernels/include/natten/params_sm90_backward.h`, mirrored field by field.
//!
//! Field comments are there. The tests hold sizes and offsets against the header's assertions.
#![allow(missing_docs)]

use bytemuck::{Pod, Zeroable};

use crate::families::boxes::order::TileOrder;
use crate::params::{Divisor, Geometry, MapSteps, Strides};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct BackwardParamsSm90 {
    pub row: [[u64; 16]; 2],
    pub column: [[u64; 16]; 2],
    pub additional: [[u64; 16]; 2],
    pub d_row: [u64; 2],
    pub statistics: u64,
    pub d_row_strides: [Strides; 2],
    pub statistics_strides: Strides,
    pub split_strides: [i64; 2],
    pub geometry: Geometry,
    pub tiles: [Divisor; 3],
    pub residues: [Divisor; 3],
    pub order: TileOrder,
    pub parts: Divisor,
    pub heads: Divisor,
    pub items: i32,
    pub splits: i32,
    pub split_axis: i32,
    pub row_box_log2: [i32; 3],
    pub row_side: i32,
    pub column_box_log2: [i32; 3],
    pub row_steps: [MapSteps; 2],
    pub column_steps: [MapSteps; 2],
    pub additional_steps: [MapSteps; 2],
    /// The header's struct is aligned to 64 bytes, as tensor maps are.
    pub padding: [i32; 13],
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    /// The same numbers that the header asserts.
    #[test]
    fn layout_is_the_headers() {
        let header = include_str!("../../../../../../kernels/include/natten/params_sm90_backward.h");
        let says = |line: String| assert!(header.contains(&line), "the header does not assert {line}");
        says(format!("sizeof(BackwardParamsSm90) == {}", size_of::<BackwardParamsSm90>()));
        macro_rules! offsets {
            ($($field:ident)*) => {
                $(says(format!(
                    "NATTEN_OFFSET(BackwardParamsSm90, {}, {});",
                    stringify!($field), offset_of!(BackwardParamsSm90, $field)
                ));)*
            };
        }
        offsets!(d_row geometry tiles items row_steps);
    }
}
