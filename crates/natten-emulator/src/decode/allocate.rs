//! Register allocation: virtual registers whose lives do not overlap share a slot, so that a warp's
//! register file fits a cache. Sound under divergence because disabled lanes are never written.

use super::Touched;
use crate::inst::{CONST, Inst, NONE, Op, Slot};
use crate::ptx::ast::{RegClass, VReg};

/// Where each virtual register went, and how large the files became.
pub(super) struct Allocation {
    slots: Vec<Slot>,
    pub words: usize,
    pub wides: usize,
    pub preds: usize,
    /// Registers that some path from the start reads before it writes them, or seems to.
    pub live_at_start: Vec<VReg>,
}

impl Allocation {
    /// The physical slot; constants and absent registers stay as they are.
    pub(super) fn slot(&self, register: Slot) -> Slot {
        if register == NONE || register & CONST != 0 { register } else { self.slots[register as usize] }
    }
}

/// First and last instruction at which a register is live.
#[derive(Clone, Copy)]
struct Interval {
    first: u32,
    last: u32,
}

pub(super) fn allocate(
    code: &[Inst],
    touched: &[Touched],
    classes: &[RegClass],
    pinned: &[bool],
    tables: &[Vec<u32>],
) -> Allocation {
    let (intervals, live_at_start) = intervals(code, touched, classes.len(), tables);
    let mut slots = vec![0; classes.len()];
    let mut counts = [0usize; 3];
    for (index, class) in [RegClass::Word, RegClass::Wide, RegClass::Pred].into_iter().enumerate() {
        let mut free: Vec<Slot> = Vec::new();
        let mut active: std::collections::BinaryHeap<std::cmp::Reverse<(u32, Slot)>> = Default::default();
        let mut order: Vec<usize> = (0..classes.len()).filter(|&v| classes[v] == class).collect();
        order.sort_by_key(|&v| intervals[v].map_or(u32::MAX, |i| i.first));
        for v in order {
            let fresh = |counts: &mut [usize; 3]| {
                counts[index] += 1;
                counts[index] as Slot - 1
            };
            let Some(interval) = intervals[v] else { continue };
            if pinned[v] {
                slots[v] = fresh(&mut counts);
                continue;
            }
            while let Some(&std::cmp::Reverse((last, slot))) = active.peek() {
                if last >= interval.first {
                    break;
                }
                active.pop();
                free.push(slot);
            }
            slots[v] = free.pop().unwrap_or_else(|| fresh(&mut counts));
            active.push(std::cmp::Reverse((interval.last, slots[v])));
        }
    }
    Allocation { slots, words: counts[0], wides: counts[1], preds: counts[2], live_at_start }
}

/// Basic blocks as instruction ranges with their successors' first instructions.
fn blocks(code: &[Inst], tables: &[Vec<u32>]) -> Vec<(usize, usize, Vec<usize>)> {
    let mut leader = vec![false; code.len() + 1];
    leader[0] = true;
    for (pc, inst) in code.iter().enumerate() {
        let targets: &[u32] = match &inst.op {
            Op::Bra(target) => std::slice::from_ref(target),
            Op::BrxIdx => &tables[inst.imm as usize],
            Op::Exit | Op::Trap => &[],
            _ => continue,
        };
        leader[pc + 1] = true;
        for &target in targets {
            leader[target as usize] = true;
        }
    }
    let starts: Vec<usize> = (0..code.len()).filter(|&pc| leader[pc]).collect();
    let mut blocks = Vec::with_capacity(starts.len());
    for (i, &start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(code.len());
        let last = &code[end - 1];
        let mut next: Vec<usize> = match &last.op {
            Op::Bra(target) => vec![*target as usize],
            Op::BrxIdx => tables[last.imm as usize].iter().map(|&t| t as usize).collect(),
            _ => Vec::new(),
        };
        let ends = matches!(last.op, Op::Exit | Op::Trap | Op::Bra(_) | Op::BrxIdx) && last.guard == NONE;
        if !ends && end < code.len() {
            next.push(end);
        }
        blocks.push((start, end, next));
    }
    blocks
}

/// Live intervals from a backward dataflow over the blocks, and what is live at the first instruction.
fn intervals(
    code: &[Inst],
    touched: &[Touched],
    registers: usize,
    tables: &[Vec<u32>],
) -> (Vec<Option<Interval>>, Vec<VReg>) {
    let blocks = blocks(code, tables);
    let chunks = registers.div_ceil(64);
    let mut block_at = vec![0usize; code.len() + 1];
    for (b, block) in blocks.iter().enumerate() {
        block_at[block.0] = b;
    }
    let has = |set: &[u64], v: u32| set[v as usize / 64] >> (v % 64) & 1 == 1;
    let mut used = vec![vec![0u64; chunks]; blocks.len()];
    let mut killed = vec![vec![0u64; chunks]; blocks.len()];
    for (b, &(start, end, _)) in blocks.iter().enumerate() {
        for t in &touched[start..end] {
            for &v in &t.uses {
                if !has(&killed[b], v) {
                    used[b][v as usize / 64] |= 1 << (v % 64);
                }
            }
            for &v in &t.defs {
                killed[b][v as usize / 64] |= 1 << (v % 64);
            }
        }
    }
    let mut live_in = used.clone();
    let mut live_out = vec![vec![0u64; chunks]; blocks.len()];
    let mut changed = true;
    while changed {
        changed = false;
        for b in (0..blocks.len()).rev() {
            for &next in &blocks[b].2 {
                let n = block_at[next];
                for c in 0..chunks {
                    live_out[b][c] |= live_in[n][c];
                }
            }
            for c in 0..chunks {
                let value = used[b][c] | (live_out[b][c] & !killed[b][c]);
                changed |= value != live_in[b][c];
                live_in[b][c] = value;
            }
        }
    }
    let mut intervals: Vec<Option<Interval>> = vec![None; registers];
    let mut touch = |v: usize, pc: usize| {
        let pc = pc as u32;
        let interval = intervals[v].get_or_insert(Interval { first: pc, last: pc });
        interval.first = interval.first.min(pc);
        interval.last = interval.last.max(pc);
    };
    for (b, &(start, end, _)) in blocks.iter().enumerate() {
        for v in 0..registers {
            if has(&live_in[b], v as u32) {
                touch(v, start);
            }
            if has(&live_out[b], v as u32) {
                touch(v, end - 1);
            }
        }
        for (offset, t) in touched[start..end].iter().enumerate() {
            for &v in t.uses.iter().chain(&t.defs) {
                touch(v as usize, start + offset);
            }
        }
    }
    let live_at_start = (0..registers as VReg).filter(|&v| has(&live_in[0], v)).collect();
    (intervals, live_at_start)
}
