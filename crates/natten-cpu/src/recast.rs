//! From an element type parameter to the concrete types the kernels are compiled for, in this crate and once.

use natten_core::{Element, Gradients, Inputs, Output, Partials, Saved, TensorView, TensorViewMut};

/// The same view, its elements named by another type of the same size and bits.
pub(crate) fn view<'a, E: Element, T: Element>(view: &TensorView<'a, E>) -> TensorView<'a, T> {
    let layout = view.layout();
    let data = bytemuck::cast_slice(view.data());
    TensorView::strided(data, view.offset(), layout.shape(), layout.strides()).expect("the same layout")
}

/// The same view to write.
pub(crate) fn view_mut<'a, E: Element, T: Element>(view: TensorViewMut<'a, E>) -> TensorViewMut<'a, T> {
    let (layout, offset) = (*view.layout(), view.as_view().offset());
    let data = bytemuck::cast_slice_mut(view.into_data());
    TensorViewMut::strided(data, offset, layout.shape(), layout.strides()).expect("the same layout")
}

/// [`view`] of all inputs.
pub(crate) fn inputs<'a, E: Element, T: Element>(
    inputs: &Inputs<TensorView<'a, E>>,
) -> Inputs<TensorView<'a, T>> {
    inputs.map(view)
}

/// [`view_mut`] of the output.
pub(crate) fn output<'a, E: Element, T: Element>(
    output: Output<TensorViewMut<'a, E>, TensorViewMut<'a, f32>>,
) -> Output<TensorViewMut<'a, T>, TensorViewMut<'a, f32>> {
    Output { out: view_mut(output.out), lse: output.lse }
}

/// [`view`] of what was saved.
pub(crate) fn saved<'a, E: Element, T: Element>(
    saved: &Saved<TensorView<'a, E>, TensorView<'a, f32>>,
) -> Saved<TensorView<'a, T>, TensorView<'a, f32>> {
    Saved { out: view(&saved.out), lse: saved.lse, d_out: view(&saved.d_out), d_lse: saved.d_lse }
}

/// [`view_mut`] of the gradients.
pub(crate) fn gradients<'a, E: Element, T: Element>(
    gradients: Gradients<TensorViewMut<'a, E>>,
) -> Gradients<TensorViewMut<'a, T>> {
    Gradients {
        query: view_mut(gradients.query),
        key: view_mut(gradients.key),
        value: view_mut(gradients.value),
        additional: gradients.additional.map(|pair| pair.map(view_mut)),
    }
}

/// [`view`] of partial results.
pub(crate) fn partials<'a, E: Element, T: Element>(
    partials: &Partials<TensorView<'a, E>, TensorView<'a, f32>>,
) -> Partials<TensorView<'a, T>, TensorView<'a, f32>> {
    Partials { outs: partials.outs.iter().map(view).collect(), lses: partials.lses.clone() }
}
