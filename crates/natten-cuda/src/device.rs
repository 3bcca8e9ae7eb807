//! What a launch needs of a device, so that the CUDA driver and an emulator are interchangeable.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::capability::ComputeCapability;
use crate::error::DeviceError;
use crate::trust::Trials;

/// Facts about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// As the driver calls it.
    pub name: String,
    /// Which kernels it can run.
    pub compute_capability: ComputeCapability,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory that one cta may ask for.
    pub shared_bytes_per_block: usize,
    /// Device memory.
    pub memory_bytes: u64,
}

/// Shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Ctas along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a cta along x, y, z.
    pub block: [u32; 3],
    /// Ctas of a cluster; `[1, 1, 1]` for none.
    pub cluster: [u32; 3],
    /// Dynamic shared memory; above 48 KiB the function must have been loaded with as much.
    pub shared_bytes: u32,
    /// Whether the kernel may start before the previous one in the stream has ended.
    pub overlaps_previous: bool,
}

impl LaunchConfig {
    /// A launch without clusters or dynamic shared memory.
    pub fn new(grid: [u32; 3], threads: u32) -> Self {
        LaunchConfig {
            grid,
            block: [threads, 1, 1],
            cluster: [1; 3],
            shared_bytes: 0,
            overlaps_previous: false,
        }
    }
}

/// A kernel with its parameters. That it exists says that it may be launched, so launching itself is safe.
#[derive(Debug)]
pub struct PreparedLaunch<'a, F> {
    function: &'a F,
    config: LaunchConfig,
    params: &'a [&'a [u8]],
}

impl<'a, F> PreparedLaunch<'a, F> {
    /// A launch; each of `params` is the bytes of one kernel parameter.
    ///
    /// # Safety
    /// `params` match the function's parameters in number and size, and every address in them stands for memory of
    /// the function's device that outlives the launch in stream order and holds what the kernel reads and writes.
    #[allow(unsafe_code)]
    pub unsafe fn new(function: &'a F, config: LaunchConfig, params: &'a [&'a [u8]]) -> Self {
        PreparedLaunch { function, config, params }
    }

    /// The kernel.
    pub fn function(&self) -> &F {
        self.function
    }

    /// The shape.
    pub fn config(&self) -> &LaunchConfig {
        &self.config
    }

    /// The parameters' bytes.
    pub fn params(&self) -> &[&[u8]] {
        self.params
    }
}

/// A box of a tensor that the copy engine of sm_90 and later fetches at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMapSpec {
    /// Bytes of one element, 2 or 4.
    pub element_bytes: u32,
    /// First element.
    pub address: u64,
    /// Extents, innermost first, 1 to 5 of them.
    pub extents: Vec<u64>,
    /// Strides in bytes of all but the innermost axis, multiples of 16.
    pub strides_bytes: Vec<u64>,
    /// The box, innermost first.
    pub box_extents: Vec<u32>,
    /// Step between the elements of the box along each axis.
    pub element_steps: Vec<u32>,
    /// Bytes of the shared memory swizzle: 0, 32, 64 or 128.
    pub swizzle_bytes: u32,
}

/// An encoded [`TensorMapSpec`], passed to kernels by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(128))]
pub struct TensorMap(pub [u64; 16]);

/// A GPU, or what stands in for one, with the stream that its work is ordered on.
pub trait Device: Clone + Send + Sync + 'static {
    /// Owned device memory; dropped in stream order.
    type Memory: Send + Sync;
    /// A loaded kernel.
    type Function: Send + Sync;

    /// Tells devices (contexts) apart.
    fn id(&self) -> u64;

    /// Facts about the device.
    fn properties(&self) -> &Properties;

    /// The kernels loaded in this context so far.
    fn functions(&self) -> &FunctionCache<Self::Function>;

    /// Uninitialised memory, at least 256-byte aligned, in stream order.
    ///
    /// # Errors
    /// When there is not enough.
    fn allocate(&self, bytes: usize) -> Result<Self::Memory, DeviceError>;

    /// Where memory begins.
    fn address(memory: &Self::Memory) -> u64;

    /// Copies from the host; the bytes have left `from` when the call returns.
    ///
    /// # Errors
    /// When the device fails.
    fn write(&self, memory: &Self::Memory, from: &[u8]) -> Result<(), DeviceError>;

    /// Waits for the stream and copies to the host.
    ///
    /// # Errors
    /// When this or an earlier call of the stream failed.
    fn read(&self, memory: &Self::Memory, to: &mut [u8]) -> Result<(), DeviceError>;

    /// Waits for the stream.
    ///
    /// # Errors
    /// When an earlier call of the stream failed.
    fn synchronize(&self) -> Result<(), DeviceError>;

    /// Compiles PTX and finds its one entry; `shared_bytes` is the dynamic shared memory it may be launched with.
    ///
    /// # Errors
    /// With the compiler's log.
    fn load(&self, ptx: &str, entry: &'static str, shared_bytes: u32) -> Result<Self::Function, DeviceError>;

    /// Encodes a tensor map.
    ///
    /// # Errors
    /// When the device or driver has none.
    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap, DeviceError>;

    /// Launches a kernel on the stream.
    ///
    /// # Errors
    /// When the launch is refused. What fails on the device shows up at a later call.
    fn launch(&self, launch: &PreparedLaunch<'_, Self::Function>) -> Result<(), DeviceError>;
}

/// Kernels by entry name, each compiled at most once a context, whatever the number of threads and streams.
#[derive(Debug)]
pub struct FunctionCache<F> {
    pub(crate) trials: Trials,
    loaded: Mutex<HashMap<&'static str, Arc<F>>>,
}

impl<F> Default for FunctionCache<F> {
    fn default() -> Self {
        FunctionCache { trials: Trials::default(), loaded: Mutex::new(HashMap::new()) }
    }
}

impl<F> FunctionCache<F> {
    /// The loaded kernel, loading it first if need be. Others wait meanwhile: compiling twice would take longer.
    ///
    /// # Errors
    /// Those of `load`; nothing is kept then.
    pub fn get_or_load(
        &self,
        entry: &'static str,
        load: impl FnOnce() -> Result<F, DeviceError>,
    ) -> Result<Arc<F>, DeviceError> {
        // A panic while loading leaves the map as it was, so its poison means nothing.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = loaded.get(entry) {
            return Ok(function.clone());
        }
        let function = Arc::new(load()?);
        loaded.insert(entry, function.clone());
        Ok(function)
    }

    /// Forgets all kernels; each is dropped when its last user has it no more.
    pub fn clear(&self) {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
