//! Tensors in host memory: owned ones, and views with any strides.

use crate::aligned::Aligned;
use crate::element::InputElement;
use crate::error::TensorError;
use crate::layout::{Layout, RowLayout};

/// An owned, contiguous tensor. Where it allocates its memory itself, that starts at a cache line.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<E> {
    data: Aligned<E>,
    layout: Layout,
}

impl<E: InputElement> Tensor<E> {
    /// Takes over a buffer, last axis fastest.
    ///
    /// # Errors
    /// [`TensorError::Length`] when the shape holds another number of elements, and those of
    /// [`Layout::contiguous`].
    pub fn from_vec(shape: &[usize], data: Vec<E>) -> Result<Self, TensorError> {
        let layout = Layout::contiguous(shape)?;
        if layout.len() != data.len() {
            return Err(TensorError::Length { expected: layout.len(), found: data.len() });
        }
        Ok(Tensor { data: Aligned::from_vec(data), layout })
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`TensorError::Overflow`] when it takes more than `isize::MAX` bytes, [`TensorError::OutOfMemory`], and those of
    /// [`Layout::contiguous`].
    pub fn zeros(shape: &[usize]) -> Result<Self, TensorError> {
        let layout = Layout::contiguous(shape)?;
        let bytes = check_size::<E>(&layout)?;
        let data = Aligned::zeroed(layout.len()).ok_or(TensorError::OutOfMemory { bytes })?;
        Ok(Tensor { data, layout })
    }

    /// Fills a tensor from a function of the running index.
    ///
    /// # Errors
    /// As [`Tensor::zeros`].
    pub fn from_fn(shape: &[usize], mut value: impl FnMut(usize) -> E) -> Result<Self, TensorError> {
        let mut tensor = Tensor::zeros(shape)?;
        tensor.as_mut_slice().iter_mut().enumerate().for_each(|(i, number)| *number = value(i));
        Ok(tensor)
    }

    /// Extent of each axis.
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// The elements, last axis fastest.
    pub fn as_slice(&self) -> &[E] {
        self.data.as_slice()
    }

    /// The elements, to write.
    pub fn as_mut_slice(&mut self) -> &mut [E] {
        self.data.as_mut_slice()
    }

    /// The elements: the buffer that was taken over, or one that they are moved to the start of.
    pub fn into_vec(self) -> Vec<E> {
        self.data.into_vec()
    }

    /// A view of the whole.
    pub fn view(&self) -> TensorView<'_, E> {
        TensorView { data: self.data.as_slice(), offset: 0, layout: self.layout }
    }

    /// A view of the whole, to write.
    pub fn view_mut(&mut self) -> TensorViewMut<'_, E> {
        TensorViewMut { data: self.data.as_mut_slice(), offset: 0, layout: self.layout }
    }

    /// The same numbers in another element type.
    pub fn cast<T: InputElement>(&self) -> Tensor<T> {
        let data = self.as_slice().iter().map(|x| T::narrow(x.widen()));
        let data = Aligned::collect(T::default(), data);
        Tensor { data, layout: self.layout }
    }
}

/// The bytes of a dense tensor. A vector of more than `isize::MAX` would panic.
fn check_size<E>(layout: &Layout) -> Result<usize, TensorError> {
    let most = isize::MAX as usize / size_of::<E>();
    if layout.len() <= most { Ok(layout.len() * size_of::<E>()) } else { Err(TensorError::Overflow) }
}

/// A borrowed tensor with any strides.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a, E> {
    data: &'a [E],
    offset: usize,
    layout: Layout,
}

impl<'a, E: InputElement> TensorView<'a, E> {
    /// A contiguous view of a buffer.
    ///
    /// # Errors
    /// [`TensorError::Length`] when the shape holds another number of elements.
    pub fn from_slice(shape: &[usize], data: &'a [E]) -> Result<Self, TensorError> {
        let layout = Layout::contiguous(shape)?;
        if layout.len() != data.len() {
            return Err(TensorError::Length { expected: layout.len(), found: data.len() });
        }
        Ok(TensorView { data, offset: 0, layout })
    }

    /// A view whose first element is `data[offset]`, with any strides in elements.
    ///
    /// # Errors
    /// [`TensorError::OutOfBounds`] when some index leaves the buffer, and those of [`Layout::strided`].
    pub fn strided(
        data: &'a [E],
        offset: usize,
        shape: &[usize],
        strides: &[isize],
    ) -> Result<Self, TensorError> {
        let layout = Layout::strided(shape, strides)?;
        layout.check_bounds(offset, data.len())?;
        Ok(TensorView { data, offset, layout })
    }

    /// Shape and strides.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Extent of each axis.
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// The buffer behind the view; the first element is at [`TensorView::offset`].
    pub fn data(&self) -> &'a [E] {
        self.data
    }

    /// Index of the first element in [`TensorView::data`].
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The same elements with two axes exchanged, without moving them.
    ///
    /// # Errors
    /// [`TensorError::Axis`] when there is no such axis.
    pub fn swap_axes(self, a: usize, b: usize) -> Result<Self, TensorError> {
        Ok(TensorView { layout: self.layout.swapped(a, b)?, ..self })
    }

    /// Where the rows of `[batch, tokens.., heads, head_dim]` start.
    pub fn rows(&self) -> RowLayout {
        RowLayout::of_rows(&self.layout, self.offset)
    }

    /// Where the numbers of `[batch, tokens.., heads]` stand.
    pub fn scalars(&self) -> RowLayout {
        RowLayout::of_scalars(&self.layout, self.offset)
    }

    /// Copies into a new contiguous tensor.
    pub fn to_tensor(&self) -> Tensor<E> {
        let shape = self.shape();
        let mut index = vec![0usize; shape.len()];
        let data = (0..self.layout.len()).map(|_| {
            let step: isize = index.iter().zip(self.layout.strides()).map(|(&i, &s)| i as isize * s).sum();
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
            self.data[self.offset.wrapping_add_signed(step)]
        });
        let data = Aligned::collect(E::default(), data);
        let layout = Layout::contiguous(shape).expect("the view's own shape was checked");
        Tensor { data, layout }
    }
}

/// A borrowed tensor with any strides that name each element once, to write.
#[derive(Debug)]
pub struct TensorViewMut<'a, E> {
    data: &'a mut [E],
    offset: usize,
    layout: Layout,
}

impl<'a, E: InputElement> TensorViewMut<'a, E> {
    /// A contiguous view of a buffer.
    ///
    /// # Errors
    /// [`TensorError::Length`] when the shape holds another number of elements.
    pub fn from_slice(shape: &[usize], data: &'a mut [E]) -> Result<Self, TensorError> {
        let layout = Layout::contiguous(shape)?;
        if layout.len() != data.len() {
            return Err(TensorError::Length { expected: layout.len(), found: data.len() });
        }
        Ok(TensorViewMut { data, offset: 0, layout })
    }

    /// A view whose first element is `data[offset]`, with any strides in elements.
    ///
    /// # Errors
    /// [`TensorError::OutOfBounds`] when some index leaves the buffer, [`TensorError::Overlap`] when two share
    /// an element, and those of [`Layout::strided`].
    pub fn strided(
        data: &'a mut [E],
        offset: usize,
        shape: &[usize],
        strides: &[isize],
    ) -> Result<Self, TensorError> {
        let layout = Layout::strided(shape, strides)?;
        layout.check_bounds(offset, data.len())?;
        if !layout.is_injective() {
            return Err(TensorError::Overlap);
        }
        Ok(TensorViewMut { data, offset, layout })
    }

    /// Shape and strides.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Extent of each axis.
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// A shorter borrow of the same view.
    pub fn reborrow(&mut self) -> TensorViewMut<'_, E> {
        TensorViewMut { data: self.data, offset: self.offset, layout: self.layout }
    }

    /// The same elements, to read.
    pub fn as_view(&self) -> TensorView<'_, E> {
        TensorView { data: self.data, offset: self.offset, layout: self.layout }
    }

    /// The buffer behind the view; [`TensorViewMut::rows`] says where each row starts.
    pub fn data_mut(&mut self) -> &mut [E] {
        self.data
    }

    /// The buffer behind the view for as long as the view itself would live.
    pub fn into_data(self) -> &'a mut [E] {
        self.data
    }

    /// The same elements with two axes exchanged, without moving them.
    ///
    /// # Errors
    /// [`TensorError::Axis`] when there is no such axis.
    pub fn swap_axes(self, a: usize, b: usize) -> Result<Self, TensorError> {
        let layout = self.layout.swapped(a, b)?;
        Ok(TensorViewMut { layout, ..self })
    }

    /// Where the rows of `[batch, tokens.., heads, head_dim]` start.
    pub fn rows(&self) -> RowLayout {
        RowLayout::of_rows(&self.layout, self.offset)
    }

    /// Where the numbers of `[batch, tokens.., heads]` stand.
    pub fn scalars(&self) -> RowLayout {
        RowLayout::of_scalars(&self.layout, self.offset)
    }
}
