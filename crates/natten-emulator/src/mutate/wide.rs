//! What values a register of 64 bits can have: enough to prove that some sums and products fit in 32.
//!
//! Places within the parameters and within shared memory are computed in 64 bits, too, though both end long before 2^31.

use super::ranges::{ANY, DEPTH, Range, range};
use super::{Edit, operators};
use crate::inst::*;
use crate::module::Kernel;

/// Lowest and highest value; nothing where any is possible.
type Values = Option<(i64, i64)>;

/// Why a result is the same when it has lost its upper half.
pub(super) fn proof(kernel: &Kernel, edit: &Edit) -> Option<String> {
    if edit.operator != operators::NARROW {
        return None;
    }
    let (low, high) = computed(kernel, edit.instruction, DEPTH)?;
    let fits = low >= i64::from(i32::MIN) && high <= i64::from(i32::MAX);
    fits.then(|| format!("it is {low}..={high}"))
}

/// Of a register or a literal of 64 bits.
pub(super) fn values(kernel: &Kernel, slot: Slot, depth: u32) -> Values {
    if slot == NONE || depth == 0 {
        return None;
    }
    if slot & CONST != 0 {
        let bits = kernel.constants.wides.get((slot ^ CONST) as usize)?[0] as i64;
        return Some((bits, bits));
    }
    let at = kernel.origin.definitions.get(slot as usize).copied().flatten()? as usize;
    let is_plain = kernel.origin.slots[at][0] == slot && kernel.code[at].guard == NONE;
    is_plain.then(|| computed(kernel, at, depth)).flatten()
}

/// What an instruction gives.
fn computed(kernel: &Kernel, at: usize, depth: u32) -> Values {
    let [_, a, b, c] = kernel.origin.slots[at];
    let wide = |slot: Slot| values(kernel, slot, depth - 1);
    let word = |slot: Slot| range(kernel, slot, depth - 1);
    match kernel.code[at].op {
        Op::Mov64 => wide(a),
        Op::Int2(Int2::Add, IntTy::W64) => sum(wide(a)?, wide(b)?),
        Op::MulWide { signed, ty: IntTy::W32 } => product(as_type(word(a), signed), as_type(word(b), signed)),
        Op::MadWide { signed, ty: IntTy::W32 } => {
            sum(product(as_type(word(a), signed), as_type(word(b), signed))?, wide(c)?)
        }
        Op::Shift64(Int2::Shl) => {
            let by = word(b).single().filter(|by| (0..32).contains(by))?;
            product(wide(a)?, (1 << by, 1 << by))
        }
        Op::Convert(Convert { to: Ty::S64 | Ty::U64, from, .. }) if matches!(from, Ty::S32 | Ty::U32) => {
            Some(as_type(word(a), from.is_signed()))
        }
        _ => None,
    }
}

/// A word's values as numbers with or without a sign.
fn as_type(range: Range, is_signed: bool) -> (i64, i64) {
    match is_signed || range.low >= 0 {
        true => (range.low, range.high),
        false => (0, ANY.high - ANY.low),
    }
}

fn sum(a: (i64, i64), b: (i64, i64)) -> Values {
    Some((a.0.checked_add(b.0)?, a.1.checked_add(b.1)?))
}

fn product(a: (i64, i64), b: (i64, i64)) -> Values {
    let mut all = [0; 4];
    for (to, (x, y)) in all.iter_mut().zip([(a.0, b.0), (a.0, b.1), (a.1, b.0), (a.1, b.1)]) {
        *to = x.checked_mul(y)?;
    }
    Some((*all.iter().min()?, *all.iter().max()?))
}
