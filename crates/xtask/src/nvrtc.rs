//! NVRTC from the pinned wheel: CUDA C++ to PTX text.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

use crate::TaskError;

type Create = unsafe extern "C" fn(
    *mut *mut c_void,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut *mut c_void) -> c_int;

/// The loaded library.
pub(crate) struct Nvrtc {
    library: Library,
    _builtins: Library,
}

impl Nvrtc {
    /// Loads the library from a wheel's folder.
    pub(crate) fn load(folder: &Path) -> Result<Self, TaskError> {
        let flags = RTLD_NOW | RTLD_GLOBAL;
        // NVRTC opens its builtins by name: loaded beforehand, no search path is needed.
        // SAFETY: both libraries come from the pinned wheel; their initialisers have no preconditions.
        unsafe {
            let builtins = Library::open(Some(folder.join("libnvrtc-builtins.so.12.9")), flags)?;
            let library = Library::open(Some(folder.join("libnvrtc.so.12")), flags)?;
            Ok(Nvrtc { library, _builtins: builtins })
        }
    }

    /// Compiles one source to PTX.
    pub(crate) fn compile(&self, entry: &str, source: &str, options: &[String]) -> Result<String, TaskError> {
        let text = |s: &str| CString::new(s).expect("sources and options hold no NUL");
        let (source, name) = (text(source), text(&format!("{entry}.cu")));
        let options: Vec<CString> = options.iter().map(|option| text(option)).collect();
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program = std::ptr::null_mut();
        // SAFETY: signatures are those of nvrtc.h 12.9; all pointers live until the calls return, and the program
        // is destroyed once.
        unsafe {
            self.symbol::<Create>(c"nvrtcCreateProgram")?(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                0,
                std::ptr::null(),
                std::ptr::null(),
            );
            let status = self.symbol::<Compile>(c"nvrtcCompileProgram")?(
                program,
                options.len() as c_int,
                options.as_ptr(),
            );
            let result = if status == 0 {
                self.text(program, c"nvrtcGetPTXSize", c"nvrtcGetPTX")
            } else {
                let log = self.text(program, c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog")?;
                Err(TaskError::Compile { entry: entry.to_owned(), log })
            };
            self.symbol::<Destroy>(c"nvrtcDestroyProgram")?(&mut program);
            result
        }
    }

    /// # Safety
    /// `program` is alive, and the names are a size query and its text query.
    unsafe fn text(&self, program: *mut c_void, size: &CStr, text: &CStr) -> Result<String, TaskError> {
        let mut length = 0;
        // SAFETY: by the caller; the buffer has the length that the library asked for, its NUL included.
        unsafe {
            self.symbol::<Size>(size)?(program, &mut length);
            let mut buffer = vec![0u8; length.max(1)];
            self.symbol::<Text>(text)?(program, buffer.as_mut_ptr().cast());
            buffer.truncate(length.saturating_sub(1));
            Ok(String::from_utf8_lossy(&buffer).into_owned())
        }
    }

    /// # Safety
    /// `F` is the symbol's signature.
    unsafe fn symbol<F>(&self, name: &CStr) -> Result<Symbol<F>, TaskError> {
        // SAFETY: by the caller.
        Ok(unsafe { self.library.get(name.to_bytes_with_nul())? })
    }
}
