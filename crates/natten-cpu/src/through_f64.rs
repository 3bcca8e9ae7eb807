//! f64 tensors, and gradients of merges: handed to the reference, which computes in f64 anyway and is not tuned.

use natten_core::{
    Element, Gradients, Inputs, Output, Partials, Problem, Saved, Tensor, TensorView, TensorViewMut,
    reference,
};

/// The reference's forward, rounded into the caller's tensors.
pub(crate) fn forward(
    problem: &Problem,
    inputs: &Inputs<TensorView<'_, f64>>,
    output: Output<TensorViewMut<'_, f64>, TensorViewMut<'_, f32>>,
) {
    store(reference::forward(problem, inputs), output);
}

/// The reference's gradients, rounded into the caller's tensors.
pub(crate) fn backward(
    problem: &Problem,
    inputs: &Inputs<TensorView<'_, f64>>,
    saved: &Saved<TensorView<'_, f64>, TensorView<'_, f32>>,
    gradients: Gradients<TensorViewMut<'_, f64>>,
) {
    let computed = reference::backward(problem, inputs, saved);
    computed.zip(gradients).into_map(|(from, to)| write(&from, to));
}

/// The reference's merge, rounded into the caller's tensors.
pub(crate) fn merge(
    partials: &Partials<TensorView<'_, f64>, TensorView<'_, f32>>,
    output: Output<TensorViewMut<'_, f64>, TensorViewMut<'_, f32>>,
) {
    store(reference::merge(partials), output);
}

/// The reference's gradients of partial results, rounded into the caller's tensors.
pub(crate) fn merge_backward<E: Element>(
    partials: &Partials<TensorView<'_, E>, TensorView<'_, f32>>,
    merged: &Output<TensorView<'_, E>, TensorView<'_, f32>>,
    gradients: Partials<TensorViewMut<'_, E>, TensorViewMut<'_, f32>>,
) {
    let computed = reference::merge_backward(partials, &merged.out, merged.lse.as_ref());
    let (outs, lses) = computed.into_iter().unzip();
    let pairs = Partials { outs, lses }.zip(gradients);
    pairs.into_map(|(from, to)| write(&from, to), |(from, to)| write(&from, to));
}

fn store(computed: reference::Forward, output: Output<TensorViewMut<'_, f64>, TensorViewMut<'_, f32>>) {
    let computed = Output { out: computed.out, lse: Some(computed.lse) };
    computed.zip(output).into_map(|(from, to)| write(&from, to), |(from, to)| write(&from, to));
}

/// Rounds a contiguous f64 tensor into a view of the same shape.
fn write<E: Element>(from: &Tensor<f64>, mut to: TensorViewMut<'_, E>) {
    to.write(from.as_slice().iter().map(|&value| E::from_f64(value)));
}
