//! Copies between host and device beside the kernels: streams of their own, page-locked memory, points to wait for.

use std::sync::Arc;

use crate::device::Device;
use crate::error::DeviceError;

/// A device that copies while its kernels run.
pub trait Transfer: Device {
    /// Page-locked host memory, from and to which the device copies by itself.
    type Pinned: AsRef<[u8]> + AsMut<[u8]> + Send;
    /// A point in a stream's work.
    type Point: Clone + Send + Sync;

    /// The same device on a stream that nobody else has, which waits for no other. A device may keep it for the next who asks.
    ///
    /// # Errors
    /// When the device has no more of them.
    fn beside(&self) -> Result<Self, DeviceError>;

    /// Page-locked memory of so many bytes, which hold something, aligned for numbers of 8 bytes at least.
    ///
    /// # Errors
    /// When there is not enough.
    fn pinned(&self, bytes: usize) -> Result<Self::Pinned, DeviceError>;

    /// The point behind all work that the stream was given so far.
    ///
    /// # Errors
    /// When the device fails.
    fn point(&self) -> Result<Self::Point, DeviceError>;

    /// Lets work that the stream is given from now on begin behind a point of any stream of the device. Does not wait.
    ///
    /// # Errors
    /// When the device fails.
    fn follow(&self, point: &Self::Point) -> Result<(), DeviceError>;

    /// Waits until a point is reached.
    ///
    /// # Errors
    /// When this or the work before it failed.
    fn await_point(&self, point: &Self::Point) -> Result<(), DeviceError>;

    /// Queues a copy of `bytes` from byte `from.1` of one memory on to byte `to.1` of another and on. Neither may be freed, nor what is
    /// read be written, in another stream's order before it has ended.
    ///
    /// # Errors
    /// When it reaches beyond either, or the device fails.
    fn copy_on(
        &self,
        from: (&Self::Memory, usize),
        to: (&Self::Memory, usize),
        bytes: usize,
    ) -> Result<(), DeviceError>;

    /// Queues a copy of the first `bytes` of page-locked memory to byte `at` of the device's and on.
    ///
    /// # Errors
    /// When it reaches beyond either, or the device fails.
    fn upload(
        &self,
        from: Self::Pinned,
        bytes: usize,
        to: &Arc<Self::Memory>,
        at: usize,
    ) -> Result<InFlight<Self>, DeviceError>;

    /// Queues a copy of `bytes` of the device's memory, from byte `at` on, to the beginning of page-locked memory.
    ///
    /// # Errors
    /// As [`Transfer::upload`].
    fn download(
        &self,
        from: &Arc<Self::Memory>,
        at: usize,
        bytes: usize,
        to: Self::Pinned,
    ) -> Result<InFlight<Self>, DeviceError>;
}

/// A copy under way. It has the memories on both sides until the copy has been waited for, which dropping it does.
#[derive(Debug)]
pub struct InFlight<T: Transfer> {
    device: T,
    point: T::Point,
    /// Nothing once it has been given back.
    pinned: Option<T::Pinned>,
    memory: Arc<T::Memory>,
}

impl<T: Transfer> InFlight<T> {
    /// The copy that was the last work which the device's stream was given. For those who implement [`Transfer`].
    ///
    /// # Errors
    /// When its end cannot be marked; it has been waited for then.
    pub fn new(device: &T, pinned: T::Pinned, memory: &Arc<T::Memory>) -> Result<Self, DeviceError> {
        match device.point() {
            Ok(point) => {
                Ok(InFlight { device: device.clone(), point, pinned: Some(pinned), memory: memory.clone() })
            }
            Err(error) => {
                // Nothing may be freed under a copy.
                if device.synchronize().is_err() {
                    std::mem::forget((pinned, memory.clone()));
                }
                Err(error)
            }
        }
    }

    /// Waits for it, and gives the page-locked memory back.
    ///
    /// # Errors
    /// When this copy or work before it failed.
    pub fn landed(mut self) -> Result<T::Pinned, DeviceError> {
        self.device.await_point(&self.point)?;
        Ok(self.pinned.take().expect("a copy lands once"))
    }
}

impl<T: Transfer> Drop for InFlight<T> {
    fn drop(&mut self) {
        let Some(pinned) = self.pinned.take() else { return };
        // A wait may fail by what failed earlier, without having waited: so it is tried in another way too.
        let has_landed = self.device.await_point(&self.point).is_ok() || self.device.synchronize().is_ok();
        if !has_landed {
            // The copy may be under way for ever.
            std::mem::forget((pinned, self.memory.clone()));
        }
    }
}
