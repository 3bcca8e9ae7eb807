//! Shapes and strides: how a tensor of up to six axes lies in memory.

use std::ops::Range;

use crate::error::TensorError;

/// Most axes a tensor has: `[batch, X, Y, Z, heads, head_dim]`.
pub const MAX_AXES: usize = 6;

/// Shape and strides of a tensor, in elements. The last axis varies fastest in a contiguous tensor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    rank: usize,
    shape: [usize; MAX_AXES],
    strides: [isize; MAX_AXES],
}

impl Layout {
    /// A dense layout, last axis fastest.
    ///
    /// # Errors
    /// [`TensorError::Rank`] for no axes or more than [`MAX_AXES`]; [`TensorError::Overflow`] when the element
    /// count exceeds `isize::MAX`.
    pub fn contiguous(shape: &[usize]) -> Result<Self, TensorError> {
        let mut layout = Self::with_shape(shape)?;
        let mut step = 1usize;
        for axis in (0..layout.rank).rev() {
            layout.strides[axis] = isize::try_from(step).map_err(|_| TensorError::Overflow)?;
            // An empty axis must not hide an overflow of the others: strides stay meaningful.
            step = step.checked_mul(shape[axis].max(1)).ok_or(TensorError::Overflow)?;
        }
        isize::try_from(step).map_err(|_| TensorError::Overflow)?;
        Ok(layout)
    }

    /// A layout with any strides, in elements; negative and zero ones included.
    ///
    /// # Errors
    /// [`TensorError::StrideCount`] when the two lists differ in length, and those of [`Layout::contiguous`].
    pub fn strided(shape: &[usize], strides: &[isize]) -> Result<Self, TensorError> {
        if shape.len() != strides.len() {
            return Err(TensorError::StrideCount { shape: shape.len(), strides: strides.len() });
        }
        let mut layout = Self::contiguous(shape)?;
        layout.strides[..strides.len()].copy_from_slice(strides);
        Ok(layout)
    }

    fn with_shape(shape: &[usize]) -> Result<Self, TensorError> {
        if shape.is_empty() || shape.len() > MAX_AXES {
            return Err(TensorError::Rank { rank: shape.len(), max: MAX_AXES });
        }
        let mut layout = Layout { rank: shape.len(), shape: [1; MAX_AXES], strides: [0; MAX_AXES] };
        layout.shape[..shape.len()].copy_from_slice(shape);
        Ok(layout)
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Extent of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape[..self.rank]
    }

    /// Stride of each axis, in elements.
    pub fn strides(&self) -> &[isize] {
        &self.strides[..self.rank]
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether some axis is empty.
    pub fn is_empty(&self) -> bool {
        self.shape().contains(&0)
    }

    /// Whether the elements lie densely, last axis fastest. Strides of axes of extent 1 do not matter.
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1isize;
        for axis in (0..self.rank).rev() {
            if self.shape[axis] != 1 && self.strides[axis] != step {
                return self.is_empty();
            }
            step *= self.shape[axis] as isize;
        }
        true
    }

    /// Whether the elements along the last axis lie one after the other. Strides of axes of extent 1 or 0 do not matter.
    pub fn has_contiguous_rows(&self) -> bool {
        let last = self.rank - 1;
        self.strides[last] == 1 || self.shape[last] <= 1
    }

    /// [`Layout::strided`] with strides as engines keep them that know no negative ones.
    ///
    /// # Errors
    /// [`TensorError::Overflow`] for a stride above `isize::MAX`, and those of [`Layout::strided`].
    pub fn with_unsigned_strides(shape: &[usize], strides: &[usize]) -> Result<Self, TensorError> {
        if shape.len() != strides.len() {
            return Err(TensorError::StrideCount { shape: shape.len(), strides: strides.len() });
        }
        let mut layout = Self::contiguous(shape)?;
        for (to, &stride) in layout.strides.iter_mut().zip(strides) {
            *to = isize::try_from(stride).map_err(|_| TensorError::Overflow)?;
        }
        Ok(layout)
    }

    /// The same elements with two axes exchanged.
    ///
    /// # Errors
    /// [`TensorError::Axis`] when there is no such axis.
    pub fn swapped(mut self, a: usize, b: usize) -> Result<Self, TensorError> {
        self.expect_axis(a)?;
        self.expect_axis(b)?;
        self.shape.swap(a, b);
        self.strides.swap(a, b);
        Ok(self)
    }

    /// The same elements with the axes in another order: axis `i` of the result is axis `axes[i]`.
    ///
    /// # Errors
    /// [`TensorError::Permutation`] unless `axes` names each axis once.
    pub fn permuted(self, axes: &[usize]) -> Result<Self, TensorError> {
        let is_permutation = axes.len() == self.rank && (0..self.rank).all(|axis| axes.contains(&axis));
        if !is_permutation {
            return Err(TensorError::Permutation { axes: axes.to_vec(), rank: self.rank });
        }
        let mut layout = self;
        for (to, &from) in axes.iter().enumerate() {
            (layout.shape[to], layout.strides[to]) = (self.shape[from], self.strides[from]);
        }
        Ok(layout)
    }

    /// The elements of a range along one axis, and the step from the first element to the first of these.
    ///
    /// # Errors
    /// [`TensorError::Axis`] when there is no such axis, [`TensorError::Range`] when the range leaves it.
    pub fn narrowed(mut self, axis: usize, range: Range<usize>) -> Result<(Self, isize), TensorError> {
        self.expect_axis(axis)?;
        let (Range { start, end }, extent) = (range, self.shape[axis]);
        if start > end || end > extent {
            return Err(TensorError::Range { axis, start, end, extent });
        }
        self.shape[axis] = end - start;
        // Where nothing is left no element is ever reached, so the step may be anything; so may that of strides that no buffer holds.
        let step = if self.is_empty() { 0 } else { (start as isize).wrapping_mul(self.strides[axis]) };
        Ok((self, step))
    }

    /// The elements at one index of an axis, which is gone then, and the step from the first element to the first of these.
    ///
    /// # Errors
    /// As [`Layout::narrowed`]; [`TensorError::Rank`] when it is the only axis.
    pub fn indexed(self, axis: usize, index: usize) -> Result<(Self, isize), TensorError> {
        let (mut layout, step) = self.narrowed(axis, index..index.saturating_add(1))?;
        if layout.rank == 1 {
            return Err(TensorError::Rank { rank: 0, max: MAX_AXES });
        }
        layout.shape.copy_within(axis + 1.., axis);
        layout.strides.copy_within(axis + 1.., axis);
        layout.rank -= 1;
        // Axes beyond the rank are as `contiguous` leaves them, so that equal layouts compare equal.
        (layout.shape[layout.rank], layout.strides[layout.rank]) = (1, 0);
        Ok((layout, step))
    }

    fn expect_axis(&self, axis: usize) -> Result<(), TensorError> {
        if axis < self.rank { Ok(()) } else { Err(TensorError::Axis { axis, rank: self.rank }) }
    }

    /// Checks that another tensor has this one's shape, as what is copied here must.
    ///
    /// # Errors
    /// [`TensorError::Shape`] with both.
    pub fn expect_shape(&self, other: &Layout) -> Result<(), TensorError> {
        let (expected, found) = (self.shape(), other.shape());
        if expected == found {
            return Ok(());
        }
        Err(TensorError::Shape { expected: expected.to_vec(), found: found.to_vec() })
    }

    /// How many of the last axes lie densely, last axis fastest.
    pub(crate) fn dense_axes(&self) -> usize {
        let mut step = 1isize;
        let axes = (0..self.rank).rev().take_while(|&axis| {
            let is_dense = self.shape[axis] == 1 || self.strides[axis] == step;
            step = step.saturating_mul(self.shape[axis] as isize);
            is_dense
        });
        axes.count()
    }

    /// Lowest and highest index reached relative to the first element, or `None` when empty.
    pub(crate) fn reach(&self) -> Option<(i128, i128)> {
        if self.is_empty() {
            return None;
        }
        let span = |axis: usize| (self.shape[axis] as i128 - 1) * self.strides[axis] as i128;
        let spans = (0..self.rank).map(span);
        Some(spans.fold((0, 0), |(low, high), s| (low + s.min(0), high + s.max(0))))
    }

    /// Checks that the layout, starting at `offset`, stays inside a buffer of `len` elements.
    ///
    /// # Errors
    /// [`TensorError::OutOfBounds`] with the range reached.
    pub fn check_bounds(&self, offset: usize, len: usize) -> Result<(), TensorError> {
        let Some((low, high)) = self.reach() else { return Ok(()) };
        let (lowest, highest) = (offset as i128 + low, offset as i128 + high);
        if lowest < 0 || highest >= len as i128 {
            return Err(TensorError::OutOfBounds { lowest, highest, len });
        }
        Ok(())
    }

    /// Whether no two indices share an element, judged by nesting: sorted by stride, each axis must step over
    /// all that the finer ones span. Sufficient, and true of every layout that slicing and transposing make.
    pub fn is_injective(&self) -> bool {
        if self.is_empty() {
            return true;
        }
        let mut axes: Vec<(i128, i128)> = (0..self.rank)
            .filter(|&axis| self.shape[axis] > 1)
            .map(|axis| ((self.strides[axis] as i128).abs(), self.shape[axis] as i128))
            .collect();
        axes.sort_unstable();
        let mut span = 1;
        for (stride, extent) in axes {
            if stride < span {
                return false;
            }
            span += stride * (extent - 1);
        }
        true
    }
}

/// Where the rows of a tensor `[batch, X, Y, Z, heads, head_dim]` start: what a backend needs of a layout once
/// the shape is known. Missing token axes have extent 1 and stride 0. Strides are in elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowLayout {
    /// Index of the very first element in the buffer.
    pub offset: usize,
    /// Step from one batch to the next.
    pub batch_stride: isize,
    /// Step along each token axis.
    pub token_strides: [isize; 3],
    /// Step from one head to the next.
    pub head_stride: isize,
}

impl RowLayout {
    /// Reads `[batch, 1 to 3 token axes, heads, head_dim]`.
    pub fn of_rows(layout: &Layout, offset: usize) -> Self {
        Self::split(&layout.strides()[..layout.rank() - 1], offset)
    }

    /// Reads `[batch, 1 to 3 token axes, heads]`, one number a row (`lse`).
    pub fn of_scalars(layout: &Layout, offset: usize) -> Self {
        Self::split(layout.strides(), offset)
    }

    fn split(strides: &[isize], offset: usize) -> Self {
        let tokens = &strides[1..strides.len() - 1];
        let mut token_strides = [0; 3];
        token_strides[3 - tokens.len()..].copy_from_slice(tokens);
        RowLayout { offset, batch_stride: strides[0], token_strides, head_stride: strides[strides.len() - 1] }
    }

    /// Index of the first element of a row.
    #[inline]
    pub fn row(&self, batch: usize, token: [usize; 3], head: usize) -> usize {
        let step = batch as isize * self.batch_stride
            + token[0] as isize * self.token_strides[0]
            + token[1] as isize * self.token_strides[1]
            + token[2] as isize * self.token_strides[2]
            + head as isize * self.head_stride;
        self.offset.wrapping_add_signed(step)
    }
}
