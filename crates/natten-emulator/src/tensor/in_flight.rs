//! Registers that a `wgmma` may still read or write: who may touch them when.
//!
//! Two rules. Between issue and wait nobody else may write what the operation reads, nor touch what it accumulates into.
//! And `wgmma.fence` must stand before a warp's first `wgmma`, and between any access to a register by another
//! instruction, a read included, and a `wgmma` that uses the register, except that operations of one shape may
//! accumulate into it one after the other.

use crate::fault::{Exec, FaultKind, WgmmaProblem};
use crate::inst::{Op, Slot, Wgmma};
use crate::module::Watch;

/// What is known of each 32-bit register.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// Operations in flight that accumulate into it.
    accumulating: u32,
    /// Operations in flight that read it.
    reading: u32,
    /// Touched by another instruction since the last `wgmma.fence`.
    unfenced: bool,
    /// What accumulated into it since then.
    accumulated: Option<Wgmma>,
}

#[derive(Debug, Default)]
pub(crate) struct InFlight {
    states: Vec<State>,
    /// The warp executed a `wgmma.fence`.
    fenced: bool,
}

impl InFlight {
    pub(crate) fn reset(&mut self, registers: usize) {
        self.states.clear();
        self.states.resize(registers, State::default());
        self.fenced = false;
    }

    pub(crate) fn fence(&mut self) {
        self.states.iter_mut().for_each(|s| (s.unfenced, s.accumulated) = (false, None));
        self.fenced = true;
    }

    fn refuse<T>(problem: WgmmaProblem) -> Result<T, FaultKind> {
        Err(FaultKind::WgmmaRegister { problem })
    }

    /// A `wgmma` takes these registers.
    pub(crate) fn issue(
        &mut self,
        shape: Wgmma,
        accumulators: &[Slot],
        operands: &[Slot],
    ) -> Result<(), FaultKind> {
        let at = |slot: Slot| slot as usize;
        let unfenced = accumulators.iter().chain(operands).any(|&s| self.states[at(s)].unfenced);
        let size = |shape: Wgmma| (shape.ty, shape.n, shape.half_accumulators);
        let other = |before: Wgmma| size(before) != size(shape);
        let reshaped = accumulators.iter().any(|&s| self.states[at(s)].accumulated.is_some_and(other));
        if unfenced || reshaped || !self.fenced {
            return Self::refuse(WgmmaProblem::MissingFence);
        }
        if operands.iter().any(|&s| self.states[at(s)].accumulating > 0) {
            return Self::refuse(WgmmaProblem::AccumulatorRead);
        }
        if accumulators.iter().any(|&s| self.states[at(s)].reading > 0) {
            return Self::refuse(WgmmaProblem::OperandWritten);
        }
        for &slot in accumulators {
            self.states[at(slot)].accumulating += 1;
            self.states[at(slot)].accumulated = Some(shape);
        }
        operands.iter().for_each(|&s| self.states[at(s)].reading += 1);
        Ok(())
    }

    /// A `wgmma` gave them back.
    pub(crate) fn complete(&mut self, accumulators: &[Slot], operands: &[Slot]) {
        accumulators.iter().for_each(|&s| self.states[s as usize].accumulating -= 1);
        operands.iter().for_each(|&s| self.states[s as usize].reading -= 1);
    }

    /// Another instruction touches registers.
    pub(crate) fn touch(&mut self, watch: &Watch, op: Op) -> Exec {
        for &slot in &watch.reads {
            let state = &mut self.states[slot as usize];
            if state.accumulating > 0 {
                return Ok(Self::refuse(WgmmaProblem::AccumulatorRead)?);
            }
            // A plain move is how the compiler renames registers; it costs no instruction there.
            state.unfenced |= op != Op::Mov32;
        }
        for &slot in &watch.writes {
            let state = &mut self.states[slot as usize];
            if state.accumulating > 0 || state.reading > 0 {
                return Ok(Self::refuse(WgmmaProblem::OperandWritten)?);
            }
            state.unfenced = true;
        }
        Ok(())
    }
}
