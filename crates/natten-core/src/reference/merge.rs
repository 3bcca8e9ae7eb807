//! Merging partial results over disjoint key sets into one softmax, and its gradient, in f64.

use crate::element::InputElement;
use crate::operands::Partials;
use crate::raw::TensorView;
use crate::reference::Forward;
use crate::tensor::Tensor;

/// `lse = log sum_b exp lse_b` and `out = sum_b w_b out_b` with `w_b = exp(lse_b - lse)`.
///
/// A branch that saw no key has `lse_b = -inf` and no weight; if no branch saw one, the result is `out = 0`,
/// `lse = -inf`.
pub fn merge<E: InputElement, L: InputElement>(
    partials: &Partials<TensorView<'_, E>, TensorView<'_, L>>,
) -> Forward {
    let outs: Vec<Tensor<f64>> = partials.outs.iter().map(|out| out.to_tensor().cast()).collect();
    let lses: Vec<Tensor<f64>> = partials.lses.iter().map(|lse| lse.to_tensor().cast()).collect();
    let mut merged = outs[0].clone();
    let mut lse = lses[0].clone();
    let width = merged.shape()[merged.shape().len() - 1];
    for (row, total) in lse.as_mut_slice().iter_mut().enumerate() {
        let branch_lses: Vec<f64> = lses.iter().map(|lse| lse.as_slice()[row]).collect();
        *total = log_sum_exp(&branch_lses);
        for column in row * width..(row + 1) * width {
            let weighted = outs.iter().zip(&branch_lses).map(|(out, &lse)| (out.as_slice()[column], lse));
            merged.as_mut_slice()[column] = weighted.map(|(out, lse)| scaled(weight(lse, *total), out)).sum();
        }
    }
    Forward { out: merged, lse }
}

/// Gradients of each branch's output and log-sum-exp:
///
/// ```text
/// d_out_b = w_b d_out        d_lse_b = w_b (d_out . (out_b - out) + d_lse)
/// ```
///
/// Returns one `(d_out_b, d_lse_b)` for each branch.
pub fn merge_backward<E: InputElement, L: InputElement>(
    partials: &Partials<TensorView<'_, E>, TensorView<'_, L>>,
    d_out: &TensorView<'_, E>,
    d_lse: Option<&TensorView<'_, L>>,
) -> Vec<(Tensor<f64>, Tensor<f64>)> {
    let merged = merge(partials);
    let d_out: Tensor<f64> = d_out.to_tensor().cast();
    let d_lse: Option<Tensor<f64>> = d_lse.map(|d_lse| d_lse.to_tensor().cast());
    let width = d_out.shape()[d_out.shape().len() - 1];
    let branch = |(out, lse): (&TensorView<'_, E>, &TensorView<'_, L>)| {
        let (out, mut d_lse_branch): (Tensor<f64>, Tensor<f64>) =
            (out.to_tensor().cast(), lse.to_tensor().cast());
        let mut d_out_branch = d_out.clone();
        for (row, slot) in d_lse_branch.as_mut_slice().iter_mut().enumerate() {
            let w = weight(*slot, merged.lse.as_slice()[row]);
            let mut along = d_lse.as_ref().map_or(0.0, |d_lse| d_lse.as_slice()[row]);
            for column in row * width..(row + 1) * width {
                let g = &mut d_out_branch.as_mut_slice()[column];
                along += *g * (out.as_slice()[column] - merged.out.as_slice()[column]);
                *g = scaled(w, *g);
            }
            *slot = scaled(w, along);
        }
        (d_out_branch, d_lse_branch)
    };
    partials.outs.iter().zip(&partials.lses).map(branch).collect()
}

fn log_sum_exp(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return max;
    }
    max + values.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}

/// `exp(lse_b - lse)`; a branch without keys weighs nothing, also when the whole has none (`-inf - -inf`).
fn weight(branch_lse: f64, lse: f64) -> f64 {
    if branch_lse == f64::NEG_INFINITY { 0.0 } else { (branch_lse - lse).exp() }
}

/// A weight of zero silences its branch, also where that branch holds NaN or infinity.
fn scaled(weight: f64, value: f64) -> f64 {
    if weight == 0.0 { 0.0 } else { weight * value }
}
