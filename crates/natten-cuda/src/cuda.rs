//! The CUDA backend's handle: a device, and what is asked of the choice of kernels.

use crate::device::Device;
use crate::family::Request;

/// Runs the operator on a device, ordered on its stream.
///
/// Calls queue work and return: an error on the device shows up at a later call, as everywhere in CUDA. Kernels are
/// compiled at their first use; a call can be captured into a graph once [`Cuda::warm_up`] or an equal call has run.
#[derive(Clone, Debug)]
pub struct Cuda<D> {
    device: D,
    request: Request,
    trusts_untried: bool,
}

impl<D: Device> Cuda<D> {
    /// A backend on a device and its stream.
    pub fn new(device: D) -> Self {
        Cuda { device, request: Request::default(), trusts_untried: false }
    }

    /// The same backend with calls on the kernel and boxes that are asked for.
    pub fn with_request(self, request: Request) -> Self {
        Cuda { request, ..self }
    }

    /// The same backend with calls on kernels that no chip has run yet, without holding each of them to the SIMT kernels on a small
    /// problem before its first call. What is asked for by name runs in any case.
    pub fn trusting_untried_kernels(self) -> Self {
        Cuda { trusts_untried: true, ..self }
    }

    /// Whether kernels that no chip has run are held to others before a call.
    pub(crate) fn holds_trials(&self) -> bool {
        !self.trusts_untried && self.request.entry.is_none()
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// What is asked of calls.
    pub fn request(&self) -> &Request {
        &self.request
    }
}
