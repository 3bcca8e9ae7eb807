//! Tensor maps of a caller's own layout: which five axes the copy engine sees, and with what box.
//!
//! The engine takes at most five axes; a view has six. From the innermost: head_dim, the token axes from last to first,
//! and one for what is left. Heads and batch items go there together when they nest (heads-first) or when there is one
//! of either. Else the heads take the place of the first token axis where that has one token (images, sequences), or
//! share the innermost axis where a row fills the kernel's bucket, so that no box reaches into the next head.

use crate::device::TensorMapSpec;
use crate::params::Strides;
use crate::sm90::params::{BoxSplit, MapSteps};

/// Tokens that a box may span along an axis, dilation counted.
const MAX_BOX: usize = 256;
/// Largest step between the elements of a box.
const MAX_STEP: usize = 8;
/// Bytes that strides stay below.
const STRIDE_LIMIT: u64 = 1 << 40;
/// Elements that an axis may have.
const EXTENT_LIMIT: u64 = 1 << 32;

/// A tensor `[batch, X, Y, Z, heads, head_dim]` of 2-byte elements, or a list of tokens as `[batch, 1, 1, N, heads, head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowView {
    /// First element.
    pub address: u64,
    /// Batch items.
    pub batch: usize,
    /// Extents of the token axes.
    pub tokens: [usize; 3],
    /// Heads.
    pub heads: usize,
    /// Elements of a row.
    pub head_dim: usize,
    /// In elements.
    pub strides: Strides,
}

/// How the kernel cuts a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Positions along each token axis.
    pub side: [usize; 3],
    /// Tokens from one position to the next.
    pub dilation: [usize; 3],
    /// The kernel's bucket of head_dim.
    pub head_dim: usize,
}

/// Why the copy engine cannot read a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// Base or a stride is no multiple of 16 bytes.
    #[error("a base or stride is no multiple of 16 bytes")]
    Alignment,
    /// A stride is not positive, or too long.
    #[error("the copy engine takes no stride of {elements} elements")]
    Stride {
        /// The stride.
        elements: i64,
    },
    /// An axis is too long.
    #[error("the copy engine takes no axis of {extent} elements")]
    Extent {
        /// The extent.
        extent: u64,
    },
    /// More than five axes remain.
    #[error("heads and batch items share no axis of the copy engine, which has five")]
    TooManyAxes,
    /// Element steps end at 8.
    #[error("the copy engine steps over at most 8 tokens, the dilation is {dilation}")]
    Dilation {
        /// Of some axis.
        dilation: usize,
    },
    /// A box that is not one piece of the tile.
    #[error("a tile of {side} tokens at dilation {dilation} does not come in boxes of 256")]
    Box {
        /// Positions along the axis.
        side: usize,
        /// Tokens between them.
        dilation: usize,
    },
}

impl Tile {
    /// How many boxes the tile is loaded with. A box spans at most 256 tokens: 128 positions at dilation 3 take two.
    ///
    /// Only the first axis that has more than one position can be split: along any other the pieces would not lie one
    /// after another in shared memory.
    ///
    /// # Errors
    /// [`MapError::Dilation`] or [`MapError::Box`] when no split helps.
    pub fn split(&self) -> Result<BoxSplit, MapError> {
        let first = self.side.iter().position(|&side| side > 1).unwrap_or(0);
        let mut split = BoxSplit { axis: first as i32, count: 1, tokens: 0 };
        for axis in 0..3 {
            let (side, dilation) = (self.side[axis], self.dilation[axis]);
            if side == 1 {
                continue;
            }
            if dilation > MAX_STEP {
                return Err(MapError::Dilation { dilation });
            }
            let count = (side * dilation).div_ceil(MAX_BOX).next_power_of_two();
            if count > 1 && axis != first {
                return Err(MapError::Box { side, dilation });
            }
            if axis == first {
                split.count = count as i32;
                split.tokens = (side / count * dilation) as i32;
            }
        }
        Ok(split)
    }

    /// Elements of a row that one box takes: as many as the swizzle spans.
    fn slab(&self) -> usize {
        self.head_dim.min(64)
    }
}

/// One axis of a map.
#[derive(Clone, Copy)]
struct MapAxis {
    extent: u64,
    stride: i64,
}

/// The tensor map of a view, and how heads and batch items turn into its coordinates.
///
/// # Errors
/// When the copy engine cannot read the view as it lies.
pub fn tensor_map(view: &RowView, tile: &Tile) -> Result<(TensorMapSpec, MapSteps), MapError> {
    const ELEMENT_BYTES: i64 = 2;
    let split = tile.split()?;
    let (inner, axis0, outer, steps) = place_heads(view, tile)?;
    let token = |a: usize| MapAxis { extent: view.tokens[a] as u64, stride: view.strides.axis[a] };
    let axes = [token(2), token(1), axis0, outer];

    if !view.address.is_multiple_of(16) {
        return Err(MapError::Alignment);
    }
    let mut extents = vec![inner];
    let mut strides_bytes = Vec::with_capacity(axes.len());
    for MapAxis { extent, stride } in axes {
        extents.push(extent);
        // The stride of a single element is never taken, but it must be a legal one.
        strides_bytes.push(if extent == 1 { 16 } else { stride_bytes(stride, ELEMENT_BYTES)? });
    }
    if let Some(&extent) = extents.iter().find(|&&extent| extent == 0 || extent > EXTENT_LIMIT) {
        return Err(MapError::Extent { extent });
    }
    let mut box_extents = vec![tile.slab() as u32];
    let mut element_steps = vec![1];
    for axis in [2, 1, 0] {
        let parts = if axis as i32 == split.axis { split.count as usize } else { 1 };
        // An axis of one position needs no step, whatever its dilation.
        let step = if tile.side[axis] == 1 { 1 } else { tile.dilation[axis] };
        box_extents.push((tile.side[axis] / parts * step) as u32);
        element_steps.push(step as u32);
    }
    box_extents.push(1);
    element_steps.push(1);
    let spec = TensorMapSpec {
        element_bytes: ELEMENT_BYTES as u32,
        address: view.address,
        extents,
        strides_bytes,
        box_extents,
        element_steps,
        swizzle_bytes: (tile.slab() * ELEMENT_BYTES as usize) as u32,
    };
    Ok((spec, steps))
}

fn stride_bytes(stride: i64, element_bytes: i64) -> Result<u64, MapError> {
    let bytes = u64::try_from(stride).ok().and_then(|stride| stride.checked_mul(element_bytes as u64));
    match bytes {
        Some(bytes) if bytes > 0 && bytes < STRIDE_LIMIT => {
            if bytes.is_multiple_of(16) {
                Ok(bytes)
            } else {
                Err(MapError::Alignment)
            }
        }
        _ => Err(MapError::Stride { elements: stride }),
    }
}

/// The innermost extent, the axis in place of token axis 0, the outermost axis, and the steps.
fn place_heads(view: &RowView, tile: &Tile) -> Result<(u64, MapAxis, MapAxis, MapSteps), MapError> {
    let (heads, batch) = (view.heads as u64, view.batch as u64);
    let row = view.head_dim as u64;
    let head_stride = view.strides.head;
    let axis0 = MapAxis { extent: view.tokens[0] as u64, stride: view.strides.axis[0] };
    let by_batch = MapAxis { extent: batch, stride: view.strides.batch };
    let by_head = MapAxis { extent: heads, stride: head_stride };

    if heads == 1 {
        return Ok((row, axis0, by_batch, MapSteps { batch_outer: 1, ..MapSteps::default() }));
    }
    if batch == 1 {
        return Ok((row, axis0, by_head, MapSteps { head_outer: 1, ..MapSteps::default() }));
    }
    if view.strides.batch == head_stride * view.heads as i64 {
        let both = MapAxis { extent: heads * batch, stride: head_stride };
        let steps = MapSteps { head_outer: 1, batch_outer: view.heads as i32, ..MapSteps::default() };
        return Ok((row, axis0, both, steps));
    }
    if axis0.extent == 1 {
        let steps = MapSteps { head_axis0: 1, batch_outer: 1, ..MapSteps::default() };
        return Ok((row, by_head, by_batch, steps));
    }
    if view.head_dim == tile.head_dim && head_stride >= view.head_dim as i64 {
        let inner = (heads - 1) * head_stride as u64 + row;
        let steps = MapSteps { head_inner: head_stride as i32, batch_outer: 1, ..MapSteps::default() };
        return Ok((inner, axis0, by_batch, steps));
    }
    Err(MapError::TooManyAxes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Heads-last and dense.
    fn video(batch: usize, tokens: [usize; 3], heads: usize, head_dim: usize) -> RowView {
        let row = (heads * head_dim) as i64;
        let [_, y, z] = tokens.map(|t| t as i64);
        let axis = [y * z * row, z * row, row];
        let strides = Strides { batch: axis[0] * tokens[0] as i64, axis, head: head_dim as i64 };
        RowView { address: 1 << 20, batch, tokens, heads, head_dim, strides }
    }

    fn heads_first(view: RowView) -> RowView {
        let head_dim = view.head_dim as i64;
        let [x, y, z] = view.tokens.map(|t| t as i64);
        let axis = [y * z * head_dim, z * head_dim, head_dim];
        let head = x * axis[0];
        RowView { strides: Strides { batch: head * view.heads as i64, axis, head }, ..view }
    }

    fn tile(side: [usize; 3], dilation: [usize; 3], head_dim: usize) -> Tile {
        Tile { side, dilation, head_dim }
    }

    /// Where the map says that element `at` of a row lies.
    fn reach((spec, steps): &(TensorMapSpec, MapSteps), at: [usize; 6]) -> Option<u64> {
        let [batch, x, y, z, head, element] = at.map(|i| i as u64);
        let step = |by: i32| by as u64;
        let coordinates = [
            element + head * step(steps.head_inner),
            z,
            y,
            x + head * step(steps.head_axis0),
            head * step(steps.head_outer) + batch * step(steps.batch_outer),
        ];
        let inside = coordinates.iter().zip(&spec.extents).all(|(c, extent)| c < extent);
        let outer: u64 = coordinates[1..].iter().zip(&spec.strides_bytes).map(|(c, s)| c * s).sum();
        inside.then(|| spec.address + coordinates[0] * 2 + outer)
    }

    fn check(view: &RowView, tile: &Tile) -> (TensorMapSpec, MapSteps) {
        let map = tensor_map(view, tile).unwrap();
        let s = &view.strides;
        for batch in [0, view.batch - 1] {
            for x in [0, view.tokens[0] - 1] {
                for (y, z) in [(0, view.tokens[2] - 1), (view.tokens[1] - 1, 0)] {
                    for head in [0, view.heads - 1] {
                        for element in [0, view.head_dim - 1] {
                            let offset = batch as i64 * s.batch
                                + x as i64 * s.axis[0]
                                + y as i64 * s.axis[1]
                                + z as i64 * s.axis[2]
                                + head as i64 * s.head
                                + element as i64;
                            let expected = view.address.wrapping_add_signed(offset * 2);
                            assert_eq!(reach(&map, [batch, x, y, z, head, element]), Some(expected));
                        }
                    }
                }
            }
        }
        map
    }

    #[test]
    fn every_layout_reaches_every_element() {
        for head_dim in [32, 40, 64, 72, 128, 256] {
            let bucket = [32, 64, 128, 256].into_iter().find(|&b| b >= head_dim).unwrap();
            let box_ = tile([2, 8, 8], [1; 3], bucket);
            for (batch, tokens, heads) in
                [(1, [5, 6, 7], 3), (4, [5, 6, 7], 1), (3, [1, 6, 7], 2), (2, [1, 1, 9], 4)]
            {
                let box_ = Tile { side: if tokens[0] == 1 { [1, 16, 8] } else { box_.side }, ..box_ };
                check(&video(batch, tokens, heads, head_dim), &box_);
                check(&heads_first(video(batch, tokens, heads, head_dim)), &box_);
            }
            check(&heads_first(video(3, [5, 6, 7], 4, head_dim)), &box_);
        }
    }

    #[test]
    fn heads_share_the_innermost_axis_only_if_rows_fill_the_bucket() {
        let (spec, steps) = check(&video(2, [5, 6, 7], 3, 64), &tile([2, 8, 8], [1; 3], 64));
        assert_eq!((spec.extents[0], steps.head_inner), (192, 64));
        for (head_dim, bucket) in [(40, 64), (64, 128), (80, 128)] {
            let refused = tensor_map(&video(2, [5, 6, 7], 3, head_dim), &tile([2, 8, 8], [1; 3], bucket));
            assert_eq!(refused, Err(MapError::TooManyAxes));
        }
    }

    #[test]
    fn short_rows_have_an_axis_of_their_own() {
        let (spec, _) = check(&video(1, [5, 6, 7], 3, 40), &tile([2, 8, 8], [1; 3], 64));
        assert_eq!((spec.extents[0], spec.box_extents[0], spec.swizzle_bytes), (40, 64, 128));
        let (spec, _) = check(&video(1, [5, 6, 7], 3, 32), &tile([2, 8, 8], [1; 3], 32));
        assert_eq!((spec.box_extents[0], spec.swizzle_bytes), (32, 64));
    }

    #[test]
    fn boxes_stay_within_256_tokens() {
        let split = |side, dilation| tile(side, dilation, 64).split();
        assert_eq!(split([1, 1, 128], [1, 1, 2]), Ok(BoxSplit { axis: 2, count: 1, tokens: 256 }));
        assert_eq!(split([1, 1, 128], [1, 1, 3]), Ok(BoxSplit { axis: 2, count: 2, tokens: 192 }));
        assert_eq!(split([1, 1, 128], [1, 1, 8]), Ok(BoxSplit { axis: 2, count: 4, tokens: 256 }));
        assert_eq!(split([1, 1, 128], [1, 1, 9]), Err(MapError::Dilation { dilation: 9 }));
        assert_eq!(split([1, 2, 64], [1, 1, 8]), Err(MapError::Box { side: 64, dilation: 8 }));
        assert_eq!(split([1, 64, 2], [1, 8, 8]), Ok(BoxSplit { axis: 1, count: 2, tokens: 256 }));
        // A tile of one position along an axis never steps, so any dilation goes.
        assert_eq!(split([1, 1, 128], [99, 50, 1]).unwrap().count, 1);
        let (spec, _) = check(&video(1, [3, 6, 700], 2, 64), &tile([1, 1, 128], [9, 1, 3], 64));
        assert_eq!((spec.box_extents, spec.element_steps), (vec![64, 192, 1, 1, 1], vec![1, 3, 1, 1, 1]));
    }

    #[test]
    fn what_the_engine_cannot_read_is_refused() {
        let good = video(1, [5, 6, 7], 3, 64);
        let box_ = tile([2, 8, 8], [1; 3], 64);
        let with = |change: fn(&mut RowView)| {
            let mut view = good;
            change(&mut view);
            tensor_map(&view, &box_).unwrap_err()
        };
        assert_eq!(with(|v| v.address += 8), MapError::Alignment);
        assert_eq!(with(|v| v.strides.axis[2] += 4), MapError::Alignment);
        assert_eq!(with(|v| v.strides.axis[2] = 0), MapError::Stride { elements: 0 });
        assert_eq!(with(|v| v.strides.head = -64), MapError::Stride { elements: -64 });
        assert_eq!(with(|v| v.strides.axis[0] = 1 << 39), MapError::Stride { elements: 1 << 39 });
        assert_eq!(with(|v| v.tokens[1] = 0), MapError::Extent { extent: 0 });
    }
}
