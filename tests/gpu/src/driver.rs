//! The CUDA driver, as thin as this kit needs it: every call checked, texts loaded with the driver's log, events.

use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::time::{Duration, Instant};

use crate::truth::kernel::{ENTRY, Kernel};
use natten_cuda::cudarc::driver::sys::{
    self, CUfunction_attribute as FunctionAttribute, CUjit_option as Jit,
};

/// No driver, no device, or a driver too old: nothing to do here.
#[derive(Debug)]
pub struct Absent(pub String);

/// A call that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What was tried, and the driver's own words.
    pub text: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// Result of a driver call.
pub type Checked<T> = Result<T, Failure>;

/// The first device and its primary context.
pub struct Gpu {
    /// As the driver calls it.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (i32, i32),
    /// What CUDA the driver is of: 13000 for 13.0.
    pub cuda: i32,
    /// Multiprocessors.
    pub multiprocessors: i32,
    /// Bytes of the second-level cache.
    pub l2_bytes: usize,
}

/// A loaded text.
pub struct Module {
    handle: sys::CUmodule,
    /// What the driver's compiler said.
    pub log: String,
    /// How long loading took.
    pub took: Duration,
}

/// A kernel.
#[derive(Clone, Copy)]
pub struct Function(sys::CUfunction);

/// Device memory, freed when dropped.
pub struct Buffer {
    /// Its address.
    pub address: u64,
    /// Its length.
    pub bytes: usize,
}

fn check(what: &str, status: sys::CUresult) -> Checked<()> {
    if status == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut name = ptr::null();
    // SAFETY: the name is a static string, or null where the code is unknown.
    let name = unsafe {
        sys::cuGetErrorName(status, &mut name);
        if name.is_null() { "?".into() } else { CStr::from_ptr(name).to_string_lossy() }
    };
    Err(Failure { text: format!("{what}: {name} ({})", status as i32) })
}

/// Calls the driver and names the call in the failure.
macro_rules! call {
    ($name:ident($($arg:expr),* $(,)?)) => {{
        // SAFETY: every pointer given here points to a live value of the type that the driver's header names.
        let status = unsafe { sys::$name($($arg),*) };
        check(stringify!($name), status)
    }};
}

impl Gpu {
    /// Finds the driver and the first device, and makes its primary context current for this thread.
    ///
    /// # Errors
    /// In words for a person.
    pub fn open() -> Result<Self, Absent> {
        // SAFETY: the driver's initialisers have no preconditions.
        let library = ["libcuda.so.1", "libcuda.so", "nvcuda.dll"]
            .iter()
            .find_map(|name| unsafe { libloading::Library::new(*name) }.ok());
        let Some(library) = library else {
            return Err(Absent("no CUDA driver on this machine (libcuda.so.1 was not found)".to_owned()));
        };
        std::mem::forget(library);
        Self::open_first().map_err(|failure| Absent(format!("no usable CUDA device: {failure}")))
    }

    fn open_first() -> Checked<Self> {
        call!(cuInit(0))?;
        let (mut device, mut context, mut cuda) = (0, ptr::null_mut(), 0);
        call!(cuDeviceGet(&mut device, 0))?;
        call!(cuDevicePrimaryCtxRetain(&mut context, device))?;
        call!(cuCtxSetCurrent(context))?;
        call!(cuDriverGetVersion(&mut cuda))?;
        let mut name = [0; 128];
        call!(cuDeviceGetName(name.as_mut_ptr(), 128, device))?;
        // SAFETY: the driver ends the name with NUL.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let attribute = |which| {
            let mut value = 0;
            call!(cuDeviceGetAttribute(&mut value, which, device)).map(|()| value)
        };
        use sys::CUdevice_attribute as A;
        Ok(Gpu {
            name,
            cuda,
            compute_capability: (
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            l2_bytes: attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.max(0) as usize,
        })
    }

    /// Loads a text, with the log of the driver's compiler.
    ///
    /// # Errors
    /// With that log.
    pub fn load(&self, ptx: &str) -> Checked<Module> {
        const LOG: usize = 1 << 14;
        let (mut info, mut error) = (vec![0_u8; LOG], vec![0_u8; LOG]);
        let mut options = [
            Jit::CU_JIT_INFO_LOG_BUFFER,
            Jit::CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
            Jit::CU_JIT_ERROR_LOG_BUFFER,
            Jit::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
            Jit::CU_JIT_LOG_VERBOSE,
        ];
        let mut values: [*mut c_void; 5] = [
            info.as_mut_ptr().cast(),
            LOG as *mut c_void,
            error.as_mut_ptr().cast(),
            LOG as *mut c_void,
            ptr::without_provenance_mut(1),
        ];
        let text = CString::new(ptx).map_err(|e| Failure { text: e.to_string() })?;
        let mut handle = ptr::null_mut();
        let start = Instant::now();
        let status = call!(cuModuleLoadDataEx(
            &mut handle,
            text.as_ptr().cast(),
            options.len() as u32,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        ));
        let took = start.elapsed();
        let said = |log: &[u8]| {
            let end = log.iter().position(|&b| b == 0).unwrap_or(log.len());
            String::from_utf8_lossy(&log[..end]).trim().to_owned()
        };
        match status {
            Ok(()) => Ok(Module { handle, log: said(&info), took }),
            Err(failure) => Err(Failure { text: format!("{}: {}", failure.text, said(&error)) }),
        }
    }

    /// Memory with anything in it.
    ///
    /// # Errors
    /// When there is too little.
    pub fn alloc(&self, bytes: usize) -> Checked<Buffer> {
        let mut address = 0;
        call!(cuMemAlloc_v2(&mut address, bytes.max(16)))?;
        Ok(Buffer { address, bytes })
    }

    /// Memory with this content.
    ///
    /// # Errors
    /// When there is too little.
    pub fn upload(&self, content: &[u8]) -> Checked<Buffer> {
        let buffer = self.alloc(content.len())?;
        call!(cuMemcpyHtoD_v2(buffer.address, content.as_ptr().cast(), content.len()))?;
        Ok(buffer)
    }

    /// The content of memory, once all work before is done.
    ///
    /// # Errors
    /// When a kernel before failed.
    pub fn download(&self, buffer: &Buffer) -> Checked<Vec<u8>> {
        let mut content = vec![0; buffer.bytes];
        call!(cuMemcpyDtoH_v2(content.as_mut_ptr().cast(), buffer.address, buffer.bytes))?;
        Ok(content)
    }

    /// Part of the content of memory, once all work before is done.
    ///
    /// # Errors
    /// When a kernel before failed.
    pub fn download_part(&self, buffer: &Buffer, from: usize, bytes: usize) -> Checked<Vec<u8>> {
        let mut content = vec![0; bytes.min(buffer.bytes.saturating_sub(from))];
        call!(cuMemcpyDtoH_v2(content.as_mut_ptr().cast(), buffer.address + from as u64, content.len()))?;
        Ok(content)
    }

    /// Launches on the null stream; each argument is the bytes of one parameter, aligned to 128.
    ///
    /// # Errors
    /// When the driver refuses the launch.
    pub fn launch(&self, function: Function, grid: u32, threads: u32, args: &mut [Parameter]) -> Checked<()> {
        let mut pointers: Vec<*mut c_void> = args.iter_mut().map(|a| ptr::from_mut(a).cast()).collect();
        call!(cuLaunchKernel(
            function.0,
            grid,
            1,
            1,
            threads,
            1,
            1,
            0,
            ptr::null_mut(),
            pointers.as_mut_ptr(),
            ptr::null_mut(),
        ))
    }

    /// Waits for all work, and reports what went wrong in it.
    ///
    /// # Errors
    /// Those of kernels before.
    pub fn synchronize(&self) -> Checked<()> {
        call!(cuCtxSynchronize())
    }
}

/// A pair of events around work on the null stream, which is the stream of `natten_cuda`'s driver too.
pub struct Timer {
    start: sys::CUevent,
    end: sys::CUevent,
    spin: Module,
}

impl Timer {
    /// # Errors
    /// When the driver refuses.
    pub fn new(gpu: &Gpu) -> Checked<Self> {
        let (mut start, mut end) = (ptr::null_mut(), ptr::null_mut());
        call!(cuEventCreate(&mut start, 0))?;
        call!(cuEventCreate(&mut end, 0))?;
        Ok(Timer { start, end, spin: gpu.load(&spin_kernel().ptx())? })
    }

    /// Milliseconds that the work queued by `work` takes on the device. The device is kept busy for `ahead` before, so
    /// that what the host needs to queue the work does not count.
    ///
    /// # Errors
    /// Those of the work, too.
    pub fn time<E: std::fmt::Display>(
        &self,
        gpu: &Gpu,
        ahead: Duration,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Checked<f64> {
        if !ahead.is_zero() {
            let mut parameters = [0, 0, 0, ahead.as_nanos() as u64, 0].map(Parameter::value);
            gpu.launch(self.spin.function(ENTRY)?, 1, 32, &mut parameters)?;
        }
        let mut milliseconds = 0.0;
        call!(cuEventRecord(self.start, ptr::null_mut()))?;
        work().map_err(|error| Failure { text: error.to_string() })?;
        call!(cuEventRecord(self.end, ptr::null_mut()))?;
        call!(cuEventSynchronize(self.end))?;
        call!(cuEventElapsedTime_v2(&mut milliseconds, self.start, self.end))?;
        Ok(f64::from(milliseconds))
    }
}

/// Waits for `%x` nanoseconds.
fn spin_kernel() -> Kernel {
    let body = "mov.u64 %q0, %globaltimer;\nSPIN:\nmov.u64 %q1, %globaltimer;\nsub.u64 %q1, %q1, %q0;\n\
                setp.lt.u64 %p0, %q1, %x;\n@%p0 bra SPIN;\n";
    Kernel::new("7.0", "sm_80", 0, 0, body.to_owned())
}

impl Drop for Timer {
    fn drop(&mut self) {
        let _ = call!(cuEventDestroy_v2(self.start));
        let _ = call!(cuEventDestroy_v2(self.end));
    }
}

/// Queues a copy inside device memory.
///
/// # Errors
/// When the driver refuses.
pub fn copy(to: &Buffer, from: &Buffer) -> Checked<()> {
    call!(cuMemcpyDtoDAsync_v2(to.address, from.address, to.bytes.min(from.bytes), ptr::null_mut()))
}

/// The bytes of one kernel parameter, where a tensor map may lie.
#[derive(Clone, Copy)]
#[repr(C, align(128))]
pub struct Parameter(pub [u8; 128]);

impl Parameter {
    /// A 64-bit value.
    pub fn value(value: u64) -> Self {
        let mut bytes = [0; 128];
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        Parameter(bytes)
    }
}

impl Module {
    /// A kernel of the module.
    ///
    /// # Errors
    /// When it has no such entry.
    pub fn function(&self, name: &str) -> Checked<Function> {
        let text = CString::new(name).map_err(|e| Failure { text: e.to_string() })?;
        let mut function = ptr::null_mut();
        call!(cuModuleGetFunction(&mut function, self.handle, text.as_ptr()))?;
        Ok(Function(function))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // A context that a kernel broke refuses this too; there is nothing left to free then.
        let _ = call!(cuModuleUnload(self.handle));
    }
}

impl Function {
    /// Registers of a thread, bytes of local memory, bytes of static shared memory, largest block.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn resources(self) -> Checked<[i32; 4]> {
        use FunctionAttribute as A;
        let mut values = [0; 4];
        let which = [
            A::CU_FUNC_ATTRIBUTE_NUM_REGS,
            A::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES,
            A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
            A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK,
        ];
        for (value, which) in values.iter_mut().zip(which) {
            call!(cuFuncGetAttribute(value, which, self.0))?;
        }
        Ok(values)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let _ = call!(cuMemFree_v2(self.address));
    }
}
