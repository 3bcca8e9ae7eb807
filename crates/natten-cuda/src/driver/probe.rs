//! Looks for the driver library and its functions before cudarc does, which panics where one is missing.
//!
//! The functions that came late (launches with attributes: CUDA 11.8, tensor maps and numbers of contexts: 12.0) are called
//! from here, with the ABI written out: old drivers lack them, and cudarc's bindings have them only in some versions.

use std::ffi::c_void;

use libloading::Library as Handle;

use crate::device::{LaunchConfig, TensorMap, TensorMapSpec};

/// Why the driver cannot be used.
#[derive(Debug)]
pub(super) enum Absence {
    Library,
    Symbol(&'static str),
}

/// The driver library, known to have all functions that are called unconditionally.
#[derive(Debug)]
pub(super) struct Library {
    pub launch_extended: Option<LaunchExtended>,
    pub encode_tiled: Option<EncodeTiled>,
    pub elapsed_time: Option<ElapsedTime>,
    context_id: Option<ContextId>,
    pub has_async_alloc: bool,
    /// Streams and page-locked memory of our own.
    pub has_transfers: bool,
    /// Keeps the library, and so the functions above, loaded.
    _handle: Handle,
}

/// What cudarc or we call on every path.
const NEEDED: &[&str] = &[
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDeviceTotalMem_v2",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuModuleGetFunction",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// What copies beside kernels call.
const FOR_TRANSFERS: &[&str] =
    &["cuCtxSynchronize", "cuMemFreeHost", "cuMemHostAlloc", "cuStreamCreate", "cuStreamDestroy_v2"];

#[cfg(windows)]
const FILES: &[&str] = &["nvcuda.dll"];
#[cfg(not(windows))]
const FILES: &[&str] = &["libcuda.so.1", "libcuda.so"];

impl Library {
    /// Opens the library and checks its functions.
    pub(super) fn open() -> Result<Self, Absence> {
        // SAFETY: loading the driver runs its initialisers, as linking against it would.
        let handle =
            FILES.iter().find_map(|file| unsafe { Handle::new(*file) }.ok()).ok_or(Absence::Library)?;
        // SAFETY: the symbols are only looked up, not called.
        let has = |name: &str| unsafe { handle.get::<*const c_void>(name) }.is_ok();
        if let Some(missing) = NEEDED.iter().find(|name| !has(name)) {
            return Err(Absence::Symbol(missing));
        }
        let has_async_alloc = has("cuMemAllocAsync") && has("cuMemFreeAsync");
        let has_transfers = FOR_TRANSFERS.iter().all(|name| has(name));
        // SAFETY: the types below are the functions' ABI as cuda.h declares it.
        let (launch_extended, encode_tiled, elapsed_time, context_id) = unsafe {
            let launch = handle.get::<LaunchExtended>("cuLaunchKernelEx").ok().map(|symbol| *symbol);
            let encode = handle.get::<EncodeTiled>("cuTensorMapEncodeTiled").ok().map(|symbol| *symbol);
            let names = ["cuEventElapsedTime_v2", "cuEventElapsedTime"];
            let elapsed = names.iter().find_map(|&name| handle.get::<ElapsedTime>(name).ok()).map(|s| *s);
            let id = handle.get::<ContextId>("cuCtxGetId").ok().map(|symbol| *symbol);
            (launch, encode, elapsed, id)
        };
        Ok(Library {
            launch_extended,
            encode_tiled,
            elapsed_time,
            context_id,
            has_async_alloc,
            has_transfers,
            _handle: handle,
        })
    }

    /// The number of the current context, which no other context of the process gets; none from drivers before CUDA 12.
    pub(super) fn context_id(&self) -> Option<u64> {
        let mut id = 0;
        // SAFETY: null stands for the current context, and `id` lives through the call.
        let code = unsafe { self.context_id?(std::ptr::null_mut(), &mut id) };
        (code == 0).then_some(id)
    }
}

/// `cuCtxGetId`.
type ContextId = unsafe extern "C" fn(context: *mut c_void, id: *mut u64) -> u32;

/// `cuEventElapsedTime`, which got a second version with CUDA 12.8; bindings have one or the other.
pub(super) type ElapsedTime =
    unsafe extern "C" fn(milliseconds: *mut f32, start: *mut c_void, end: *mut c_void) -> u32;

/// `cuLaunchKernelEx`.
pub(super) type LaunchExtended = unsafe extern "C" fn(
    config: *const ExtendedConfig,
    function: *mut c_void,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> u32;

/// `CUlaunchConfig`.
#[repr(C)]
pub(super) struct ExtendedConfig {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: *mut c_void,
    attributes: *const Attribute,
    attribute_count: u32,
}

/// `CUlaunchAttribute`: a number, padding, and a union of 64 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Attribute {
    id: u32,
    padding: u32,
    value: [u32; 16],
}

const CLUSTER_DIMENSION: u32 = 4;
const PROGRAMMATIC_STREAM_SERIALIZATION: u32 = 6;

/// Launches with a cluster or with permission to overlap the previous kernel.
///
/// # Safety
/// As `Device::launch`; `function` and `stream` are alive.
pub(super) unsafe fn launch_extended(
    launch: LaunchExtended,
    function: *mut c_void,
    config: &LaunchConfig,
    stream: *mut c_void,
    params: &mut [*mut c_void],
) -> u32 {
    let mut attributes = Vec::with_capacity(2);
    let mut push = |id: u32, leading: &[u32]| {
        let mut value = [0; 16];
        value[..leading.len()].copy_from_slice(leading);
        attributes.push(Attribute { id, padding: 0, value });
    };
    if config.cluster != [1; 3] {
        push(CLUSTER_DIMENSION, &config.cluster);
    }
    if config.overlaps_previous {
        push(PROGRAMMATIC_STREAM_SERIALIZATION, &[1]);
    }
    let extended = ExtendedConfig {
        grid: config.grid,
        block: config.block,
        shared_bytes: config.shared_bytes,
        stream,
        attributes: attributes.as_ptr(),
        attribute_count: attributes.len() as u32,
    };
    // SAFETY: by the caller; the configuration and its attributes live through the call.
    unsafe { launch(&extended, function, params.as_mut_ptr(), std::ptr::null_mut()) }
}

/// `cuTensorMapEncodeTiled`.
pub(super) type EncodeTiled = unsafe extern "C" fn(
    map: *mut c_void,
    data_type: u32,
    rank: u32,
    address: *mut c_void,
    extents: *const u64,
    strides_bytes: *const u64,
    box_extents: *const u32,
    element_steps: *const u32,
    interleave: u32,
    swizzle: u32,
    l2_promotion: u32,
    out_of_bounds_fill: u32,
) -> u32;

/// Encodes a map; elements are moved as bits, so 2 and 4 bytes are all the types there are.
pub(super) fn encode(encode: EncodeTiled, spec: &TensorMapSpec, map: &mut TensorMap) -> u32 {
    const INVALID_VALUE: u32 = 1;
    let rank = spec.extents.len();
    let lists = [spec.strides_bytes.len() + 1, spec.box_extents.len(), spec.element_steps.len()];
    let data_type = match spec.element_bytes {
        2 => 1,
        4 => 2,
        _ => return INVALID_VALUE,
    };
    let swizzle = match spec.swizzle_bytes {
        0 => 0,
        32 => 1,
        64 => 2,
        128 => 3,
        _ => return INVALID_VALUE,
    };
    if !(1..=5).contains(&rank) || lists != [rank; 3] {
        return INVALID_VALUE;
    }
    const L2_128_BYTES: u32 = 2;
    // SAFETY: all lists have `rank` entries (strides one less), and the map is 128 bytes, aligned to 128.
    unsafe {
        encode(
            (map as *mut TensorMap).cast(),
            data_type,
            rank as u32,
            spec.address as *mut c_void,
            spec.extents.as_ptr(),
            spec.strides_bytes.as_ptr(),
            spec.box_extents.as_ptr(),
            spec.element_steps.as_ptr(),
            0,
            swizzle,
            L2_128_BYTES,
            0,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cudarc::driver::sys;

    /// The ABI written out here is the one of cudarc's generated bindings.
    #[test]
    fn abi_is_that_of_the_bindings() {
        assert_eq!(size_of::<ExtendedConfig>(), size_of::<sys::CUlaunchConfig>());
        assert_eq!(size_of::<Attribute>(), size_of::<sys::CUlaunchAttribute>());
        assert_eq!(size_of::<TensorMap>(), size_of::<sys::CUtensorMap>());
        assert_eq!(CLUSTER_DIMENSION, sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION as u32);
        let overlap = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION as u32;
        assert_eq!(PROGRAMMATIC_STREAM_SERIALIZATION, overlap);
    }
}
