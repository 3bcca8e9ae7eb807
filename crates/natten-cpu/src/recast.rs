//! From an element type parameter to the concrete types the kernels are compiled for, in this crate and once.

use natten_core::{Gradients, InputElement, Inputs, Output, Partials, Saved, TensorView, TensorViewMut};

/// The same view, its elements named by another type of the same size and bits.
pub(crate) fn view<'a, E: InputElement, T: InputElement>(view: &TensorView<'a, E>) -> TensorView<'a, T> {
    view.cast_elements().expect("a type of the same size")
}

/// The same view to write.
pub(crate) fn view_mut<'a, E: InputElement, T: InputElement>(
    view: TensorViewMut<'a, E>,
) -> TensorViewMut<'a, T> {
    view.cast_elements().expect("a type of the same size")
}

/// [`view`] of all inputs.
pub(crate) fn inputs<'a, E: InputElement, T: InputElement>(
    inputs: &Inputs<TensorView<'a, E>>,
) -> Inputs<TensorView<'a, T>> {
    inputs.map(view)
}

/// [`view_mut`] of the output.
pub(crate) fn output<'a, E: InputElement, T: InputElement>(
    output: Output<TensorViewMut<'a, E>, TensorViewMut<'a, f32>>,
) -> Output<TensorViewMut<'a, T>, TensorViewMut<'a, f32>> {
    output.into_map(view_mut, |lse| lse)
}

/// [`view`] of what was saved.
pub(crate) fn saved<'a, E: InputElement, T: InputElement>(
    saved: &Saved<TensorView<'a, E>, TensorView<'a, f32>>,
) -> Saved<TensorView<'a, T>, TensorView<'a, f32>> {
    saved.map(view, |lse| *lse)
}

/// [`view_mut`] of the gradients.
pub(crate) fn gradients<'a, E: InputElement, T: InputElement>(
    gradients: Gradients<TensorViewMut<'a, E>>,
) -> Gradients<TensorViewMut<'a, T>> {
    gradients.into_map(view_mut)
}

/// [`view`] of partial results.
pub(crate) fn partials<'a, E: InputElement, T: InputElement>(
    partials: &Partials<TensorView<'a, E>, TensorView<'a, f32>>,
) -> Partials<TensorView<'a, T>, TensorView<'a, f32>> {
    partials.map(view, |lse| *lse)
}
