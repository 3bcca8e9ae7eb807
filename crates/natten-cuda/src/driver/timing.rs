//! Times on the device: events of the driver's.

use std::sync::Arc;

use cudarc::driver::{CudaContext, sys};

use super::{Driver, Memory, check, check_code};
use crate::error::DeviceError;
use crate::measure::Timed;

/// A point in a stream.
#[derive(Debug)]
pub struct Event {
    pub(super) event: sys::CUevent,
    context: Arc<CudaContext>,
}

// SAFETY: event handles may be used from any thread of the process.
unsafe impl Send for Event {}
// SAFETY: likewise; the driver locks inside.
unsafe impl Sync for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: created by `record`, and destroyed once; the driver keeps what is still pending.
            let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
        }
    }
}

impl Driver {
    /// An event with these flags behind all that the stream was given so far.
    pub(super) fn record_event(&self, flags: u32) -> Result<Event, DeviceError> {
        self.bind()?;
        let mut event = std::ptr::null_mut();
        // SAFETY: the handle lives through the call.
        check("creating an event", unsafe { sys::cuEventCreate(&mut event, flags) }.result())?;
        let event = Event { event, context: self.context.home.context.clone() };
        // SAFETY: event and stream belong to the current context and are alive.
        let status = unsafe { sys::cuEventRecord(event.event, self.stream.cu_stream()) };
        check("recording an event", status.result())?;
        Ok(event)
    }
}

impl Timed for Driver {
    type Event = Event;

    fn is_asynchronous(&self) -> bool {
        true
    }

    fn record(&self) -> Result<Event, DeviceError> {
        self.record_event(0)
    }

    fn seconds_between(&self, start: &Event, end: &Event) -> Result<f64, DeviceError> {
        self.bind()?;
        let library = self.context.home.library;
        let elapsed = library.elapsed_time.ok_or(DeviceError::MissingFeature { feature: "timing" })?;
        // SAFETY: the event is alive.
        let status = unsafe { sys::cuEventSynchronize(end.event) };
        check("waiting for an event", status.result())?;
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive and recorded, and the number lives through the call.
        let code = unsafe { elapsed(&mut milliseconds, start.event.cast(), end.event.cast()) };
        check_code("reading the time between events", code)?;
        Ok(f64::from(milliseconds) * 1e-3)
    }

    fn copy(&self, to: &Memory, from: &Memory) -> Result<(), DeviceError> {
        self.bind()?;
        let bytes = to.bytes.min(from.bytes);
        // SAFETY: the copy stays inside both buffers, which are freed in stream order after it.
        let status =
            unsafe { sys::cuMemcpyDtoDAsync_v2(to.address, from.address, bytes, self.stream.cu_stream()) };
        check("copying on the device", status.result())
    }

    fn repeat(&self, memory: &Memory, period: usize) -> Result<(), DeviceError> {
        self.bind()?;
        // What is there already doubles with each copy.
        let mut filled = period;
        while 0 < filled && filled < memory.bytes {
            let bytes = filled.min(memory.bytes - filled);
            let to = memory.address + filled as u64;
            // SAFETY: source and destination do not overlap, and the copy stays inside the buffer, which is freed in stream
            // order after it.
            let status =
                unsafe { sys::cuMemcpyDtoDAsync_v2(to, memory.address, bytes, self.stream.cu_stream()) };
            check("copying on the device", status.result())?;
            filled += bytes;
        }
        Ok(())
    }

    fn cache_bytes(&self) -> Result<usize, DeviceError> {
        let attribute = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
        let bytes = check("asking for the cache size", self.context.home.context.attribute(attribute))?;
        Ok(usize::try_from(bytes).unwrap_or(0))
    }

    fn free_bytes(&self) -> Result<u64, DeviceError> {
        self.bind()?;
        let (free, _) = check("asking for free memory", cudarc::driver::result::mem_get_info())?;
        Ok(free as u64)
    }
}
