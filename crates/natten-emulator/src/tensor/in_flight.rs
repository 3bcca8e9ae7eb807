//! Registers that a `wgmma` may still read or write: who may touch them when.

use crate::fault::{Exec, FaultKind, WgmmaProblem};
use crate::inst::{Inst, Op, Slot};
use crate::machine::cta::Cta;
use crate::machine::warp::Warp;

/// What is known of each 32-bit register.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// Operations in flight that accumulate into it.
    accumulating: u32,
    /// Operations in flight that read it.
    reading: u32,
    /// Written since the last `wgmma.fence`.
    unfenced: bool,
}

#[derive(Debug, Default)]
pub(crate) struct InFlight {
    states: Vec<State>,
}

impl InFlight {
    pub(crate) fn reset(&mut self, registers: usize) {
        self.states.clear();
        self.states.resize(registers, State::default());
    }

    pub(crate) fn fence(&mut self) {
        self.states.iter_mut().for_each(|s| s.unfenced = false);
    }

    fn refuse<T>(problem: WgmmaProblem) -> Result<T, FaultKind> {
        Err(FaultKind::WgmmaRegister { problem })
    }

    /// A `wgmma` takes these registers.
    pub(crate) fn issue(&mut self, accumulators: &[Slot], operands: &[Slot]) -> Result<(), FaultKind> {
        let at = |slot: Slot| slot as usize;
        if accumulators.iter().chain(operands).any(|&s| self.states[at(s)].unfenced) {
            return Self::refuse(WgmmaProblem::MissingFence);
        }
        if operands.iter().any(|&s| self.states[at(s)].accumulating > 0) {
            return Self::refuse(WgmmaProblem::AccumulatorRead);
        }
        if accumulators.iter().any(|&s| self.states[at(s)].reading > 0) {
            return Self::refuse(WgmmaProblem::OperandWritten);
        }
        accumulators.iter().for_each(|&s| self.states[at(s)].accumulating += 1);
        operands.iter().for_each(|&s| self.states[at(s)].reading += 1);
        Ok(())
    }

    /// A `wgmma` gave them back.
    pub(crate) fn complete(&mut self, accumulators: &[Slot], operands: &[Slot]) {
        accumulators.iter().for_each(|&s| self.states[s as usize].accumulating -= 1);
        operands.iter().for_each(|&s| self.states[s as usize].reading -= 1);
    }
}

impl Cta<'_> {
    /// Checks an ordinary instruction that names a register of some `wgmma`.
    pub(crate) fn check_in_flight(&mut self, w: &mut Warp, i: &Inst) -> Exec {
        if matches!(i.op, Op::Wgmma(_)) {
            return Ok(());
        }
        let kernel = self.kernel;
        let Some(watch) = kernel.watches.get(&w.pc) else { return Ok(()) };
        let states = &mut w.wgmma.registers.states;
        for &slot in &watch.reads {
            if states[slot as usize].accumulating > 0 {
                return Ok(InFlight::refuse(WgmmaProblem::AccumulatorRead)?);
            }
        }
        for &slot in &watch.writes {
            let state = &mut states[slot as usize];
            if state.accumulating > 0 || state.reading > 0 {
                return Ok(InFlight::refuse(WgmmaProblem::OperandWritten)?);
            }
            // A plain move is how the compiler renames registers; it costs no instruction there.
            state.unfenced |= i.op != Op::Mov32;
        }
        Ok(())
    }
}
