//! Which warp runs, which of its diverged groups, and what happens when nobody can.

use super::cta::Cta;
use super::execute::Flow;
use super::warp::{Group, Wait, Warp};
use crate::asynchronous::Pending;
use crate::fault::{Exec, Fault, FaultKind, Site, TensorMemoryProblem, Trap, Wait as Waiting, WaitReason};
use crate::inst::{NONE, Op};
use crate::options::Completion;
use crate::tensor_memory::allocation::Allocation;

/// Instructions a warp runs before another gets a turn.
const SLICE: u32 = 4096;
/// Rounds without any event before polling counts as a deadlock; a poll may fail spuriously.
const IDLE_ROUNDS: u32 = 64;
/// Rounds of nothing but polling after which asynchronous operations may no longer be held back.
const QUIET_ROUNDS: u32 = 2;

/// Why a warp stopped running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    SliceOver,
    /// It polled something that has not happened.
    Polled,
    Blocked,
    Done,
}

impl Cta<'_> {
    /// Runs the CTA to its end.
    pub(crate) fn run(&mut self) -> Result<(), Fault> {
        let mut warps = std::mem::take(&mut self.warps);
        let result = self.run_warps(&mut warps);
        self.warps = warps;
        result
    }

    fn run_warps(&mut self, warps: &mut [Warp]) -> Result<(), Fault> {
        let start = self.counters.warp_instructions();
        let mut idle = 0;
        loop {
            let events = self.events;
            let mut finished = 0;
            let mut progress = false;
            let mut polled = false;
            let first = self.rng.below(warps.len());
            for i in 0..warps.len() {
                let warp = &mut warps[(first + i) % warps.len()];
                if warp.is_done() {
                    finished += 1;
                    continue;
                }
                let slice = 1 + self.rng.below(SLICE as usize) as u32;
                let stop = self.run_warp(warp, slice).map_err(|trap| self.located(warp, *trap))?;
                progress |= matches!(stop, Stop::SliceOver | Stop::Done);
                polled |= stop == Stop::Polled;
                self.complete_some()?;
            }
            if finished == warps.len() {
                return self.finish();
            }
            if progress || self.events != events {
                idle = 0;
            } else if polled && idle < QUIET_ROUNDS || !self.complete_latest()? {
                idle += 1;
                if idle > IDLE_ROUNDS {
                    return Err(self.deadlock(warps));
                }
            }
            let most = self.grid.options.most_instructions;
            if self.counters.warp_instructions() - start > most {
                return Err(FaultKind::Runaway { instructions: most }.into());
            }
        }
    }

    /// What is still in flight when all warps have exited completes, as it would on the hardware.
    fn finish(&mut self) -> Result<(), Fault> {
        while let Some(pending) = self.pending.pop() {
            self.complete(pending).map_err(|trap| Fault { kind: trap.kind, site: None })?;
        }
        if let Some(Allocation { columns, warp, pc, .. }) = self.tensor_memory.allocations.leaked() {
            let kind = FaultKind::TensorMemory { problem: TensorMemoryProblem::Leaked { columns } };
            return Err(self.located_at(warp, pc, Trap { kind, lane: None }));
        }
        Ok(())
    }

    /// In random completion, now and then one operation completes between two slices.
    fn complete_some(&mut self) -> Result<(), Fault> {
        if self.grid.options.completion != Completion::Random {
            return Ok(());
        }
        self.land_some();
        if self.pending.is_empty() || self.rng.below(3) != 0 {
            return Ok(());
        }
        let index = self.rng.below(self.pending.len());
        let pending = self.pending.remove(index);
        self.complete_at(pending)
    }

    /// Nobody can go on: complete the operation issued last. False if there is none.
    fn complete_latest(&mut self) -> Result<bool, Fault> {
        match self.pending.pop() {
            Some(pending) => self.complete_at(pending).map(|()| true),
            None => Ok(false),
        }
    }

    fn complete_at(&mut self, pending: Pending) -> Result<(), Fault> {
        let (warp, pc) = (pending.warp, pending.pc);
        self.complete(pending).map_err(|trap| self.located_at(warp, pc, *trap))
    }

    /// Runs a warp until its slice is over or no group of it can go on.
    fn run_warp(&mut self, warp: &mut Warp, mut slice: u32) -> Exec<Stop> {
        if warp.active == 0 || !warp.others.is_empty() {
            warp.park(Wait::Ready);
            if !self.pick(warp, true)? {
                return Ok(if warp.is_done() { Stop::Done } else { Stop::Blocked });
            }
        }
        let kernel = self.kernel;
        loop {
            let inst = &kernel.code[warp.pc as usize];
            let mask = match inst.guard {
                NONE => warp.active,
                guard if inst.guard_negated => warp.active & !warp.regs.pred(guard),
                guard => warp.active & warp.regs.pred(guard),
            };
            self.counters.count(inst.class, mask.count_ones());
            self.counters.coverage.note(warp.pc, mask);
            if inst.watched {
                self.look_at_registers(warp, inst, mask)?;
            }
            let mut switch = !warp.others.is_empty();
            match inst.op {
                Op::Bra(target) => self.branch(warp, mask, target),
                Op::Exit => {
                    warp.live &= !mask;
                    warp.active &= !mask;
                    warp.pc += 1;
                    if warp.live == 0 {
                        self.warp_exited();
                        return Ok(Stop::Done);
                    }
                    switch |= warp.active == 0;
                    self.barrier_recheck(warp);
                }
                _ if mask == 0 => warp.pc += 1,
                _ => match self.execute(warp, inst, mask)? {
                    Flow::Next => warp.pc += 1,
                    Flow::Jump(targets) => {
                        self.scatter(warp, mask, &targets);
                        switch = true;
                    }
                    Flow::Wait(wait) => {
                        let rest = warp.active & !mask;
                        warp.active = mask;
                        warp.park(wait);
                        if rest != 0 {
                            warp.others.push(Group { pc: warp.pc + 1, mask: rest, wait: Wait::Ready });
                        }
                        switch = true;
                    }
                    Flow::Yield => {
                        warp.pc += 1;
                        warp.park(Wait::Yielded);
                        if !self.pick(warp, false)? {
                            return Ok(Stop::Polled);
                        }
                        continue;
                    }
                },
            }
            if switch || !warp.others.is_empty() {
                warp.park(Wait::Ready);
                if !self.pick(warp, false)? {
                    return Ok(Stop::Blocked);
                }
            }
            slice -= 1;
            if slice == 0 {
                return Ok(Stop::SliceOver);
            }
        }
    }

    fn branch(&mut self, warp: &mut Warp, mask: u32, target: u32) {
        let stay = warp.active & !mask;
        if stay == 0 {
            warp.pc = target;
        } else {
            warp.pc += 1;
            if mask != 0 {
                warp.active = stay;
                warp.others.push(Group { pc: target, mask, wait: Wait::Ready });
            }
        }
    }

    /// Lanes go to different targets.
    fn scatter(&mut self, warp: &mut Warp, mask: u32, targets: &[u32; 32]) {
        let rest = warp.active & !mask;
        for lane in 0..32 {
            if mask >> lane & 1 == 1 {
                warp.others.push(Group { pc: targets[lane], mask: 1 << lane, wait: Wait::Ready });
            }
        }
        warp.active = rest;
        warp.pc += 1;
    }

    /// Chooses the group to run: of those that can, the one furthest behind, so that lanes meet
    /// again. At the start of a slice now and then another one, so that none starves.
    fn pick(&mut self, warp: &mut Warp, new_slice: bool) -> Exec<bool> {
        self.wake(warp)?;
        if new_slice {
            for group in &mut warp.others {
                if group.wait == Wait::Yielded {
                    group.wait = Wait::Ready;
                }
            }
        }
        warp.merge();
        let ready = |g: &Group| g.wait == Wait::Ready;
        let count = warp.others.iter().filter(|g| ready(g)).count();
        if count == 0 {
            return self.stuck(warp).map(|()| false);
        }
        let chosen = if new_slice && count > 1 && self.rng.below(4) == 0 {
            let nth = self.rng.below(count);
            warp.others.iter().enumerate().filter(|(_, g)| ready(g)).nth(nth)
        } else {
            warp.others.iter().enumerate().filter(|(_, g)| ready(g)).min_by_key(|(_, g)| g.pc)
        };
        if let Some((index, group)) = chosen {
            (warp.pc, warp.active) = (group.pc, group.mask);
            warp.others.swap_remove(index);
        }
        Ok(true)
    }

    /// No group can run. If all wait for lanes that will never come, the warp diverged for good.
    fn stuck(&self, warp: &mut Warp) -> Exec {
        let hopeless = warp.others.iter().all(|g| matches!(g.wait, Wait::Lanes(_)));
        if let (true, Some(group)) = (hopeless, warp.others.iter().min_by_key(|g| g.pc).copied())
            && let Wait::Lanes(required) = group.wait
        {
            warp.pc = group.pc;
            return Err(FaultKind::Divergence { required: required & warp.live, active: group.mask }.into());
        }
        Ok(())
    }

    fn deadlock(&self, warps: &[Warp]) -> Fault {
        let mut waits = Vec::new();
        for warp in warps.iter().filter(|w| !w.is_done()) {
            let running = Group { pc: warp.pc, mask: warp.active, wait: Wait::Yielded };
            for group in warp.others.iter().chain((warp.active != 0).then_some(&running)) {
                let reason = match group.wait {
                    Wait::Barrier { id, .. } => self.barrier_wait(id),
                    Wait::Lanes(required) => WaitReason::Lanes { required },
                    Wait::Registers(count) => WaitReason::Registers { count },
                    Wait::TensorMemory(columns) => WaitReason::TensorMemory { columns },
                    Wait::Ready | Wait::Yielded => match warp.polled {
                        Some((address, _)) => self.mbarriers.wait_reason(address),
                        None => continue,
                    },
                };
                let pc = match (group.wait, warp.polled) {
                    (Wait::Ready | Wait::Yielded, Some((_, pc))) => pc,
                    _ => group.pc,
                };
                let line = self.kernel.lines.get(pc as usize).map_or(0, |l| l.line);
                waits.push(Waiting { warp: warp.id, lanes: group.mask, line, reason });
            }
        }
        FaultKind::Deadlock { waits }.into()
    }

    fn located(&self, warp: &Warp, trap: Trap) -> Fault {
        self.located_at(warp.id, warp.pc, trap)
    }

    fn located_at(&self, warp: u32, pc: u32, trap: Trap) -> Fault {
        let line = self.kernel.lines.get(pc as usize);
        let source = line
            .and_then(|l| l.source)
            .map(|(file, line)| (self.grid.module.file(file).unwrap_or("?").to_owned(), line));
        let site = Site {
            entry: self.grid.entry.name.clone(),
            instruction: line.map_or_else(|| "end of the kernel".to_owned(), |l| l.text.clone()),
            line: line.map_or(0, |l| l.line),
            source,
            cta: self.coordinates,
            warp,
            lane: trap.lane,
        };
        Fault { kind: trap.kind, site: Some(Box::new(site)) }
    }
}
