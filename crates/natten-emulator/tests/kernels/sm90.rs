//! The Hopper kernels, forced to run where selection would prefer another: shapes, flags, layouts, neighbours.

use natten_core::{Element, ElementType, Inputs, Params, Problem, Tensor, bf16, f16, reference};
use natten_cuda::params::Strides;
use natten_cuda::registry::Facts;
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
    for (i, (found, &exact)) in out.as_slice().iter().zip(expected.out.as_slice()).enumerate() {
        let found = found.to_f64();
        let close = (found - exact).abs() <= roundoff * (exact.abs() + 2.0) * 1.02 + 1e-5;
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

pub fn verify<E: Element>(cuda: &Cuda<Emulated>, entry: Option<&str>, case: &Case) -> Result<(), String> {
    let operands = Operands::<E>::draw(case);
    let problem = operands.problem(&case.params);
    let found = forward(cuda, entry, &operands, &problem)?;
    compare(&operands, &problem, &found)
}

fn check<E: Element>(case: &Case) {
    check_kernel::<E>(None, case);
}

fn check_kernel<E: Element>(entry: Option<&str>, case: &Case) {
    for completion in [Completion::Earliest, Completion::Latest, Completion::Random] {
        let cuda = hopper(case.seed, completion);
        if let Err(error) = verify::<E>(&cuda, entry, case) {
            panic!("{completion:?} {entry:?}: {error}\n{case:?}");
        }
    }
}

/// Every kernel of the family, on several items with full and masked tiles, at either sign of the scale.
#[test]
fn every_kernel() {
    let params = Params::new([1, 12, 20]).is_causal([false, true, false]);
    for kernel in sm90::kernels() {
        let (dim, dim_v) = (kernel.longest_row(), kernel.longest_row() - 8);
        let grid = Case::new([1, 20, 33], params.scale(-0.2)).dims(dim, dim).heads(2, 1);
        let row = Case::new([1, 1, 500], Params::new([1, 1, 400]).scale(0.2)).dims(dim, dim_v).heads(1, 1);
        for case in [grid, row] {
            match kernel.element_type() {
                ElementType::F16 => check_kernel::<f16>(Some(kernel.entry), &case),
                _ => check_kernel::<bf16>(Some(kernel.entry), &case),
            }
        }
    }
}

/// Each bucket of head_dim, full and partial, odd and unequal lengths of rows.
#[test]
fn every_bucket() {
    let params = Params::new([1, 12, 20]).is_causal([false, true, false]);
    for (head_dim, head_dim_v) in [
        (32, 32),
        (64, 64),
        (128, 128),
        (256, 256),
        (8, 32),
        (40, 64),
        (72, 16),
        (80, 96),
        (136, 128),
        (16, 200),
    ] {
        let case = Case::new([1, 13, 21], params).dims(head_dim, head_dim_v).heads(2, 1);
        check::<bf16>(&case);
        check::<f16>(&case);
    }
}

/// Extents of one, a tile and its neighbours, along one axis.
#[test]
fn extents_around_a_tile() {
    for extent in [1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193, 300] {
        for kernel_size in [1, 7, extent] {
            let kernel_size = kernel_size.min(extent);
            check::<f16>(&Case::new([1, 1, extent], Params::new([1, 1, kernel_size])).dims(64, 64));
        }
        check::<bf16>(&Case::new([1, 1, extent], Params::new([1, 1, extent])).dims(128, 128));
    }
}

/// Windows at both borders, strides, dilations, causality, on one to three axes.
#[test]
fn flags_one_by_one() {
    let base = |tokens, params| check::<bf16>(&Case::new(tokens, params).dims(64, 64));
    base([1, 1, 400], Params::new([1, 1, 150]).stride([1, 1, 30]));
    base([1, 1, 333], Params::new([1, 1, 200]).is_causal([false, false, true]));
    base([1, 1, 333], Params::new([1, 1, 60]).stride([1, 1, 60]).is_causal([false, false, true]));
    base([1, 1, 501], Params::new([1, 1, 90]).dilation([1, 1, 3]));
    base([1, 1, 904], Params::new([1, 1, 100]).dilation([1, 1, 8]));
    base([1, 1, 2006], Params::new([1, 1, 90]).dilation([1, 1, 17]));
    base([1, 48, 112], Params::new([1, 2, 5]).dilation([1, 16, 16]));
    base([1, 33, 38], Params::new([1, 1, 2]).dilation([1, 33, 19]).is_causal([false, true, true]));
    base([1, 25, 30], Params::new([1, 9, 11]).stride([1, 2, 1]).dilation([1, 1, 2]));
    base([1, 40, 1], Params::new([1, 33, 1]).is_causal([false, true, false]));
    base([5, 12, 14], Params::new([3, 5, 7]));
    base([6, 8, 10], Params::new([3, 3, 4]).dilation([2, 2, 2]).stride([1, 2, 3]));
    base([9, 1, 40], Params::new([3, 1, 21]).is_causal([true, false, false]));
    base([8, 8, 8], Params::new([8, 8, 8]));
    base([16, 8, 16], Params::new([8, 4, 8]).stride([8, 4, 8]));
}

/// Dilations that do not divide: one launch for the residues of each length, up to eight.
#[test]
fn residues_that_differ_in_length() {
    let base = |tokens, params| check::<bf16>(&Case::new(tokens, params).dims(64, 64).heads(2, 1));
    base([1, 1, 500], Params::new([1, 1, 90]).dilation([1, 1, 3]));
    base([1, 1, 900], Params::new([1, 1, 100]).dilation([1, 1, 8]).stride([1, 1, 7]));
    base([1, 1, 1999], Params::new([1, 1, 90]).dilation([1, 1, 17]).is_causal([false, false, true]));
    // Residues of a token or two; all but the first of one; the last one token short.
    base([1, 1, 40], Params::new([1, 1, 1]).dilation([1, 1, 33]));
    base([1, 1, 34], Params::new([1, 1, 1]).dilation([1, 1, 33]).is_causal([false, false, true]));
    base([1, 1, 65], Params::new([1, 1, 2]).dilation([1, 1, 32]));
    base([1, 1, 255], Params::new([1, 1, 127]).dilation([1, 1, 2]));
    base([1, 37, 100], Params::new([1, 2, 5]).dilation([1, 16, 16]));
    base([1, 33, 40], Params::new([1, 1, 2]).dilation([1, 33, 19]).is_causal([false, true, true]));
    base([1, 40, 33], Params::new([1, 9, 5]).dilation([1, 3, 4]).stride([1, 4, 2]));
    base([6, 9, 10], Params::new([3, 3, 4]).dilation([2, 2, 2]).stride([1, 2, 3]));
    base([7, 11, 13], Params::new([3, 3, 3]).dilation([2, 3, 4]).stride([2, 3, 1]));
    base([7, 11, 13], Params::new([2, 3, 3]).dilation([3, 2, 4]).is_causal([true, false, true]));
}

/// Everything at once; three query heads on a key head, additional keys below, at and above a tile, both layouts.
#[test]
fn flags_together() {
    let params = Params::new([3, 2, 7]).stride([2, 2, 1]).dilation([2, 3, 1]).is_causal([true, false, true]);
    for (heads, heads_kv, additional, heads_first, batch) in [
        (2, 1, 5, false, 1),
        (3, 1, 128, true, 2),
        (6, 2, 130, false, 2),
        (1, 1, 300, false, 3),
        (2, 2, 1, true, 1),
        (4, 2, 256, true, 2),
    ] {
        let mut case = Case::new([8, 9, 15], params.scale(0.3)).dims(64, 64).heads(heads, heads_kv);
        (case.batch, case.additional, case.heads_first, case.seed) = (batch, additional, heads_first, 2);
        check::<f16>(&case);
        let uneven = Case { tokens: [7, 8, 15], head_dim: 40, head_dim_v: 24, ..case.clone() };
        check::<bf16>(&uneven);
        check::<bf16>(&Case { head_dim: 40, head_dim_v: 24, ..case });
    }
}

/// Scales that move the point of reference at almost every tile, and at none; those that prefer small scores, and none.
#[test]
fn scales() {
    for scale in [1e-4, 1.0, 4.0, 0.0, -1e-4, -1.0, -4.0, -1e-300] {
        check::<f16>(&Case::new([1, 20, 40], Params::new([1, 15, 31]).scale(scale)).dims(64, 64));
    }
}

/// Small problems drawn at random.
#[test]
fn random_problems() {
    let mut numbers = crate::case::Numbers::new(11);
    let mut pick = |n: usize| (((numbers.draw() + 2.0) / 4.0 * n as f64) as usize).min(n - 1);
    for round in 0..60 {
        let limit = [200, 24, 9][pick(3)];
        let mut tokens = [1; 3];
        for extent in tokens.iter_mut().skip(if limit == 200 { 2 } else { usize::from(limit == 24) }) {
            *extent = 1 + pick(limit);
        }
        let most = [3, 3, 20][pick(3)];
        let dilation = tokens.map(|extent| 1 + pick(extent.min(most)));
        let kernel_size: [usize; 3] = std::array::from_fn(|a| 1 + pick(tokens[a] / dilation[a]));
        let stride = kernel_size.map(|size| 1 + pick(size));
        let is_causal = [pick(3) == 0, pick(3) == 0, pick(3) == 0];
        let params = Params::new(kernel_size).stride(stride).dilation(dilation).is_causal(is_causal);
        let heads_kv = 1 + pick(2);
        let mut case = Case::new(tokens, params).heads(heads_kv * (1 + pick(3)), heads_kv);
        case = case.dims([16, 32, 64, 128][pick(4)], [8, 32, 64][pick(3)]);
        (case.additional, case.batch) = ([0, 0, 3, 150][pick(4)], 1 + pick(2));
        (case.heads_first, case.seed) = (pick(2) == 0, round);
        let completion = [Completion::Earliest, Completion::Latest, Completion::Random][pick(3)];
        let cuda = hopper(round, completion);
        let result =
            if pick(2) == 0 { verify::<f16>(&cuda, None, &case) } else { verify::<bf16>(&cuda, None, &case) };
        assert!(result.is_ok(), "round {round} {completion:?}: {}\n{case:?}", result.unwrap_err());
    }
}
