//! How wide 64-bit results are, as far as definitions tell: one that fits 32 bits loses nothing with its upper half.

use super::bits;
use super::ranges::{self, DEPTH, Range};
use super::{Edit, operators};
use crate::inst::*;
use crate::module::Kernel;

/// Why a result of 64 bits is the same when it is made of its lower half, if its range tells.
pub(super) fn proof(kernel: &Kernel, edit: &Edit) -> Option<String> {
    if edit.operator != operators::NARROW {
        return None;
    }
    let Range { low, high } = made_at(kernel, edit.instruction, DEPTH)?;
    let fits = low >= i64::from(i32::MIN) && high <= i64::from(i32::MAX);
    fits.then(|| format!("its result is {low}..={high}"))
}

/// The values of a 64-bit register or literal; none where there may be any.
pub(super) fn wide(kernel: &Kernel, slot: Slot, depth: u32) -> Option<Range> {
    if slot == NONE || depth == 0 {
        return None;
    }
    if slot & CONST != 0 {
        let value = kernel.constants.wides.get((slot ^ CONST) as usize)?[0] as i64;
        return Some(Range { low: value, high: value });
    }
    let at = kernel.origin.definitions.get(slot as usize).copied().flatten()? as usize;
    (kernel.origin.slots[at][0] == slot).then(|| made_at(kernel, at, depth)).flatten()
}

/// The values of what an instruction gives.
fn made_at(kernel: &Kernel, at: usize, depth: u32) -> Option<Range> {
    let (inst, [_, a, b, c]) = (&kernel.code[at], kernel.origin.slots[at]);
    let of = |slot: Slot| wide(kernel, slot, depth - 1);
    let of_word = |slot: Slot, is_signed: bool| {
        let range = ranges::range(kernel, slot, depth);
        let bits = bits::possible(kernel, slot, DEPTH);
        // What has no sign by its bits is no larger than all of them.
        let natural = Range { low: range.low.max(0), high: range.high.min(i64::from(bits)) };
        // Read as a natural number what may be negative is any.
        match (bits >> 31, is_signed || range.low >= 0) {
            (0, _) => Some(natural),
            (_, true) => Some(range),
            (_, false) => Some(Range { low: 0, high: i64::from(u32::MAX) }),
        }
    };
    if inst.guard != NONE {
        return None;
    }
    match inst.op {
        Op::Mov64 => of(a),
        Op::Convert(Convert { to: Ty::S64 | Ty::U64, from: Ty::S32, .. }) => of_word(a, true),
        Op::Convert(Convert { to: Ty::S64 | Ty::U64, from: Ty::U32, .. }) => of_word(a, false),
        Op::MulWide { signed, ty: IntTy::W32 } => product(of_word(a, signed)?, of_word(b, signed)?),
        Op::MadWide { signed, ty: IntTy::W32 } => {
            sum(product(of_word(a, signed)?, of_word(b, signed)?)?, of(c)?)
        }
        Op::Int2(Int2::Add, IntTy::W64) => sum(of(a)?, of(b)?),
        Op::Int2(Int2::MulLo, IntTy::W64) => product(of(a)?, of(b)?),
        Op::Shift64(Int2::Shl) => {
            let by = ranges::range(kernel, b, DEPTH).single().filter(|by| (0..32).contains(by))?;
            product(of(a)?, Range { low: 1 << by, high: 1 << by })
        }
        _ => None,
    }
}

fn sum(a: Range, b: Range) -> Option<Range> {
    Some(Range { low: a.low.checked_add(b.low)?, high: a.high.checked_add(b.high)? })
}

fn product(a: Range, b: Range) -> Option<Range> {
    let ends = [(a.low, b.low), (a.low, b.high), (a.high, b.low), (a.high, b.high)];
    let ends: Option<Vec<i64>> = ends.into_iter().map(|(a, b)| a.checked_mul(b)).collect();
    let ends = ends?;
    Some(Range { low: *ends.iter().min()?, high: *ends.iter().max()? })
}
