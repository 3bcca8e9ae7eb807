//! Lanes that hold the same: an exchange between lanes may be another one where what is taken is the same.
//!
//! After a butterfly over some bits of the lane's number lanes that differ in these bits hold the same sum, bit by bit, for sums
//! do not depend on the order of two. What follows from such alone is the same in these lanes, too.

use super::block;
use super::ranges::{self, DEPTH};
use super::{Change, Edit};
use crate::inst::*;
use crate::machine::collective::source_lane;
use crate::module::{Kernel, SpecialRegister};

/// Bits of a lane's number.
const ALL: u32 = 31;

/// Why lanes that an edited exchange takes from hold what those meant do, if that can be told.
pub(super) fn proof(kernel: &Kernel, edit: &Edit) -> Option<String> {
    let (old, change) = (&kernel.code[edit.instruction], &edit.change);
    let (Op::Shfl(mode), Op::Shfl(other_mode)) = (old.op, change.inst.op) else { return None };
    let is_moved = change.list.is_some() || change.behind.is_some() || change.place.is_some();
    if is_moved || old.a != change.inst.a || old.guard != change.inst.guard {
        return None;
    }
    let slots = kernel.origin.slots[edit.instruction];
    let (b, c) = (single(kernel, slots[2])?, single(kernel, slots[3])?);
    let (other_b, other_c) =
        (other(old.b, change.inst.b, b, change)?, other(old.c, change.inst.c, c, change)?);
    let free = same_in(kernel, slots[1], DEPTH);
    let has_predicate = kernel.list(old).first().is_some_and(|&slot| slot != NONE);
    let is_same = (0..32).all(|lane| {
        let (one, in_range) = source_lane(mode, lane, b, c);
        let (other, other_in_range) = source_lane(other_mode, lane, other_b, other_c);
        (one ^ other) & !free == 0 && !(has_predicate && in_range != other_in_range)
    });
    is_same.then(|| match free {
        0 => "every lane takes from the same lane".to_owned(),
        free => format!("lanes that differ in bits {free:#b} alone hold the same"),
    })
}

fn single(kernel: &Kernel, slot: Slot) -> Option<u32> {
    ranges::range(kernel, slot, DEPTH).single().map(|value| value as u32)
}

/// The number that an operand became.
fn other(old: Slot, new: Slot, value: u32, change: &Change) -> Option<u32> {
    if old == new {
        return Some(value);
    }
    let literal = change.constants.first().map(|&(_, bits)| bits as u32)?;
    match &change.before {
        None => Some(literal),
        Some(before) if before.d == new && before.a == old => match before.op {
            Op::Int2(Int2::Add, IntTy::W32) => Some(value.wrapping_add(literal)),
            Op::Int2(Int2::Shl, IntTy::W32) => value.checked_shl(literal),
            _ => None,
        },
        Some(_) => None,
    }
}

/// Bits of a lane's number: lanes that differ in no others hold the same in this register.
fn same_in(kernel: &Kernel, slot: Slot, depth: u32) -> u32 {
    if slot == NONE || depth == 0 {
        return 0;
    }
    if slot & CONST != 0 {
        return ALL;
    }
    if let Some((_, register)) = kernel.origin.specials.iter().find(|special| special.0 == slot) {
        use SpecialRegister::{Ctaid, Nctaid, Ntid, One, WarpId, Zero};
        return match register {
            Ctaid(_) | Nctaid(_) | Ntid(_) | WarpId | One | Zero => ALL,
            _ => 0,
        };
    }
    let Some(at) = definition(kernel, slot) else { return 0 };
    let (inst, [d, a, b, _]) = (&kernel.code[at], kernel.origin.slots[at]);
    if d != slot || inst.guard != NONE {
        return 0;
    }
    let of = |slot: Slot| same_in(kernel, slot, depth - 1);
    let both = || exchanged(kernel, at, a, b).or_else(|| exchanged(kernel, at, b, a));
    match inst.op {
        Op::Mov32 => of(a),
        Op::Float2(Float2::Add | Float2::Max | Float2::Min, _)
        | Op::Int2(Int2::Add | Int2::MaxS | Int2::MinS | Int2::MaxU | Int2::MinU, IntTy::W32) => match both()
        {
            Some((own, bit)) => of(own) | bit,
            None => of(a) & of(b),
        },
        _ => 0,
    }
}

/// Of an instruction that combines `own` with what the lane across one bit has of it: `own`, and the bit.
fn exchanged(kernel: &Kernel, at: usize, own: Slot, taken: Slot) -> Option<(Slot, u32)> {
    let exchange = definition(kernel, taken)?;
    let (inst, [d, a, b, c]) = (&kernel.code[exchange], kernel.origin.slots[exchange]);
    // In a row and not written between, so that it is the same `own` that is given and that is kept, whatever wrote it.
    let is_kept = |at: usize| !kernel.origin.writes[at].contains(&own);
    let is_in_row = exchange < at && is_straight(kernel, exchange, at) && (exchange..at).all(is_kept);
    if d != taken || a != own || inst.op != Op::Shfl(Shuffle::Butterfly) || inst.guard != NONE || !is_in_row {
        return None;
    }
    let (b, c) = (single(kernel, b)?, single(kernel, c)?);
    let is_across = b.is_power_of_two()
        && b <= ALL
        && (0..32).all(|lane| source_lane(Shuffle::Butterfly, lane, b, c) == (lane ^ b, true));
    is_across.then_some((own, b))
}

fn definition(kernel: &Kernel, slot: Slot) -> Option<usize> {
    let is_register = slot != NONE && slot & CONST == 0;
    let at = is_register.then(|| kernel.origin.definitions.get(slot as usize).copied().flatten()).flatten();
    at.map(|at| at as usize)
}

/// Whether whoever executes one of these instructions executes the others, in their order.
fn is_straight(kernel: &Kernel, first: usize, last: usize) -> bool {
    let targets = block::targets(kernel);
    (first..last).all(|at| {
        let inst = &kernel.code[at];
        !targets[at + 1] && !matches!(inst.op, Op::Bra(_) | Op::BrxIdx | Op::Exit | Op::Trap)
    })
}
