//! Shared memory of one CTA: bytes and which of them were written.

use crate::fault::{Exec, FaultKind, MemorySpace};
use crate::memory::SHARED_BASE;
use crate::scalar::{Lanes, Wides, map};

/// A word of which every byte was written.
const WHOLE: u8 = 0xf;

#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Whole words; `len` of the bytes exist.
    bytes: Vec<u8>,
    len: usize,
    /// For each word, a bit for each byte written.
    init: Vec<u8>,
    check_initialised: bool,
    /// Counts writes: equal counts mean equal contents.
    version: u64,
}

impl Shared {
    /// Prepares for a new CTA: nothing is initialised, and old contents are scrambled.
    pub(crate) fn reset(&mut self, bytes: usize, check_initialised: bool) {
        let words = bytes.div_ceil(4);
        self.bytes.clear();
        self.bytes.resize(4 * words, 0xcd);
        self.len = bytes;
        self.init.clear();
        self.init.resize(words, 0);
        self.check_initialised = check_initialised;
        self.version += 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Offset of an access; the address must lie inside and be aligned to `alignment`.
    #[inline]
    pub(crate) fn offset(&self, address: u64, bytes: u32, alignment: u32) -> Result<usize, FaultKind> {
        let space = MemorySpace::Shared;
        if !address.is_multiple_of(u64::from(alignment)) {
            return Err(FaultKind::Misaligned { space, address, alignment });
        }
        let offset = address.wrapping_sub(u64::from(SHARED_BASE));
        if offset >= self.len as u64 || self.len as u64 - offset < u64::from(bytes) {
            return Err(FaultKind::OutOfBounds { space, address, bytes });
        }
        Ok(offset as usize)
    }

    /// Offsets of a request whose enabled lanes all access `bytes` bytes, a power of two, inside and aligned to that.
    /// Lanes that are not enabled get the offset of one that is, so that loops over lanes need not ask.
    #[inline]
    pub(crate) fn offsets(&self, m: u32, addresses: &Wides, bytes: u32) -> Exec<Lanes> {
        let Some(limit) = (self.len as u64).checked_sub(bytes.into()) else {
            return self.refuse(m, addresses, bytes);
        };
        let mut offsets = map(addresses, |a| a.wrapping_sub(SHARED_BASE.into()));
        if m != !0 {
            let inside = offsets[m.trailing_zeros() as usize & 31];
            for lane in (0..32).filter(|l| m >> l & 1 == 0) {
                offsets[lane] = inside;
            }
        }
        // What exceeds the limit leaves the sign bit, in itself or in the difference.
        let (mut any, mut beyond) = (0, 0);
        for &offset in &offsets {
            any |= offset;
            beyond |= limit.wrapping_sub(offset) | offset;
        }
        if beyond >> 63 == 0 && any & u64::from(bytes - 1) == 0 {
            Ok(map(&offsets, |offset| offset as u32))
        } else {
            self.refuse(m, addresses, bytes)
        }
    }

    #[cold]
    fn refuse(&self, lanes: u32, addresses: &Wides, bytes: u32) -> Exec<Lanes> {
        for lane in (0..32).filter(|l| lanes >> l & 1 == 1) {
            self.offset(addresses[lane], bytes, bytes).map_err(|kind| kind.lane(lane))?;
        }
        // Some lane was refused before.
        Err(FaultKind::Trap.into())
    }

    /// 32-bit words at `at` bytes past each lane's offset; a request vouched for them.
    #[inline]
    pub(crate) fn gather(&self, offsets: &Lanes, at: u32) -> Exec<Lanes> {
        let words = self.bytes.as_chunks::<4>().0;
        let init = &self.init[..words.len()];
        let mut value: Lanes = [0; 32];
        let mut written = WHOLE;
        for lane in 0..32 {
            let index = ((offsets[lane] + at) / 4) as usize;
            value[lane] = u32::from_le_bytes(words[index]);
            written &= init[index];
        }
        if written != WHOLE && self.check_initialised {
            return self.unwritten(offsets, at);
        }
        Ok(value)
    }

    #[cold]
    fn unwritten(&self, offsets: &Lanes, at: u32) -> Exec<Lanes> {
        for lane in 0..32 {
            self.check_init((offsets[lane] + at) as usize, 4).map_err(|kind| kind.lane(lane))?;
        }
        // Some lane was refused before.
        Err(FaultKind::Trap.into())
    }

    /// Writes the enabled lanes' words at `at` bytes past their offsets, in the order of lanes.
    #[inline]
    pub(crate) fn scatter(&mut self, m: u32, offsets: &Lanes, at: u32, value: &Lanes) {
        self.version += 1;
        let words = self.bytes.as_chunks_mut::<4>().0;
        let init = &mut self.init[..words.len()];
        for lane in 0..32 {
            if m >> lane & 1 == 1 {
                let index = ((offsets[lane] + at) / 4) as usize;
                words[index] = value[lane].to_le_bytes();
                init[index] = WHOLE;
            }
        }
    }

    /// Bits of the bytes of a range in each word, by word.
    fn masks(offset: usize, bytes: usize) -> impl Iterator<Item = (usize, u8)> {
        let end = offset + bytes;
        (offset / 4..end.div_ceil(4)).map(move |word| {
            let low = offset.max(4 * word) - 4 * word;
            let high = end.min(4 * word + 4) - 4 * word;
            (word, ((1u32 << high) - (1 << low)) as u8)
        })
    }

    /// Fails when a byte of the range was never written.
    #[inline]
    pub(crate) fn check_init(&self, offset: usize, bytes: usize) -> Result<(), FaultKind> {
        let whole = |word: &u8| *word == WHOLE;
        if !self.check_initialised || self.init[offset / 4..(offset + bytes).div_ceil(4)].iter().all(whole) {
            return Ok(());
        }
        if Self::masks(offset, bytes).all(|(word, mask)| self.init[word] & mask == mask) {
            return Ok(());
        }
        let address = u64::from(SHARED_BASE) + offset as u64;
        Err(FaultKind::Uninitialised { space: MemorySpace::Shared, address, bytes: bytes as u32 })
    }

    /// Bytes of a range that `offset` vouched for.
    #[inline]
    pub(crate) fn slice(&self, offset: usize, bytes: usize) -> &[u8] {
        &self.bytes[offset..offset + bytes]
    }

    /// Sixteen bytes at an offset that a request vouched for.
    #[inline]
    pub(crate) fn row(&self, offset: u32, lane: usize) -> Exec<[u32; 4]> {
        let first = offset as usize / 4;
        if self.check_initialised && self.init[first..first + 4] != [WHOLE; 4] {
            self.check_init(offset as usize, 16).map_err(|kind| kind.lane(lane))?;
        }
        let mut row = [0; 4];
        for (word, bytes) in row.iter_mut().zip(&self.bytes.as_chunks::<4>().0[first..first + 4]) {
            *word = u32::from_le_bytes(*bytes);
        }
        Ok(row)
    }

    /// A read of `N` bytes at an offset that a request vouched for.
    #[inline]
    pub(crate) fn read<const N: usize>(&self, offset: u32, lane: usize) -> Exec<[u8; N]> {
        let offset = offset as usize;
        self.check_init(offset, N).map_err(|kind| kind.lane(lane))?;
        let mut value = [0; N];
        value.copy_from_slice(&self.bytes[offset..offset + N]);
        Ok(value)
    }

    /// Writes a range that a request or `offset` vouched for.
    #[inline]
    pub(crate) fn put(&mut self, offset: usize, value: &[u8]) {
        self.version += 1;
        if let (Ok(row), true) = (<&[u8; 16]>::try_from(value), offset.is_multiple_of(4)) {
            // The commonest length, known to the compiler.
            self.bytes[offset..offset + 16].copy_from_slice(row);
            self.init[offset / 4..offset / 4 + 4].copy_from_slice(&[WHOLE; 4]);
            return;
        }
        self.bytes[offset..offset + value.len()].copy_from_slice(value);
        if offset.is_multiple_of(4) && value.len().is_multiple_of(4) {
            self.init[offset / 4..(offset + value.len()) / 4].fill(WHOLE);
        } else {
            Self::masks(offset, value.len()).for_each(|(word, mask)| self.init[word] |= mask);
        }
    }

    /// Marks a range as not written: something is on its way there.
    pub(crate) fn forget(&mut self, offset: usize, bytes: usize) {
        Self::masks(offset, bytes).for_each(|(word, mask)| self.init[word] &= !mask);
    }
}
