//! Kernels that no chip has run yet: before calls are trusted to one on a device, it is held to the SIMT family's there.
//!
//! The problem is small, and reaches every role of a kernel on boxes: items one after the other in a cta, tiles without a mask and
//! with one, more of them than there are stages, additional keys, scores that rise late, heads that share keys, a causal axis. Where results
//! differ, or the device refuses, the kernel's family is left out of all choices on the device from then on.
//!
//! What this cannot do: a kernel that never ends is waited for, and after a fault a context of the CUDA driver is of no more use,
//! so that the calls behind it fail as well.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use natten_core::{Element, ElementType, Inputs, Layout, Output, Params, Problem, Tensor, bf16, f16};

use crate::buffer::CudaTensor;
use crate::cuda::Cuda;
use crate::device::{Device, Properties};
use crate::error::CudaError;
use crate::families::FAMILIES;
use crate::family::{Pass, Query, Request, best_fit};
use crate::registry::{Facts, Kernel, Operation};
use crate::rejection::{Rejection, RejectionReason, Rejections};
use crate::submit::{self, SubmitError};
use crate::views::Views;

/// How a kernel failed where it was held to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TrialFailure {
    /// Its results are not those of the SIMT family's kernel.
    Differs,
    /// The device or its driver did not run it.
    Fault,
}

impl fmt::Display for TrialFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrialFailure::Differs => "gave other results than the SIMT kernels",
            TrialFailure::Fault => "could not be run",
        })
    }
}

/// A kernel that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FailedTrial {
    pub kernel: &'static str,
    pub how: TrialFailure,
}

impl FailedTrial {
    /// Why no kernel of the family is taken.
    pub fn reason(self) -> RejectionReason {
        RejectionReason::NotTrusted { kernel: self.kernel, how: self.how }
    }
}

/// What has been found out in a context.
#[derive(Debug, Default)]
pub(crate) struct Trials(Mutex<Found>);

#[derive(Debug, Default)]
struct Found {
    passed: HashSet<&'static str>,
    /// The first one; its family is not asked again.
    failed: Option<FailedTrial>,
}

impl Trials {
    /// What speaks against the kernels that no chip has run.
    pub fn failed(&self) -> Option<FailedTrial> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).failed
    }
}

/// Whether no chip has run the kernel.
pub(crate) fn is_untried(kernel: &Kernel) -> bool {
    FAMILIES.iter().any(|family| family.name() == kernel.family && family.is_untried())
}

/// Whether a kernel that no chip has run may be launched: what it did before in this context, or does now. Threads that come
/// meanwhile wait.
pub(crate) fn is_trusted<D: Device>(device: &D, kernel: &'static Kernel) -> bool {
    let trials = &device.functions().trials;
    let mut found = trials.0.lock().unwrap_or_else(PoisonError::into_inner);
    if found.failed.is_some() || found.passed.contains(kernel.entry) {
        return found.failed.is_none();
    }
    let outcome = match kernel.element_type() {
        ElementType::F16 => hold::<f16, D>(device, kernel),
        _ => hold::<bf16, D>(device, kernel),
    };
    match outcome {
        Ok(true) => _ = found.passed.insert(kernel.entry),
        Ok(false) => found.failed = Some(FailedTrial { kernel: kernel.entry, how: TrialFailure::Differs }),
        Err(_) => found.failed = Some(FailedTrial { kernel: kernel.entry, how: TrialFailure::Fault }),
    }
    found.failed.is_none()
}

/// Few enough that a cta gets several items.
const MULTIPROCESSORS: u32 = 2;
const TOKENS: [usize; 2] = [19, 37];
const HEADS: usize = 2;
/// One tile without a mask, and one of a few keys.
const ADDITIONAL: usize = 130;

/// Whether a kernel gives the results of the SIMT family.
fn hold<E: Element, D: Device>(device: &D, kernel: &'static Kernel) -> Result<bool, CudaError> {
    let head_dim = kernel.longest_row();
    let shape = |heads| [1, TOKENS[0], TOKENS[1], heads, head_dim];
    let list = [1, ADDITIONAL, 1, head_dim];
    let mut state = 1;
    let mut draw = |shape: &[usize], size: f32| {
        Tensor::<E>::from_fn(shape, |_| E::from_f32(size * next_number(&mut state)))
    };
    let (query, key, value) = (draw(&shape(HEADS), 1.0)?, draw(&shape(1), 1.0)?, draw(&shape(1), 1.0)?);
    // Their scores are small and come first, so that references have to move when the others come.
    let (more_keys, more_values) = (draw(&list, 0.125)?, draw(&list, 1.0)?);
    let inputs = Inputs::new(query, key, value).with_additional(more_keys, more_values);
    let params = Params::new([9, 15]).is_causal([false, true]).scale(9.0 / (head_dim as f32).sqrt());
    let layouts = inputs.try_map(|_, tensor| Layout::contiguous(tensor.shape()))?;
    let problem = Problem::new(&params.to_dyn(), &layouts, E::TYPE)?;
    let properties = Properties { multiprocessors: MULTIPROCESSORS, ..device.properties().clone() };
    let views = Views::dense(&problem);
    let open = Request::default();
    let question = Query::new(Pass::Forward(&problem), &views, &properties, &open);
    let other = best_fit("simt", Operation::Forward, &question).map_err(|reason| {
        CudaError::Unsupported(Rejections(vec![Rejection { kernel: kernel.entry, reason }]))
    })?;
    let found = attend(device, kernel, &problem, &inputs, &properties)?;
    let expected = attend(device, other, &problem, &inputs, &properties)?;
    Ok(agree(&found, &expected))
}

type Results<E> = (Tensor<E>, Tensor<f32>);

fn attend<E: Element, D: Device>(
    device: &D,
    kernel: &'static Kernel,
    problem: &Problem,
    inputs: &Inputs<Tensor<E>>,
    properties: &Properties,
) -> Result<Results<E>, CudaError> {
    let request = Request { entry: Some(kernel.entry), ..Request::default() };
    let cuda = Cuda::new(device.clone()).with_request(request);
    let inputs = inputs.try_map(|_, tensor| cuda.upload(&tensor.view()))?;
    // Poisoned: what is not written differs.
    let nan = |shape: &[usize]| Tensor::<E>::from_fn(shape, |_| E::from_f32(f32::NAN));
    let mut out = cuda.upload(&nan(&problem.out_shape())?.view())?;
    let mut lse = cuda.upload(&Tensor::from_fn(&problem.lse_shape(), |_| f32::NAN)?.view())?;
    let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
    let views = inputs.map(CudaTensor::view);
    let (offer, addresses) = cuda.offer(problem, &views, &output, properties)?;
    submit::run(device, &offer, &addresses).map_err(|error| match error {
        SubmitError::Map(error) | SubmitError::Device(error) => error,
    })?;
    Ok((cuda.download(&out)?, cuda.download(&lse)?))
}

/// Values are below 1 in size, and some keys have much of the weight. Weights that were rounded to the element type err by half
/// its last place, as does the result; log-sum-exps by little more than f32 does. A key too many or too few changes the
/// latter by more.
fn agree<E: Element>(found: &Results<E>, expected: &Results<E>) -> bool {
    let of_out = if E::TYPE == ElementType::F16 { 2f32.powi(-8) } else { 2f32.powi(-5) };
    let within = |a: f32, b: f32, most: f32| (a - b).abs() <= most;
    let outs = found.0.as_slice().iter().zip(expected.0.as_slice());
    let lses = found.1.as_slice().iter().zip(expected.1.as_slice());
    outs.into_iter().all(|(a, b)| within(a.to_f32(), b.to_f32(), of_out))
        && lses.into_iter().all(|(a, b)| within(*a, *b, 1e-4))
}

/// Numbers in -1 .. 1, always the same.
fn next_number(state: &mut u32) -> f32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    (*state >> 8) as f32 / (1 << 23) as f32 - 1.0
}
