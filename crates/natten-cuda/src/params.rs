//! The kernels' parameters: `kernels/include/natten/params.h`, mirrored field by field.
//!
//! Field comments are there. The tests hold sizes and offsets against the header's assertions and the PTX.
#![allow(missing_docs)]

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use natten_core::Problem;
use natten_core::layout::RowLayout;

use crate::error::CudaError;

/// Division by a number known at run time: exact for numerators below 2^31.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Divisor {
    pub value: u32,
    pub magic: u32,
    pub shift: u32,
}

impl Divisor {
    /// The magic pair of `value`, which is at least 1 and below 2^31.
    ///
    /// # Errors
    /// [`CudaError::TooLarge`] otherwise.
    pub fn new(what: &'static str, value: usize) -> Result<Self, CudaError> {
        let value = to_i32(what, value)? as u32;
        if value <= 1 {
            return Ok(Divisor { value: 1, magic: 0, shift: 0 });
        }
        let bits = u32::BITS - (value - 1).leading_zeros();
        let magic = (1u64 << (31 + bits)).div_ceil(u64::from(value));
        Ok(Divisor { value, magic: magic as u32, shift: bits - 1 })
    }
}

/// Kernels count with 32-bit signed integers wherever they do not address memory.
pub(crate) fn to_i32(what: &'static str, value: usize) -> Result<i32, CudaError> {
    i32::try_from(value).map_err(|_| CudaError::TooLarge {
        what,
        value: value as u128,
        limit: i32::MAX as u128,
    })
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Tokens {
    pub quotient: i32,
    pub remainder: i32,
}

impl Tokens {
    fn new(what: &'static str, tokens: usize, dilation: usize) -> Result<Self, CudaError> {
        let (tokens, dilation) = (to_i32(what, tokens)?, to_i32("a dilation", dilation)?);
        Ok(Tokens { quotient: tokens / dilation, remainder: tokens % dilation })
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Axis {
    pub whole: Tokens,
    pub query_begin: Tokens,
    pub query_end: Tokens,
    pub key_begin: Tokens,
    pub key_end: Tokens,
    pub window: i32,
    pub reach: i32,
    pub is_causal: i32,
    pub stride: Divisor,
    pub dilation: Divisor,
}

impl Axis {
    /// The header's form of an axis, in the shortest whole that it can be told in.
    ///
    /// # Errors
    /// [`CudaError::TooLarge`] if a number does not fit.
    pub fn new(axis: &natten_core::window::Axis) -> Result<Self, CudaError> {
        let axis = axis.shortened();
        let tokens = |what, tokens| Tokens::new(what, tokens, axis.dilation);
        let (stride, window) = (to_i32("a stride", axis.stride)?, to_i32("a kernel size", axis.kernel_size)?);
        Ok(Axis {
            whole: tokens("the extent of an axis", axis.extent)?,
            query_begin: tokens("the first query", axis.query_start)?,
            query_end: tokens("a query extent", axis.query_start.saturating_add(axis.query_extent))?,
            key_begin: tokens("the first key", axis.key_start)?,
            key_end: tokens("a key extent", axis.key_start.saturating_add(axis.key_extent))?,
            window,
            reach: if axis.is_causal { stride - window } else { stride / 2 - window / 2 },
            is_causal: i32::from(axis.is_causal),
            stride: Divisor::new("a stride", axis.stride)?,
            dilation: Divisor::new("a dilation", axis.dilation)?,
        })
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Strides {
    pub batch: i64,
    pub axis: [i64; 3],
    pub head: i64,
}

impl Strides {
    /// The address of a token, by its place on each axis, in a tensor that begins at `address`.
    pub(crate) fn at(&self, address: u64, token: [usize; 3], element_bytes: u64) -> u64 {
        let elements: i64 = token.iter().zip(&self.axis).map(|(&token, stride)| token as i64 * stride).sum();
        address.wrapping_add_signed(elements * element_bytes as i64)
    }
}

impl From<RowLayout> for Strides {
    fn from(rows: RowLayout) -> Self {
        Strides {
            batch: rows.batch_stride as i64,
            axis: rows.token_strides.map(|stride| stride as i64),
            head: rows.head_stride as i64,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ListStrides {
    pub batch: i64,
    pub token: i64,
    pub head: i64,
}

/// How batch items, heads and residues turn into the outermost coordinate of a tensor map (params_sm90.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct MapSteps {
    pub batch: i32,
    pub head: i32,
    pub residue: [i32; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Decomposition {
    pub tiles: [Divisor; 3],
    pub head_tiles: Divisor,
    pub block_log2: [i32; 3],
    pub cta_log2: [i32; 3],
    pub cta_heads_log2: i32,
    pub heads: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Geometry {
    pub axes: [Axis; 3],
    pub heads_per_kv: Divisor,
    pub head_dim: i32,
    pub head_dim_v: i32,
    pub additional_keys: i32,
    pub scale: f32,
    pub scale_log2: f32,
}

impl Geometry {
    /// The header's form of the problem, on the given axes.
    ///
    /// # Errors
    /// [`CudaError::TooLarge`] if a number does not fit.
    pub(crate) fn new(problem: &Problem, axes: &[natten_core::window::Axis; 3]) -> Result<Self, CudaError> {
        let [x, y, z] = axes;
        Ok(Geometry {
            axes: [Axis::new(x)?, Axis::new(y)?, Axis::new(z)?],
            heads_per_kv: Divisor::new("heads per key head", problem.heads_per_kv())?,
            head_dim: to_i32("head_dim", problem.head_dim())?,
            head_dim_v: to_i32("head_dim_v", problem.head_dim_v())?,
            additional_keys: to_i32("additional keys", problem.additional_keys())?,
            scale: problem.scale() as f32,
            // The largest scales leave f32 in powers of two. The largest number stands for them: what differs by less than its
            // inverse is a score apart either way, and 0 times it stays 0.
            scale_log2: (problem.scale() * std::f64::consts::LOG2_E).clamp(f32::MIN.into(), f32::MAX.into())
                as f32,
        })
    }

    /// The same with a part of each value.
    pub(crate) fn with_values(self, part: &Range<usize>) -> Self {
        Geometry { head_dim_v: part.len() as i32, ..self }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct ForwardParams {
    pub query: u64,
    pub key: u64,
    pub value: u64,
    pub additional_key: u64,
    pub additional_value: u64,
    pub out: u64,
    pub lse: u64,
    pub query_strides: Strides,
    pub key_strides: Strides,
    pub value_strides: Strides,
    pub out_strides: Strides,
    pub lse_strides: Strides,
    pub additional_key_strides: ListStrides,
    pub additional_value_strides: ListStrides,
    pub geometry: Geometry,
    pub decomposition: Decomposition,
    pub padding: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TilePlan {
    pub tiles: [Divisor; 3],
    pub heads: Divisor,
    pub query_log2: [i32; 3],
    pub key_log2: [i32; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct TileForwardParams {
    pub query: u64,
    pub key: u64,
    pub value: u64,
    pub additional_key: u64,
    pub additional_value: u64,
    pub out: u64,
    pub lse: u64,
    pub query_strides: Strides,
    pub key_strides: Strides,
    pub value_strides: Strides,
    pub out_strides: Strides,
    pub lse_strides: Strides,
    pub additional_key_strides: ListStrides,
    pub additional_value_strides: ListStrides,
    pub geometry: Geometry,
    pub plan: TilePlan,
    pub padding: i32,
}

impl ForwardParams {
    /// The same call for a kernel on tiles.
    pub fn on_tiles(&self, plan: TilePlan) -> TileForwardParams {
        TileForwardParams {
            query: self.query,
            key: self.key,
            value: self.value,
            additional_key: self.additional_key,
            additional_value: self.additional_value,
            out: self.out,
            lse: self.lse,
            query_strides: self.query_strides,
            key_strides: self.key_strides,
            value_strides: self.value_strides,
            out_strides: self.out_strides,
            lse_strides: self.lse_strides,
            additional_key_strides: self.additional_key_strides,
            additional_value_strides: self.additional_value_strides,
            geometry: self.geometry,
            plan,
            padding: 0,
        }
        .longest_axis_last()
    }
}

impl TileForwardParams {
    /// The same call with the axis along which key tiles are longest moved to the end: to kernels on tiles an axis is
    /// as good as another, but they want tiles of two keys or more along the last.
    fn longest_axis_last(mut self) -> Self {
        let longest = (0..3).max_by_key(|&axis| self.plan.key_log2[axis]).unwrap_or(2);
        self.geometry.axes[longest..].rotate_left(1);
        let TilePlan { tiles, query_log2, key_log2, .. } = &mut self.plan;
        tiles[longest..].rotate_left(1);
        query_log2[longest..].rotate_left(1);
        key_log2[longest..].rotate_left(1);
        for strides in [
            &mut self.query_strides,
            &mut self.key_strides,
            &mut self.value_strides,
            &mut self.out_strides,
            &mut self.lse_strides,
        ] {
            strides.axis[longest..].rotate_left(1);
        }
        self
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct BackwardParams {
    pub query: u64,
    pub key: u64,
    pub value: u64,
    pub additional_key: u64,
    pub additional_value: u64,
    pub d_out: u64,
    pub statistics: u64,
    pub d_query: u64,
    pub d_key: u64,
    pub d_value: u64,
    pub query_strides: Strides,
    pub key_strides: Strides,
    pub value_strides: Strides,
    pub d_out_strides: Strides,
    pub statistics_strides: Strides,
    pub d_query_strides: Strides,
    pub d_key_strides: Strides,
    pub d_value_strides: Strides,
    pub additional_key_strides: ListStrides,
    pub additional_value_strides: ListStrides,
    pub partial_key_stride: i64,
    pub partial_value_stride: i64,
    pub geometry: Geometry,
    pub decomposition: Decomposition,
    pub rows_per_split: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RowCount {
    pub heads: Divisor,
    pub axis: [Divisor; 3],
    pub rows: i32,
    pub length: i32,
}

impl RowCount {
    /// Rows of a tensor `[batch, X, Y, Z, heads, length]`.
    ///
    /// # Errors
    /// [`CudaError::TooLarge`] if a number does not fit.
    pub(crate) fn new(
        batch: usize,
        tokens: [usize; 3],
        heads: usize,
        length: usize,
    ) -> Result<Self, CudaError> {
        let mut axis = [Divisor::new("an axis", 1)?; 3];
        for (divisor, extent) in axis.iter_mut().zip(tokens) {
            *divisor = Divisor::new("an axis", extent)?;
        }
        let rows = batch * tokens.iter().product::<usize>() * heads;
        Ok(RowCount {
            heads: Divisor::new("the number of heads", heads)?,
            axis,
            rows: to_i32("the number of rows", rows)?,
            length: to_i32("the length of a row", length)?,
        })
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DeltaParams {
    pub out: u64,
    pub d_out: u64,
    pub lse: u64,
    pub d_lse: u64,
    pub statistics: u64,
    pub out_strides: Strides,
    pub d_out_strides: Strides,
    pub lse_strides: Strides,
    pub d_lse_strides: Strides,
    pub statistics_strides: Strides,
    pub count: RowCount,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SumParams {
    pub partial: u64,
    pub sum: u64,
    pub split_stride: i64,
    pub partial_strides: Strides,
    pub sum_strides: Strides,
    pub count: RowCount,
    pub splits: i32,
    pub padding: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CopyParams {
    pub from: u64,
    pub to: u64,
    pub from_step: i64,
    pub from_strides: Strides,
    pub to_strides: Strides,
    pub count: RowCount,
}

/// Most partial results that one merge takes.
pub const MERGE_BRANCHES: usize = 12;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Branch {
    pub out: u64,
    pub lse: u64,
    pub out_strides: Strides,
    pub lse_strides: Strides,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct MergeParams {
    pub out: u64,
    pub lse: u64,
    pub out_strides: Strides,
    pub lse_strides: Strides,
    pub count: RowCount,
    pub branches: i32,
    pub padding: i32,
    pub branch: [Branch; MERGE_BRANCHES],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct GradientBranch {
    pub out: u64,
    pub lse: u64,
    pub d_out: u64,
    pub d_lse: u64,
    pub out_strides: Strides,
    pub lse_strides: Strides,
    pub d_out_strides: Strides,
    pub d_lse_strides: Strides,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct MergeBackwardParams {
    pub d_out: u64,
    pub d_lse: u64,
    pub d_out_strides: Strides,
    pub d_lse_strides: Strides,
    pub count: RowCount,
    pub branches: i32,
    pub padding: i32,
    pub branch: [GradientBranch; MERGE_BRANCHES],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct WindowDumpParams {
    pub ranges: u64,
    pub axis: Axis,
    pub extent: i32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    /// The same numbers that params.h asserts.
    #[test]
    fn layout_is_the_headers() {
        let header = include_str!("../../../kernels/include/natten/params.h");
        let says = |line: String| assert!(header.contains(&line), "params.h does not assert {line}");
        macro_rules! sizes {
            ($($ty:ident)*) => { $(says(format!("sizeof({}) == {}", stringify!($ty), size_of::<$ty>()));)* };
        }
        macro_rules! offsets {
            ($($ty:ident.$field:ident)*) => {
                $(says(format!(
                    "NATTEN_OFFSET({}, {}, {});", stringify!($ty), stringify!($field), offset_of!($ty, $field)
                ));)*
            };
        }
        sizes!(Divisor Tokens Axis Strides ListStrides Decomposition Geometry RowCount ForwardParams BackwardParams);
        sizes!(TilePlan TileForwardParams DeltaParams SumParams Branch MergeParams WindowDumpParams);
        sizes!(GradientBranch MergeBackwardParams CopyParams);
        offsets!(Axis.query_begin Axis.window Axis.is_causal Axis.stride Axis.dilation Geometry.heads_per_kv Geometry.scale);
        offsets!(Decomposition.head_tiles Decomposition.heads RowCount.rows);
        offsets!(ForwardParams.lse ForwardParams.lse_strides ForwardParams.geometry ForwardParams.decomposition);
        offsets!(TilePlan.query_log2 TileForwardParams.geometry TileForwardParams.plan);
        offsets!(BackwardParams.statistics BackwardParams.query_strides BackwardParams.additional_key_strides);
        offsets!(BackwardParams.partial_key_stride BackwardParams.geometry BackwardParams.decomposition);
        offsets!(BackwardParams.rows_per_split DeltaParams.count SumParams.count SumParams.splits);
        offsets!(MergeParams.count MergeParams.branch WindowDumpParams.extent CopyParams.count);
        offsets!(GradientBranch.d_out_strides MergeBackwardParams.count MergeBackwardParams.branch);
    }

    /// A part far from the beginning of a whole that kernels cannot count fits, where the windows it sees do.
    #[test]
    fn parts_are_counted_from_near() {
        use natten_core::window::Axis as Whole;
        let whole = Whole { kernel_size: 3, stride: 2, dilation: 5, ..Whole::whole(1 << 50) };
        let part = Whole { query_start: (1 << 40) + 3, query_extent: 40, key_extent: 90, ..whole };
        let axis = Axis::new(&Whole { key_start: 1 << 40, ..part }).unwrap();
        assert_eq!((axis.key_begin, axis.query_begin.remainder), (Tokens { quotient: 1, remainder: 1 }, 4));
        assert!(matches!(Axis::new(&part), Err(CudaError::TooLarge { .. })));
        let far = Whole::causal_from_end(1, 1 << 31);
        assert!(matches!(Axis::new(&far), Err(CudaError::TooLarge { .. })));
    }

    #[test]
    fn divisors_divide() {
        for value in (1..300).chain([511, 512, 513, 4095, 65_537, 1 << 30, i32::MAX as usize]) {
            let d = Divisor::new("a test value", value).unwrap();
            let value = value as u64;
            let near = |n: u64| [n.saturating_sub(1), n, n + 1];
            let top = i32::MAX as u64;
            for n in
                [0, value, 2 * value, 12_345_678, top / value * value, top - 1].into_iter().flat_map(near)
            {
                if n <= top {
                    let quotient = if d.value == 1 { n } else { ((n * u64::from(d.magic)) >> 32) >> d.shift };
                    assert_eq!(quotient, n / value, "{n} / {value}");
                }
            }
        }
        assert!(Divisor::new("a test value", 1 << 31).is_err());
    }
}
