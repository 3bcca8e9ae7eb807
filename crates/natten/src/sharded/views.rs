//! Parts of tensors along the split axis, packed where they do not lie contiguously.

use std::ops::Range;

use natten_core::{Backend, Element};

use super::ShardedError;
use crate::call::backend_error;

/// A range of tokens of the whole as indices of a tensor that begins at token `origin`.
pub(super) fn within(range: &Range<usize>, origin: usize) -> Range<usize> {
    range.start - origin..range.end - origin
}

/// A failure of the backend's own.
pub(super) fn failed<B: Backend>(backend: &B) -> impl Fn(B::Error) -> ShardedError + '_ {
    |source| ShardedError::Call(backend_error(backend, source))
}

/// A new tensor.
pub(super) fn allocate<B: Backend, E: Element>(
    backend: &B,
    shape: &[usize],
) -> Result<B::Tensor<E>, ShardedError> {
    backend.allocate(shape).map_err(failed(backend))
}

/// A shape with another extent along one axis.
pub(super) fn reshaped(shape: &[usize], axis: usize, extent: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    shape[axis] = extent;
    shape
}

/// What is sent: a view where it lies contiguously, else a copy that does.
pub(super) enum Parcel<'a, B: Backend, E: Element> {
    Lies(B::View<'a, E>),
    Packed(B::Tensor<E>),
}

/// What is sent, and to whom.
pub(super) type Parcels<'a, B, E> = Vec<(usize, Parcel<'a, B, E>)>;

impl<'a, B: Backend, E: Element> Parcel<'a, B, E> {
    /// The elements of a range along one axis.
    pub fn of(
        backend: &B,
        view: B::View<'a, E>,
        axis: usize,
        range: Range<usize>,
    ) -> Result<Self, ShardedError> {
        let part = B::narrow(view, axis, range)?;
        if B::layout(&part).is_contiguous() {
            return Ok(Parcel::Lies(part));
        }
        Ok(Parcel::Packed(backend.contiguous(part).map_err(failed(backend))?))
    }

    /// The elements, to read.
    pub fn view(&self) -> B::View<'_, E> {
        match self {
            Parcel::Lies(view) => B::reborrow(view),
            Parcel::Packed(tensor) => B::view(tensor),
        }
    }
}

/// Whether every range along an axis of a contiguous tensor of this shape lies contiguously.
pub(super) fn is_outermost(shape: &[usize], axis: usize) -> bool {
    shape[..axis].iter().all(|&extent| extent == 1)
}
