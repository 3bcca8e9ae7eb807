//! From one view to another of the same shape, whatever their strides.

use super::{Place, TensorView, TensorViewMut};
use crate::element::InputElement;
use crate::error::TensorError;

impl<E: InputElement> TensorViewMut<'_, E> {
    /// Copies the elements of a view of the same shape: as many at a time as lie densely in both.
    ///
    /// # Errors
    /// [`TensorError::Shape`] when the shapes differ; nothing is written then.
    pub fn copy_from(&mut self, from: &TensorView<'_, E>) -> Result<(), TensorError> {
        self.layout().expect_shape(from.layout())?;
        if self.layout().is_empty() {
            return Ok(());
        }
        let axes = self.layout().dense_axes().min(from.layout().dense_axes());
        let run: usize = self.shape()[self.shape().len() - axes..].iter().product();
        let (to, from) = (self.place.first_of_last(axes)?, from.place.first_of_last(axes)?);
        for (to, from) in to.elements().zip(from.elements()) {
            // SAFETY: as many elements of the last axes lie from here on in both views; the ones to write are nobody else's, so
            // those to read are not among them.
            unsafe { to.copy_from_nonoverlapping(from, run) }
        }
        Ok(())
    }
}

impl<E> Place<E> {
    /// The elements at index 0 of each of the last axes; none of them is empty.
    fn first_of_last(self, axes: usize) -> Result<Self, TensorError> {
        let rank = self.layout.rank();
        (rank - axes..rank).try_fold(self, |place, axis| Ok(place.moved(place.layout.narrowed(axis, 0..1)?)))
    }
}
