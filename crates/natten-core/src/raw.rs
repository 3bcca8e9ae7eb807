//! Borrowed tensors with any strides, to read and to write.
//!
//! A view is a pointer, not a slice: halves of one buffer ([`TensorViewMut::split_at`]) interleave in memory, and slices over
//! them would overlap. All `unsafe` of the crate is here. What it rests on:
//!
//! * every element that a layout reaches lies in the view's buffer, which its constructor checks or its caller promises;
//! * a view to write reaches each element once, and no other view reaches any of them: constructors check the former, and views
//!   are only made shorter or split after that.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

use crate::element::InputElement;
use crate::error::TensorError;
use crate::layout::{Layout, RowLayout};
use crate::tensor::Tensor;

/// Where a view's elements are: somewhere in a buffer, by a layout.
struct Place<E> {
    buffer: NonNull<E>,
    len: usize,
    /// Index in the buffer of the layout's first element.
    offset: usize,
    layout: Layout,
    /// Whether the view has the whole buffer, gaps between its elements included.
    has_gaps: bool,
}

impl<E> Clone for Place<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Place<E> {}

impl<E> Place<E> {
    fn of_slice(buffer: NonNull<[E]>, offset: usize, layout: Layout) -> Self {
        Place { buffer: buffer.cast(), len: buffer.len(), offset, layout, has_gaps: true }
    }

    /// The smallest buffer around what a layout reaches from `first`.
    fn of_pointer(first: *mut E, layout: Layout) -> Result<Self, TensorError> {
        let Some((low, high)) = layout.reach() else {
            return Ok(Place { buffer: NonNull::dangling(), len: 0, offset: 0, layout, has_gaps: false });
        };
        let bytes = (high - low + 1) * size_of::<E>() as i128;
        if bytes > isize::MAX as i128 {
            return Err(TensorError::Overflow);
        }
        let first = NonNull::new(first).ok_or(TensorError::NullPointer)?;
        let buffer = first.as_ptr().wrapping_offset(low as isize);
        let buffer = NonNull::new(buffer).ok_or(TensorError::NullPointer)?;
        Ok(Place { buffer, len: (high - low + 1) as usize, offset: -low as usize, layout, has_gaps: false })
    }

    /// The same elements, or some of them, by another layout whose first element is `step` elements from this one's.
    fn moved(self, (layout, step): (Layout, isize)) -> Self {
        Place { layout, offset: self.offset.wrapping_add_signed(step), ..self }
    }

    fn first(&self) -> *mut E {
        self.buffer.as_ptr().wrapping_add(self.offset)
    }

    fn as_raw_slice(&self) -> NonNull<[E]> {
        NonNull::slice_from_raw_parts(self.buffer, self.len)
    }

    /// The same bits as elements of another type of the same size and alignment.
    fn cast<T>(self) -> Option<Place<T>> {
        let is_alike = size_of::<T>() == size_of::<E>() && align_of::<T>() == align_of::<E>();
        let Place { buffer, len, offset, layout, has_gaps } = self;
        is_alike.then_some(Place { buffer: buffer.cast(), len, offset, layout, has_gaps })
    }

    /// Pointers to all elements, last axis fastest.
    fn elements(&self) -> impl ExactSizeIterator<Item = *mut E> + use<E> {
        let (layout, first) = (self.layout, self.first());
        let mut index = [0usize; crate::layout::MAX_AXES];
        (0..layout.len()).map(move |_| {
            let axes = index.iter().zip(layout.strides());
            let step: isize = axes.map(|(&i, &stride)| i as isize * stride).sum();
            for axis in (0..layout.rank()).rev() {
                index[axis] += 1;
                if index[axis] < layout.shape()[axis] {
                    break;
                }
                index[axis] = 0;
            }
            first.wrapping_offset(step)
        })
    }
}

/// A borrowed tensor with any strides.
#[derive(Clone, Copy)]
pub struct TensorView<'a, E> {
    place: Place<E>,
    borrow: PhantomData<&'a [E]>,
}

// SAFETY: it stands for `&[E]`.
unsafe impl<E: Sync> Send for TensorView<'_, E> {}
// SAFETY: likewise.
unsafe impl<E: Sync> Sync for TensorView<'_, E> {}

/// A borrowed tensor with any strides that name each element once, to write.
pub struct TensorViewMut<'a, E> {
    place: Place<E>,
    borrow: PhantomData<&'a mut [E]>,
}

// SAFETY: it stands for `&mut [E]`.
unsafe impl<E: Send> Send for TensorViewMut<'_, E> {}
// SAFETY: likewise.
unsafe impl<E: Sync> Sync for TensorViewMut<'_, E> {}

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
        Ok(Self::whole(data, layout))
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
        Self::with_layout(data, offset, Layout::strided(shape, strides)?)
    }

    /// A view whose first element is `data[offset]`, by any layout.
    ///
    /// # Errors
    /// [`TensorError::OutOfBounds`] when some index leaves the buffer.
    pub fn with_layout(data: &'a [E], offset: usize, layout: Layout) -> Result<Self, TensorError> {
        layout.check_bounds(offset, data.len())?;
        Ok(TensorView { place: Place::of_slice(data.into(), offset, layout), borrow: PhantomData })
    }

    /// A view of memory that someone else owns, by any layout.
    ///
    /// # Safety
    /// As long as `'a`, every element that the layout reaches from `first` is initialised, nobody writes it, and all of them lie
    /// inside one allocation.
    ///
    /// # Errors
    /// [`TensorError::Overflow`] when the elements lie more than `isize::MAX` bytes apart, [`TensorError::NullPointer`].
    pub unsafe fn from_raw_parts(first: *const E, layout: Layout) -> Result<Self, TensorError> {
        Ok(TensorView { place: Place::of_pointer(first.cast_mut(), layout)?, borrow: PhantomData })
    }

    /// A view of a whole buffer that is as long as the layout says.
    pub(crate) fn whole(data: &'a [E], layout: Layout) -> Self {
        TensorView { place: Place::of_slice(data.into(), 0, layout), borrow: PhantomData }
    }

    /// The buffer around the view, whose first element is at [`TensorView::offset`]; none where its gaps may belong to others,
    /// as in a part of a split view or behind a pointer.
    pub fn buffer(&self) -> Option<&'a [E]> {
        // SAFETY: the buffer was borrowed as a slice, gaps included.
        self.place.has_gaps.then(|| unsafe { self.place.as_raw_slice().as_ref() })
    }

    /// The smallest memory around the view that is known to be one allocation. Only the view's own elements may be read.
    pub fn as_raw_buffer(&self) -> *const [E] {
        self.place.as_raw_slice().as_ptr()
    }

    /// Index of the first element in [`TensorView::buffer`] and [`TensorView::as_raw_buffer`].
    pub fn offset(&self) -> usize {
        self.place.offset
    }

    /// The first element, where there is one.
    pub fn as_ptr(&self) -> *const E {
        self.place.first()
    }

    /// The same bits as elements of another type; none unless it has this one's size and alignment.
    pub fn cast_elements<T: InputElement>(self) -> Option<TensorView<'a, T>> {
        Some(TensorView { place: self.place.cast()?, borrow: PhantomData })
    }

    /// The elements, last axis fastest.
    fn numbers(&self) -> impl ExactSizeIterator<Item = E> + use<'_, 'a, E> {
        // SAFETY: these are the view's elements, which are there and which nobody writes.
        self.place.elements().map(|element| unsafe { element.read() })
    }

    /// Copies into a new contiguous tensor.
    pub fn to_tensor(&self) -> Tensor<E> {
        Tensor::collect(self.shape(), self.numbers())
    }

    /// Copies the elements, last axis fastest, to the beginning of a slice, as many as fit.
    pub fn copy_into(&self, slice: &mut [E]) {
        slice.iter_mut().zip(self.numbers()).for_each(|(to, number)| *to = number);
    }
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
        Ok(Self::whole(data, layout))
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
        Self::with_layout(data, offset, Layout::strided(shape, strides)?)
    }

    /// A view whose first element is `data[offset]`, by any layout.
    ///
    /// # Errors
    /// [`TensorError::OutOfBounds`] when some index leaves the buffer, [`TensorError::Overlap`] when two share an element.
    pub fn with_layout(data: &'a mut [E], offset: usize, layout: Layout) -> Result<Self, TensorError> {
        layout.check_bounds(offset, data.len())?;
        if !layout.is_injective() {
            return Err(TensorError::Overlap);
        }
        Ok(TensorViewMut { place: Place::of_slice(data.into(), offset, layout), borrow: PhantomData })
    }

    /// A view to write of memory that someone else owns, by any layout. It need not be initialised: calls write every element of
    /// what they write before anybody reads it.
    ///
    /// # Safety
    /// As long as `'a`, every element that the layout reaches from `first` may be written, nobody else reads or writes it, and
    /// all of them lie inside one allocation. Elements that are not initialised must not be read through
    /// [`TensorViewMut::as_view`] before a call has written them.
    ///
    /// # Errors
    /// As [`TensorView::from_raw_parts`]; [`TensorError::Overlap`] when two indices share an element.
    pub unsafe fn from_raw_parts(first: *mut E, layout: Layout) -> Result<Self, TensorError> {
        if !layout.is_injective() {
            return Err(TensorError::Overlap);
        }
        Ok(TensorViewMut { place: Place::of_pointer(first, layout)?, borrow: PhantomData })
    }

    /// A view of a whole buffer that is as long as the layout says.
    pub(crate) fn whole(data: &'a mut [E], layout: Layout) -> Self {
        TensorViewMut { place: Place::of_slice(data.into(), 0, layout), borrow: PhantomData }
    }

    /// A shorter borrow of the same view.
    pub fn reborrow(&mut self) -> TensorViewMut<'_, E> {
        TensorViewMut { place: self.place, borrow: PhantomData }
    }

    /// The same elements, to read.
    pub fn as_view(&self) -> TensorView<'_, E> {
        TensorView { place: self.place, borrow: PhantomData }
    }

    /// The buffer around the view, to write, as [`TensorView::buffer`].
    pub fn buffer_mut(&mut self) -> Option<&mut [E]> {
        // SAFETY: the buffer was borrowed as a slice to write, gaps included.
        self.place.has_gaps.then(|| unsafe { self.place.as_raw_slice().as_mut() })
    }

    /// The smallest memory around the view that is known to be one allocation. Only the view's own elements may be touched.
    pub fn as_raw_buffer_mut(&mut self) -> *mut [E] {
        self.place.as_raw_slice().as_ptr()
    }

    /// The first element, where there is one, to write.
    pub fn as_mut_ptr(&mut self) -> *mut E {
        self.place.first()
    }

    /// The same bits as elements of another type; none unless it has this one's size and alignment.
    pub fn cast_elements<T: InputElement>(self) -> Option<TensorViewMut<'a, T>> {
        Some(TensorViewMut { place: self.place.cast()?, borrow: PhantomData })
    }

    /// Two views: indices below `index` along an axis, and the others. Both can be written at once, by different threads too.
    ///
    /// # Errors
    /// [`TensorError::Axis`] when there is no such axis, [`TensorError::Range`] when `index` is beyond its end.
    pub fn split_at(self, axis: usize, index: usize) -> Result<(Self, Self), TensorError> {
        let place = Place { has_gaps: false, ..self.place };
        let layout = place.layout;
        let low = layout.narrowed(axis, 0..index)?;
        let high = layout.narrowed(axis, index..layout.shape()[axis])?;
        // The layout names each element once, so no element is in both parts.
        let part = |part| TensorViewMut { place: place.moved(part), borrow: PhantomData };
        Ok((part(low), part(high)))
    }

    /// Writes every element, last axis fastest. Numbers that are missing leave the rest as it was; more than fit are not taken.
    pub fn write(&mut self, numbers: impl IntoIterator<Item = E>) {
        for (element, number) in self.place.elements().zip(numbers) {
            // SAFETY: an element of the view, which nobody else has.
            unsafe { element.write(number) }
        }
    }
}

/// What both kinds of views do alike: their shape, and fewer of their elements or in another order.
macro_rules! common {
    ($view:ident) => {
        impl<E: InputElement> $view<'_, E> {
            /// Shape and strides.
            pub fn layout(&self) -> &Layout {
                &self.place.layout
            }

            /// Extent of each axis.
            pub fn shape(&self) -> &[usize] {
                self.place.layout.shape()
            }

            /// Where the rows of `[batch, tokens.., heads, head_dim]` start.
            pub fn rows(&self) -> RowLayout {
                RowLayout::of_rows(&self.place.layout, self.place.offset)
            }

            /// Where the numbers of `[batch, tokens.., heads]` stand.
            pub fn scalars(&self) -> RowLayout {
                RowLayout::of_scalars(&self.place.layout, self.place.offset)
            }

            /// The same elements with two axes exchanged, without moving them.
            ///
            /// # Errors
            /// [`TensorError::Axis`] when there is no such axis.
            pub fn swap_axes(self, a: usize, b: usize) -> Result<Self, TensorError> {
                let layout = self.place.layout.swapped(a, b)?;
                Ok($view { place: self.place.moved((layout, 0)), ..self })
            }

            /// The same elements with the axes in another order, without moving them: axis `i` of the result is axis `axes[i]`.
            ///
            /// # Errors
            /// [`TensorError::Permutation`] unless `axes` names each axis once.
            pub fn permute(self, axes: &[usize]) -> Result<Self, TensorError> {
                let layout = self.place.layout.permuted(axes)?;
                Ok($view { place: self.place.moved((layout, 0)), ..self })
            }

            /// The elements of a range along one axis.
            ///
            /// # Errors
            /// [`TensorError::Axis`] when there is no such axis, [`TensorError::Range`] when the range leaves it.
            pub fn narrow(self, axis: usize, range: Range<usize>) -> Result<Self, TensorError> {
                let part = self.place.layout.narrowed(axis, range)?;
                Ok($view { place: self.place.moved(part), ..self })
            }

            /// The elements at one index of an axis, without that axis.
            ///
            /// # Errors
            /// As [`narrow`](Self::narrow); [`TensorError::Rank`] when it is the only axis.
            pub fn index_axis(self, axis: usize, index: usize) -> Result<Self, TensorError> {
                let part = self.place.layout.indexed(axis, index)?;
                Ok($view { place: self.place.moved(part), ..self })
            }
        }

        impl<E: InputElement> fmt::Debug for $view<'_, E> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($view))
                    .field("element_type", &E::ELEMENT_TYPE)
                    .field("shape", &self.shape())
                    .field("strides", &self.layout().strides())
                    .finish_non_exhaustive()
            }
        }
    };
}

common!(TensorView);
common!(TensorViewMut);

mod copy;
#[cfg(feature = "ndarray")]
mod ndarray;
#[cfg(test)]
mod tests;
