//! What reads an edited instruction's result, as far as that tells that nothing else changes.

use super::beside::computes;
use super::ranges::{self, DEPTH, Range, computed};
use super::{Edit, operators};
use crate::inst::*;
use crate::module::Kernel;

/// Results followed behind one another.
const STEPS: u32 = 4;

/// Why nothing depends on what an edit changes, or all that does comes out the same.
pub(super) fn proof(kernel: &Kernel, edit: &Edit) -> Option<String> {
    let (at, change) = (edit.instruction, &edit.change);
    let inst = &kernel.code[at];
    if let Op::Bra(_) = inst.op
        && edit.operator == operators::GUARD
        && skips_nothing(kernel, at)
    {
        return Some("what the branch skips gives nothing that is read".to_owned());
    }
    let is_moved = change.before.is_some() || change.behind.is_some() || change.place.is_some();
    if !computes(inst.op) || is_moved || change.list.is_some() || edit.operator == operators::GUARD {
        return None;
    }
    let written = &kernel.origin.writes[at];
    let readers = || written.iter().flat_map(|&register| &kernel.origin.readers[register as usize]);
    if readers().next().is_none() {
        return Some("nothing reads what it gives".to_owned());
    }
    if readers().all(|&reader| skips_nothing(kernel, reader as usize)) {
        return Some("it decides about branches alone that skip nothing that is read".to_owned());
    }
    let (old, new) = values(kernel, edit)?;
    let [register] = **written else { return None };
    (inst.guard == NONE && comes_out_the_same(kernel, register, [old, new], STEPS))
        .then(|| "all that reads it gives the same".to_owned())
}

/// Whether a branch skips a few instructions forwards that give nothing that others read.
fn skips_nothing(kernel: &Kernel, at: usize) -> bool {
    let Op::Bra(target) = kernel.code[at].op else { return false };
    let skipped = at + 1..target as usize;
    let is_dead = |inner: usize| {
        let written = &kernel.origin.writes[inner];
        let mut readers = written.iter().flat_map(|&register| &kernel.origin.readers[register as usize]);
        computes(kernel.code[inner].op) && readers.all(|&reader| skipped.contains(&(reader as usize)))
    };
    at < target as usize && skipped.clone().all(is_dead)
}

/// The values of the result before and after an edit of an operation on integers or of a move.
fn values(kernel: &Kernel, edit: &Edit) -> Option<(Range, Range)> {
    let (old, change) = (&kernel.code[edit.instruction], &edit.change);
    let new = &change.inst;
    let [_, a, b, _] = kernel.origin.slots[edit.instruction];
    let own = [a, b].map(|slot| ranges::range(kernel, slot, DEPTH));
    let literal = change.constants.first().map(|&(_, bits)| Range::one(bits as u32));
    let of_new = |slot: Slot| {
        let at = [old.a, old.b].iter().position(|&other| other == slot);
        at.map(|at| own[at]).or(literal).unwrap_or(ranges::ANY)
    };
    match (old.op, new.op) {
        (Op::Int2(one, IntTy::W32), Op::Int2(other, IntTy::W32)) => {
            Some((computed(one, own), computed(other, [of_new(new.a), of_new(new.b)])))
        }
        (Op::Mov32, Op::Mov32) => Some((own[0], of_new(new.a))),
        _ => None,
    }
}

/// Whether everything that reads a register gives one number alone, the same for both ranges of values.
fn comes_out_the_same(kernel: &Kernel, register: Slot, values: [Range; 2], steps: u32) -> bool {
    kernel.origin.readers[register as usize].iter().all(|&reader| {
        let reader = reader as usize;
        let (inst, [d, a, b, _]) = (&kernel.code[reader], kernel.origin.slots[reader]);
        let Op::Int2(op, IntTy::W32) = inst.op else { return false };
        if inst.guard != NONE || steps == 0 {
            return false;
        }
        let given = values.map(|value| {
            let of = |slot: Slot| if slot == register { value } else { ranges::range(kernel, slot, DEPTH) };
            computed(op, [of(a), of(b)])
        });
        let is_one = given[0].single().is_some() && given[0] == given[1];
        is_one || comes_out_the_same(kernel, d, given, steps - 1)
    })
}
