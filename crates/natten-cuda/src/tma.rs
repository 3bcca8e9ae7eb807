//! Tensor maps of a caller's own layout: which five axes the copy engine sees, and with what box.
//!
//! From the innermost: head_dim, the positions along the three token axes from last to first, and one axis for all the
//! rest. Batch items, heads and the residues of a dilated axis share that one: its step is the greatest that all their
//! strides are multiples of, and its coordinate the sum of what each contributes. So every layout with positive strides
//! has a map, heads-first and heads-last alike, at any dilation; a box stays within one row's head_dim, since that axis
//! ends there, and within its residue, since all residues of one map have the same length (classes.rs).
//!
//! No coordinate inside a map's extents lies outside the tensor: the copy engine may do as it likes with one that does.

use std::ops::Range;

use crate::device::TensorMapSpec;
use crate::params::{MapSteps, Strides};
use crate::rejection::MapError;

/// Bytes of an element.
const ELEMENT_BYTES: u64 = 2;
/// What bases and strides must be multiples of.
const ALIGNMENT: u64 = 16;
/// Bytes that strides stay below.
const STRIDE_LIMIT: u64 = 1 << 40;
/// Elements that an axis may have: coordinates are signed.
const EXTENT_LIMIT: u64 = i32::MAX as u64;

/// A tensor `[batch, X, Y, Z, heads, head_dim]` of 2-byte elements, or a list of tokens as `[batch, 1, 1, N, heads, head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowView {
    /// First element; in an offer, how many bytes after its tensor's beginning.
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

impl RowView {
    /// The view of a part of each row.
    pub(crate) fn part(&self, elements: &Range<usize>) -> Self {
        let bytes = elements.start as u64 * ELEMENT_BYTES;
        RowView { address: self.address.wrapping_add(bytes), head_dim: elements.len(), ..*self }
    }

    /// The view from a token of each axis on.
    pub(crate) fn from(&self, first: [usize; 3]) -> Self {
        RowView {
            address: self.strides.at(self.address, first, ELEMENT_BYTES),
            tokens: std::array::from_fn(|a| self.tokens[a].saturating_sub(first[a])),
            ..*self
        }
    }
}

/// How the kernel cuts a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Positions along each token axis, at most 256.
    pub side: [usize; 3],
    /// Tokens from one position to the next.
    pub dilation: [usize; 3],
    /// So many residues of each axis, from the first on, are read: at most the dilation, and all of the same length.
    pub residues: [usize; 3],
    /// The kernel's bucket of head_dim.
    pub head_dim: usize,
}

/// The tensor map of a view, and how batch items, heads and residues turn into its outermost coordinate.
///
/// # Errors
/// When the copy engine cannot read the view as it lies.
pub fn tensor_map(view: &RowView, tile: &Tile) -> Result<(TensorMapSpec, MapSteps), MapError> {
    let slab = tile.head_dim.min(64);
    let address = view.address;
    let mut extents = vec![view.head_dim as u64];
    let mut strides_bytes = Vec::with_capacity(4);
    let mut box_extents = vec![slab as u32];
    let mut residues = [(1, 0); 3];
    for axis in [2, 1, 0] {
        let (tokens, dilation, count) = (view.tokens[axis], tile.dilation[axis], tile.residues[axis]);
        // The stride of a single element is never taken, but it must be a legal one.
        let stride = if tokens == 1 { ALIGNMENT } else { stride_bytes(view.strides.axis[axis])? };
        if stride == 0 || stride.checked_mul(dilation as u64).is_none_or(|bytes| bytes >= STRIDE_LIMIT) {
            return Err(MapError::Stride { elements: view.strides.axis[axis] });
        }
        // What the last of the residues has, and so each: with more, the map would reach past the tensor.
        extents.push(((tokens + dilation - count) / dilation) as u64);
        strides_bytes.push(stride * dilation as u64);
        box_extents.push(tile.side[axis] as u32);
        residues[axis] = (count, stride);
    }
    let of = |count: usize, stride: i64| Ok((count, if count == 1 { 0 } else { stride_bytes(stride)? }));
    let rest: [(usize, u64); 5] = [
        of(view.batch, view.strides.batch)?,
        of(view.heads, view.strides.head)?,
        residues[0],
        residues[1],
        residues[2],
    ];
    let used = || rest.iter().filter(|&&(count, _)| count > 1);
    let step = used().fold(0, |step, &(_, stride)| gcd(step, stride));
    let step = if step == 0 { ALIGNMENT } else { step };
    let outer = 1 + used().map(|&(count, stride)| (count as u64 - 1) * (stride / step)).sum::<u64>();
    extents.push(outer);
    strides_bytes.push(step);
    box_extents.push(1);
    if !address.is_multiple_of(ALIGNMENT) {
        return Err(MapError::Alignment);
    }
    if let Some(&extent) = extents.iter().find(|&&extent| extent == 0 || extent > EXTENT_LIMIT) {
        return Err(MapError::Extent { extent });
    }
    let steps = |i: usize| {
        let (count, stride) = rest[i];
        if count > 1 { (stride / step) as i32 } else { 0 }
    };
    let spec = TensorMapSpec {
        element_bytes: ELEMENT_BYTES as u32,
        address,
        extents,
        strides_bytes,
        box_extents,
        element_steps: vec![1; 5],
        swizzle_bytes: slab as u32 * ELEMENT_BYTES as u32,
    };
    Ok((spec, MapSteps { batch: steps(0), head: steps(1), residue: [steps(2), steps(3), steps(4)] }))
}

fn stride_bytes(stride: i64) -> Result<u64, MapError> {
    let bytes = u64::try_from(stride).ok().and_then(|stride| stride.checked_mul(ELEMENT_BYTES));
    match bytes {
        Some(bytes) if bytes < STRIDE_LIMIT && bytes.is_multiple_of(ALIGNMENT) => Ok(bytes),
        Some(bytes) if bytes < STRIDE_LIMIT => Err(MapError::Alignment),
        _ => Err(MapError::Stride { elements: stride }),
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use natten_core::window::Axis;

    use super::*;
    use crate::classes::{Class, Rows, classes};

    /// Heads-last and dense.
    fn video(batch: usize, tokens: [usize; 3], heads: usize, head_dim: usize) -> RowView {
        let row = (heads * head_dim) as i64;
        let [_, y, z] = tokens.map(|t| t as i64);
        let axis = [y * z * row, z * row, row];
        let strides = Strides { batch: axis[0] * tokens[0] as i64, axis, head: head_dim as i64 };
        RowView { address: 1 << 30, batch, tokens, heads, head_dim, strides }
    }

    fn heads_first(view: RowView) -> RowView {
        let head_dim = view.head_dim as i64;
        let [x, y, z] = view.tokens.map(|t| t as i64);
        let axis = [y * z * head_dim, z * head_dim, head_dim];
        let head = x * axis[0];
        RowView { strides: Strides { batch: head * view.heads as i64, axis, head }, ..view }
    }

    fn tile(side: [usize; 3], dilation: [usize; 3], head_dim: usize) -> Tile {
        Tile { side, dilation, residues: dilation, head_dim }
    }

    /// Where the map says that element `at` of a row lies, by the kernel's arithmetic (sm90/work.cuh).
    fn reach(tile: &Tile, (spec, steps): &(TensorMapSpec, MapSteps), at: [usize; 6]) -> Option<u64> {
        let [batch, x, y, z, head, element] = at;
        let mut coordinates = [element as i64, 0, 0, 0, 0];
        coordinates[4] = batch as i64 * i64::from(steps.batch) + head as i64 * i64::from(steps.head);
        for (axis, token) in [x, y, z].into_iter().enumerate() {
            let dilation = tile.dilation[axis];
            coordinates[3 - axis] = (token / dilation) as i64;
            coordinates[4] += (token % dilation) as i64 * i64::from(steps.residue[axis]);
        }
        let inside = coordinates.iter().zip(&spec.extents).all(|(&c, &extent)| (c as u64) < extent);
        let outer: u64 = coordinates[1..].iter().zip(&spec.strides_bytes).map(|(&c, s)| c as u64 * s).sum();
        inside.then(|| spec.address.wrapping_add(coordinates[0] as u64 * 2 + outer))
    }

    /// Where an element lies.
    fn place(view: &RowView, [batch, x, y, z, head, element]: [usize; 6]) -> u64 {
        let s = &view.strides;
        let tokens = x as i64 * s.axis[0] + y as i64 * s.axis[1] + z as i64 * s.axis[2];
        let offset = batch as i64 * s.batch + tokens + head as i64 * s.head + element as i64;
        view.address.wrapping_add_signed(offset * 2)
    }

    /// The map reaches every row of the tile's residues where it lies, ends where each residue of each axis does, and has
    /// no coordinate outside the tensor.
    fn check(view: &RowView, tile: &Tile) -> (TensorMapSpec, MapSteps) {
        let map = tensor_map(view, tile).unwrap();
        let [tx, ty, tz] = view.tokens;
        let is_read = |axis: usize, token: usize| token % tile.dilation[axis] < tile.residues[axis];
        for batch in [0, view.batch - 1] {
            for token in 0..tx * ty * tz {
                let (x, y, z) = (token / (ty * tz), token / tz % ty, token % tz);
                if !(is_read(0, x) && is_read(1, y) && is_read(2, z)) {
                    continue;
                }
                for head in [0, view.heads - 1] {
                    for element in [0, view.head_dim - 1] {
                        let at = [batch, x, y, z, head, element];
                        assert_eq!(reach(tile, &map, at), Some(place(view, at)));
                    }
                }
            }
        }
        assert_eq!(reach(tile, &map, [0, 0, 0, 0, 0, view.head_dim]), None);
        for axis in 0..3 {
            let first_past = view.tokens[axis]..view.tokens[axis] + tile.dilation[axis];
            for token in first_past.filter(|&token| is_read(axis, token)) {
                let mut at = [0; 6];
                at[1 + axis] = token;
                assert_eq!(reach(tile, &map, at), None, "token {token} of axis {axis} is past the end");
            }
        }
        let last = [view.batch - 1, tx - 1, ty - 1, tz - 1, view.heads - 1, view.head_dim - 1];
        let spec = &map.0;
        let steps =
            spec.extents[1..].iter().zip(&spec.strides_bytes).map(|(extent, stride)| (extent - 1) * stride);
        let farthest = spec.address + (spec.extents[0] - 1) * ELEMENT_BYTES + steps.sum::<u64>();
        assert!(spec.address >= view.address && farthest <= place(view, last), "{spec:?} leaves {view:?}");
        map
    }

    #[test]
    fn every_layout_reaches_every_element() {
        for head_dim in [32, 40, 64, 72, 128, 256] {
            let bucket = [32, 64, 128, 256].into_iter().find(|&b| b >= head_dim).unwrap();
            let cube = tile([2, 8, 8], [1; 3], bucket);
            for (batch, tokens, heads) in [
                (1, [5, 6, 7], 3),
                (4, [5, 6, 7], 1),
                (3, [1, 6, 7], 2),
                (2, [1, 1, 9], 4),
                (3, [5, 6, 7], 4),
            ] {
                check(&video(batch, tokens, heads, head_dim), &cube);
                check(&heads_first(video(batch, tokens, heads, head_dim)), &cube);
            }
        }
    }

    #[test]
    fn any_dilation_has_a_map() {
        for dilation in [[1, 1, 3], [1, 2, 8], [2, 3, 6], [1, 6, 4], [5, 6, 12], [5, 1, 1]] {
            for (batch, heads, head_dim) in [(1, 3, 40), (2, 3, 64), (2, 1, 72)] {
                let square = tile([1, 8, 16], dilation, 128);
                let tokens = [10, 6, 24];
                check(&video(batch, tokens, heads, head_dim), &square);
                check(&heads_first(video(batch, tokens, heads, head_dim)), &square);
            }
        }
        let (spec, steps) = check(&video(1, [1, 32, 48], 4, 8), &tile([1, 8, 16], [1, 16, 16], 32));
        assert_eq!(spec.extents, [8, 3, 2, 1, 4 + 15 * 4 + 15 * 4 * 48]);
        assert_eq!((steps.head, steps.residue), (1, [0, 4 * 48, 4]));
    }

    /// One map for the residues of each length.
    #[test]
    fn residues_that_differ_in_length_have_maps() {
        for dilation in [[1, 1, 3], [1, 2, 7], [2, 3, 5], [1, 6, 4], [5, 6, 7], [4, 4, 4]] {
            for (batch, heads, head_dim) in [(1, 3, 40), (2, 3, 64), (2, 1, 72)] {
                let whole = video(batch, [5, 6, 7], heads, head_dim);
                for view in [whole, heads_first(whole)] {
                    let axis = |a: usize| Axis { dilation: dilation[a], ..Axis::whole(view.tokens[a]) };
                    let axes = [axis(0), axis(1), axis(2)];
                    for Class { first_query, residues, .. } in classes(&axes, Rows::Queries) {
                        let square = Tile { residues, ..tile([1, 8, 16], dilation, 128) };
                        check(&view.from(first_query), &square);
                    }
                }
            }
        }
        let line = video(1, [1, 1, 20], 1, 64);
        let longer = Tile { residues: [1, 1, 2], ..tile([1, 1, 64], [1, 1, 3], 64) };
        assert_eq!(check(&line, &longer).0.extents, [64, 7, 1, 1, 2]);
        let shorter = Tile { residues: [1, 1, 1], ..longer };
        let (spec, steps) = check(&line.from([0, 0, 2]), &shorter);
        assert_eq!(
            (spec.address, &spec.extents[..], steps.residue),
            (line.address + 256, &[64, 6, 1, 1, 1][..], [0; 3])
        );
    }

    #[test]
    fn short_rows_end_where_they_end() {
        let (spec, _) = check(&video(1, [5, 6, 7], 3, 40), &tile([2, 8, 8], [1; 3], 64));
        assert_eq!((spec.extents[0], spec.box_extents[0], spec.swizzle_bytes), (40, 64, 128));
        let (spec, _) = check(&video(1, [5, 6, 7], 3, 32), &tile([2, 8, 8], [1; 3], 32));
        assert_eq!((spec.box_extents[0], spec.swizzle_bytes), (32, 64));
    }

    #[test]
    fn repeated_heads_and_batch_items_take_no_step() {
        let mut view = video(2, [5, 6, 7], 3, 64);
        (view.strides.batch, view.strides.head) = (0, 0);
        let (spec, steps) = check(&view, &tile([2, 8, 8], [1; 3], 64));
        assert_eq!((steps.batch, steps.head, spec.extents[4]), (0, 0, 1));
    }

    #[test]
    fn what_the_engine_cannot_read_is_refused() {
        let good = video(1, [5, 6, 7], 3, 64);
        let cube = tile([2, 8, 8], [1; 3], 64);
        let with = |change: fn(&mut RowView)| {
            let mut view = good;
            change(&mut view);
            tensor_map(&view, &cube).unwrap_err()
        };
        assert_eq!(with(|v| v.address += 8), MapError::Alignment);
        assert_eq!(with(|v| v.strides.axis[2] += 4), MapError::Alignment);
        assert_eq!(with(|v| v.strides.axis[2] = 0), MapError::Stride { elements: 0 });
        assert_eq!(with(|v| v.strides.head = -64), MapError::Stride { elements: -64 });
        assert_eq!(with(|v| v.strides.axis[1] = -64), MapError::Stride { elements: -64 });
        assert_eq!(with(|v| v.strides.axis[0] = 1 << 39), MapError::Stride { elements: 1 << 39 });
        assert_eq!(with(|v| v.tokens[1] = 0), MapError::Extent { extent: 0 });
        // The head's stride and the batch's have little in common.
        let far = RowView { batch: 1 << 20, ..good };
        let far = RowView { strides: Strides { batch: (1 << 30) + 8, ..far.strides }, ..far };
        assert!(matches!(tensor_map(&far, &cube), Err(MapError::Extent { .. })));
    }
}
