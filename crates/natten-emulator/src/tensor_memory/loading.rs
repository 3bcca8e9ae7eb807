//! Registers that a `tcgen05.ld` may still write.
//!
//! The instruction set promises that an instruction which reads such a register gets what was loaded, and nothing else:
//! no order of memory, and no protection of what is overwritten. So `tcgen05.wait::ld` is asked for before registers are
//! used. A plain move may come before it, since compilers rename registers wherever they like; the copy has to wait then
//! as the register has.

use super::fault;
use crate::fault::{Exec, TensorMemoryProblem};
use crate::inst::{Op, Slot};
use crate::module::Watch;

#[derive(Debug, Default)]
pub(crate) struct Loading {
    /// Of each 32-bit register whether a load may still write it.
    pending: Vec<bool>,
    any: bool,
}

impl Loading {
    pub(crate) fn reset(&mut self, registers: usize) {
        self.pending.clear();
        self.pending.resize(registers, false);
        self.any = false;
    }

    pub(super) fn issue(&mut self, registers: &[Slot]) {
        // A sink among the registers has no place in the list.
        for &slot in registers {
            if let Some(pending) = self.pending.get_mut(slot as usize) {
                *pending = true;
            }
        }
        self.any = true;
    }

    pub(super) fn waited(&mut self) {
        if self.any {
            self.pending.fill(false);
            self.any = false;
        }
    }

    /// An instruction touches registers.
    pub(crate) fn touch(&mut self, watch: &Watch, op: Op) -> Exec {
        if !self.any {
            return Ok(());
        }
        let is_pending = |slots: &[Slot]| slots.iter().any(|&slot| self.pending[slot as usize]);
        let refuse = |problem| Err(fault(problem).into());
        let (reads, writes) = (is_pending(&watch.reads), is_pending(&watch.writes));
        if reads && op != Op::Mov32 {
            return refuse(TensorMemoryProblem::RegisterRead);
        }
        if writes {
            return refuse(TensorMemoryProblem::RegisterWritten);
        }
        if reads {
            watch.writes.iter().for_each(|&slot| self.pending[slot as usize] = true);
        }
        Ok(())
    }
}
