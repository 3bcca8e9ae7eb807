//! What values a register can have, as far as its own definition tells: enough to prove that some edits change nothing.
//!
//! Compilers write `lane / 32` with a correction for negative numbers, which no lane has; edits of that correction are no
//! mistakes. An interval is followed through definitions of 32-bit integers that are the only ones of their register.

use super::Edit;
use crate::inst::*;
use crate::module::{Kernel, SpecialRegister};

/// Lowest and highest value, as a signed number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub low: i64,
    pub high: i64,
}

pub(super) const ANY: Range = Range { low: i32::MIN as i64, high: i32::MAX as i64 };
/// Definitions followed behind one another.
pub(super) const DEPTH: u32 = 12;

impl Range {
    pub(super) fn of(low: i64, high: i64) -> Self {
        // What leaves 32 bits wraps around, to anywhere.
        if low < ANY.low || high > ANY.high { ANY } else { Range { low, high } }
    }

    pub(super) fn one(value: u32) -> Self {
        Range::of(value as i32 as i64, value as i32 as i64)
    }

    pub fn single(self) -> Option<i64> {
        (self.low == self.high).then_some(self.low)
    }
}

/// Why the edited instruction computes what the original does, if the ranges of its operands tell.
pub(super) fn proof(kernel: &Kernel, edit: &Edit) -> Option<String> {
    let change = &edit.change;
    let (old, new) = (&kernel.code[edit.instruction], &change.inst);
    if let (Op::Shfl(_), Op::Shfl(_)) = (old.op, new.op)
        && old.a == new.a
        && change.list.is_none()
        && is_uniform(kernel, kernel.origin.slots[edit.instruction][1], DEPTH)
    {
        return Some("all lanes of a warp hand out the same".to_owned());
    }
    if change.before.is_some() || change.behind.is_some() || change.place.is_some() || change.list.is_some() {
        return None;
    }
    if old.guard != new.guard || old.guard_negated != new.guard_negated || old.imm != new.imm {
        return None;
    }
    let slots = kernel.origin.slots[edit.instruction];
    let own = [slots[1], slots[2]].map(|slot| range(kernel, slot, DEPTH));
    // An operand that the edit replaced is a new literal, or another of the instruction's own.
    let of_new = |slot: Slot| {
        let at = [old.a, old.b].iter().position(|&other| other == slot);
        let literal = || change.constants.first().map(|&(_, bits)| Range::one(bits as u32));
        at.map(|at| own[at]).or_else(literal).unwrap_or(ANY)
    };
    let other = [of_new(new.a), of_new(new.b)];
    let is_same = match (old.op, new.op) {
        (Op::Setp { cmp: a, ty, logic: l, .. }, Op::Setp { cmp: b, logic: m, .. })
            if l == m && ty.bytes() == 4 && !ty.is_float() =>
        {
            let (first, second) = (decided(a, ty, own), decided(b, ty, other));
            first.is_some() && first == second || never_equal(own) && differ_in_bound(a, b) && own == other
        }
        (Op::Int2(a, IntTy::W32), Op::Int2(b, IntTy::W32)) => {
            let (first, second) = (computed(a, own), computed(b, other));
            let keeps = |op: Int2, [_, second]: [Range; 2]| {
                let kept = matches!(op, Int2::Add | Int2::Sub | Int2::Or | Int2::Xor | Int2::Shl)
                    || matches!(op, Int2::ShrU | Int2::ShrS);
                kept && second.single() == Some(0)
            };
            first.single().is_some() && first == second || keeps(a, own) && keeps(b, other) && old.a == new.a
        }
        _ => false,
    };
    let shown = |r: Range| if r == ANY { "any".to_owned() } else { format!("{}..={}", r.low, r.high) };
    is_same.then(|| format!("its operands are {} and {}", shown(own[0]), shown(own[1])))
}

/// The values of a register or a literal of 32 bits.
pub(super) fn range(kernel: &Kernel, slot: Slot, depth: u32) -> Range {
    if slot == NONE || depth == 0 {
        return ANY;
    }
    if slot & CONST != 0 {
        return kernel.constants.words.get((slot ^ CONST) as usize).map_or(ANY, |word| Range::one(word[0]));
    }
    if let Some(special) = kernel.origin.specials.iter().find(|special| special.0 == slot) {
        return of_special(special.1);
    }
    let Some(Some(at)) = kernel.origin.definitions.get(slot as usize).copied() else { return ANY };
    let (inst, [d, a, b, c]) = (&kernel.code[at as usize], kernel.origin.slots[at as usize]);
    if d != slot || inst.guard != NONE {
        return ANY;
    }
    let of = |slot: Slot| range(kernel, slot, depth - 1);
    match inst.op {
        Op::Mov32 => of(a),
        Op::Selp32 => {
            let (a, b) = (of(a), of(b));
            Range { low: a.low.min(b.low), high: a.high.max(b.high) }
        }
        Op::Int2(Int2::Sub, IntTy::W32) => {
            remainder(kernel, a, b, depth).unwrap_or_else(|| computed(Int2::Sub, [of(a), of(b)]))
        }
        Op::Int2(op, IntTy::W32) => computed(op, [of(a), of(b)]),
        Op::Int3(Int3::MadLo, IntTy::W32) => {
            computed(Int2::Add, [computed(Int2::MulLo, [of(a), of(b)]), of(c)])
        }
        _ => ANY,
    }
}

/// What is left of a natural number `a` without the multiple of a power of two that `b` is: compilers write `a % 32` as
/// `a - (a + 0 & -32)`.
fn remainder(kernel: &Kernel, a: Slot, b: Slot, depth: u32) -> Option<Range> {
    let defined = |slot: Slot| {
        let at = kernel.origin.definitions.get(slot as usize).copied().flatten()? as usize;
        let ([d, a, b, _], Op::Int2(op, IntTy::W32)) = (kernel.origin.slots[at], kernel.code[at].op) else {
            return None;
        };
        (d == slot && kernel.code[at].guard == NONE).then_some((op, a, b))
    };
    let of = |slot: Slot| range(kernel, slot, depth - 1);
    let (Int2::And, whole, mask) = defined(b)? else { return None };
    let step = -of(mask).single()?;
    let is_power = step > 0 && step & (step - 1) == 0;
    let is_same = whole == a
        || matches!(defined(whole), Some((Int2::Add, first, more)) if first == a && of(more).single() == Some(0));
    (is_power && is_same && of(a).low >= 0).then(|| Range::of(0, step - 1))
}

/// Whether all lanes of a warp have the same value: they share what is not counted in lanes.
fn is_uniform(kernel: &Kernel, slot: Slot, depth: u32) -> bool {
    if slot == NONE || depth == 0 {
        return false;
    }
    if slot & CONST != 0 {
        return true;
    }
    if let Some((_, register)) = kernel.origin.specials.iter().find(|special| special.0 == slot) {
        use SpecialRegister::{Ctaid, Nctaid, Ntid, One, WarpId, Zero};
        return matches!(register, Ctaid(_) | Nctaid(_) | Ntid(_) | WarpId | One | Zero);
    }
    let Some(Some(at)) = kernel.origin.definitions.get(slot as usize).copied() else { return false };
    let (inst, [d, a, b, _]) = (&kernel.code[at as usize], kernel.origin.slots[at as usize]);
    let of = |slot: Slot| is_uniform(kernel, slot, depth - 1);
    let is_warp_number = |a: Slot, by: Slot| {
        let is_lane = |s: &&(Slot, SpecialRegister)| s.0 == a && s.1 == SpecialRegister::Tid(0);
        let amount = range(kernel, by, 1).single();
        kernel.origin.specials.iter().any(|s| is_lane(&s)) && amount.is_some_and(|by| by >= 5)
    };
    d == slot
        && inst.guard == NONE
        && match inst.op {
            Op::Mov32 => of(a),
            Op::Int2(Int2::ShrU | Int2::ShrS, IntTy::W32) if is_warp_number(moved(kernel, a), b) => true,
            Op::Int2(_, IntTy::W32) => of(a) && of(b),
            _ => false,
        }
}

/// The register that a move copies, or this one.
fn moved(kernel: &Kernel, slot: Slot) -> Slot {
    let definition = kernel.origin.definitions.get(slot as usize).copied().flatten();
    match definition.map(|at| (kernel.code[at as usize].op, kernel.origin.slots[at as usize])) {
        Some((Op::Mov32, [_, a, ..])) => a,
        _ => slot,
    }
}

fn of_special(register: SpecialRegister) -> Range {
    match register {
        SpecialRegister::Tid(_) => Range::of(0, 1023),
        SpecialRegister::Ntid(_) => Range::of(1, 1024),
        SpecialRegister::LaneId | SpecialRegister::WarpId => Range::of(0, 31),
        SpecialRegister::Zero => Range::of(0, 0),
        SpecialRegister::One => Range::of(1, 1),
        // Launches have fewer than 2^30 ctas.
        SpecialRegister::Ctaid(_) => Range::of(0, (1 << 30) - 1),
        SpecialRegister::Nctaid(_) => Range::of(1, 1 << 30),
        _ => ANY,
    }
}

pub(super) fn computed(op: Int2, [a, b]: [Range; 2]) -> Range {
    let is_natural = a.low >= 0 && b.low >= 0;
    let amount = b.single().filter(|amount| (0..32).contains(amount));
    match op {
        Int2::Add => Range::of(a.low + b.low, a.high + b.high),
        Int2::Sub => Range::of(a.low - b.high, a.high - b.low),
        Int2::MulLo if is_natural && a.high < 1 << 31 && b.high < 1 << 31 => {
            Range::of(a.low * b.low, a.high.saturating_mul(b.high))
        }
        Int2::And if a.single().is_some() && b.single().is_some() => Range::of(a.low & b.low, a.low & b.low),
        Int2::And if a.low >= 0 || b.low >= 0 => {
            let high = [a, b].iter().filter(|r| r.low >= 0).map(|r| r.high).min();
            Range::of(0, high.unwrap_or(ANY.high))
        }
        Int2::ShrS => amount.map_or(ANY, |by| Range::of(a.low >> by, a.high >> by)),
        Int2::ShrU => match amount {
            Some(by) if a.low >= 0 => Range::of(a.low >> by, a.high >> by),
            Some(by) if by > 0 => Range::of(0, i64::from(u32::MAX) >> by),
            _ => ANY,
        },
        Int2::Shl if is_natural => amount.map_or(ANY, |by| Range::of(a.low << by, a.high << by)),
        Int2::MinS => Range { low: a.low.min(b.low), high: a.high.min(b.high) },
        Int2::MaxS => Range { low: a.low.max(b.low), high: a.high.max(b.high) },
        _ => ANY,
    }
}

/// The outcome of a comparison whatever the values, if there is one.
pub(super) fn decided(cmp: Cmp, ty: Ty, [a, b]: [Range; 2]) -> Option<bool> {
    // Natural numbers compare alike whatever the sign of the type.
    if !ty.is_signed() && (a.low < 0 || b.low < 0) {
        return None;
    }
    let (below, above) = (a.high < b.low, a.low > b.high);
    let (apart, same) = (below || above, a.single().is_some() && a == b);
    match cmp {
        Cmp::Lt => below.then_some(true).or((a.low >= b.high).then_some(false)),
        Cmp::Le => (a.high <= b.low).then_some(true).or(above.then_some(false)),
        Cmp::Gt => above.then_some(true).or((a.high <= b.low).then_some(false)),
        Cmp::Ge => (a.low >= b.high).then_some(true).or(below.then_some(false)),
        Cmp::Eq => apart.then_some(false).or(same.then_some(true)),
        Cmp::Ne => apart.then_some(true).or(same.then_some(false)),
        _ => None,
    }
}

fn never_equal([a, b]: [Range; 2]) -> bool {
    a.high < b.low || a.low > b.high
}

fn differ_in_bound(a: Cmp, b: Cmp) -> bool {
    matches!((a, b), (Cmp::Lt, Cmp::Le) | (Cmp::Le, Cmp::Lt) | (Cmp::Gt, Cmp::Ge) | (Cmp::Ge, Cmp::Gt))
}
