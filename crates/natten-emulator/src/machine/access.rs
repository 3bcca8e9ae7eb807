//! Loads and stores of all spaces, checked lane by lane.

use super::cta::Cta;
use super::execute::{space_of, window};
use super::traffic;
use super::warp::Warp;
use crate::fault::{Exec, FaultKind, MemorySpace};
use crate::inst::{Access, Inst, Space, Strength};
use crate::scalar::{Lanes, Wides};

/// Reads 1, 2, 4 or 8 bytes as an integer.
macro_rules! read_sized {
    ($bytes:expr, N => $($read:tt)*) => {
        match $bytes {
            1 => { const N: usize = 1; u64::from(u8::from_le_bytes($($read)*)) }
            2 => { const N: usize = 2; u64::from(u16::from_le_bytes($($read)*)) }
            4 => { const N: usize = 4; u64::from(u32::from_le_bytes($($read)*)) }
            _ => { const N: usize = 8; u64::from_le_bytes($($read)*) }
        }
    };
}

/// Writes the low 1, 2, 4 or 8 bytes of an array.
macro_rules! write_sized {
    ($bytes:expr, $value:ident, $v:ident => $write:expr) => {
        match $bytes {
            1 => {
                let $v = [$value[0]];
                $write
            }
            2 => {
                let $v = [$value[0], $value[1]];
                $write
            }
            4 => {
                let $v = [$value[0], $value[1], $value[2], $value[3]];
                $write
            }
            _ => {
                let $v = $value;
                $write
            }
        }
    };
}

/// Data of a vector access: element by element, lanes inside.
type Block = [[u64; 32]; 8];

impl Cta<'_> {
    /// Byte addresses of the lanes.
    #[inline]
    pub(crate) fn addresses(&self, w: &Warp, slot: u32, wide: bool, offset: i64) -> Wides {
        if wide {
            let a = w.regs.wide(slot);
            std::array::from_fn(|l| a[l].wrapping_add(offset as u64))
        } else {
            // 32-bit addresses wrap in 32 bits.
            let a = w.regs.word(slot);
            std::array::from_fn(|l| u64::from(a[l].wrapping_add(offset as u32)))
        }
    }

    /// Turns generic addresses into those of the space they lie in, which must be one and the same
    /// for all lanes.
    pub(crate) fn resolve(&self, space: Space, m: u32, addresses: &mut Wides) -> Exec<Space> {
        if space != Space::Generic {
            return Ok(space);
        }
        let first = m.trailing_zeros() as usize & 31;
        let space = space_of(addresses[first]);
        for lane in (0..32).filter(|l| m >> l & 1 == 1) {
            if space_of(addresses[lane]) != space {
                let what = "generic addresses of several spaces in one instruction, address";
                return Err(FaultKind::InvalidOperand { what, got: addresses[lane] }.lane(lane));
            }
            addresses[lane] = addresses[lane].wrapping_sub(window(space));
        }
        Ok(space)
    }

    pub(super) fn load(&mut self, w: &mut Warp, i: &Inst, m: u32, access: Access) -> Exec {
        let mut addresses = self.addresses(w, i.a, access.wide_address, i.imm);
        let space = self.resolve(access.space, m, &mut addresses)?;
        if space == Space::Shared && access.bytes == 4 && !access.wide_data {
            return self.load_shared_words(w, i, m, access, &addresses);
        }
        let total = u32::from(access.bytes) * u32::from(access.count);
        let is_global = matches!(space, Space::Global | Space::Generic);
        if is_global
            && access.bytes == 4
            && !access.wide_data
            && self.load_global_words(w, i, m, access, &addresses)?
        {
            return Ok(());
        }
        let mut block: Block = [[0; 32]; 8];
        match space {
            Space::Global | Space::Generic => {
                self.load_global(w.id, m, access, &addresses, total, &mut block)?;
            }
            Space::Shared => {
                let offsets = self.shared_request(w, m, &addresses, total, access.strength, false)?;
                self.each(m, access, |cta, lane, element, at| {
                    block[element][lane] =
                        read_sized!(access.bytes, N => cta.shared.read::<N>(offsets[lane] + at, lane)?);
                    Ok(())
                })?;
            }
            Space::Local => {
                for lane in (0..32).filter(|l| m >> l & 1 == 1) {
                    for element in 0..access.count as usize {
                        let at = addresses[lane] + (element * access.bytes as usize) as u64;
                        block[element][lane] = read_sized!(access.bytes, N => w.local.read::<N>(at, lane)?);
                    }
                }
            }
            Space::Param => self.load_param(m, access, &addresses, &mut block)?,
        }
        self.write_back(w, i, m, access, &block);
        Ok(())
    }

    /// The most common load of all: 32-bit elements from shared memory.
    fn load_shared_words(
        &mut self,
        w: &mut Warp,
        i: &Inst,
        m: u32,
        access: Access,
        addresses: &Wides,
    ) -> Exec {
        let total = 4 * u32::from(access.count);
        let offsets = self.shared_request(w, m, addresses, total, access.strength, false)?;
        for (element, &slot) in self.kernel.list(i).iter().enumerate() {
            let value = self.shared.gather(&offsets, 4 * element as u32)?;
            w.regs.set_word(slot, m, &value);
        }
        Ok(())
    }

    fn each(
        &mut self,
        m: u32,
        access: Access,
        mut f: impl FnMut(&mut Self, usize, usize, u32) -> Exec,
    ) -> Exec {
        for lane in (0..32).filter(|l| m >> l & 1 == 1) {
            for element in 0..access.count as usize {
                f(self, lane, element, (element * access.bytes as usize) as u32)?;
            }
        }
        Ok(())
    }

    /// 32-bit elements that all lie in the allocation found last: the fast way. False if they do not.
    fn load_global_words(
        &mut self,
        w: &mut Warp,
        i: &Inst,
        m: u32,
        access: Access,
        addresses: &Wides,
    ) -> Exec<bool> {
        let total = 4 * u32::from(access.count);
        let Some((allocation, offsets)) = self.view.request(m, addresses, total) else { return Ok(false) };
        let storage = &allocation.storage;
        let written = |l: usize| {
            (0..total.div_ceil(16))
                .all(|p| storage.initialised(offsets[l] + u64::from(16 * p), total.min(16)))
        };
        if self.grid.options.check_initialised
            && let Some(lane) = (0..32).find(|&l| m >> l & 1 == 1 && !written(l))
        {
            let (space, address) = (MemorySpace::Global, addresses[lane]);
            return Err(FaultKind::Uninitialised { space, address, bytes: total }.lane(lane));
        }
        for (element, &slot) in self.kernel.list(i).iter().enumerate() {
            let mut value: Lanes = [0; 32];
            for lane in 0..32 {
                if m >> lane & 1 == 1 {
                    value[lane] = storage.word(offsets[lane] + 4 * element as u64);
                }
            }
            w.regs.set_word(slot, m, &value);
        }
        self.global_race(w.id, m, addresses, total, access.strength, false)?;
        self.counters.global_load_bytes += u64::from(total * m.count_ones());
        self.counters.global_load_sectors += traffic::sectors(m, addresses, total);
        Ok(true)
    }

    fn load_global(
        &mut self,
        warp: u32,
        m: u32,
        access: Access,
        addresses: &Wides,
        total: u32,
        block: &mut Block,
    ) -> Exec {
        let check = self.grid.options.check_initialised;
        let bytes = u32::from(access.bytes);
        let space = MemorySpace::Global;
        for lane in 0..32 {
            if m >> lane & 1 == 0 {
                continue;
            }
            let address = addresses[lane];
            let (index, offset) = self.view.checked(address, total, lane)?;
            let storage = &self.view.allocation(index).storage;
            if check
                && !(0..total.div_ceil(16))
                    .all(|p| storage.initialised(offset + u64::from(16 * p), total.min(16)))
            {
                return Err(FaultKind::Uninitialised { space, address, bytes: total }.lane(lane));
            }
            for element in 0..access.count as usize {
                let at = offset + element as u64 * u64::from(bytes);
                block[element][lane] = match bytes {
                    4 => u64::from(storage.word(at)),
                    8 => u64::from(storage.word(at)) | u64::from(storage.word(at + 4)) << 32,
                    _ => u64::from(storage.part(at, bytes)),
                };
            }
        }
        self.global_race(warp, m, addresses, total, access.strength, false)?;
        self.counters.global_load_bytes += u64::from(total * m.count_ones());
        self.counters.global_load_sectors += traffic::sectors(m, addresses, total);
        Ok(())
    }

    fn load_param(&mut self, m: u32, access: Access, addresses: &Wides, block: &mut Block) -> Exec {
        let bytes = usize::from(access.bytes);
        for lane in (0..32).filter(|l| m >> l & 1 == 1) {
            for element in 0..usize::from(access.count) {
                let address = addresses[lane] + (element * bytes) as u64;
                let data = usize::try_from(address)
                    .ok()
                    .and_then(|a| self.grid.params.get(a..a.checked_add(bytes)?));
                let data = data.ok_or_else(|| {
                    let space = MemorySpace::Param;
                    FaultKind::OutOfBounds { space, address, bytes: bytes as u32 }.lane(lane)
                })?;
                let mut value = [0; 8];
                value[..bytes].copy_from_slice(data);
                block[element][lane] = u64::from_le_bytes(value);
            }
        }
        Ok(())
    }

    /// Extends the elements as their type says and writes them to the destination registers.
    fn write_back(&self, w: &mut Warp, i: &Inst, m: u32, access: Access, block: &Block) {
        let shift = 64 - 8 * u32::from(access.bytes);
        for (values, &slot) in block.iter().zip(self.kernel.list(i)) {
            let extended = |v: u64| if access.signed { ((v << shift) as i64 >> shift) as u64 } else { v };
            if access.wide_data {
                w.regs.set_wide(slot, m, &crate::scalar::map(values, extended));
            } else {
                w.regs.set_word(slot, m, &crate::scalar::map(values, |v| extended(v) as u32));
            }
        }
    }

    pub(super) fn store(&mut self, w: &mut Warp, i: &Inst, m: u32, access: Access) -> Exec {
        let mut addresses = self.addresses(w, i.a, access.wide_address, i.imm);
        let space = self.resolve(access.space, m, &mut addresses)?;
        let kernel = self.kernel;
        if space == Space::Shared && access.bytes == 4 && !access.wide_data {
            self.events += 1;
            let total = 4 * u32::from(access.count);
            let offsets = self.shared_request(w, m, &addresses, total, access.strength, true)?;
            for (element, &slot) in kernel.list(i).iter().enumerate() {
                self.shared.scatter(m, &offsets, 4 * element as u32, w.regs.word(slot));
            }
            self.release_stored(w, m, access, &addresses);
            return Ok(());
        }
        let mut block: Block = [[0; 32]; 8];
        for (values, &slot) in block.iter_mut().zip(kernel.list(i)) {
            *values = if access.wide_data {
                *w.regs.wide(slot)
            } else {
                crate::scalar::map(w.regs.word(slot), u64::from)
            };
        }
        self.events += 1;
        let total = u32::from(access.bytes) * u32::from(access.count);
        match space {
            Space::Global | Space::Generic => {
                self.store_global(w.id, m, access, &addresses, total, &block)?
            }
            Space::Shared => {
                let offsets = self.shared_request(w, m, &addresses, total, access.strength, true)?;
                self.each(m, access, |cta, lane, element, at| {
                    let value = block[element][lane].to_le_bytes();
                    cta.shared.put((offsets[lane] + at) as usize, &value[..usize::from(access.bytes)]);
                    Ok(())
                })?;
            }
            Space::Local => {
                for lane in (0..32).filter(|l| m >> l & 1 == 1) {
                    for element in 0..access.count as usize {
                        let at = addresses[lane] + (element * access.bytes as usize) as u64;
                        let value = block[element][lane].to_le_bytes();
                        write_sized!(access.bytes, value, v => w.local.write(at, v, lane))?;
                    }
                }
            }
            Space::Param => {
                let space = MemorySpace::Param;
                let (address, bytes) = (addresses[m.trailing_zeros() as usize & 31], total);
                return Err(FaultKind::OutOfBounds { space, address, bytes }.into());
            }
        }
        self.release_stored(w, m, access, &addresses);
        Ok(())
    }

    /// A store with release semantics publishes what came before it at its address.
    fn release_stored(&mut self, w: &Warp, m: u32, access: Access, addresses: &Wides) {
        if matches!(access.strength, Strength::Release | Strength::AcqRel) {
            self.strong_release(w, m, addresses);
        }
    }

    fn store_global(
        &mut self,
        warp: u32,
        m: u32,
        access: Access,
        addresses: &Wides,
        total: u32,
        block: &Block,
    ) -> Exec {
        let bytes = u32::from(access.bytes);
        for lane in (0..32).filter(|l| m >> l & 1 == 1) {
            self.view.checked(addresses[lane], total, lane)?;
        }
        self.global_race(warp, m, addresses, total, access.strength, true)?;
        for lane in (0..32).filter(|l| m >> l & 1 == 1) {
            let (index, offset) = self.view.checked(addresses[lane], total, lane)?;
            let storage = &self.view.allocation(index).storage;
            for element in 0..access.count as usize {
                let at = offset + element as u64 * u64::from(bytes);
                let value = block[element][lane];
                match bytes {
                    4 => storage.set_word(at, value as u32),
                    8 => {
                        storage.set_word(at, value as u32);
                        storage.set_word(at + 4, (value >> 32) as u32);
                    }
                    _ => storage.set_part(at, bytes, value as u32),
                }
            }
        }
        self.counters.global_store_bytes += u64::from(total * m.count_ones());
        self.counters.global_store_sectors += traffic::sectors(m, addresses, total);
        Ok(())
    }

    /// Reports bytes that two CTAs touch without atomics, one of them writing.
    pub(crate) fn global_race(
        &mut self,
        _warp: u32,
        m: u32,
        addresses: &Wides,
        bytes: u32,
        strength: Strength,
        is_write: bool,
    ) -> Exec {
        let Some(races) = &self.grid.races else { return Ok(()) };
        if strength != Strength::Weak {
            return Ok(());
        }
        for lane in (0..32).filter(|l| m >> l & 1 == 1) {
            if let Some((index, offset)) = self.view.locate(addresses[lane], bytes) {
                races
                    .access(self.index, index, offset, bytes, is_write, addresses[lane])
                    .map_err(|k| k.lane(lane))?;
            }
        }
        Ok(())
    }
}
