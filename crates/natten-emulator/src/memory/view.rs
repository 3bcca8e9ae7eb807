//! Global memory as one CTA sees it during a launch: a snapshot of the allocations, so that looking
//! an address up takes no lock.

use std::sync::Arc;

use super::Allocation;
use crate::fault::{Exec, FaultKind, MemorySpace};
use crate::scalar::Wides;

/// The allocations of a launch, sorted by base, and the one found last.
#[derive(Debug, Clone)]
pub(crate) struct View {
    allocations: Arc<[Arc<Allocation>]>,
    last: usize,
}

impl View {
    pub(crate) fn new(allocations: Arc<[Arc<Allocation>]>) -> Self {
        Self { allocations, last: 0 }
    }

    pub(crate) fn allocation(&self, index: usize) -> &Allocation {
        &self.allocations[index]
    }

    /// Allocation index and offset of `bytes` bytes at `address`.
    #[inline]
    pub(crate) fn locate(&mut self, address: u64, bytes: u32) -> Option<(usize, u64)> {
        if let Some(a) = self.allocations.get(self.last) {
            let offset = address.wrapping_sub(a.base);
            if offset < a.bytes && u64::from(bytes) <= a.bytes - offset {
                return Some((self.last, offset));
            }
        }
        self.search(address, bytes)
    }

    #[cold]
    fn search(&mut self, address: u64, bytes: u32) -> Option<(usize, u64)> {
        let index = self.allocations.partition_point(|a| a.base <= address).checked_sub(1)?;
        let a = &self.allocations[index];
        let offset = address - a.base;
        if offset >= a.bytes || u64::from(bytes) > a.bytes - offset {
            return None;
        }
        self.last = index;
        Some((index, offset))
    }

    /// Offsets of all enabled lanes if they are aligned and lie in the allocation found last.
    #[inline]
    pub(crate) fn request(&self, m: u32, addresses: &Wides, bytes: u32) -> Option<(&Allocation, Wides)> {
        let allocation = self.allocations.get(self.last)?;
        let limit = allocation.bytes.checked_sub(bytes.into())?;
        let mut bad = 0u32;
        let mut offsets = [0; 32];
        for lane in 0..32 {
            offsets[lane] = addresses[lane].wrapping_sub(allocation.base);
            let wrong = addresses[lane] & u64::from(bytes - 1) != 0 || offsets[lane] > limit;
            bad |= u32::from(wrong) << lane;
        }
        (bad & m == 0).then_some((&**allocation, offsets))
    }

    /// Like `locate`, with the checks of a lane's access: alignment first, then bounds.
    #[inline]
    pub(crate) fn checked(&mut self, address: u64, bytes: u32, lane: usize) -> Exec<(usize, u64)> {
        let space = MemorySpace::Global;
        if !address.is_multiple_of(u64::from(bytes)) {
            return Err(FaultKind::Misaligned { space, address, alignment: bytes }.lane(lane));
        }
        self.locate(address, bytes).ok_or_else(|| FaultKind::OutOfBounds { space, address, bytes }.lane(lane))
    }
}
