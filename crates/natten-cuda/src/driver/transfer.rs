//! Copies beside the kernels: page-locked memory of the driver's, streams and events.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Arc, PoisonError};

use cudarc::driver::{CudaContext, sys};

use super::{Driver, Event, Memory, check};
use crate::error::DeviceError;
use crate::transfer::{InFlight, Transfer};

/// Page-locked memory of the host.
#[derive(Debug)]
pub struct Pinned {
    first: NonNull<u8>,
    bytes: usize,
    context: Arc<CudaContext>,
}

// SAFETY: the memory is this value's alone, and may be read, written and freed from any thread of the process.
unsafe impl Send for Pinned {}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: so many bytes were allocated, and initialised, and nobody writes them while this is borrowed.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.bytes) }
    }
}

impl AsMut<[u8]> for Pinned {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `pinned`, freed once; a copy that uses it owns it, and waits before it drops it.
            let _ = unsafe { sys::cuMemFreeHost(self.first.as_ptr().cast()) };
        }
    }
}

impl Driver {
    /// A driver whose library lacks one of these functions would be a panic of cudarc's.
    fn expect_transfers(&self) -> Result<(), DeviceError> {
        let has = self.context.home.library.has_transfers;
        if has { Ok(()) } else { Err(DeviceError::MissingFeature { feature: "copies beside kernels" }) }
    }

    /// Where so many bytes of memory begin, from byte `at` on.
    fn within(&self, memory: &Memory, at: usize, bytes: usize) -> Result<u64, DeviceError> {
        let end = at.checked_add(bytes).filter(|&end| end <= memory.bytes);
        match end {
            Some(_) => Ok(memory.address + at as u64),
            None => Err(DeviceError::Bounds { at, bytes, length: memory.bytes }),
        }
    }
}

/// The bytes of page-locked memory that a copy takes.
fn expect_room(pinned: &Pinned, bytes: usize) -> Result<(), DeviceError> {
    if bytes <= pinned.bytes {
        Ok(())
    } else {
        Err(DeviceError::Bounds { at: 0, bytes, length: pinned.bytes })
    }
}

impl Transfer for Driver {
    type Pinned = Pinned;
    type Point = Arc<Event>;

    fn beside(&self) -> Result<Self, DeviceError> {
        self.expect_transfers()?;
        // Streams stay for the life of the context: making one may wait for all that the context does.
        let mut streams = self.context.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = streams.iter().find(|stream| Arc::strong_count(stream) == 1).cloned();
        let stream = match idle {
            Some(stream) => stream,
            None => {
                let stream = check("making a stream", self.context.home.context.new_stream())?;
                streams.push(stream.clone());
                stream
            }
        };
        drop(streams);
        self.on_stream(stream)
    }

    fn pinned(&self, bytes: usize) -> Result<Pinned, DeviceError> {
        self.expect_transfers()?;
        self.bind()?;
        let mut first: *mut c_void = std::ptr::null_mut();
        // SAFETY: the context is current, and the pointer lives through the call.
        let status = unsafe { sys::cuMemHostAlloc(&mut first, bytes.max(1), 0) };
        check("allocating page-locked memory", status.result())?;
        let first = NonNull::new(first.cast::<u8>())
            .ok_or(DeviceError::MissingFeature { feature: "page-locked memory" })?;
        // SAFETY: so many bytes were just allocated.
        unsafe { first.as_ptr().write_bytes(0, bytes) };
        Ok(Pinned { first, bytes, context: self.context.home.context.clone() })
    }

    fn point(&self) -> Result<Arc<Event>, DeviceError> {
        Ok(Arc::new(self.record_event(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32)?))
    }

    fn follow(&self, point: &Arc<Event>) -> Result<(), DeviceError> {
        self.bind()?;
        // SAFETY: stream and event are alive and of this context; the driver keeps what waits for the event.
        let status = unsafe { sys::cuStreamWaitEvent(self.stream.cu_stream(), point.event, 0) };
        check("waiting for another stream", status.result())
    }

    fn await_point(&self, point: &Arc<Event>) -> Result<(), DeviceError> {
        self.bind()?;
        // SAFETY: the event is alive.
        check("waiting for an event", unsafe { sys::cuEventSynchronize(point.event) }.result())
    }

    fn copy_on(
        &self,
        (from, from_at): (&Memory, usize),
        (to, to_at): (&Memory, usize),
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let (from, to) = (self.within(from, from_at, bytes)?, self.within(to, to_at, bytes)?);
        self.bind()?;
        // SAFETY: the copy stays inside both memories, which are freed in a stream's order, by the caller behind it.
        let status = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream.cu_stream()) };
        check("copying on the device", status.result())
    }

    fn upload(
        &self,
        from: Pinned,
        bytes: usize,
        to: &Arc<Memory>,
        at: usize,
    ) -> Result<InFlight<Self>, DeviceError> {
        expect_room(&from, bytes)?;
        let to_address = self.within(to, at, bytes)?;
        self.bind()?;
        // SAFETY: the copy stays inside both memories, and what is returned keeps them until it has ended.
        let status = unsafe {
            sys::cuMemcpyHtoDAsync_v2(to_address, from.first.as_ptr().cast(), bytes, self.stream.cu_stream())
        };
        check("copying to the device", status.result())?;
        InFlight::new(self, from, to)
    }

    fn download(
        &self,
        from: &Arc<Memory>,
        at: usize,
        bytes: usize,
        to: Pinned,
    ) -> Result<InFlight<Self>, DeviceError> {
        expect_room(&to, bytes)?;
        let from_address = self.within(from, at, bytes)?;
        self.bind()?;
        // SAFETY: as in `upload`.
        let status = unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.first.as_ptr().cast(), from_address, bytes, self.stream.cu_stream())
        };
        check("copying from the device", status.result())?;
        InFlight::new(self, to, from)
    }
}
