//! The Hopper kernels, forced to run where selection would prefer another: shapes, flags, layouts, neighbours.

use natten_core::{Element, ElementType, Inputs, Params, Problem, Tensor, bf16, f16, reference};
use natten_cuda::params::Strides;
use natten_cuda::sm90::{self, Views};
use natten_cuda::tma::RowView;
use natten_cuda::{Cuda, CudaTensor, CudaView};
use natten_emulator::{Completion, Emulated, Options};

use crate::case::{Case, OnDevice, Operands};

/// A Hopper GPU. Of its multiprocessors one is enough, and shows that thread blocks take one item after another.
pub fn hopper(seed: u64, completion: Completion) -> Cuda<Emulated> {
    let device = Emulated::new(9, 0);
    device.set_options(Options { seed, completion, ..Options::default() });
    Cuda::new(device)
}

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

/// Launches the family's kernels for a problem, whether it pays or not.
pub fn run<E: Element>(
    cuda: &Cuda<Emulated>,
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
    let launches = sm90::prepare(problem, problem.axes(), &views, 1)
        .map_err(|error| error.to_string())?
        .map_err(|reason| reason.to_string())?;
    for launch in &launches {
        // SAFETY: every view is of a tensor that outlives this call, and the emulator runs launches to their end.
        #[allow(unsafe_code)]
        unsafe {
            sm90::run(cuda.device(), launch).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

pub fn forward<E: Element>(
    cuda: &Cuda<Emulated>,
    operands: &Operands<E>,
    problem: &Problem,
) -> Result<(Tensor<E>, Tensor<f32>), String> {
    use natten_core::Backend;
    let device = OnDevice::upload(cuda, operands);
    let out = cuda.allocate::<E>(&problem.out_shape()).map_err(|e| e.to_string())?;
    let lse = cuda.allocate::<f32>(&problem.lse_shape()).map_err(|e| e.to_string())?;
    run(cuda, problem, &device.inputs(), &out, &lse)?;
    Ok((cuda.download(&out).map_err(|e| e.to_string())?, cuda.download(&lse).map_err(|e| e.to_string())?))
}

/// Weights are rounded to the element type before they meet the values, whose size is at most 2, and the result once
/// more; half a unit each. Scores and sums are f32.
pub fn compare<E: Element>(
    operands: &Operands<E>,
    problem: &Problem,
    (out, lse): &(Tensor<E>, Tensor<f32>),
) -> Result<(), String> {
    let expected = reference::forward(problem, &operands.inputs());
    let half_unit = if E::TYPE == ElementType::Bf16 { 2f64.powi(-9) } else { 2f64.powi(-12) };
    for (i, (found, &exact)) in out.as_slice().iter().zip(expected.out.as_slice()).enumerate() {
        let found = found.to_f64();
        let close = (found - exact).abs() <= half_unit * (exact.abs() + 2.0) * 1.02 + 1e-5;
        if !close {
            return Err(format!("out[{i}] = {found}, expected {exact}"));
        }
    }
    for (i, (found, &exact)) in lse.as_slice().iter().zip(expected.lse.as_slice()).enumerate() {
        if (f64::from(*found) - exact).abs() > 1e-5 * exact.abs().max(4.0) {
            return Err(format!("lse[{i}] = {found}, expected {exact}"));
        }
    }
    Ok(())
}

pub fn verify<E: Element>(cuda: &Cuda<Emulated>, case: &Case) -> Result<(), String> {
    let operands = Operands::<E>::draw(case);
    let problem = operands.problem(&case.params);
    let found = forward(cuda, &operands, &problem)?;
    compare(&operands, &problem, &found)
}

fn check<E: Element>(case: &Case) {
    for completion in [Completion::Earliest, Completion::Latest, Completion::Random] {
        let cuda = hopper(case.seed, completion);
        if let Err(error) = verify::<E>(&cuda, case) {
            panic!("{completion:?}: {error}\n{case:?}");
        }
    }
}

#[test]
fn one_tile() {
    check::<bf16>(&Case::new([1, 1, 20], Params::new([1, 1, 5])).dims(64, 64));
}
