//! Numbers whose low bits are 0, compared with others: which of the numbers between two of them they are compared with is the same.

use super::Edit;
use super::ranges::{self, DEPTH};
use crate::inst::*;
use crate::module::Kernel;

/// Why an edited comparison with a literal holds for the same multiples of a power of two as the original.
pub(super) fn proof(kernel: &Kernel, edit: &Edit) -> Option<String> {
    let (old, change) = (&kernel.code[edit.instruction], &edit.change);
    let new = &change.inst;
    let is_alone = change.before.is_none() && change.behind.is_none() && change.place.is_none();
    if !is_alone || change.list.is_some() || old.guard != new.guard || old.imm != new.imm || old.a != new.a {
        return None;
    }
    let (Op::Setp { cmp, ty, logic, .. }, Op::Setp { cmp: other_cmp, ty: other_ty, logic: other_logic, .. }) =
        (old.op, new.op)
    else {
        return None;
    };
    if ty != other_ty || logic != other_logic || ty.bytes() != 4 || ty.is_float() {
        return None;
    }
    let slots = kernel.origin.slots[edit.instruction];
    let step = 1i64 << zeros(kernel, slots[1], DEPTH);
    let literal = ranges::range(kernel, slots[2], 1).single()?;
    let changed = change.constants.first().map(|&(_, bits)| i64::from(bits as i32));
    let other = if old.b == new.b { literal } else { changed? };
    let number = |value: i64| if ty.is_signed() { value } else { i64::from(value as u32) };
    let holds = holds_below(cmp, number(literal), step)?;
    (holds == holds_below(other_cmp, number(other), step)?).then(|| {
        format!("its operand is a multiple of {step}, and {literal} and {other} are between the same two")
    })
}

/// The first multiple, as a number of steps, for which the comparison does not hold, those before it being the ones for which it
/// does; or the other way round.
fn holds_below(cmp: Cmp, literal: i64, step: i64) -> Option<(i64, bool)> {
    let (up, behind) = ((literal + step - 1).div_euclid(step), literal.div_euclid(step) + 1);
    match cmp {
        Cmp::Lt => Some((up, true)),
        Cmp::Le => Some((behind, true)),
        Cmp::Gt => Some((behind, false)),
        Cmp::Ge => Some((up, false)),
        _ => None,
    }
}

/// So many low bits of a register are 0.
fn zeros(kernel: &Kernel, slot: Slot, depth: u32) -> u32 {
    if slot == NONE || depth == 0 {
        return 0;
    }
    if let Some(literal) = ranges::range(kernel, slot, 1).single() {
        return (literal as u32).trailing_zeros().min(31);
    }
    let Some(Some(at)) = kernel.origin.definitions.get(slot as usize).copied() else { return 0 };
    let (inst, [d, a, b, _]) = (&kernel.code[at as usize], kernel.origin.slots[at as usize]);
    if d != slot || inst.guard != NONE {
        return 0;
    }
    let of = |slot: Slot| zeros(kernel, slot, depth - 1);
    match inst.op {
        Op::Mov32 => of(a),
        Op::Int2(Int2::And, IntTy::W32) => of(a).max(of(b)),
        Op::Int2(Int2::Add | Int2::Sub | Int2::Or, IntTy::W32) => of(a).min(of(b)),
        Op::Int2(Int2::Shl, IntTy::W32) => {
            let by = ranges::range(kernel, b, DEPTH).single().filter(|by| (0..32).contains(by));
            by.map_or(0, |by| (of(a) + by as u32).min(31))
        }
        _ => 0,
    }
}
