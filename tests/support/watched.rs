//! A device that notes what is launched on it, and that may pass for an older one, so that every family of kernels can
//! be had on a new GPU.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use natten::cuda::device::{
    FunctionCache, LaunchConfig, PreparedLaunch, Properties, TensorMap, TensorMapSpec,
};
use natten::cuda::{ComputeCapability, Device, DeviceError};

/// A kernel that knows its name.
pub struct Named<F> {
    entry: &'static str,
    function: F,
}

/// A device of type `D` with a record of its launches. Clones share it.
pub struct Watched<D: Device> {
    inner: D,
    properties: Properties,
    functions: Arc<FunctionCache<Named<D::Function>>>,
    launches: Arc<Mutex<Launches>>,
    pretending: Arc<AtomicBool>,
}

/// What was launched: how often each kernel, and the shape with most ctas.
pub type Launches = BTreeMap<&'static str, (u64, LaunchConfig)>;

impl<D: Device> Clone for Watched<D> {
    fn clone(&self) -> Self {
        Watched {
            inner: self.inner.clone(),
            properties: self.properties.clone(),
            functions: self.functions.clone(),
            launches: self.launches.clone(),
            pretending: self.pretending.clone(),
        }
    }
}

impl<D: Device> Watched<D> {
    /// The device as it is.
    pub fn new(inner: D) -> Self {
        let properties = inner.properties().clone();
        let (functions, launches, pretending) = Default::default();
        Watched { inner, properties, functions, launches, pretending }
    }

    /// The device, passing for one of this capability.
    pub fn posing(inner: D, compute_capability: ComputeCapability) -> Self {
        let mut watched = Self::new(inner);
        watched.properties.compute_capability = compute_capability;
        watched
    }

    /// The device, passing for one of so many multiprocessors: kernels that stay take their work in as many blocks.
    pub fn of_multiprocessors(mut self, multiprocessors: u32) -> Self {
        self.properties.multiprocessors = multiprocessors;
        self
    }

    /// The device behind.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// Notes launches from now on without launching (or launches again): what would run, and what planning alone costs.
    pub fn pretend(&self, pretending: bool) {
        self.pretending.store(pretending, Ordering::Relaxed);
    }

    /// What was launched since the last call.
    pub fn take_launches(&self) -> Launches {
        std::mem::take(&mut *self.launches.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<D: Device> Device for Watched<D> {
    type Memory = D::Memory;
    type Function = Named<D::Function>;

    fn id(&self) -> u64 {
        self.inner.id()
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn functions(&self) -> &FunctionCache<Self::Function> {
        &self.functions
    }

    fn allocate(&self, bytes: usize) -> Result<Self::Memory, DeviceError> {
        self.inner.allocate(bytes)
    }

    fn address(memory: &Self::Memory) -> u64 {
        D::address(memory)
    }

    fn write(&self, memory: &Self::Memory, from: &[u8]) -> Result<(), DeviceError> {
        self.inner.write(memory, from)
    }

    fn read(&self, memory: &Self::Memory, to: &mut [u8]) -> Result<(), DeviceError> {
        self.inner.read(memory, to)
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.inner.synchronize()
    }

    fn load(&self, ptx: &str, entry: &'static str, shared_bytes: u32) -> Result<Self::Function, DeviceError> {
        Ok(Named { entry, function: self.inner.load(ptx, entry, shared_bytes)? })
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap, DeviceError> {
        self.inner.tensor_map(spec)
    }

    fn launch(&self, launch: &PreparedLaunch<'_, Self::Function>) -> Result<(), DeviceError> {
        let Named { entry, function } = launch.function();
        let mut launches = self.launches.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, widest) = launches.entry(entry).or_insert((0, *launch.config()));
        let ctas =
            |config: &LaunchConfig| config.grid.iter().map(|&extent| u64::from(extent)).product::<u64>();
        *count += 1;
        if ctas(launch.config()) > ctas(widest) {
            *widest = *launch.config();
        }
        drop(launches);
        if self.pretending.load(Ordering::Relaxed) {
            return Ok(());
        }
        // SAFETY: the caller's promise for this very launch, on the same function.
        let prepared = unsafe { PreparedLaunch::new(function, *launch.config(), launch.params()) };
        self.inner.launch(&prepared)
    }
}
