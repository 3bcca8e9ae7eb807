//! Checks of registers before an instruction runs, where the decoder asked for them.

use super::cta::Cta;
use super::execute::Flow;
use super::warp::Warp;
use crate::decode::watch::is_move;
use crate::fault::{Exec, FaultKind};
use crate::inst::{Inst, NONE, Op};
use crate::module::Watch;
use crate::mutate::beside::Beside;

impl Cta<'_> {
    /// `m`: the lanes that its guard lets through.
    pub(super) fn look_at_registers(&mut self, w: &mut Warp, i: &Inst, m: u32) -> Exec {
        let kernel = self.kernel;
        let watch = &kernel.watches[w.pc as usize];
        if let Some(beside) = &kernel.beside
            && beside.at == w.pc
            && m != 0
        {
            self.run_beside(w, beside, i, m)?;
        }
        if self.grid.options.check_initialised && kernel.followed != 0 {
            follow(w, watch, i, m)?;
        }
        if m == 0 || matches!(i.op, Op::Wgmma(_)) {
            return Ok(());
        }
        w.loading.touch(watch, i.op)?;
        w.wgmma.registers.touch(watch, i.op)
    }
}

impl Cta<'_> {
    /// Runs the other version of an instruction and the one in the text on the same registers, notes whether they differ,
    /// and leaves the registers as they were.
    fn run_beside(&mut self, w: &mut Warp, beside: &Beside, i: &Inst, m: u32) -> Exec {
        let (before, carry) = (w.regs.clone(), w.carry);
        let mut is_done = true;
        for inst in &beside.insts {
            is_done &= matches!(self.execute(w, inst, m)?, Flow::Next);
        }
        let other = std::mem::replace(&mut w.regs, before.clone());
        w.carry = carry;
        is_done &= matches!(self.execute(w, i, m)?, Flow::Next);
        let own = std::mem::replace(&mut w.regs, before);
        w.carry = carry;
        // Where lanes wait for others the instruction comes here again.
        if is_done {
            beside.difference.ran();
            own.compare(&other, m, &beside.difference);
        }
        Ok(())
    }
}

/// Fails when a lane reads a register that it never wrote, and notes what it writes. A move only hands that on.
fn follow(w: &mut Warp, watch: &Watch, i: &Inst, m: u32) -> Exec {
    let refuse = |lanes: u32| match lanes {
        0 => Ok(()),
        lanes => Err(FaultKind::UnwrittenRegister.lane(lanes.trailing_zeros() as usize)),
    };
    if watch.guard != NONE {
        refuse(w.unwritten[watch.guard as usize] & w.active)?;
    }
    let unwritten =
        |numbers: &[u32]| numbers.iter().fold(0, |all, &number| all | w.unwritten[number as usize]) & m;
    let missing = unwritten(&watch.followed_reads);
    if matches!(i.op, Op::Wgmma(_)) && w.regs.pred(i.c) & 1 == 1 {
        refuse(unwritten(&watch.followed_writes))?;
    }
    let mut written = m;
    if is_move(i.op) {
        written &= !missing;
        watch.followed_writes.iter().for_each(|&number| w.unwritten[number as usize] |= missing);
    } else {
        refuse(missing)?;
    }
    watch.followed_writes.iter().for_each(|&number| w.unwritten[number as usize] &= !written);
    Ok(())
}
