//! The emulator as a device of natten-cuda: the backend's every launch runs here, checked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use natten_cuda::device::{
    Device, FunctionCache, LaunchConfig, PreparedLaunch, Properties, TensorMap, TensorMapSpec,
};
use natten_cuda::{ComputeCapability, DeviceError};

use crate::asynchronous::tma::{Swizzle, TensorMapDesc};
use crate::counters::Counters;
use crate::launch::launch_ctas;
use crate::memory::Memory;
use crate::module::Module;
use crate::options::{Launch, Options};

/// An emulated GPU. Clones share its memory, loaded kernels and counters.
#[derive(Clone)]
pub struct Emulated {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Emulated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shared { id, properties, .. } = &*self.shared;
        f.debug_struct("Emulated").field("id", id).field("properties", properties).finish_non_exhaustive()
    }
}

struct Shared {
    id: u64,
    properties: Properties,
    memory: Memory,
    functions: FunctionCache<Function>,
    options: Mutex<Options>,
    counters: Mutex<HashMap<&'static str, Counters>>,
    replacements: Mutex<HashMap<&'static str, String>>,
    selection: Mutex<Option<Selection>>,
    edited: Mutex<HashMap<&'static str, Arc<Module>>>,
    digest: AtomicU64,
}

/// The CTAs of a launch that run: of an entry's name and a grid their numbers, x fastest.
pub type Selection = Arc<dyn Fn(&str, [u32; 3]) -> Vec<u32> + Send + Sync>;

/// Allocations longer than this exist only where they are written.
const DENSE_BYTES: usize = 64 << 20;

/// A parsed kernel.
#[derive(Debug)]
pub struct Function {
    module: Module,
    entry: &'static str,
}

/// Memory of an emulated GPU, freed when dropped.
pub struct GlobalMemory {
    address: u64,
    bytes: usize,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for GlobalMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let GlobalMemory { address, bytes, .. } = self;
        f.debug_struct("GlobalMemory").field("address", address).field("bytes", bytes).finish_non_exhaustive()
    }
}

impl GlobalMemory {
    /// Its length.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for GlobalMemory {
    fn drop(&mut self) {
        // It was allocated here and nobody else frees it.
        let _ = self.shared.memory.free(self.address);
    }
}

impl Emulated {
    /// A GPU of the given compute capability with all checks on.
    pub fn new(major: u32, minor: u32) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let properties = Properties {
            name: format!("emulated sm_{major}{minor}"),
            compute_capability: ComputeCapability { major, minor },
            multiprocessors: 1,
            shared_bytes_per_block: 227 << 10,
            memory_bytes: u64::MAX,
        };
        let shared = Shared {
            id: NEXT.fetch_add(1, Relaxed),
            properties,
            memory: Memory::new(),
            functions: FunctionCache::default(),
            options: Mutex::new(Options::default()),
            counters: Mutex::default(),
            replacements: Mutex::default(),
            selection: Mutex::default(),
            edited: Mutex::default(),
            digest: AtomicU64::new(0),
        };
        Emulated { shared: Arc::new(shared) }
    }

    /// How launches run.
    pub fn options(&self) -> Options {
        *lock(&self.shared.options)
    }

    /// How later launches run.
    pub fn set_options(&self, options: Options) {
        *lock(&self.shared.options) = options;
    }

    /// What the launches of each kernel did since the last call.
    pub fn take_counters(&self) -> HashMap<&'static str, Counters> {
        std::mem::take(&mut lock(&self.shared.counters))
    }

    /// A digest of all bytes that were read from the device since the last call.
    pub fn take_digest(&self) -> u64 {
        self.shared.digest.swap(0, Relaxed)
    }

    /// Loads `ptx` instead of what the backend brings for `entry`, if it was not loaded before: for tests that break
    /// a kernel on purpose.
    pub fn replace(&self, entry: &'static str, ptx: String) {
        lock(&self.shared.replacements).insert(entry, ptx);
    }

    /// Runs only these CTAs of later launches, as if the others had nothing to do: a grid may be too long to run. They are
    /// not looked at for races between them.
    pub fn run_only(&self, selection: Option<Selection>) {
        *lock(&self.shared.selection) = selection;
    }

    /// Runs `module` in every launch of its kernel `entry` from now on, loaded or not; `None` goes back to the kernel as it
    /// is. The module must be one that came of it, with the same parameters and shared memory.
    pub fn launch_instead(&self, entry: &'static str, module: Option<Arc<Module>>) {
        let mut edited = lock(&self.shared.edited);
        match module {
            Some(module) => edited.insert(entry, module),
            None => edited.remove(entry),
        };
    }

    /// The global memory, to allocate sparsely or look around in.
    pub fn memory(&self) -> &Memory {
        &self.shared.memory
    }
}

/// The digest with up to eight bytes more.
fn digested(digest: u64, bytes: &[u8]) -> u64 {
    let word = bytes.iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
    (digest.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A panic elsewhere leaves these maps whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed<E>(operation: &'static str) -> impl FnOnce(E) -> DeviceError
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |source| DeviceError::Other { operation, source: Box::new(source) }
}

impl Device for Emulated {
    type Memory = GlobalMemory;
    type Function = Function;

    fn id(&self) -> u64 {
        self.shared.id
    }

    fn properties(&self) -> &Properties {
        &self.shared.properties
    }

    fn functions(&self) -> &FunctionCache<Function> {
        &self.shared.functions
    }

    fn allocate(&self, bytes: usize) -> Result<GlobalMemory, DeviceError> {
        let memory = &self.shared.memory;
        let address =
            if bytes > DENSE_BYTES { memory.alloc_sparse(bytes as u64) } else { memory.alloc(bytes.max(1)) };
        Ok(GlobalMemory { address, bytes, shared: Arc::clone(&self.shared) })
    }

    fn address(memory: &GlobalMemory) -> u64 {
        memory.address
    }

    fn write(&self, memory: &GlobalMemory, from: &[u8]) -> Result<(), DeviceError> {
        let length = from.len().min(memory.bytes);
        self.shared.memory.write(memory.address, &from[..length]).map_err(failed("copying to the device"))
    }

    fn read(&self, memory: &GlobalMemory, to: &mut [u8]) -> Result<(), DeviceError> {
        let length = to.len().min(memory.bytes);
        self.shared
            .memory
            .read(memory.address, &mut to[..length])
            .map_err(failed("copying from the device"))?;
        let start = self.shared.digest.load(Relaxed);
        self.shared.digest.store(to.chunks(8).fold(start, digested), Relaxed);
        Ok(())
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn load(&self, ptx: &str, entry: &'static str, _shared_bytes: u32) -> Result<Function, DeviceError> {
        let replacements = lock(&self.shared.replacements);
        let text = replacements.get(entry).map_or(ptx, String::as_str);
        let module = Module::parse(text).map_err(failed("parsing a kernel"))?;
        let ComputeCapability { major, minor } = self.shared.properties.compute_capability;
        module.check_device(major, minor).map_err(failed("loading a kernel"))?;
        Ok(Function { module, entry })
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap, DeviceError> {
        let swizzle = match spec.swizzle_bytes {
            32 => Swizzle::B32,
            64 => Swizzle::B64,
            128 => Swizzle::B128,
            _ => Swizzle::None,
        };
        let (address, bytes) = (spec.address, spec.element_bytes);
        let mut map =
            TensorMapDesc::new(address, bytes, &spec.extents, &spec.strides_bytes, &spec.box_extents)
                .with_swizzle(swizzle);
        map.element_strides.iter_mut().zip(&spec.element_steps).for_each(|(to, from)| *to = *from);
        map.check().map_err(failed("encoding a tensor map"))?;
        let encoded = map.to_bytes();
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|byte| encoded[8 * i + byte]));
        Ok(TensorMap(std::array::from_fn(word)))
    }

    /// Runs the kernel to its end before it returns; every address is checked, so a wrong one is a fault.
    fn launch(&self, prepared: &PreparedLaunch<'_, Function>) -> Result<(), DeviceError> {
        let args = prepared.params().iter().map(|bytes| bytes.to_vec()).collect();
        self.run(prepared.function(), prepared.config(), args)
    }
}

impl Emulated {
    /// Writes to memory from byte `at` on.
    pub(crate) fn write_at(&self, memory: &GlobalMemory, at: usize, from: &[u8]) -> Result<(), DeviceError> {
        let address = memory.address + at as u64;
        self.shared.memory.write(address, from).map_err(failed("copying to the device"))
    }

    /// Reads memory from byte `at` on.
    pub(crate) fn read_at(&self, memory: &GlobalMemory, at: usize, to: &mut [u8]) -> Result<(), DeviceError> {
        let address = memory.address + at as u64;
        self.shared.memory.read(address, to).map_err(failed("copying from the device"))
    }

    /// Runs a kernel with these parameters.
    pub(crate) fn run(
        &self,
        function: &Function,
        config: &LaunchConfig,
        args: Vec<Vec<u8>>,
    ) -> Result<(), DeviceError> {
        let LaunchConfig { grid, block, cluster, shared_bytes, .. } = *config;
        let shape = Launch { grid, block, cluster, shared_bytes, args };
        let options = *lock(&self.shared.options);
        let selection = lock(&self.shared.selection).clone();
        let ctas = selection.map(|of| of(function.entry, config.grid));
        let edited = lock(&self.shared.edited).get(function.entry).cloned();
        let module = edited.as_deref().unwrap_or(&function.module);
        let counters = launch_ctas(module, function.entry, &shape, &self.shared.memory, &options, ctas)
            .map_err(failed("running a kernel"))?;
        *lock(&self.shared.counters).entry(function.entry).or_default() += &counters;
        Ok(())
    }
}
