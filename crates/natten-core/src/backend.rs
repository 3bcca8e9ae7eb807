//! What a backend is: tensors where it lives, and the forward, backward and merge of validated calls on them.

use std::ops::Range;

use crate::call::{BackwardCall, ForwardCall, MergeBackwardCall, MergeCall};
use crate::element::{Element, InputElement};
use crate::error::TensorError;
use crate::layout::Layout;

/// A place where tensors live and the operator runs.
///
/// Calls arrive validated: an implementation may rely on shapes and element types, on contiguous last axes, and on views
/// to write that name each element once. It never validates again.
///
/// A call cannot be made but through its constructor, which holds the views against the problem:
///
/// ```
/// # use natten_core::{Backend, Element, ForwardCall, Inputs, Output, Problem, ProblemError};
/// fn run<'c, B: Backend, E: Element>(
///     backend: &B,
///     problem: &'c Problem,
///     inputs: Inputs<B::View<'c, E>>,
///     out: B::ViewMut<'c, E>,
/// ) -> Result<Result<(), B::Error>, ProblemError> {
///     let call = ForwardCall::new(problem, inputs, Output { out, lse: None })?;
///     Ok(backend.forward(call))
/// }
/// ```
///
/// A problem and views that may not fit it are no call:
///
/// ```compile_fail,E0061
/// # use natten_core::{Backend, Element, ForwardCall, Inputs, Output, Problem, ProblemError};
/// fn run<'c, B: Backend, E: Element>(
///     backend: &B,
///     problem: &'c Problem,
///     inputs: Inputs<B::View<'c, E>>,
///     out: B::ViewMut<'c, E>,
/// ) -> Result<Result<(), B::Error>, ProblemError> {
///     Ok(backend.forward(problem, inputs, Output { out, lse: None }))
/// }
/// ```
pub trait Backend: Clone {
    /// A borrowed tensor to read.
    type View<'a, E: InputElement>: Clone;
    /// A borrowed tensor to write.
    type ViewMut<'a, E: InputElement>;
    /// An owned tensor.
    type Tensor<E: InputElement>;
    /// Its own failures.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Short name for messages: `cpu`, `cuda`.
    fn name(&self) -> &'static str;

    /// Which device this is, for the message when operands live on different ones.
    fn device_name(&self) -> String {
        self.name().to_owned()
    }

    /// Whether tensors of both can meet in one call.
    fn is_same_device(&self, _other: &Self) -> bool {
        true
    }

    /// Shape and strides of a view: always the same for one view.
    fn layout<E: InputElement>(view: &Self::View<'_, E>) -> Layout;

    /// Shape and strides of a view to write: always the same for one view.
    fn layout_mut<E: InputElement>(view: &Self::ViewMut<'_, E>) -> Layout;

    /// A new tensor whose content may be anything that the call at hand overwrites.
    ///
    /// # Errors
    /// When memory cannot be had.
    fn allocate<E: InputElement>(&self, shape: &[usize]) -> Result<Self::Tensor<E>, Self::Error>;

    /// Copies the elements of a view to where one of the same shape has them. Both may have any strides, along the last axis too.
    /// No call object has held the two against each other, so this is the one method that looks at shapes itself.
    ///
    /// # Errors
    /// When the shapes differ ([`Layout::expect_shape`]) or the device fails. Nothing is written where shapes differ.
    fn copy<E: Element>(&self, from: Self::View<'_, E>, to: Self::ViewMut<'_, E>) -> Result<(), Self::Error>;

    /// Adds the elements of a view to those of another of the same shape, each sum rounded once. Both may have any strides; shapes
    /// are looked at as in [`Backend::copy`].
    ///
    /// # Errors
    /// As [`Backend::copy`].
    fn accumulate<E: Element>(
        &self,
        from: Self::View<'_, E>,
        to: Self::ViewMut<'_, E>,
    ) -> Result<(), Self::Error>;

    /// A new tensor of a view's elements, which may have any strides, along the last axis too. No call depends on it but for
    /// gradients that arrive so.
    ///
    /// # Errors
    /// When memory cannot be had or the device fails.
    fn contiguous<E: Element>(&self, view: Self::View<'_, E>) -> Result<Self::Tensor<E>, Self::Error> {
        let mut copy = self.allocate::<E>(Self::layout(&view).shape())?;
        self.copy(view, Self::view_mut(&mut copy))?;
        Ok(copy)
    }

    /// A shorter borrow of the same view.
    fn reborrow<'s, E: InputElement>(view: &'s Self::View<'_, E>) -> Self::View<'s, E>;

    /// A shorter borrow of the same view, to write.
    fn reborrow_mut<'s, E: InputElement>(view: &'s mut Self::ViewMut<'_, E>) -> Self::ViewMut<'s, E>;

    /// The elements of a range along one axis.
    ///
    /// # Errors
    /// Those of [`Layout::narrowed`].
    fn narrow<'a, E: InputElement>(
        view: Self::View<'a, E>,
        axis: usize,
        range: Range<usize>,
    ) -> Result<Self::View<'a, E>, TensorError>;

    /// Two views to write: indices below `index` along an axis, and the others. Both may be written by one call.
    ///
    /// # Errors
    /// Those of [`Layout::narrowed`].
    fn split_mut<'a, E: InputElement>(
        view: Self::ViewMut<'a, E>,
        axis: usize,
        index: usize,
    ) -> Result<[Self::ViewMut<'a, E>; 2], TensorError>;

    /// The elements of a range along one axis, to write.
    ///
    /// # Errors
    /// Those of [`Layout::narrowed`].
    fn narrow_mut<'a, E: InputElement>(
        view: Self::ViewMut<'a, E>,
        axis: usize,
        range: Range<usize>,
    ) -> Result<Self::ViewMut<'a, E>, TensorError> {
        let [part, _] = Self::split_mut(view, axis, range.end)?;
        let [_, part] = Self::split_mut(part, axis, range.start)?;
        Ok(part)
    }

    /// A view of an owned tensor.
    fn view<E: InputElement>(tensor: &Self::Tensor<E>) -> Self::View<'_, E>;

    /// A view of an owned tensor, to write.
    fn view_mut<E: InputElement>(tensor: &mut Self::Tensor<E>) -> Self::ViewMut<'_, E>;

    /// Writes every element of the output.
    ///
    /// # Errors
    /// When the device fails or does not support the problem.
    fn forward<E: InputElement>(&self, call: ForwardCall<'_, Self, E>) -> Result<(), Self::Error>;

    /// Writes every element of the gradients.
    ///
    /// # Errors
    /// When the device fails or does not support the problem.
    fn backward<E: InputElement>(&self, call: BackwardCall<'_, Self, E>) -> Result<(), Self::Error>;

    /// Merges partial results: `lse = log sum exp lse_b`, `out = sum exp(lse_b - lse) out_b`; writes every
    /// element of the output.
    ///
    /// # Errors
    /// When the device fails.
    fn merge<E: Element>(&self, call: MergeCall<'_, Self, E>) -> Result<(), Self::Error>;

    /// The gradient of each partial result from that of what they merge into: `d_out_b = w_b d_out`,
    /// `d_lse_b = w_b (d_out . (out_b - out) + d_lse)` with `w_b = exp(lse_b - lse)`; writes every element of the
    /// gradients.
    ///
    /// # Errors
    /// When the device fails.
    fn merge_backward<E: Element>(&self, call: MergeBackwardCall<'_, Self, E>) -> Result<(), Self::Error>;
}

/// A tensor that a call can read, in a program whose host tensors run on the backend `Host`.
///
/// The crate of a device implements it for its tensors and for every `Host`; the crate of a host backend implements it for
/// [`Tensor`](crate::Tensor) and its views, with itself for `Host`. The facade settles on one `Host` and takes all that
/// implement this, so neither needs to be known there.
pub trait Operand<Host> {
    /// Its element type.
    type Elem: InputElement;
    /// Where it lives, which decides what runs the call.
    type Device: Backend;

    /// A handle of the device.
    fn device(&self) -> Self::Device;

    /// The tensor itself.
    fn view(&self) -> <Self::Device as Backend>::View<'_, Self::Elem>;
}

/// A tensor that a call can write.
pub trait OperandMut<Host>: Operand<Host> {
    /// The tensor itself, to write.
    fn view_mut(&mut self) -> <Self::Device as Backend>::ViewMut<'_, Self::Elem>;
}
