//! Local memory of a warp: a private array per lane.

use super::LOCAL_BASE;
use crate::fault::{Exec, FaultKind, MemorySpace};

#[derive(Debug, Default)]
pub(crate) struct Local {
    /// Bytes of one lane.
    stride: usize,
    bytes: Vec<u8>,
    init: Vec<u8>,
    check_initialised: bool,
}

impl Local {
    pub(crate) fn reset(&mut self, bytes_per_lane: u32, check_initialised: bool) {
        self.stride = bytes_per_lane as usize;
        self.bytes.clear();
        self.bytes.resize(self.stride * 32, 0xcd);
        self.init.clear();
        self.init.resize(self.stride * 32, 0);
        self.check_initialised = check_initialised;
    }

    fn offset(&self, address: u64, bytes: u32, lane: usize) -> Exec<usize> {
        let space = MemorySpace::Local;
        if !address.is_multiple_of(u64::from(bytes)) {
            return Err(FaultKind::Misaligned { space, address, alignment: bytes }.lane(lane));
        }
        let offset = address.wrapping_sub(u64::from(LOCAL_BASE));
        if offset >= self.stride as u64 || self.stride as u64 - offset < u64::from(bytes) {
            return Err(FaultKind::OutOfBounds { space, address, bytes }.lane(lane));
        }
        Ok(lane * self.stride + offset as usize)
    }

    pub(crate) fn read<const N: usize>(&self, address: u64, lane: usize) -> Exec<[u8; N]> {
        let offset = self.offset(address, N as u32, lane)?;
        if self.check_initialised && self.init[offset..offset + N].contains(&0) {
            let space = MemorySpace::Local;
            return Err(FaultKind::Uninitialised { space, address, bytes: N as u32 }.lane(lane));
        }
        let mut value = [0; N];
        value.copy_from_slice(&self.bytes[offset..offset + N]);
        Ok(value)
    }

    pub(crate) fn write<const N: usize>(&mut self, address: u64, value: [u8; N], lane: usize) -> Exec {
        let offset = self.offset(address, N as u32, lane)?;
        self.bytes[offset..offset + N].copy_from_slice(&value);
        self.init[offset..offset + N].fill(1);
        Ok(())
    }
}
