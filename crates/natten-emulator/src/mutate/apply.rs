//! The kernel with an edit made.

use std::sync::Arc;

use super::{Change, Edit};
use crate::inst::{Inst, NONE, Op};
use crate::module::{Kernel, Watch};
use crate::ptx::ast::RegClass;

pub(super) fn apply(kernel: &Kernel, edit: &Edit) -> Kernel {
    let mut edited = kernel.clone();
    let (at, change) = (edit.instruction, &edit.change);
    let watched = edited.code[at].watched;
    edited.code[at] = Inst { watched, ..prepare(&mut edited, change) };
    if let Some(place) = change.place {
        rotate(&mut edited, at, place);
    }
    if let Some(behind) = &change.behind {
        insert(&mut edited, at + 1, at, behind);
    }
    if let Some(before) = &change.before {
        insert(&mut edited, at, at, before);
        // Jumps to the edited instruction lead to what was put before it.
        retarget(&mut edited, |target| if target == at as u32 + 1 { at as u32 } else { target });
    }
    edited
}

/// Makes room for what the edited instruction names, and returns it.
pub(super) fn prepare(kernel: &mut Kernel, change: &Change) -> Inst {
    let mut inst = change.inst.clone();
    if let Some(list) = &change.list {
        inst.list = (kernel.lists.len() as u32, list.len() as u16);
        kernel.lists.extend_from_slice(list);
    }
    add_constants(kernel, change);
    // One register of each kind, for what an inserted instruction hands over.
    (kernel.words, kernel.wides, kernel.preds) = (kernel.words + 1, kernel.wides + 1, kernel.preds + 1);
    inst
}

fn add_constants(kernel: &mut Kernel, change: &Change) {
    let constants = Arc::make_mut(&mut kernel.constants);
    for &(class, bits) in &change.constants {
        match class {
            RegClass::Word => constants.words.push([bits as u32; 32]),
            RegClass::Wide => constants.wides.push([bits; 32]),
            RegClass::Pred => constants.preds.push(if bits == 0 { 0 } else { !0 }),
        }
    }
}

/// Moves the instruction within its block; what it passes moves up.
fn rotate(kernel: &mut Kernel, from: usize, to: usize) {
    let range = from.min(to)..from.max(to) + 1;
    let is_forwards = from < to;
    let turn = |len: usize| if is_forwards { 1 } else { len - 1 };
    kernel.code[range.clone()].rotate_left(turn(range.len()));
    kernel.watches[range.clone()].rotate_left(turn(range.len()));
    // The closing trap has no line, and never moves.
    kernel.lines[range.clone()].rotate_left(turn(range.len()));
}

/// Puts an instruction at `place`, with the guard and the line of `of`; jumps beyond it are led on.
fn insert(kernel: &mut Kernel, place: usize, of: usize, inst: &Inst) {
    let (guard, guard_negated) = (kernel.code[of].guard, kernel.code[of].guard_negated);
    retarget(kernel, |target| if target as usize >= place { target + 1 } else { target });
    kernel.code.insert(place, Inst { guard, guard_negated, watched: false, ..inst.clone() });
    let none = || Box::from([]);
    let watch = Watch {
        reads: none(),
        writes: none(),
        followed_reads: Box::from([]),
        followed_writes: Box::from([]),
        guard: NONE,
    };
    kernel.watches.insert(place, watch);
    let line = kernel.lines[of].clone();
    kernel.lines.insert(place, line);
}

fn retarget(kernel: &mut Kernel, map: impl Fn(u32) -> u32) {
    for inst in &mut kernel.code {
        if let Op::Bra(target) = &mut inst.op {
            *target = map(*target);
        }
    }
    kernel.tables.iter_mut().flatten().for_each(|target| *target = map(*target));
}
