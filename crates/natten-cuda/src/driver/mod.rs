//! The CUDA driver as a [`Device`], through cudarc.
#![allow(unsafe_code)]

mod names;
#[cfg(feature = "nccl")]
pub mod nccl;
mod probe;
mod timing;
mod transfer;

use std::collections::HashMap;
use std::ffi::{CString, c_uint, c_void};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::{CudaContext, CudaStream, DriverError, sys};

use crate::capability::ComputeCapability;
use crate::device::{Device, FunctionCache, PreparedLaunch, Properties, TensorMap, TensorMapSpec};
use crate::error::DeviceError;
use probe::Library;
use smallvec::SmallVec;

pub use timing::Event;
pub use transfer::Pinned;

/// A CUDA device with the stream that work is ordered on. Clones share the context and its loaded kernels.
#[derive(Clone)]
pub struct Driver {
    context: Arc<Context>,
    stream: Arc<CudaStream>,
}

/// What belongs to a context: one a device ordinal and process, however many [`Driver`]s there are.
struct Context {
    home: Home,
    properties: Properties,
    functions: FunctionCache<Function>,
    has_async_alloc: bool,
    /// Streams made for copies; those that nobody has are taken again.
    streams: Mutex<Vec<Arc<CudaStream>>>,
}

/// The device's primary context as it was when we first met it.
#[derive(Clone, Debug)]
struct Home {
    context: Arc<CudaContext>,
    library: &'static Library,
    /// Tells it from another context of the same device, where the driver can.
    generation: Option<u64>,
}

impl Home {
    /// Makes the context current and says whether it is the one that we met. Somebody may have reset the device since then,
    /// as `cudaDeviceReset` does: its primary context is another one after that, with the same handle.
    fn is_alive(&self) -> bool {
        self.context.bind_to_thread().is_ok() && self.library.context_id() == self.generation
    }
}

/// A loaded kernel; its module stays loaded until this is dropped.
#[derive(Debug)]
pub struct Function {
    home: Home,
    module: sys::CUmodule,
    function: sys::CUfunction,
}

// SAFETY: module and function handles may be used from any thread of the process.
unsafe impl Send for Function {}
// SAFETY: likewise; the driver locks inside.
unsafe impl Sync for Function {}

impl Drop for Function {
    fn drop(&mut self) {
        // A module goes with its context.
        if self.home.is_alive() {
            // SAFETY: the module was loaded by us in this context, and no one else unloads it. At worst it fails,
            // when the process ends and the driver is gone; nothing is left to do about that.
            let _ = unsafe { sys::cuModuleUnload(self.module) };
        }
    }
}

/// Memory of a device, freed in the order of the stream that it was allocated on.
#[derive(Debug)]
pub struct Memory {
    address: u64,
    bytes: usize,
    stream: Arc<CudaStream>,
    is_async: bool,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.stream.context().bind_to_thread().is_ok() {
            // SAFETY: allocated by `allocate` in the same manner, and freed once.
            let _ = unsafe {
                if self.is_async {
                    sys::cuMemFreeAsync(self.address, self.stream.cu_stream())
                } else {
                    sys::cuMemFree_v2(self.address)
                }
            };
        }
    }
}

/// The context of each ordinal. They stay for the life of the process: an engine that makes a [`Driver`] for each call must
/// not compile its kernels for each call.
static CONTEXTS: Mutex<Option<HashMap<usize, Arc<Context>>>> = Mutex::new(None);

impl Driver {
    /// The device of that number, on its default stream.
    ///
    /// # Errors
    /// [`DeviceError`] where there is no driver, an unusable one, or no such device. Never a panic.
    pub fn new(ordinal: usize) -> Result<Self, DeviceError> {
        let context = Context::shared(ordinal)?;
        let stream = context.home.context.default_stream();
        Ok(Driver { context, stream })
    }

    /// The device of a stream of cudarc, on that stream.
    ///
    /// # Errors
    /// As [`Driver::new`]; [`DeviceError::Driver`] if the stream is of another context than its device's primary one.
    pub fn of_stream(stream: &Arc<CudaStream>) -> Result<Self, DeviceError> {
        Driver::new(stream.context().ordinal())?.on_stream(stream.clone())
    }

    /// The same device on a stream of cudarc.
    ///
    /// # Errors
    /// [`DeviceError::Driver`] if the stream belongs to another context.
    pub fn on_stream(&self, stream: Arc<CudaStream>) -> Result<Self, DeviceError> {
        if stream.context().cu_ctx() != self.context.home.context.cu_ctx() {
            let code = sys::cudaError_enum::CUDA_ERROR_INVALID_CONTEXT as u32;
            return Err(DeviceError::Driver {
                operation: "taking over a stream",
                code,
                name: names::of(code),
            });
        }
        Ok(Driver { stream, ..self.clone() })
    }

    /// The same device on a stream that someone else owns.
    ///
    /// # Safety
    /// `stream` is a stream of this device's primary context and outlives the value returned and all made from it.
    /// The per-thread default stream (handle 2) means another stream on every thread.
    pub unsafe fn on_raw_stream(&self, stream: *mut c_void) -> Self {
        // SAFETY: by the caller.
        let stream = unsafe { self.context.home.context.wrap_borrowed_stream(stream.cast()) };
        Driver { stream, ..self.clone() }
    }

    /// The context and stream, for work of the caller's own.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Waits for the device, then drops the kernels that were loaded for it, which else stay for the life of the process.
    /// Later calls load theirs again. A call that another thread makes meanwhile keeps the kernel that it has.
    ///
    /// # Errors
    /// [`DeviceError::Driver`] when work on the device failed; the kernels stay then.
    pub fn unload(&self) -> Result<(), DeviceError> {
        check("waiting for the device", self.context.home.context.synchronize())?;
        self.context.functions.clear();
        Ok(())
    }

    fn bind(&self) -> Result<(), DeviceError> {
        check("making the context current", self.context.home.context.bind_to_thread())
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("properties", &self.context.properties).finish_non_exhaustive()
    }
}

impl Context {
    fn shared(ordinal: usize) -> Result<Arc<Self>, DeviceError> {
        let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
        let contexts = contexts.get_or_insert_default();
        if let Some(context) = contexts.get(&ordinal).filter(|context| context.home.is_alive()) {
            return Ok(context.clone());
        }
        let context = Arc::new(Self::new(ordinal)?);
        contexts.insert(ordinal, context.clone());
        Ok(context)
    }

    fn new(ordinal: usize) -> Result<Self, DeviceError> {
        static LIBRARY: OnceLock<Result<Library, probe::Absence>> = OnceLock::new();
        // cudarc panics where the library or a function is missing, so look first.
        let library = LIBRARY.get_or_init(Library::open).as_ref().map_err(|absence| match *absence {
            probe::Absence::Library => DeviceError::NoDriver,
            probe::Absence::Symbol(symbol) => DeviceError::MissingSymbol { symbol },
        })?;
        let context = check("opening the device", CudaContext::new(ordinal))?;
        let attribute = |attribute| check("asking for an attribute", context.attribute(attribute));
        use sys::CUdevice_attribute_enum as Attribute;
        let (major, minor) = check("asking for the compute capability", context.compute_capability())?;
        let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let properties = Properties {
            name: check("asking for the device's name", context.name())?,
            compute_capability: ComputeCapability { major: major as u32, minor: minor as u32 },
            multiprocessors: multiprocessors as u32,
            shared_bytes_per_block: shared as usize,
            memory_bytes: check("asking for the memory size", context.total_mem())? as u64,
        };
        let has_async_alloc = context.has_async_alloc() && library.has_async_alloc;
        let generation = library.context_id();
        let home = Home { context, library, generation };
        let (functions, streams) = Default::default();
        Ok(Context { home, properties, functions, has_async_alloc, streams })
    }
}

impl Device for Driver {
    type Memory = Memory;
    type Function = Function;

    fn id(&self) -> u64 {
        self.context.home.context.cu_ctx() as u64
    }

    fn properties(&self) -> &Properties {
        &self.context.properties
    }

    fn functions(&self) -> &FunctionCache<Function> {
        &self.context.functions
    }

    fn allocate(&self, bytes: usize) -> Result<Memory, DeviceError> {
        self.bind()?;
        let is_async = self.context.has_async_alloc;
        let mut address = 0;
        // An empty tensor still gets an address of its own.
        let size = bytes.max(1);
        // SAFETY: the context is current, the stream belongs to it, and `address` lives through the call.
        let status = unsafe {
            if is_async {
                sys::cuMemAllocAsync(&mut address, size, self.stream.cu_stream())
            } else {
                sys::cuMemAlloc_v2(&mut address, size)
            }
        };
        check("allocating memory", status.result())?;
        Ok(Memory { address, bytes, stream: self.stream.clone(), is_async })
    }

    fn address(memory: &Memory) -> u64 {
        memory.address
    }

    fn write(&self, memory: &Memory, from: &[u8]) -> Result<(), DeviceError> {
        self.bind()?;
        let length = from.len().min(memory.bytes);
        // SAFETY: the copy stays inside both buffers; from pageable memory the bytes have been staged on return.
        let status = unsafe {
            sys::cuMemcpyHtoDAsync_v2(memory.address, from.as_ptr().cast(), length, self.stream.cu_stream())
        };
        check("copying to the device", status.result())?;
        // Pinned memory is read later than that, so wait: uploads are no part of the launch path.
        self.synchronize()
    }

    fn read(&self, memory: &Memory, to: &mut [u8]) -> Result<(), DeviceError> {
        self.bind()?;
        let length = to.len().min(memory.bytes);
        // SAFETY: the copy stays inside both buffers, and `to` is borrowed until the stream has been waited for.
        let status = unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), memory.address, length, self.stream.cu_stream())
        };
        let copied = check("copying from the device", status.result());
        self.synchronize()?;
        copied
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.bind()?;
        // SAFETY: the stream is alive.
        let status = unsafe { sys::cuStreamSynchronize(self.stream.cu_stream()) };
        check("waiting for the stream", status.result())
    }

    fn load(&self, ptx: &str, entry: &'static str, shared_bytes: u32) -> Result<Function, DeviceError> {
        self.bind()?;
        let module = load_module(ptx, entry)?;
        let home = self.context.home.clone();
        let mut loaded = Function { home, module, function: std::ptr::null_mut() };
        let name = CString::new(entry).expect("entry names hold no NUL");
        // SAFETY: the module was just loaded, the name ends in NUL, and the handle lives through the call.
        let status = unsafe { sys::cuModuleGetFunction(&mut loaded.function, module, name.as_ptr()) };
        check("finding a kernel in its module", status.result())?;
        const WITHOUT_OPT_IN: u32 = 48 << 10;
        if shared_bytes > WITHOUT_OPT_IN {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function was just found in the current context.
            let status = unsafe { sys::cuFuncSetAttribute(loaded.function, attribute, shared_bytes as i32) };
            check("opting in to shared memory", status.result())?;
        }
        Ok(loaded)
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap, DeviceError> {
        self.bind()?;
        let encode = self
            .context
            .home
            .library
            .encode_tiled
            .ok_or(DeviceError::MissingFeature { feature: "tensor maps" })?;
        let mut map = TensorMap([0; 16]);
        check_code("encoding a tensor map", probe::encode(encode, spec, &mut map))?;
        Ok(map)
    }

    fn launch(&self, launch: &PreparedLaunch<'_, Function>) -> Result<(), DeviceError> {
        self.bind()?;
        let (function, config) = (launch.function(), launch.config());
        let mut pointers: SmallVec<[*mut c_void; 4]> =
            launch.params().iter().map(|bytes| bytes.as_ptr() as *mut c_void).collect();
        let stream = self.stream.cu_stream();
        let ([gx, gy, gz], [bx, by, bz]) = (config.grid, config.block);
        if config.cluster == [1; 3] && !config.overlaps_previous {
            // SAFETY: by the contract of `PreparedLaunch`; the driver copies the parameters before it returns.
            let status = unsafe {
                sys::cuLaunchKernel(
                    function.function,
                    gx,
                    gy,
                    gz,
                    bx,
                    by,
                    bz,
                    config.shared_bytes,
                    stream,
                    pointers.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            };
            return check("launching a kernel", status.result());
        }
        let launch = self
            .context
            .home
            .library
            .launch_extended
            .ok_or(DeviceError::MissingFeature { feature: "launches with clusters or overlap" })?;
        // SAFETY: as above.
        let code = unsafe {
            probe::launch_extended(launch, function.function.cast(), config, stream.cast(), &mut pointers)
        };
        check_code("launching a kernel", code)
    }
}

/// Loads PTX with the compiler's log at hand: `cuModuleLoadData` would only give a number.
fn load_module(ptx: &str, entry: &'static str) -> Result<sys::CUmodule, DeviceError> {
    const LOG_BYTES: usize = 8 << 10;
    let text = CString::new(ptx).expect("PTX holds no NUL");
    let mut log = vec![0u8; LOG_BYTES];
    let mut options =
        [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), LOG_BYTES as *mut c_void];
    let mut module = std::ptr::null_mut();
    // SAFETY: the text ends in NUL; the options are a buffer and its size, both alive through the call.
    let status = unsafe {
        sys::cuModuleLoadDataEx(
            &mut module,
            text.as_ptr().cast(),
            options.len() as c_uint,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    let code = status as u32;
    if code == 0 {
        return Ok(module);
    }
    let length = log.iter().position(|&byte| byte == 0).unwrap_or(LOG_BYTES);
    let log = String::from_utf8_lossy(&log[..length]).into_owned().into_boxed_str();
    Err(DeviceError::Compile { entry, code, name: names::of(code), log })
}

fn check<T>(operation: &'static str, result: Result<T, DriverError>) -> Result<T, DeviceError> {
    result.map_err(|DriverError(code)| {
        let code = code as u32;
        DeviceError::Driver { operation, code, name: names::of(code) }
    })
}

fn check_code(operation: &'static str, code: u32) -> Result<(), DeviceError> {
    if code == 0 { Ok(()) } else { Err(DeviceError::Driver { operation, code, name: names::of(code) }) }
}
