//! The one place that launches kernels: an offer, the addresses of its tensors, a device.
#![allow(unsafe_code)]

use smallvec::SmallVec;

use crate::device::{Device, LaunchConfig, PreparedLaunch, TensorMap};
use crate::error::DeviceError;
use crate::family::{Launch, Offer};
use crate::registry::Kernel;
use crate::views::Addresses;

/// Why launches did not run.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The device or its driver takes no such tensor map. Nothing has been launched.
    #[error("a tensor map is refused: {0}")]
    Map(DeviceError),
    /// The device failed.
    #[error(transparent)]
    Device(DeviceError),
}

/// Launches in order on the device's stream.
///
/// # Safety
/// The launches were laid out for tensors that lie as those at the addresses do. These are memory of the device that
/// outlives the launches in stream order, holds all elements that shapes and strides reach, and is used by nobody else in a way that
/// clashes with reading what the pass reads and writing what it writes. The workspace is as large as the offer says.
///
/// # Errors
/// When the device refuses.
pub unsafe fn submit<D: Device>(
    device: &D,
    launches: &[Launch],
    addresses: &Addresses,
) -> Result<(), SubmitError> {
    // All maps before the first launch: what the driver refuses must leave nothing done.
    let maps = launches.iter().flat_map(|launch| &launch.maps).map(|map| {
        let mut spec = map.spec.clone();
        spec.address = spec.address.wrapping_add(addresses.get(map.slot));
        device.tensor_map(&spec)
    });
    let maps: Vec<TensorMap> = maps.collect::<Result<_, _>>().map_err(SubmitError::Map)?;
    let mut maps = maps.iter();
    for launch in launches {
        let mut params: SmallVec<[u8; 2048]> = SmallVec::from_slice(&launch.params);
        for patch in &launch.addresses {
            let place = &mut params[patch.at..patch.at + 8];
            let distance = u64::from_ne_bytes(place.try_into().expect("8 bytes"));
            let address = addresses.get(patch.slot).wrapping_add(distance);
            place.copy_from_slice(&address.to_ne_bytes());
        }
        for (patch, TensorMap(words)) in launch.maps.iter().zip(&mut maps) {
            params[patch.at..patch.at + size_of::<TensorMap>()].copy_from_slice(bytemuck::cast_slice(words));
        }
        // SAFETY: the caller's promise. That a kernel's parameter has the size of its mirror, a test of the registry holds;
        // addresses stand where their tensors' places are in it, and point past these by what extents and strides say.
        unsafe { start(device, launch, &params) }.map_err(SubmitError::Device)?;
    }
    Ok(())
}

/// # Safety
/// `params` is the kernel's parameter, and its addresses are as [`submit`] demands.
unsafe fn start<D: Device>(device: &D, launch: &Launch, params: &[u8]) -> Result<(), DeviceError> {
    let function = load(device, launch.kernel)?;
    let config = LaunchConfig {
        cluster: launch.cluster,
        shared_bytes: launch.shared_bytes,
        ..LaunchConfig::new(launch.grid, launch.kernel.threads)
    };
    let params = [params];
    // SAFETY: the caller's promise.
    let prepared = unsafe { PreparedLaunch::new(&*function, config, &params) };
    device.launch(&prepared)
}

/// Launches an offer for tensors of a validated call.
pub(crate) fn run<D: Device>(device: &D, offer: &Offer, addresses: &Addresses) -> Result<(), SubmitError> {
    // SAFETY: the addresses come from views, whose borrows (or the contract of their unsafe constructors) keep the memory
    // alive and unaliased while the call queues work on this device's stream; owned memory is freed in stream order after it.
    // Extents and strides come from the same views, checked against the problem before; the workspace is of the offer's size.
    unsafe { submit(device, &offer.launches, addresses) }
}

/// A kernel that belongs to no pass, with its parameter: it writes what the caller allocated for it, and reads what a view
/// borrows.
pub(crate) fn run_alone<D: Device>(
    device: &D,
    kernel: &'static Kernel,
    ctas: u32,
    params: &[u8],
) -> Result<(), DeviceError> {
    assert_eq!(params.len(), kernel.param_bytes as usize, "{} takes other parameters", kernel.entry);
    let launch = Launch::alone(kernel, ctas, params);
    // SAFETY: of the kernels that this is for, one measures and writes a number a thread, to memory that the caller allocated
    // for as many; one copies a view's elements, whose borrow keeps them, to memory of as many; others touch none.
    unsafe { start(device, &launch, params) }
}

/// A kernel as the device runs it, compiled if need be.
pub(crate) fn load<D: Device>(
    device: &D,
    kernel: &'static Kernel,
) -> Result<std::sync::Arc<D::Function>, DeviceError> {
    let compile = || device.load(&kernel.ptx(), kernel.entry, kernel.shared_bytes);
    device.functions().get_or_load(kernel.entry, compile)
}
