//! Which bits of a register can be set, as far as its definitions tell: enough to prove that a field that is longer than the
//! word, or a lane that none asks for, changes nothing.

use super::{Change, Edit};
use crate::inst::*;
use crate::module::{Kernel, SpecialRegister};

/// Definitions followed behind one another.
const DEPTH: u32 = 12;

/// Why the edited instruction computes what the original does, if bits of its operands tell.
pub(super) fn proof(kernel: &Kernel, edit: &Edit) -> Option<String> {
    let change = &edit.change;
    let (old, new) = (&kernel.code[edit.instruction], &change.inst);
    if change.before.is_some() || change.behind.is_some() || change.place.is_some() {
        return None;
    }
    if (old.guard, old.guard_negated, old.imm) != (new.guard, new.guard_negated, new.imm) {
        return None;
    }
    match (old.op, new.op) {
        (Op::Bfi(IntTy::W32), _) => same_field(kernel, edit),
        (Op::Shfl(_), Op::Shfl(_)) if change.list.is_none() && old.a == new.a => same_lanes(kernel, edit),
        (Op::Setp { .. }, Op::Setp { .. }) if change.list.is_none() => never_that_bound(kernel, edit),
        _ => None,
    }
}

/// A literal of 32 bits, of the kernel or of the change.
fn literal(kernel: &Kernel, change: &Change, slot: Slot) -> Option<u32> {
    let index = (slot & CONST != 0).then_some((slot ^ CONST) as usize)?;
    let words = &kernel.constants.words;
    match words.get(index) {
        Some(word) => Some(word[0]),
        None => change.constants.get(index - words.len()).map(|&(_, bits)| bits as u32),
    }
}

/// A field of bits ends with the word, however long it says that it is.
fn same_field(kernel: &Kernel, edit: &Edit) -> Option<String> {
    let (old, new) = (kernel.list(&kernel.code[edit.instruction]), edit.change.list.as_ref()?);
    if old[..2] != new[..2] {
        return None;
    }
    let of = |list: &[Slot]| {
        let of = |at: usize| literal(kernel, &edit.change, list[at]);
        Some(field(of(2)?, of(3)?))
    };
    let (first, second) = (of(old)?, of(new)?);
    (first == second).then(|| format!("the field ends with the word, from bit {}", first.0))
}

/// Where `bfi` inserts: its first bit, and all of them.
fn field(position: u32, length: u32) -> (u32, u32) {
    let (position, length) = (position & 0xff, length & 0xff);
    let bits = ((1u64 << length.min(32)) - 1) << position.min(32);
    (position.min(32), bits as u32)
}

/// Every lane has the same from the same lane, whichever of those it asks that it can ask.
fn same_lanes(kernel: &Kernel, edit: &Edit) -> Option<String> {
    let (old, new) = (&kernel.code[edit.instruction], &edit.change.inst);
    let (Op::Shfl(from), Op::Shfl(to)) = (old.op, new.op) else { return None };
    // Whether the lane was in reach is not looked at.
    if kernel.list(old)[0] != NONE {
        return None;
    }
    let [_, _, by, ends] = kernel.origin.slots[edit.instruction];
    let of = |now: Slot, before: Slot, origin: Slot| match now == before {
        true => possible(kernel, origin, DEPTH),
        false => literal(kernel, &edit.change, now).unwrap_or(!0),
    };
    let (first, second) = (possible(kernel, by, DEPTH) & 31, of(new.b, old.b, by) & 31);
    let (end, other_end) = (literal(kernel, &edit.change, ends)?, literal(kernel, &edit.change, new.c)?);
    if new.b == old.b {
        let subsets = (0..32).filter(|asked| asked & !first == 0);
        let mut all = subsets.flat_map(|asked| (0..32).map(move |lane| (asked, lane)));
        all.all(|(asked, lane)| source(from, lane, asked, end) == source(to, lane, asked, other_end))
    } else {
        let (asked, other) = (literal(kernel, &edit.change, by)? & 31, second);
        (0..32).all(|lane| source(from, lane, asked, end) == source(to, lane, other, other_end))
    }
    .then(|| format!("lanes ask with no more bits than {first:#x}"))
}

/// The lane whose value a lane gets.
fn source(mode: Shuffle, lane: u32, asked: u32, ends: u32) -> u32 {
    let (segment, end) = (ends >> 8 & 31, ends & 31);
    let last = lane & segment | end & !segment & 31;
    let (from, is_inside) = match mode {
        Shuffle::Up => (lane.wrapping_sub(asked), lane as i32 - asked as i32 >= last as i32),
        Shuffle::Down => (lane + asked, lane + asked <= last),
        Shuffle::Butterfly => (lane ^ asked, lane ^ asked <= last),
        Shuffle::Index => {
            let from = lane & segment | asked & !segment & 31;
            (from, from <= last)
        }
    };
    if is_inside { from } else { lane }
}

/// What is a power of two or 0 is never equal to a number that is neither.
fn never_that_bound(kernel: &Kernel, edit: &Edit) -> Option<String> {
    let (old, new) = (&kernel.code[edit.instruction], &edit.change.inst);
    let (Op::Setp { cmp: a, ty, logic: l, .. }, Op::Setp { cmp: b, logic: m, .. }) = (old.op, new.op) else {
        return None;
    };
    use Cmp::{Ge, Gt, Le, Lt};
    let is_of_bound = matches!((a, b), (Lt, Le) | (Le, Lt) | (Gt, Ge) | (Ge, Gt));
    let is_apart = l == m && (old.a, old.b, old.c) == (new.a, new.b, new.c);
    if !is_of_bound || !is_apart || ty.is_float() || ty.bytes() != 4 {
        return None;
    }
    let [_, left, right, _] = kernel.origin.slots[edit.instruction];
    let bound = literal(kernel, &edit.change, right)?;
    let is_power = bound == 0 || bound.is_power_of_two();
    (!is_power && is_power_of_two(kernel, left, &mut Vec::new()))
        .then(|| format!("powers of two, or 0, are not {bound}"))
}

/// Whether all that is ever written to a register is a power of two or 0. `assumed` are those that it is being asked of: what one
/// of them is made of another can be no first exception.
fn is_power_of_two(kernel: &Kernel, slot: Slot, assumed: &mut Vec<Slot>) -> bool {
    if slot & CONST != 0 {
        let word = kernel.constants.words.get((slot ^ CONST) as usize).map(|word| word[0]);
        return word.is_some_and(|word| word == 0 || word.is_power_of_two());
    }
    if assumed.contains(&slot) {
        return true;
    }
    assumed.push(slot);
    let origin = &kernel.origin;
    let is_written = |at: &usize| origin.slots[*at][0] == slot;
    let definitions: Vec<usize> = (0..origin.slots.len()).filter(is_written).collect();
    // Those by way of a list of operands are not among them.
    if slot == NONE || definitions.is_empty() || definitions.len() as u32 != origin.written[slot as usize] {
        return false;
    }
    definitions.into_iter().all(|at| match kernel.code[at].op {
        Op::Mov32 | Op::Int2(Int2::Shl | Int2::ShrU, IntTy::W32) => {
            is_power_of_two(kernel, origin.slots[at][1], assumed)
        }
        _ => false,
    })
}

/// The bits that may be set in a register or a literal of 32 bits.
pub(super) fn possible(kernel: &Kernel, slot: Slot, depth: u32) -> u32 {
    if slot == NONE || depth == 0 {
        return !0;
    }
    if slot & CONST != 0 {
        return kernel.constants.words.get((slot ^ CONST) as usize).map_or(!0, |word| word[0]);
    }
    if let Some((_, register)) = kernel.origin.specials.iter().find(|special| special.0 == slot) {
        return match register {
            SpecialRegister::Tid(_) => 1023,
            SpecialRegister::LaneId | SpecialRegister::WarpId => 31,
            SpecialRegister::Zero => 0,
            SpecialRegister::One => 1,
            _ => !0,
        };
    }
    let Some(Some(at)) = kernel.origin.definitions.get(slot as usize).copied() else { return !0 };
    let (inst, [d, a, b, _]) = (&kernel.code[at as usize], kernel.origin.slots[at as usize]);
    if d != slot || inst.guard != NONE {
        return !0;
    }
    let of = |slot: Slot| possible(kernel, slot, depth - 1);
    let amount = || Some(b).filter(|b| b & CONST != 0).map(of).filter(|&amount| amount < 32);
    match inst.op {
        Op::Mov32 => of(a),
        Op::Selp32 => of(a) | of(b),
        Op::Int2(Int2::And, IntTy::W32) => of(a) & of(b),
        Op::Int2(Int2::Or | Int2::Xor, IntTy::W32) => of(a) | of(b),
        Op::Int2(Int2::Shl, IntTy::W32) => amount().map_or(!0, |by| of(a) << by),
        Op::Int2(Int2::ShrU, IntTy::W32) => amount().map_or(!0, |by| of(a) >> by),
        Op::Int2(Int2::ShrS, IntTy::W32) => amount().map_or(!0, |by| (of(a) as i32 >> by) as u32),
        Op::Int2(Int2::Add, IntTy::W32) => sum(of(a), of(b)),
        _ => !0,
    }
}

/// What may be set in a sum: a carry goes to the next bit of what there is no room for.
fn sum(a: u32, b: u32) -> u32 {
    if a & b == 0 {
        return a | b;
    }
    let most = u64::from(a) + u64::from(b);
    ((1u128 << (64 - most.leading_zeros())) - 1) as u32
}

#[cfg(test)]
mod tests {
    use crate::Module;

    const TEXT: &str = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 out)\n{\n\
        .reg .b32 %r<16>; .reg .b64 %rd<4>; .reg .pred %p<4>;\n\
        ld.param.u64 %rd1, [out];\n mov.u32 %r1, %tid.x;\n and.b32 %r2, %r1, 15;\n\
        shfl.sync.idx.b32 %r3, %r1, %r2, 0x1f, 0xffffffff;\n\
        shfl.sync.idx.b32 %r4, %r1, %r1, 0x1f, 0xffffffff;\n\
        bfi.b32 %r5, %r1, %r2, 4, 28;\n bfi.b32 %r6, %r1, %r2, 4, 8;\n\
        mov.u32 %r7, 1;\n shl.b32 %r8, %r7, %r2;\n\
        setp.gt.s32 %p1, %r8, 31;\n setp.gt.s32 %p2, %r8, 16;\n setp.gt.s32 %p3, %r2, 14;\n\
        add.s32 %r9, %r3, %r4;\n st.global.u32 [%rd1], %r9;\n ret;\n}\n";

    /// What is proven of edits of the nth instruction by one of the operators, in words.
    fn proven(instruction: usize, operator: &str) -> Vec<(String, bool)> {
        let module = Module::parse(TEXT).expect("it parses");
        let edits = module.edits("k").into_iter();
        let own = edits.filter(|edit| edit.instruction == instruction && edit.operator == operator);
        let kernel = &module.entry("k").expect("its name").kernel;
        own.map(|edit| (edit.to.clone(), super::proof(kernel, &edit).is_some())).collect()
    }

    fn holds(instruction: usize, operator: &str, to: &str) -> bool {
        let all = proven(instruction, operator);
        all.iter().find(|(name, _)| name.starts_with(to)).unwrap_or_else(|| panic!("{to}: {all:?}")).1
    }

    #[test]
    fn a_lane_that_none_asks_for_may_be_out_of_reach() {
        assert!(holds(3, "shuffle mask", "twice that"), "15 lanes, and 30 in reach");
        assert!(!holds(3, "shuffle mask", "zero"));
        assert!(!holds(3, "shuffle mode", "shfl(butterfly)"));
        assert!(!holds(4, "shuffle mask", "twice that"), "any lane, the last one included");
    }

    #[test]
    fn a_field_ends_with_the_word() {
        assert!(holds(5, "integer literal", "one more: 28"));
        assert!(!holds(5, "integer literal", "one more: 4"));
        assert!(!holds(6, "integer literal", "one more: 8"));
    }

    #[test]
    fn powers_of_two_are_no_other_bound() {
        assert!(holds(9, "compare bound", "setp"));
        assert!(!holds(10, "compare bound", "setp"));
        assert!(!holds(11, "compare bound", "setp"));
    }
}
