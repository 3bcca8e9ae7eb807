//! The parameters of kernels on boxes: `kernels/include/natten/params_sm90.h`, mirrored field by field.
//!
//! Field comments are there. The tests hold sizes and offsets against the header's assertions.
#![allow(missing_docs)]

use bytemuck::{Pod, Zeroable};

use super::order::TileOrder;
use crate::params::{Divisor, Geometry, MapSteps, Strides};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct ForwardParamsSm90 {
    pub query: [u64; 16],
    pub key: [u64; 16],
    pub value: [u64; 16],
    pub additional_key: [u64; 16],
    pub additional_value: [u64; 16],
    pub out_map: [u64; 16],
    pub out: u64,
    pub lse: u64,
    pub out_strides: Strides,
    pub lse_strides: Strides,
    pub geometry: Geometry,
    pub tiles: [Divisor; 3],
    pub residues: [Divisor; 3],
    pub order: TileOrder,
    pub heads: Divisor,
    pub items: i32,
    pub query_box_log2: [i32; 3],
    pub query_side: i32,
    pub key_sides: [Divisor; 3],
    pub query_steps: MapSteps,
    pub key_steps: MapSteps,
    pub value_steps: MapSteps,
    pub additional_key_steps: MapSteps,
    pub additional_value_steps: MapSteps,
    pub out_steps: MapSteps,
    pub rows_alone: i32,
    pub most_weight: f32,
    pub least_weight: f32,
    /// The kernel's struct is aligned as its tensor maps are.
    pub padding: [i32; 9],
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    /// The same numbers that params_sm90.h asserts.
    #[test]
    fn layout_is_the_headers() {
        let header = include_str!("../../../../../kernels/include/natten/params_sm90.h");
        let says = |line: String| assert!(header.contains(&line), "params_sm90.h does not assert {line}");
        says(format!("sizeof(MapSteps) == {}", size_of::<MapSteps>()));
        says(format!("sizeof(ForwardParamsSm90) == {}", size_of::<ForwardParamsSm90>()));
        macro_rules! offsets {
            ($($field:ident)*) => {
                $(says(format!(
                    "NATTEN_OFFSET(ForwardParamsSm90, {}, {});",
                    stringify!($field), offset_of!(ForwardParamsSm90, $field)
                ));)*
            };
        }
        offsets!(out geometry tiles residues order items query_steps most_weight);
    }
}
