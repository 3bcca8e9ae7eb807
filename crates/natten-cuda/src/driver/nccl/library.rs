//! NCCL's library, looked for at run time, with the ABI of the functions that are called written out.
//!
//! cudarc binds NCCL too, but keeps the handle of a communicator to itself, so that neither its errors can be asked for nor can it
//! be aborted; and its features pin a version, which clashes with that of any other crate in the same build.

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;
use std::sync::Arc;

use libloading::Library as Handle;
use natten_core::ExchangeError;

/// The name in messages.
const NAME: &str = "NCCL";

#[cfg(windows)]
const FILES: &[&str] = &["nccl.dll"];
#[cfg(not(windows))]
const FILES: &[&str] = &["libnccl.so.2", "libnccl.so"];

/// The first version whose communicators can be told not to block: 2.17.1.
const OLDEST: c_int = 21701;

/// A communicator's handle.
pub(super) type Comm = *mut c_void;
/// `ncclResult_t`.
pub(super) type Code = c_int;

pub(super) const SUCCESS: Code = 0;
pub(super) const IN_PROGRESS: Code = 7;
/// `ncclUint8`: messages are bytes.
pub(super) const BYTE: c_int = 1;

/// What ranks that are to reach each other have in common: one of them makes it, and gives it to the others by any means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct NcclId(pub [u8; 128]);

/// `ncclConfig_t` as of 2.17; later versions take it for one of theirs that says nothing beyond.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// Of a communicator whose calls return before they are done.
    pub(super) fn not_blocking() -> Self {
        /// `NCCL_CONFIG_UNDEF_INT`.
        const UNDEFINED: c_int = c_int::MIN;
        Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: 21700,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

/// NCCL itself. Clones are the same library.
#[derive(Clone, Debug)]
pub struct NcclLibrary(pub(super) Arc<Functions>);

macro_rules! functions {
    ($($field:ident: $symbol:literal, fn($($argument:ty),*);)*) => {
        /// The functions that are called, and the library that keeps them loaded.
        #[derive(Debug)]
        pub(super) struct Functions {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> Code,)*
            _handle: Handle,
        }

        impl Functions {
            fn of(handle: Handle) -> Result<Self, ExchangeError> {
                $(
                    // SAFETY: the type is the function's ABI as nccl.h declares it.
                    let $field = unsafe { handle.get::<unsafe extern "C" fn($($argument),*) -> Code>($symbol) };
                    let $field = *$field.map_err(|_| absent(format!("it has no function {}", $symbol)))?;
                )*
                Ok(Functions { $($field,)* _handle: handle })
            }
        }
    };
}

functions! {
    get_version: "ncclGetVersion", fn(*mut c_int);
    get_unique_id: "ncclGetUniqueId", fn(*mut NcclId);
    init_rank: "ncclCommInitRankConfig", fn(*mut Comm, c_int, NcclId, c_int, *mut Config);
    count: "ncclCommCount", fn(Comm, *mut c_int);
    user_rank: "ncclCommUserRank", fn(Comm, *mut c_int);
    async_error: "ncclCommGetAsyncError", fn(Comm, *mut Code);
    abort: "ncclCommAbort", fn(Comm);
    group_start: "ncclGroupStart", fn();
    group_end: "ncclGroupEnd", fn();
    send: "ncclSend", fn(*const c_void, usize, c_int, c_int, Comm, *mut c_void);
    receive: "ncclRecv", fn(*mut c_void, usize, c_int, c_int, Comm, *mut c_void);
}

impl NcclLibrary {
    /// The library as the system finds it by name: where the loader looks, or in the process already, as of an engine that uses it.
    ///
    /// # Errors
    /// [`ExchangeError::NoLibrary`] where there is none, or one that is too old.
    pub fn open() -> Result<Self, ExchangeError> {
        // SAFETY: loading the library runs its initialisers, as linking against it would.
        let handle = FILES.iter().find_map(|file| unsafe { Handle::new(*file) }.ok());
        Self::of(handle.ok_or_else(|| absent(format!("none of {FILES:?} was found")))?)
    }

    /// The library in a file, such as that of a Python package.
    ///
    /// # Safety
    /// The file is NCCL's library: loading another runs its initialisers, and calls into it by NCCL's signatures.
    ///
    /// # Errors
    /// As [`NcclLibrary::open`].
    pub unsafe fn at(file: &Path) -> Result<Self, ExchangeError> {
        // SAFETY: by the caller.
        let handle = unsafe { Handle::new(file) };
        Self::of(handle.map_err(|error| absent(error.to_string()))?)
    }

    fn of(handle: Handle) -> Result<Self, ExchangeError> {
        let library = NcclLibrary(Arc::new(Functions::of(handle)?));
        let version = library.version()?;
        if version < OLDEST {
            return Err(absent(format!("version {version} is there, {OLDEST} is needed")));
        }
        Ok(library)
    }

    /// Its version, as 22703 for 2.27.3.
    ///
    /// # Errors
    /// [`ExchangeError::Device`].
    pub fn version(&self) -> Result<i32, ExchangeError> {
        let mut version = 0;
        // SAFETY: the number lives through the call.
        check("asking NCCL for its version", unsafe { (self.0.get_version)(&mut version) })?;
        Ok(version)
    }

    /// A new id, for one group of ranks.
    ///
    /// # Errors
    /// [`ExchangeError::Device`].
    pub fn new_id(&self) -> Result<NcclId, ExchangeError> {
        let mut id = NcclId([0; 128]);
        // SAFETY: the id lives through the call.
        check("making an id", unsafe { (self.0.get_unique_id)(&mut id) })?;
        Ok(id)
    }
}

fn absent(reason: String) -> ExchangeError {
    ExchangeError::NoLibrary { library: NAME, reason }
}

/// A call of NCCL failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("NCCL error {code} ({})", name_of(*.code))]
pub struct NcclError {
    /// NCCL's number.
    pub code: i32,
}

fn name_of(code: Code) -> &'static str {
    match code {
        0 => "success",
        1 => "a CUDA call failed",
        2 => "a system call failed",
        3 => "internal error",
        4 => "invalid argument",
        5 => "invalid usage",
        6 => "another rank failed or cannot be reached",
        7 => "in progress",
        _ => "unknown",
    }
}

/// Whether a call went well, or goes on.
pub(super) fn check(operation: &'static str, code: Code) -> Result<(), ExchangeError> {
    match code {
        SUCCESS | IN_PROGRESS => Ok(()),
        code => Err(ExchangeError::Device { operation, source: Box::new(NcclError { code }) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_an_error() {
        // SAFETY: there is no such file.
        let error = unsafe { NcclLibrary::at(Path::new("/nowhere/libnccl.so.2")) }.unwrap_err();
        assert!(matches!(error, ExchangeError::NoLibrary { library: "NCCL", .. }), "{error}");
        match NcclLibrary::open() {
            Ok(library) => assert!(library.version().unwrap() >= OLDEST),
            Err(error) => assert!(matches!(error, ExchangeError::NoLibrary { .. }), "{error}"),
        }
    }

    /// The C library has none of its functions.
    #[cfg(target_os = "linux")]
    #[test]
    fn another_library_is_told_from_it() {
        // SAFETY: the process has it loaded, and nothing of it is called.
        match unsafe { NcclLibrary::at(Path::new("libc.so.6")) } {
            Err(ExchangeError::NoLibrary { reason, .. }) => {
                assert!(
                    reason == "it has no function ncclGetVersion" || reason.contains("libc.so.6"),
                    "{reason}"
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn codes_that_go_on_are_no_failures() {
        assert!(check("this", SUCCESS).is_ok() && check("this", IN_PROGRESS).is_ok());
        let error = check("this", 6).unwrap_err();
        assert_eq!(error.to_string(), "this: NCCL error 6 (another rank failed or cannot be reached)");
    }

    /// As nccl.h of 2.17 has it on 64-bit machines.
    #[cfg(target_pointer_width = "64")]
    #[test]
    fn the_configuration_lies_as_in_c() {
        assert_eq!((size_of::<Config>(), std::mem::offset_of!(Config, net_name)), (48, 32));
        assert_eq!(size_of::<NcclId>(), 128);
    }
}
