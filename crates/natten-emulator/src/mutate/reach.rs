//! Code that nothing leads to: what a compiler keeps for a loop that ends elsewhere, since it does not know how many lanes a warp
//! has. Branches are followed the ways that the ranges of their conditions' operands leave open.

use super::Edit;
use super::ranges::{DEPTH, decided, range};
use crate::inst::*;
use crate::module::Kernel;

/// Why an edit changes nothing: no way leads to its instruction.
pub(super) fn proof(kernel: &Kernel, edit: &Edit) -> Option<String> {
    let is_reached = reached(kernel);
    (!is_reached[edit.instruction]).then(|| {
        let closed = |at: &usize| is_reached[*at] && taken(kernel, *at).is_some();
        let lines: Vec<String> =
            (0..kernel.lines.len()).filter(closed).map(|at| kernel.lines[at].line.to_string()).collect();
        format!("no way leads there, since branches at these lines go one way: {}", lines.join(", "))
    })
}

/// For each instruction, whether a way from the first leads to it.
fn reached(kernel: &Kernel) -> Vec<bool> {
    let mut is_reached = vec![false; kernel.code.len()];
    let mut open = vec![0];
    while let Some(at) = open.pop() {
        if at >= is_reached.len() || std::mem::replace(&mut is_reached[at], true) {
            continue;
        }
        let is_guarded = kernel.code[at].guard != NONE;
        match kernel.code[at].op {
            Op::Bra(target) => {
                let taken = taken(kernel, at);
                open.extend((taken != Some(false)).then_some(target as usize));
                open.extend((is_guarded && taken != Some(true)).then_some(at + 1));
            }
            Op::BrxIdx => open.extend(kernel.tables.iter().flatten().map(|&target| target as usize)),
            Op::Exit | Op::Trap => open.extend(is_guarded.then_some(at + 1)),
            _ => open.push(at + 1),
        }
    }
    is_reached
}

/// Which way a branch goes, if always the same; `None` as well of what is none or has no condition.
fn taken(kernel: &Kernel, at: usize) -> Option<bool> {
    let Inst { op: Op::Bra(_), guard, guard_negated, .. } = kernel.code[at] else { return None };
    let condition = kernel.origin.guards[at];
    if guard == NONE || condition == NONE {
        return None;
    }
    let made = kernel.origin.definitions.get(condition as usize).copied().flatten()? as usize;
    let (inst, [d, a, b, _]) = (&kernel.code[made], kernel.origin.slots[made]);
    let Op::Setp { cmp, ty, logic: None, .. } = inst.op else { return None };
    if d != condition || inst.guard != NONE || ty.bytes() != 4 || ty.is_float() {
        return None;
    }
    let holds = decided(cmp, ty, [a, b].map(|slot| range(kernel, slot, DEPTH)))?;
    Some(holds != guard_negated)
}
