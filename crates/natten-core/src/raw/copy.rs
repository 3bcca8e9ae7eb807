//! From one view to another of the same shape, whatever their strides.

use super::{Place, TensorView, TensorViewMut};
use crate::element::InputElement;
use crate::error::TensorError;

/// Elements that lie one after another in two views.
struct Run<E> {
    to: *mut E,
    from: *const E,
    len: usize,
}

impl<E: InputElement> TensorViewMut<'_, E> {
    /// Copies the elements of a view of the same shape: as many at a time as lie densely in both.
    ///
    /// # Errors
    /// [`TensorError::Shape`] when the shapes differ; nothing is written then.
    pub fn copy_from(&mut self, from: &TensorView<'_, E>) -> Result<(), TensorError> {
        for Run { to, from, len } in self.runs(from)? {
            // SAFETY: as many elements lie from here on in both views; the ones to write are nobody else's, so those to read are
            // not among them.
            unsafe { to.copy_from_nonoverlapping(from, len) }
        }
        Ok(())
    }

    /// Adds the elements of a view of the same shape, each sum rounded once.
    ///
    /// # Errors
    /// As [`TensorViewMut::copy_from`].
    pub fn accumulate(&mut self, from: &TensorView<'_, E>) -> Result<(), TensorError> {
        for Run { to, from, len } in self.runs(from)? {
            // SAFETY: as in `copy_from`.
            let (to, from) =
                unsafe { (std::slice::from_raw_parts_mut(to, len), std::slice::from_raw_parts(from, len)) };
            // A sum of two numbers of 53 bits, rounded to 24 or fewer, is as if it had been rounded once.
            to.iter_mut().zip(from).for_each(|(to, from)| *to = E::narrow(to.widen() + from.widen()));
        }
        Ok(())
    }

    /// As many elements at a time as lie densely in both views.
    fn runs<'s>(
        &'s mut self,
        from: &'s TensorView<'_, E>,
    ) -> Result<impl Iterator<Item = Run<E>> + use<'s, E>, TensorError> {
        self.layout().expect_shape(from.layout())?;
        let axes = match self.layout().is_empty() {
            true => 0,
            false => self.layout().dense_axes().min(from.layout().dense_axes()),
        };
        let len: usize = self.shape()[self.shape().len() - axes..].iter().product();
        let (to, from) = (self.place.first_of_last(axes)?, from.place.first_of_last(axes)?);
        Ok(to.elements().zip(from.elements()).map(move |(to, from)| Run { to, from: from.cast_const(), len }))
    }
}

impl<E> Place<E> {
    /// The elements at index 0 of each of the last axes; none of them is empty.
    fn first_of_last(self, axes: usize) -> Result<Self, TensorError> {
        let rank = self.layout.rank();
        (rank - axes..rank).try_fold(self, |place, axis| Ok(place.moved(place.layout.narrowed(axis, 0..1)?)))
    }
}
