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

use natten_core::{
    Backend, BackwardCall, Element, ElementType, Gradients, Inputs, Layout, Output, Params, Problem, Saved,
    Tensor, bf16, f16,
};

use crate::buffer::{CudaTensor, Placed};
use crate::choose::choose;
use crate::cuda::Cuda;
use crate::device::{Device, Properties};
use crate::error::CudaError;
use crate::families::FAMILIES;
use crate::family::{Offer, Pass, Query, Request, best_fit};
use crate::registry::{Facts, Kernel, Operation, kernels_of};
use crate::rejection::{Rejection, RejectionReason, Rejections};
use crate::submit::{self, SubmitError};
use crate::views::{Addresses, Slot, Views};

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
    let kernel = leading(kernel);
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

/// The kernel that leads offers with this one: both passes of a backward stand trial together, by the name of the first.
fn leading(kernel: &'static Kernel) -> &'static Kernel {
    if kernel.operation != Operation::BackwardKey {
        return kernel;
    }
    let belongs = |other: &&Kernel| {
        (other.element_type(), other.longest_row()) == (kernel.element_type(), kernel.longest_row())
    };
    kernels_of(kernel.family, Operation::BackwardQuery).find(belongs).unwrap_or(kernel)
}

/// Few enough that a cta gets several items.
const MULTIPROCESSORS: u32 = 2;
const TOKENS: [usize; 2] = [19, 37];
const HEADS: usize = 2;
/// One tile without a mask, and one of a few keys.
const ADDITIONAL: usize = 130;

/// Whether a kernel gives the results of the SIMT family.
fn hold<E: Element, D: Device>(device: &D, kernel: &'static Kernel) -> Result<bool, CudaError> {
    let trial = Trial::<E>::new(kernel.longest_row())?;
    let properties = Properties { multiprocessors: MULTIPROCESSORS, ..device.properties().clone() };
    let on = On { device, properties: &properties };
    let other = |operation, pass| {
        let views = Views::dense(&trial.problem).with_dense_backward();
        let open = Request::default();
        best_fit("simt", operation, &Query::new(pass, &views, &properties, &open)).map_err(|reason| {
            CudaError::Unsupported(Rejections(vec![Rejection { kernel: kernel.entry, reason }]))
        })
    };
    let expected = trial.attend(on, other(Operation::Forward, Pass::Forward(&trial.problem))?)?;
    if kernel.operation == Operation::Forward {
        return Ok(agree(&trial.attend(on, kernel)?, &expected));
    }
    let found = trial.differentiate(on, kernel, &expected)?;
    let other = other(Operation::BackwardQuery, Pass::Backward(&trial.problem))?;
    Ok(gradients_agree(&found, &trial.differentiate(on, other, &expected)?))
}

/// Where a trial takes place.
struct On<'a, D> {
    device: &'a D,
    properties: &'a Properties,
}

impl<D> Clone for On<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D> Copy for On<'_, D> {}

impl<D: Device> On<'_, D> {
    /// A backend that is asked for a kernel.
    fn asking_for(self, kernel: &Kernel) -> Cuda<D> {
        let request = Request { entry: Some(kernel.entry), ..Request::default() };
        Cuda::new(self.device.clone()).with_request(request)
    }

    fn run(self, offer: &Offer, addresses: &Addresses) -> Result<(), CudaError> {
        submit::run(self.device, offer, addresses).map_err(|error| match error {
            SubmitError::Map(error) | SubmitError::Device(error) => error.into(),
        })
    }
}

/// What kernels are held to each other on.
struct Trial<E> {
    problem: Problem,
    inputs: Inputs<Tensor<E>>,
    d_out: Tensor<E>,
}

/// Output and log-sum-exps.
type Results<E> = (Tensor<E>, Tensor<f32>);

impl<E: Element> Trial<E> {
    fn new(head_dim: usize) -> Result<Self, CudaError> {
        let shape = |heads| [1, TOKENS[0], TOKENS[1], heads, head_dim];
        let list = [1, ADDITIONAL, 1, head_dim];
        let mut state = 1;
        let mut draw = |shape: &[usize], size: f32| {
            Tensor::<E>::from_fn(shape, |_| E::from_f32(size * next_number(&mut state)))
        };
        let (query, key, value) = (draw(&shape(HEADS), 1.0)?, draw(&shape(1), 1.0)?, draw(&shape(1), 1.0)?);
        // Their scores are small and come first, so that references have to move when the others come.
        let (more_keys, more_values) = (draw(&list, 0.125)?, draw(&list, 1.0)?);
        let d_out = draw(&shape(HEADS), 1.0)?;
        let inputs = Inputs::new(query, key, value).with_additional(more_keys, more_values);
        let params = Params::new([9, 15]).is_causal([false, true]).scale(9.0 / (head_dim as f32).sqrt());
        let layouts = inputs.try_map(|_, tensor| Layout::contiguous(tensor.shape()))?;
        let problem = Problem::new(&params.to_dyn(), &layouts, E::TYPE)?;
        Ok(Trial { problem, inputs, d_out })
    }

    fn attend<D: Device>(&self, on: On<'_, D>, kernel: &Kernel) -> Result<Results<E>, CudaError> {
        let cuda = on.asking_for(kernel);
        let inputs = self.inputs.try_map(|_, tensor| cuda.upload(&tensor.view()))?;
        let mut out = poisoned::<E, D>(&cuda, &self.problem.out_shape())?;
        let mut lse = poisoned::<f32, D>(&cuda, &self.problem.lse_shape())?;
        let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
        let views = inputs.map(CudaTensor::view);
        let (offer, addresses) = cuda.offer(&self.problem, &views, &output, on.properties)?;
        on.run(&offer, &addresses)?;
        Ok((cuda.download(&out)?, cuda.download(&lse)?))
    }

    fn differentiate<D: Device>(
        &self,
        on: On<'_, D>,
        kernel: &Kernel,
        (out, lse): &Results<E>,
    ) -> Result<Inputs<Tensor<E>>, CudaError> {
        let cuda = on.asking_for(kernel);
        let inputs = self.inputs.try_map(|_, tensor| cuda.upload(&tensor.view()))?;
        let mut found = self.inputs.try_map(|_, tensor| poisoned::<E, D>(&cuda, tensor.shape()))?;
        let (out, d_out) = (cuda.upload(&out.view())?, cuda.upload(&self.d_out.view())?);
        let lse = cuda.upload(&lse.view())?;
        let saved = Saved { out: out.view(), lse: lse.view(), d_out: d_out.view(), d_lse: None };
        let gradients = Gradients {
            query: found.query.view_mut(),
            key: found.key.view_mut(),
            value: found.value.view_mut(),
            additional: found.additional.as_mut().map(|lists| lists.each_mut().map(CudaTensor::view_mut)),
        };
        let call = BackwardCall::new(&self.problem, inputs.map(CudaTensor::view), saved, gradients)?;
        let Placed { views, mut addresses, .. } = cuda.place_backward(&call)?;
        let query = Query::new(Pass::Backward(&self.problem), &views, on.properties, cuda.request());
        let offer = choose(&query)?.offer;
        let workspace = cuda.allocate::<f32>(&[offer.workspace_bytes.div_ceil(4).max(1)])?;
        addresses.set(Slot::WORKSPACE, workspace.address());
        on.run(&offer, &addresses)?;
        found.try_map(|_, tensor| cuda.download(tensor))
    }
}

/// What is not written differs.
fn poisoned<E: Element, D: Device>(cuda: &Cuda<D>, shape: &[usize]) -> Result<CudaTensor<E, D>, CudaError> {
    cuda.upload(&Tensor::<E>::from_fn(shape, |_| E::from_f32(f32::NAN))?.view())
}

/// Values are below 1 in size, and some keys have much of the weight. Weights that were rounded to the element type err by half
/// its last place, as does the result; log-sum-exps by little more than f32 does. A key too many or too few changes the
/// latter by more.
fn agree<E: Element>(found: &Results<E>, expected: &Results<E>) -> bool {
    let lses = found.1.as_slice().iter().zip(expected.1.as_slice());
    each_within(&found.0, &expected.0, limit::<E>()) && lses.into_iter().all(|(a, b)| (a - b).abs() <= 1e-4)
}

/// Weights and the gradients of scores are rounded before sums in which some of them cancel, so that what a sum errs by goes by the
/// largest ones.
fn gradients_agree<E: Element>(found: &Inputs<Tensor<E>>, expected: &Inputs<Tensor<E>>) -> bool {
    let all = |of: &Inputs<Tensor<E>>| {
        let lists = of.additional.iter().flatten().cloned();
        [of.query.clone(), of.key.clone(), of.value.clone()].into_iter().chain(lists).collect::<Vec<_>>()
    };
    all(found).iter().zip(&all(expected)).all(|(found, expected)| {
        let largest = expected.as_slice().iter().fold(0.0, |most: f32, x| most.max(x.to_f32().abs()));
        each_within(found, expected, limit::<E>() * largest)
    })
}

/// How far results may lie apart whose size is about 1.
fn limit<E: Element>() -> f32 {
    if E::TYPE == ElementType::F16 { 2f32.powi(-8) } else { 2f32.powi(-5) }
}

fn each_within<E: Element>(found: &Tensor<E>, expected: &Tensor<E>, most: f32) -> bool {
    let mut pairs = found.as_slice().iter().zip(expected.as_slice());
    pairs.all(|(a, b)| (a.to_f32() - b.to_f32()).abs() <= most)
}

/// Numbers in -1 .. 1, always the same.
fn next_number(state: &mut u32) -> f32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    (*state >> 8) as f32 / (1 << 23) as f32 - 1.0
}
