//! The emulator as a device that can be timed. Launches have run when they return, so the host's clock tells.

use std::time::Instant;

use natten_cuda::measure::Timed;
use natten_cuda::{Device, DeviceError};

use crate::device::{Emulated, GlobalMemory};

impl Timed for Emulated {
    type Event = Instant;

    fn is_asynchronous(&self) -> bool {
        false
    }

    fn record(&self) -> Result<Instant, DeviceError> {
        Ok(Instant::now())
    }

    fn seconds_between(&self, start: &Instant, end: &Instant) -> Result<f64, DeviceError> {
        Ok(end.duration_since(*start).as_secs_f64())
    }

    fn copy(&self, to: &GlobalMemory, from: &GlobalMemory) -> Result<(), DeviceError> {
        let mut bytes = vec![0; to.bytes().min(from.bytes())];
        self.read(from, &mut bytes)?;
        self.write(to, &bytes)
    }

    fn repeat(&self, memory: &GlobalMemory, period: usize) -> Result<(), DeviceError> {
        let mut bytes = vec![0; memory.bytes()];
        self.read(memory, &mut bytes[..period])?;
        for at in period..bytes.len() {
            bytes[at] = bytes[at - period];
        }
        self.write(memory, &bytes)
    }

    fn cache_bytes(&self) -> Result<usize, DeviceError> {
        Ok(0)
    }

    fn free_bytes(&self) -> Result<u64, DeviceError> {
        Ok(self.properties().memory_bytes)
    }
}
