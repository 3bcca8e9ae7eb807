//! Atomic read-modify-write in global and shared memory.

use super::cta::Cta;
use super::warp::Warp;
use crate::fault::{Exec, FaultKind, MemorySpace};
use crate::inst::{AtomOp, Atomic, Inst, Space, Strength, Ty};
use crate::memory::view::View;
use crate::scalar::float::flush;
use crate::scalar::{Wides, half, map};
use std::sync::Mutex;

/// Serialises 64-bit atomics, which global memory of 32-bit words cannot do in one step.
static WIDE_ATOMICS: Mutex<()> = Mutex::new(());

impl Cta<'_> {
    pub(super) fn atomic(&mut self, w: &mut Warp, i: &Inst, m: u32, atomic: Atomic) -> Exec {
        let mut addresses = self.addresses(w, i.a, atomic.wide_address, i.imm);
        let space = self.resolve(atomic.space, m, &mut addresses)?;
        let kernel = self.kernel;
        let list = kernel.list(i);
        let count = usize::from(atomic.count);
        let wide = atomic.ty.is_wide();
        let read = |w: &Warp, slot| if wide { *w.regs.wide(slot) } else { map(w.regs.word(slot), u64::from) };
        let compare = if atomic.op == AtomOp::Cas { Some((read(w, list[0]), read(w, i.c))) } else { None };
        let bytes = atomic.ty.bytes();
        self.events += 1;
        let mut offsets = [0; 32];
        if space == Space::Shared {
            offsets = self.shared_request(w, m, &addresses, bytes * count as u32, atomic.strength, true)?;
            self.release_acquire(w, m, atomic.strength, &addresses);
        } else {
            self.counters.global_store_bytes += u64::from(bytes * count as u32 * m.count_ones());
            if let Some(races) = &self.grid.races {
                races.synchronised(self.index);
            }
        }
        for element in 0..count {
            let operand = read(w, list[element]);
            let mut old: Wides = [0; 32];
            for lane in (0..32).filter(|l| m >> l & 1 == 1) {
                let address = addresses[lane] + (element as u64) * u64::from(bytes);
                let f = |before: u64| match compare {
                    Some((expected, new)) => {
                        if before == expected[lane] {
                            new[lane]
                        } else {
                            before
                        }
                    }
                    None if space == Space::Shared => combine(atomic.op, atomic.ty, before, operand[lane]),
                    None => combine_global(atomic.op, atomic.ty, before, operand[lane]),
                };
                old[lane] = match space {
                    Space::Shared => {
                        self.update_shared(offsets[lane] + element as u32 * bytes, bytes, lane, f)?
                    }
                    Space::Global | Space::Generic => {
                        let check = self.grid.options.check_initialised && atomic.op != AtomOp::Exch;
                        update_global(&mut self.view, address, bytes, lane, check, f)?
                    }
                    Space::Local | Space::Param => {
                        let what = "atomic on a space without atomics, address";
                        return Err(FaultKind::InvalidOperand { what, got: address }.lane(lane));
                    }
                };
            }
            if let Some(&slot) = list.get(count + element) {
                if wide {
                    w.regs.set_wide(slot, m, &old);
                } else {
                    w.regs.set_word(slot, m, &map(&old, |v| v as u32));
                }
            }
        }
        Ok(())
    }

    fn release_acquire(&mut self, w: &Warp, m: u32, strength: Strength, addresses: &Wides) {
        let Some(races) = &mut self.races else { return };
        for lane in (0..32).filter(|l| m >> l & 1 == 1) {
            if strength != Strength::Release {
                races.acquire_at(w.id, addresses[lane]);
            }
            if matches!(strength, Strength::Release | Strength::AcqRel) || races.fenced(w.id) {
                races.release_at(w.id, lane, w.live, addresses[lane]);
            }
        }
    }

    fn update_shared(&mut self, offset: u32, bytes: u32, lane: usize, f: impl Fn(u64) -> u64) -> Exec<u64> {
        let old = match bytes {
            8 => u64::from_le_bytes(self.shared.read(offset, lane)?),
            4 => u32::from_le_bytes(self.shared.read(offset, lane)?).into(),
            _ => u16::from_le_bytes(self.shared.read(offset, lane)?).into(),
        };
        self.shared.put(offset as usize, &f(old).to_le_bytes()[..bytes as usize]);
        Ok(old)
    }
}

/// One lane's atomic in global memory. Reading what nobody wrote is as wrong here as in a load.
pub(crate) fn update_global(
    view: &mut View,
    address: u64,
    bytes: u32,
    lane: usize,
    check: bool,
    f: impl Fn(u64) -> u64,
) -> Exec<u64> {
    let (index, offset) = view.checked(address, bytes, lane)?;
    let storage = &view.allocation(index).storage;
    if check && !storage.initialised(offset, bytes) {
        return Err(FaultKind::Uninitialised { space: MemorySpace::Global, address, bytes }.lane(lane));
    }
    Ok(match bytes {
        8 => {
            let _guard = WIDE_ATOMICS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let old = u64::from(storage.word(offset)) | u64::from(storage.word(offset + 4)) << 32;
            let new = f(old);
            storage.set_word(offset, new as u32);
            storage.set_word(offset + 4, (new >> 32) as u32);
            old
        }
        4 => u64::from(storage.update_word(offset, |old| f(u64::from(old)) as u32)),
        _ => {
            let shift = 8 * (offset % 4);
            let old = storage.update_word(offset & !3, |word| {
                let new = f(u64::from(word >> shift & 0xffff)) as u32 & 0xffff;
                word & !(0xffff << shift) | new << shift
            });
            u64::from(old >> shift & 0xffff)
        }
    })
}

/// The value an atomic leaves in global memory, where sums of f32 flush subnormal numbers on their way in and out.
pub(crate) fn combine_global(op: AtomOp, ty: Ty, old: u64, operand: u64) -> u64 {
    if ty != Ty::F32 {
        return combine(op, ty, old, operand);
    }
    let flushed = |x: u64| u64::from(flush(x as u32));
    flushed(combine(op, ty, flushed(old), flushed(operand)))
}

/// The value an atomic leaves in shared memory.
pub(crate) fn combine(op: AtomOp, ty: Ty, old: u64, operand: u64) -> u64 {
    match ty {
        Ty::F32 => {
            let sum = f32::from_bits(old as u32) + f32::from_bits(operand as u32);
            return u64::from(if sum.is_nan() { crate::scalar::float::NAN } else { sum.to_bits() });
        }
        Ty::F64 => return (f64::from_bits(old) + f64::from_bits(operand)).to_bits(),
        Ty::F16 | Ty::Bf16 => return half_combine(op, ty == Ty::Bf16, old as u32, operand as u32).into(),
        Ty::F16x2 | Ty::Bf16x2 => {
            let bf16 = ty == Ty::Bf16x2;
            let (a, b) = (old as u32, operand as u32);
            let low = half_combine(op, bf16, a & 0xffff, b & 0xffff);
            return u64::from(half_combine(op, bf16, a >> 16, b >> 16) << 16 | low);
        }
        _ => {}
    }
    let signed = ty.is_signed();
    let value = |x: u64| if ty.is_wide() { i128::from(x as i64) } else { i128::from(x as u32 as i32) };
    let smaller = if signed { value(old) < value(operand) } else { old < operand };
    let result = match op {
        AtomOp::Add => old.wrapping_add(operand),
        AtomOp::Min => {
            if smaller {
                old
            } else {
                operand
            }
        }
        AtomOp::Max => {
            if smaller {
                operand
            } else {
                old
            }
        }
        AtomOp::And => old & operand,
        AtomOp::Or => old | operand,
        AtomOp::Xor => old ^ operand,
        AtomOp::Exch | AtomOp::Cas => operand,
        AtomOp::Inc => {
            if old >= operand {
                0
            } else {
                old + 1
            }
        }
        AtomOp::Dec => {
            if old == 0 || old > operand {
                operand
            } else {
                old - 1
            }
        }
    };
    if ty.is_wide() { result } else { result & 0xffff_ffff }
}

fn half_combine(op: AtomOp, bf16: bool, a: u32, b: u32) -> u32 {
    let (u, v) = (half::to_f32(bf16, a), half::to_f32(bf16, b));
    match op {
        AtomOp::Min => {
            if v < u {
                b
            } else {
                a
            }
        }
        AtomOp::Max => {
            if v > u {
                b
            } else {
                a
            }
        }
        _ => half::from_f32(bf16, u + v),
    }
}
