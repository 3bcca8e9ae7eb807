//! Device memory: allocations that know their bounds and which of their bytes were written, safe to
//! use from CTAs that run in parallel.

pub(crate) mod local;
pub(crate) mod shared;
pub(crate) mod storage;
pub(crate) mod view;

use std::sync::{Arc, RwLock};

use crate::fault::MemoryError;
use storage::{Dense, Sparse, Storage};

/// First shared address; below it lies what the system reserves, and null.
pub(crate) const SHARED_BASE: u32 = 1024;
/// First local address.
pub(crate) const LOCAL_BASE: u32 = 64;
/// Windows of the generic address space, far above any allocation.
pub(crate) const SHARED_WINDOW: u64 = 0x7f01_0000_0000_0000;
pub(crate) const LOCAL_WINDOW: u64 = 0x7f02_0000_0000_0000;
pub(crate) const PARAM_WINDOW: u64 = 0x7f03_0000_0000_0000;
/// Bytes that each window spans.
pub(crate) const WINDOW_BYTES: u64 = 1 << 32;

const FIRST_ADDRESS: u64 = 0x2_0000_0000;
/// Allocations start at multiples of this, as on the device.
const ALIGNMENT: u64 = 256;
/// Unmapped bytes between two allocations, so that running off an end is seen.
const GUARD_BYTES: u64 = 1 << 16;

/// A device's global address space.
///
/// Addresses are never reused, so a use after `free` faults like any other stray access.
#[derive(Debug, Default)]
pub struct Memory {
    space: RwLock<Space>,
}

#[derive(Debug, Default)]
struct Space {
    /// Sorted by base.
    allocations: Vec<Arc<Allocation>>,
    next: u64,
}

/// One allocation: where it lies and what is in it.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub base: u64,
    pub bytes: u64,
    pub storage: Storage,
}

impl Memory {
    /// An empty address space.
    pub fn new() -> Self {
        Self::default()
    }

    /// Allocates `bytes` of uninitialised memory at a multiple of 256.
    pub fn alloc(&self, bytes: usize) -> u64 {
        self.insert(bytes as u64, Storage::Dense(Dense::new(bytes)))
    }

    /// Allocates address space whose pages exist only once written; for tensors too large to hold.
    pub fn alloc_sparse(&self, bytes: u64) -> u64 {
        self.insert(bytes, Storage::Sparse(Sparse::default()))
    }

    fn insert(&self, bytes: u64, storage: Storage) -> u64 {
        let mut space = self.space.write().expect("no holder of this lock panics");
        let base = space.next.max(FIRST_ADDRESS);
        space.next = (base + bytes + GUARD_BYTES).next_multiple_of(ALIGNMENT);
        space.allocations.push(Arc::new(Allocation { base, bytes, storage }));
        base
    }

    /// Frees an allocation by its first address.
    ///
    /// # Errors
    /// When `address` is not one that an allocation returned, or was freed before.
    pub fn free(&self, address: u64) -> Result<(), MemoryError> {
        let mut space = self.space.write().expect("no holder of this lock panics");
        let index = space.allocations.binary_search_by_key(&address, |a| a.base);
        let index = index.map_err(|_| MemoryError::NotABase { address })?;
        space.allocations.remove(index);
        Ok(())
    }

    /// Copies bytes to the device.
    ///
    /// # Errors
    /// When the range is not inside one allocation.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let allocation = self.range(address, bytes.len() as u64)?;
        allocation.storage.write(address - allocation.base, bytes);
        Ok(())
    }

    /// Copies bytes from the device; bytes never written read as zero.
    ///
    /// # Errors
    /// When the range is not inside one allocation.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let allocation = self.range(address, bytes.len() as u64)?;
        allocation.storage.read(address - allocation.base, bytes);
        Ok(())
    }

    /// Sets `bytes` bytes to `value`.
    ///
    /// # Errors
    /// When the range is not inside one allocation.
    pub fn fill(&self, address: u64, value: u8, bytes: usize) -> Result<(), MemoryError> {
        let allocation = self.range(address, bytes as u64)?;
        let chunk = [value; 4096];
        let mut done = 0;
        while done < bytes {
            let step = (bytes - done).min(chunk.len());
            allocation.storage.write(address - allocation.base + done as u64, &chunk[..step]);
            done += step;
        }
        Ok(())
    }

    /// Whether every byte of the range was written, by the host or by a kernel.
    ///
    /// # Errors
    /// When the range is not inside one allocation.
    pub fn is_initialised(&self, address: u64, bytes: usize) -> Result<bool, MemoryError> {
        let allocation = self.range(address, bytes as u64)?;
        let offset = address - allocation.base;
        Ok((0..bytes as u64).all(|i| allocation.storage.initialised(offset + i, 1)))
    }

    fn range(&self, address: u64, bytes: u64) -> Result<Arc<Allocation>, MemoryError> {
        let space = self.space.read().expect("no holder of this lock panics");
        let after = space.allocations.partition_point(|a| a.base <= address);
        let allocation = after.checked_sub(1).map(|i| &space.allocations[i]);
        let allocation = allocation.ok_or(MemoryError::NotAllocated { address })?;
        let end = allocation.base + allocation.bytes;
        if address >= end && !(bytes == 0 && address == end) {
            return Err(MemoryError::NotAllocated { address });
        }
        if bytes > end - address {
            return Err(MemoryError::OutOfBounds { address, bytes, end });
        }
        Ok(Arc::clone(allocation))
    }

    /// The allocations as they are now, for the length of a launch.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Allocation>> {
        self.space.read().expect("no holder of this lock panics").allocations.clone()
    }
}
