//! Hopper kernels that broken ones are compared with: launched as one block that takes every item in turn.

use std::sync::Arc;

use natten_core::{Element, ElementType, Inputs, Output, Problem, Tensor, reference};
use natten_cuda::device::{Device, Properties};
use natten_cuda::registry::{Kernel, Operation, kernels_of};
use natten_cuda::{Addresses, Cuda, CudaTensor, CudaView, Offer, Request, submit};
use natten_emulator::Emulated;
use natten_tests::compare::each_within;

use crate::case::{Case, OnDevice, Operands};

/// Launches a kernel of the family, whether it pays or not: the one that is asked for, or the best for the problem.
pub fn run<E: Element>(
    cuda: &Cuda<Emulated>,
    entry: Option<&str>,
    problem: &Problem,
    inputs: &Inputs<CudaView<'_, E>>,
    out: &CudaTensor<E, Emulated>,
    lse: &CudaTensor<f32, Emulated>,
) -> Result<(), String> {
    // As if there were a few multiprocessors: the order of items has boxes of neighbours then.
    let properties = Properties { multiprocessors: 4, ..cuda.device().properties().clone() };
    let (out, lse) = (out.view(), lse.view());
    let is_asked = |kernel: &&Kernel| entry.is_none_or(|entry| entry == kernel.entry);
    let mut best: Option<(Arc<Offer>, Addresses)> = None;
    let mut refused = String::new();
    for kernel in hopper_kernels().filter(is_asked) {
        // SAFETY: both views are of tensors that outlive this call, and only described until the launch.
        #[allow(unsafe_code)]
        let output = unsafe {
            Output {
                out: cuda.view_mut_of_raw::<E>(out.address(), *out.layout()),
                lse: Some(cuda.view_mut_of_raw(lse.address(), *lse.layout())),
            }
        };
        let asked = cuda.clone().with_request(Request { entry: Some(kernel.entry), tiling: None });
        match asked.offer(problem, inputs, &output, &properties) {
            // Longer rows than need be take longer.
            Ok(offer)
                if best.as_ref().is_none_or(|(best, _)| offer.0.bid.microseconds < best.bid.microseconds) =>
            {
                best = Some(offer)
            }
            Ok(_) => {}
            Err(error) => refused = error.to_string(),
        }
    }
    let (offer, addresses) = best.ok_or(refused)?;
    let mut launches = offer.launches.clone();
    launches.iter_mut().for_each(|launch| launch.grid = [1; 3]);
    // SAFETY: every view is of a tensor that outlives this call, and the emulator runs launches to their end.
    #[allow(unsafe_code)]
    unsafe {
        submit(cuda.device(), &launches, &addresses).map_err(|error| error.to_string())
    }
}

/// All kernels of the family.
pub fn hopper_kernels() -> impl Iterator<Item = &'static Kernel> {
    kernels_of("sm90", Operation::Forward)
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
