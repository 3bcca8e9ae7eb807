//! Shared memory of one CTA: bytes and which of them were written.

use crate::fault::{Exec, FaultKind, MemorySpace};
use crate::memory::SHARED_BASE;
use crate::scalar::{Lanes, Wides};

#[derive(Debug, Default)]
pub(crate) struct Shared {
    bytes: Vec<u8>,
    /// 1 for each byte written.
    init: Vec<u8>,
    check_initialised: bool,
}

impl Shared {
    /// Prepares for a new CTA: nothing is initialised, and old contents are scrambled.
    pub(crate) fn reset(&mut self, bytes: usize, check_initialised: bool) {
        self.bytes.clear();
        self.bytes.resize(bytes, 0xcd);
        self.init.clear();
        self.init.resize(bytes, 0);
        self.check_initialised = check_initialised;
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Offset of an access; the address must lie inside and be aligned to `alignment`.
    #[inline]
    pub(crate) fn offset(&self, address: u64, bytes: u32, alignment: u32) -> Result<usize, FaultKind> {
        let space = MemorySpace::Shared;
        if !address.is_multiple_of(u64::from(alignment)) {
            return Err(FaultKind::Misaligned { space, address, alignment });
        }
        let offset = address.wrapping_sub(u64::from(SHARED_BASE));
        if offset >= self.bytes.len() as u64 || self.bytes.len() as u64 - offset < u64::from(bytes) {
            return Err(FaultKind::OutOfBounds { space, address, bytes });
        }
        Ok(offset as usize)
    }

    /// Checks alignment and bounds of all enabled lanes at once.
    #[inline]
    pub(crate) fn check_request(&self, m: u32, addresses: &Wides, bytes: u32) -> Exec {
        let Some(limit) = (self.bytes.len() as u64).checked_sub(bytes.into()) else {
            return self.refuse(m, addresses, bytes);
        };
        let mut bad = 0u32;
        for lane in 0..32 {
            let a = addresses[lane];
            let wrong = a & u64::from(bytes - 1) != 0 || a.wrapping_sub(SHARED_BASE.into()) > limit;
            bad |= u32::from(wrong) << lane;
        }
        if bad & m == 0 { Ok(()) } else { self.refuse(bad & m, addresses, bytes) }
    }

    #[cold]
    fn refuse(&self, lanes: u32, addresses: &Wides, bytes: u32) -> Exec {
        let lane = lanes.trailing_zeros() as usize & 31;
        self.offset(addresses[lane], bytes, bytes).map(|_| ()).map_err(|kind| kind.lane(lane))
    }

    /// 32-bit words at `at` bytes past each lane's address, which `check_request` vouched for.
    #[inline]
    pub(crate) fn gather(&self, m: u32, addresses: &Wides, at: u64) -> Exec<Lanes> {
        let mut value: Lanes = [0; 32];
        let mut missing = 0u32;
        for lane in 0..32 {
            if m >> lane & 1 == 1 {
                let o = (addresses[lane] + at - u64::from(SHARED_BASE)) as usize;
                let word = |from: &[u8]| u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
                value[lane] = word(&self.bytes[o..o + 4]);
                missing |= u32::from(word(&self.init[o..o + 4]) != 0x0101_0101) << lane;
            }
        }
        if self.check_initialised && missing != 0 {
            let lane = missing.trailing_zeros() as usize;
            let (space, address) = (MemorySpace::Shared, addresses[lane] + at);
            return Err(FaultKind::Uninitialised { space, address, bytes: 4 }.lane(lane));
        }
        Ok(value)
    }

    /// Fails when a byte of the range was never written.
    #[inline]
    pub(crate) fn check_init(&self, offset: usize, bytes: usize) -> Result<(), FaultKind> {
        if self.check_initialised && self.init[offset..offset + bytes].contains(&0) {
            let address = u64::from(SHARED_BASE) + offset as u64;
            return Err(FaultKind::Uninitialised {
                space: MemorySpace::Shared,
                address,
                bytes: bytes as u32,
            });
        }
        Ok(())
    }

    /// Bytes of a range that `offset` vouched for.
    #[inline]
    pub(crate) fn slice(&self, offset: usize, bytes: usize) -> &[u8] {
        &self.bytes[offset..offset + bytes]
    }

    /// A checked read of `N` bytes aligned to their length.
    #[inline]
    pub(crate) fn read<const N: usize>(&self, address: u64, lane: usize) -> Exec<[u8; N]> {
        let offset = self.offset(address, N as u32, N as u32).map_err(|k| k.lane(lane))?;
        if self.check_initialised {
            let mut all = 1;
            for &byte in &self.init[offset..offset + N] {
                all &= byte;
            }
            if all == 0 {
                return Err(self.check_init(offset, N).err().unwrap_or(FaultKind::Trap).lane(lane));
            }
        }
        let mut value = [0; N];
        value.copy_from_slice(&self.bytes[offset..offset + N]);
        Ok(value)
    }

    /// A checked write of `N` bytes aligned to their length.
    #[inline]
    pub(crate) fn write<const N: usize>(&mut self, address: u64, value: [u8; N], lane: usize) -> Exec {
        let offset = self.offset(address, N as u32, N as u32).map_err(|k| k.lane(lane))?;
        self.bytes[offset..offset + N].copy_from_slice(&value);
        self.init[offset..offset + N].fill(1);
        Ok(())
    }

    /// Writes a range that `offset` vouched for.
    pub(crate) fn put(&mut self, offset: usize, value: &[u8]) {
        self.bytes[offset..offset + value.len()].copy_from_slice(value);
        self.init[offset..offset + value.len()].fill(1);
    }

    /// Marks a range as not written: something is on its way there.
    pub(crate) fn forget(&mut self, offset: usize, bytes: usize) {
        self.init[offset..offset + bytes].fill(0);
    }
}
