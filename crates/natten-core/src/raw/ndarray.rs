//! Arrays of the crate `ndarray`, where they lie: views of the same elements, strides included, in either direction of an axis.

use ::ndarray::{Array, ArrayD, ArrayView, ArrayViewMut, Dimension, IxDyn};

use super::{TensorView, TensorViewMut};
use crate::element::InputElement;
use crate::error::TensorError;
use crate::layout::Layout;
use crate::tensor::Tensor;

impl<'a, E: InputElement, D: Dimension> TryFrom<ArrayView<'a, E, D>> for TensorView<'a, E> {
    type Error = TensorError;

    /// The same elements, without copying.
    ///
    /// # Errors
    /// [`TensorError::Rank`] when an array has more axes than a tensor can have.
    fn try_from(array: ArrayView<'a, E, D>) -> Result<Self, TensorError> {
        let layout = Layout::strided(array.shape(), array.strides())?;
        // SAFETY: an array view borrows, for `'a`, initialised elements of one allocation: those that its shape and strides, which
        // are in elements as ours, reach from its first.
        unsafe { TensorView::from_raw_parts(array.as_ptr(), layout) }
    }
}

impl<'a, E: InputElement, D: Dimension> TryFrom<ArrayViewMut<'a, E, D>> for TensorViewMut<'a, E> {
    type Error = TensorError;

    /// The same elements, without copying.
    ///
    /// # Errors
    /// [`TensorError::Rank`] when an array has more axes than a tensor can have.
    fn try_from(mut array: ArrayViewMut<'a, E, D>) -> Result<Self, TensorError> {
        let layout = Layout::strided(array.shape(), array.strides())?;
        // SAFETY: as above, and nobody else reads or writes these elements as long as `'a`; all of them are initialised.
        unsafe { TensorViewMut::from_raw_parts(array.as_mut_ptr(), layout) }
    }
}

impl<E: InputElement, D: Dimension> TryFrom<Array<E, D>> for Tensor<E> {
    type Error = TensorError;

    /// Takes over the buffer of an array that is its elements in order, and copies those of any other.
    ///
    /// # Errors
    /// [`TensorError::Rank`] when an array has more axes than a tensor can have.
    fn try_from(array: Array<E, D>) -> Result<Self, TensorError> {
        if !array.is_standard_layout() {
            return Ok(TensorView::try_from(array.view())?.to_tensor());
        }
        let shape = array.shape().to_vec();
        let (data, offset) = array.into_raw_vec_and_offset();
        let first = offset.unwrap_or(0);
        let len = Layout::contiguous(&shape)?.len();
        if data.len() == len {
            return Tensor::from_vec(&shape, data);
        }
        // A part of its buffer, as slicing an owned array leaves it.
        Tensor::from_vec(&shape, data[first..first + len].to_vec())
    }
}

impl<E: InputElement> From<Tensor<E>> for ArrayD<E> {
    /// Gives the buffer over.
    fn from(tensor: Tensor<E>) -> Self {
        let shape = IxDyn(tensor.shape());
        ArrayD::from_shape_vec(shape, tensor.into_vec()).expect("a tensor holds what its shape says")
    }
}
