//! Which instructions need a look at their registers before they run: those that share some with a `wgmma`, and those
//! that touch one which may be read before it was written.

use super::allocate::Allocation;
use super::{Decoder, Touched};
use crate::inst::{Inst, NONE, Op};
use crate::module::Watch;
use crate::ptx::ast::VReg;

/// Registers whose writes are followed at run time, numbered.
pub(super) struct Followed {
    numbers: Vec<Option<u32>>,
    pub count: usize,
}

impl Followed {
    /// Those that are live where the kernel starts, and all that moves make of them: the compiler copies registers that it
    /// knows nobody will read.
    pub(super) fn new(live_at_start: &[VReg], code: &[Inst], touched: &[Touched], registers: usize) -> Self {
        let mut followed = Self { numbers: vec![None; registers], count: 0 };
        live_at_start.iter().for_each(|&register| followed.add(register));
        let mut before = usize::MAX;
        while before != followed.count {
            before = followed.count;
            for (_, touched) in code.iter().zip(touched).filter(|(inst, _)| is_move(inst.op)) {
                if touched.sources().iter().any(|&source| followed.number(source).is_some()) {
                    touched.defs.iter().for_each(|&register| followed.add(register));
                }
            }
        }
        followed
    }

    fn add(&mut self, register: VReg) {
        // Special registers come after those of the entry: they have their value from the start.
        if let Some(number @ None) = self.numbers.get_mut(register as usize) {
            *number = Some(self.count as u32);
            self.count += 1;
        }
    }

    fn number(&self, register: VReg) -> Option<u32> {
        self.numbers.get(register as usize).copied().flatten()
    }

    fn all(&self, registers: &[VReg]) -> Vec<u32> {
        registers.iter().filter_map(|&register| self.number(register)).collect()
    }
}

/// Copies a register and does nothing else with it.
pub(crate) fn is_move(op: Op) -> bool {
    matches!(op, Op::Mov32 | Op::Mov64 | Op::MovPred)
}

impl Decoder<'_> {
    /// Copies of registers that a `tcgen05.ld` loads may be in flight like these: the compiler copies them before they are
    /// used.
    pub(super) fn follow_loaded(&mut self) {
        let is_copy = |inst: &&Inst| inst.op == Op::Mov32;
        let mut is_new = self.loaded.contains(&true);
        while is_new {
            is_new = false;
            for (_, touched) in self.code.iter().zip(&self.touched).filter(|(inst, _)| is_copy(inst)) {
                let is_loaded = |v: &VReg| self.loaded.get(*v as usize) == Some(&true);
                if touched.sources().iter().any(is_loaded) && !touched.defs.iter().all(is_loaded) {
                    touched.defs.iter().for_each(|&v| self.loaded[v as usize] = true);
                    is_new = true;
                }
            }
        }
        self.in_flight.iter_mut().zip(&self.loaded).for_each(|(flag, loaded)| *flag |= loaded);
    }

    /// What to look at before each instruction.
    pub(super) fn watches(&mut self, map: &Allocation, followed: &Followed) -> Vec<Watch> {
        let in_flight = &self.in_flight;
        let shared = |list: &[VReg]| -> Box<[u32]> {
            let list = list.iter().filter(|&&v| in_flight.get(v as usize) == Some(&true));
            list.map(|&v| map.slot(v)).collect()
        };
        let mut watches = Vec::with_capacity(self.code.len());
        for (inst, touched) in self.code.iter_mut().zip(&self.touched) {
            let sources = touched.sources();
            let operands: Vec<VReg> = match inst.op {
                // Accumulators are read or not as a predicate says; the instruction itself looks after that.
                Op::Wgmma(_) => sources.iter().copied().filter(|v| !touched.defs.contains(v)).collect(),
                _ => sources.to_vec(),
            };
            let watch = Watch {
                reads: shared(&touched.uses),
                writes: shared(&touched.defs),
                followed_reads: followed.all(&operands).into(),
                followed_writes: followed.all(&touched.defs).into(),
                guard: touched.guard.and_then(|guard| followed.number(guard)).unwrap_or(NONE),
            };
            inst.watched = !watch.is_empty();
            watches.push(watch);
        }
        watches
    }
}
