//! Owned tensors in host memory.

use crate::aligned::Aligned;
use crate::element::InputElement;
use crate::error::TensorError;
use crate::layout::Layout;
use crate::raw::{TensorView, TensorViewMut};

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
        TensorView::whole(self.data.as_slice(), self.layout)
    }

    /// A view of the whole, to write.
    pub fn view_mut(&mut self) -> TensorViewMut<'_, E> {
        TensorViewMut::whole(self.data.as_mut_slice(), self.layout)
    }

    /// A contiguous tensor of numbers in order; there must be as many as the shape holds.
    pub(crate) fn collect(shape: &[usize], numbers: impl ExactSizeIterator<Item = E>) -> Self {
        let layout = Layout::contiguous(shape).expect("a shape that has been checked");
        debug_assert_eq!(numbers.len(), layout.len());
        Tensor { data: Aligned::collect(E::default(), numbers), layout }
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
