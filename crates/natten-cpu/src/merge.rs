//! Merging partial results over disjoint key sets into one softmax.
//!
//! ```text
//! lse = max + ln sum_b exp(lse_b - max)        out = sum_b exp(lse_b - lse) out_b
//! ```
//!
//! Weights in f64, which costs nothing beside reading the outputs; rows in parallel.

use natten_core::{Element, Output, Partials, TensorView, TensorViewMut, bf16, f16};

use crate::Cpu;
use crate::arch::rows::{Rows, SharedRows};
use crate::parallel::for_each_task;

/// One function for each element type, so that this crate compiles them and not each that calls them.
macro_rules! of_type {
    ($name:ident, $type:ty) => {
        /// See the module.
        pub(crate) fn $name(
            cpu: &Cpu,
            partials: &Partials<TensorView<'_, $type>, TensorView<'_, f32>>,
            output: Output<TensorViewMut<'_, $type>, TensorViewMut<'_, f32>>,
        ) {
            merge(cpu, partials, output);
        }
    };
}

of_type!(of_f32, f32);
of_type!(of_f16, f16);
of_type!(of_bf16, bf16);

/// Computes the merged `out` and `lse`.
fn merge<E: Element>(
    cpu: &Cpu,
    partials: &Partials<TensorView<'_, E>, TensorView<'_, f32>>,
    output: Output<TensorViewMut<'_, E>, TensorViewMut<'_, f32>>,
) {
    let shape = output.out.shape().to_vec();
    let rank = shape.len() - 3;
    let mut tokens = [1; 3];
    tokens[3 - rank..].copy_from_slice(&shape[1..=rank]);
    let [heads, width] = [shape[rank + 1], shape[rank + 2]];
    let outs: Vec<Rows<'_, E>> = partials.outs.iter().map(Rows::of_rows).collect();
    let lses: Vec<Rows<'_, f32>> = partials.lses.iter().map(Rows::of_scalars).collect();
    let (out, lse) = (SharedRows::of_rows(output.out), output.lse.map(SharedRows::of_scalars));
    // One task for each batch item and line of tokens along the last axis.
    let lines = shape[0] * tokens[0] * tokens[1];
    let numbers = lines * tokens[2] * heads * width * outs.len();
    for_each_task(cpu.pool(), lines, 4.0 * numbers as f64, |line, scratch| {
        let (batch, x, y) = (line / (tokens[0] * tokens[1]), line / tokens[1] % tokens[0], line % tokens[1]);
        let row = scratch.stage.reserve(width);
        let mut weights = vec![0f64; outs.len()];
        for z in 0..tokens[2] {
            for head in 0..heads {
                let token = [x, y, z];
                for (weight, lse) in weights.iter_mut().zip(&lses) {
                    *weight = f64::from(lse.row(batch, token, head)[0]);
                }
                let total = log_sum_exp(&weights);
                weights.iter_mut().for_each(|weight| *weight = share(*weight, total));
                row.fill(0.0);
                for (&weight, out) in weights.iter().zip(&outs) {
                    // A branch without weight has none, whatever its output: 0 times infinity would be NaN.
                    if weight != 0.0 {
                        let from = out.row(batch, token, head);
                        row.iter_mut().zip(from).for_each(|(to, from)| *to += weight as f32 * from.to_f32());
                    }
                }
                out.fill(batch, token, head, |to| {
                    to.iter_mut().zip(&*row).for_each(|(to, &from)| *to = E::from_f32(from));
                });
                if let Some(lse) = &lse {
                    lse.fill(batch, token, head, |lse| lse[0] = total as f32);
                }
            }
        }
    });
}

/// Minus infinity where no branch has seen a key.
fn log_sum_exp(lses: &[f64]) -> f64 {
    let max = lses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY && !lses.iter().any(|lse| lse.is_nan()) {
        return max;
    }
    max + lses.iter().map(|lse| (lse - max).exp()).sum::<f64>().ln()
}

/// `exp(lse - total)`, 0 for a branch that has seen no key.
fn share(lse: f64, total: f64) -> f64 {
    if lse == f64::NEG_INFINITY { 0.0 } else { (lse - total).exp() }
}
