//! Hopper kernels that broken ones are compared with: launched as one block that takes every item in turn.

use natten_core::{Element, ElementType, Inputs, Problem, Tensor, reference};
use natten_cuda::params::Strides;
use natten_cuda::sm90::{self, Views};
use natten_cuda::tma::RowView;
use natten_cuda::{Cuda, CudaTensor, CudaView};
use natten_emulator::Emulated;
use natten_tests::compare::each_within;

use crate::case::{Case, OnDevice, Operands};

fn row_view<E: Element>(view: &CudaView<'_, E>) -> RowView {
    let shape = view.layout().shape();
    let mut tokens = [1; 3];
    tokens[3 - (shape.len() - 3)..].copy_from_slice(&shape[1..shape.len() - 2]);
    let (heads, head_dim) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    let strides = strides(&view.layout().strides()[..shape.len() - 1]);
    RowView { address: view.address(), batch: shape[0], tokens, heads, head_dim, strides }
}

fn strides(all: &[isize]) -> Strides {
    let mut axis = [0; 3];
    let tokens = &all[1..all.len() - 1];
    axis[3 - tokens.len()..].iter_mut().zip(tokens).for_each(|(to, from)| *to = *from as i64);
    Strides { batch: all[0] as i64, axis, head: all[all.len() - 1] as i64 }
}

/// Launches a kernel of the family, whether it pays or not: the one that is asked for, or the best for the problem.
pub fn run<E: Element>(
    cuda: &Cuda<Emulated>,
    entry: Option<&str>,
    problem: &Problem,
    inputs: &Inputs<CudaView<'_, E>>,
    out: &CudaTensor<E, Emulated>,
    lse: &CudaTensor<f32, Emulated>,
) -> Result<(), String> {
    let (out, lse) = (out.view(), lse.view());
    let out_strides = out.layout().strides();
    let views = Views {
        query: row_view(&inputs.query),
        key: row_view(&inputs.key),
        value: row_view(&inputs.value),
        additional: inputs.additional.as_ref().map(|pair| pair.each_ref().map(row_view)),
        out: (out.address(), strides(&out_strides[..out_strides.len() - 1])),
        lse: (lse.address(), strides(lse.layout().strides())),
    };
    // As if there were a few multiprocessors: the order of items has boxes of neighbours then.
    let mut prepared = sm90::prepare(problem, problem.axes(), &views, entry, 4)
        .map_err(|error| error.to_string())?
        .map_err(|reason| reason.to_string())?;
    prepared.launches.iter_mut().for_each(|launch| launch.grid = 1);
    // SAFETY: every view is of a tensor that outlives this call, and the emulator runs launches to their end.
    #[allow(unsafe_code)]
    unsafe {
        sm90::run(cuda.device(), &prepared).map_err(|error| error.to_string())
    }
}

pub fn forward<E: Element>(
    cuda: &Cuda<Emulated>,
    entry: Option<&str>,
    operands: &Operands<E>,
    problem: &Problem,
) -> Result<(Tensor<E>, Tensor<f32>), String> {
    use natten_core::Backend;
    let device = OnDevice::upload(cuda, operands);
    let out = cuda.allocate::<E>(&problem.out_shape()).map_err(|e| e.to_string())?;
    let lse = cuda.allocate::<f32>(&problem.lse_shape()).map_err(|e| e.to_string())?;
    run(cuda, entry, problem, &device.inputs(), &out, &lse)?;
    Ok((cuda.download(&out).map_err(|e| e.to_string())?, cuda.download(&lse).map_err(|e| e.to_string())?))
}

/// Weights are rounded to the element type before they meet the values, whose size is at most 2, and the result once
/// more. Scores and sums are f32.
pub fn compare<E: Element>(
    operands: &Operands<E>,
    problem: &Problem,
    (out, lse): &(Tensor<E>, Tensor<f32>),
) -> Result<(), String> {
    let expected = reference::forward(problem, &operands.inputs());
    let roundoff = if E::TYPE == ElementType::Bf16 { 2f64.powi(-8) } else { 2f64.powi(-11) };
    each_within("out", out, &expected.out, |exact| roundoff * (exact.abs() + 2.0) * 1.02 + 1e-5)?;
    each_within("lse", lse, &expected.lse, |exact| 1e-5 * exact.abs().max(4.0))
}

pub fn verify<E: Element>(cuda: &Cuda<Emulated>, entry: Option<&str>, case: &Case) -> Result<(), String> {
    let operands = Operands::<E>::draw(case);
    let problem = operands.problem(&case.params);
    let found = forward(cuda, entry, &operands, &problem)?;
    compare(&operands, &problem, &found)
}
