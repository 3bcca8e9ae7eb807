//! Runs one problem once: for a profiler, which counts launches.

use natten_core::{Element, ElementType, Layout, bf16, f16};
use natten_cuda::driver::Driver;
use natten_cuda::{ComputeCapability, Cuda};

use crate::calls::{Operands, backward_pass, fill_kernel, forward};
use crate::driver::{Checked, Failure, Gpu};
use crate::problems::{Timed, problems};
use natten_tests::watched::{Launches, Watched};

/// One launch of one problem, for a profiler.
pub struct Target {
    /// Of problems.json.
    pub problem: String,
    /// Components of a head.
    pub head_dim: usize,
    /// Which family: the device poses for this.
    pub capability: ComputeCapability,
    /// Type of the operands.
    pub element_type: ElementType,
    /// The backward instead of the forward.
    pub backward: bool,
}

/// Runs a problem once, and says what was launched.
///
/// # Errors
/// When there is no such problem, or it does not run.
pub fn once(gpu: &Gpu, driver: &Driver, target: &Target) -> Checked<Launches> {
    let timed = problems().map_err(|text| Failure { text })?.into_iter().find(|t| t.name == target.problem);
    let timed = timed.ok_or_else(|| Failure { text: format!("no problem {}", target.problem) })?;
    match target.element_type {
        ElementType::F32 => once_of::<f32>(gpu, driver, target, &timed),
        ElementType::F16 => once_of::<f16>(gpu, driver, target, &timed),
        _ => once_of::<bf16>(gpu, driver, target, &timed),
    }
}

fn once_of<E: Element>(gpu: &Gpu, driver: &Driver, target: &Target, timed: &Timed) -> Checked<Launches> {
    let failure = |text: String| Failure { text };
    let device = Watched::posing(driver.clone(), target.capability);
    let cuda = Cuda::new(device.clone());
    let problem = timed.problem(target.head_dim, E::TYPE).map_err(failure)?;
    let fill = gpu.load(&fill_kernel().ptx())?;
    let bytes = timed.elements(target.head_dim) * size_of::<E>();
    let rows = timed.elements(1);
    let set = Operands { bytes, tensors: 8, rows, element_type: E::TYPE }.filled(gpu, &fill, 0)?;
    let shape = timed.shape(target.head_dim);
    let layout = |shape: &[usize]| Layout::contiguous(shape).map_err(|e| failure(e.to_string()));
    let (rows, scalars) = (layout(&shape)?, layout(&shape[..shape.len() - 1])?);
    // A profiler counts launches: what a backward needs comes from the fill.
    let done = match target.backward {
        false => forward::<E>(&cuda, &problem, &set, rows, scalars),
        true => backward_pass::<E>(&cuda, &problem, &set, rows, scalars),
    };
    done.map_err(|error| failure(error.to_string()))?;
    gpu.synchronize()?;
    Ok(device.take_launches())
}
