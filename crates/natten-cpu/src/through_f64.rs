//! f64 tensors, and gradients of merges: handed to the reference, which computes in f64 anyway and is not tuned.

use natten_core::{
    Element, Gradients, Inputs, Layout, Output, Partials, Problem, Saved, Tensor, TensorView, TensorViewMut,
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

/// Copies a contiguous f64 tensor into a view of the same shape.
fn write<E: Element>(from: &Tensor<f64>, mut to: TensorViewMut<'_, E>) {
    let layout = *to.layout();
    let width = layout.shape()[layout.rank() - 1];
    let step = layout.strides()[layout.rank() - 1];
    let rows = if layout.is_empty() { 0 } else { layout.len() / width };
    let first = to.as_view().offset();
    let data = to.data_mut();
    for row in 0..rows {
        let start = row_start(&layout, first, row);
        for (column, value) in from.as_slice()[row * width..][..width].iter().enumerate() {
            data[start.wrapping_add_signed(column as isize * step)] = E::from_f64(*value);
        }
    }
}

/// Index of the first element of a row, counted over all axes but the last.
fn row_start(layout: &Layout, first: usize, row: usize) -> usize {
    let mut rest = row;
    let mut start = first;
    for axis in (0..layout.rank() - 1).rev() {
        let extent = layout.shape()[axis];
        start = start.wrapping_add_signed((rest % extent) as isize * layout.strides()[axis]);
        rest /= extent;
    }
    start
}
