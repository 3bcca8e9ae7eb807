//! `cp.async`: copies of 4, 8 or 16 bytes per lane from global to shared memory, in groups.

use std::collections::VecDeque;

use super::{Action, Pending};
use crate::fault::{Exec, FaultKind, MemorySpace};
use crate::inst::{Inst, NONE, Op};
use crate::machine::cta::Cta;
use crate::machine::execute::Flow;
use crate::machine::traffic;
use crate::machine::warp::Warp;
use crate::options::Completion;
use crate::race::{AccessKind, COPIES, Races};

/// One lane's copy.
#[derive(Debug, Clone, Copy)]
struct Copy {
    lane: u8,
    to: u32,
    from: u64,
    bytes: u8,
    /// Bytes taken from the source; the rest is zeros.
    source_bytes: u8,
}

/// Copies of a warp that have not landed, oldest first.
#[derive(Debug, Default)]
pub(crate) struct CopyQueue {
    waiting: VecDeque<(u32, Vec<Copy>)>,
    /// Instructions issued so far: the queue's clock.
    issued: u32,
    /// Clock at each commit that no wait has passed yet.
    groups: VecDeque<u32>,
}

impl Cta<'_> {
    pub(crate) fn cp_async(&mut self, w: &mut Warp, i: &Inst, m: u32) -> Exec<Flow> {
        match i.op {
            Op::CpAsync { .. } => self.issue_copies(w, i, m)?,
            Op::CpCommit => {
                let queue = &mut self.copies[w.id as usize];
                queue.groups.push_back(queue.issued);
            }
            Op::CpWait => {
                let queue = &mut self.copies[w.id as usize];
                let mut until = None;
                while queue.groups.len() as i64 > i.imm {
                    until = queue.groups.pop_front();
                }
                if let Some(clock) = until {
                    self.wait_copies(w.id, clock)?;
                }
            }
            Op::CpMbarrierArrive { no_increment, wide_address } => {
                self.copies_arrive(w, i, m, no_increment, wide_address)?;
            }
            _ => {
                let queue = &mut self.copies[w.id as usize];
                queue.groups.clear();
                let clock = queue.issued;
                self.wait_copies(w.id, clock)?;
            }
        }
        Ok(Flow::Next)
    }

    fn wait_copies(&mut self, warp: u32, clock: u32) -> Exec {
        self.land_copies(warp, clock)?;
        if let Some(races) = &mut self.races {
            races.waited(warp, Races::queue(warp, COPIES), clock);
        }
        Ok(())
    }

    fn issue_copies(&mut self, w: &Warp, i: &Inst, m: u32) -> Exec {
        let Op::CpAsync { bytes, wide_shared, wide_global, ignore } = i.op else { return Ok(()) };
        let kernel = self.kernel;
        let to_offset = w.regs.word(kernel.list(i)[0])[0] as i32;
        let to = self.shared_addresses(w, i.c, wide_shared, to_offset.into());
        let from = self.addresses(w, i.a, wide_global, i.imm);
        let queue = &mut self.copies[w.id as usize];
        queue.issued += 1;
        let clock = queue.issued;
        let mut list = Vec::with_capacity(32);
        let mut reading = 0u32;
        let mut source_total = 0;
        for lane in (0..32).filter(|l| m >> l & 1 == 1) {
            let source_bytes = match (i.b, ignore) {
                (NONE, _) => u32::from(bytes),
                (p, true) if w.regs.pred(p) >> lane & 1 == 1 => 0,
                (_, true) => u32::from(bytes),
                (slot, false) => w.regs.word(slot)[lane],
            };
            if source_bytes > u32::from(bytes) {
                let what = "cp.async source size";
                return Err(FaultKind::InvalidOperand { what, got: source_bytes.into() }.lane(lane));
            }
            let size = u32::from(bytes);
            let offset = self.shared.offset(to[lane], size, size).map_err(|k| k.lane(lane))?;
            if source_bytes > 0 {
                self.check_source(from[lane], size, source_bytes, lane)?;
                reading |= 1 << lane;
                source_total += source_bytes;
            }
            let source_bytes = source_bytes as u8;
            list.push(Copy { lane: lane as u8, to: offset as u32, from: from[lane], bytes, source_bytes });
        }
        if let Some(races) = &mut self.races {
            let actor = (Races::queue(w.id, COPIES), clock);
            let ranges = list.iter().map(|copy| (copy.to as usize, u32::from(copy.bytes)));
            let written = races.by_queue(actor, w.id, false, AccessKind::Write, ranges);
            written.map_err(|(number, kind)| kind.lane(list[number].lane.into()))?;
        }
        self.global_race(w.id, reading, &from, bytes.into(), crate::inst::Strength::Weak, false)?;
        self.counters.global_load_bytes += u64::from(source_total);
        self.counters.global_load_sectors += traffic::sectors(reading, &from, bytes.into());
        let at_once = match self.grid.options.completion {
            Completion::Earliest => true,
            Completion::Latest => false,
            Completion::Random => self.rng.below(2) == 0,
        };
        if at_once {
            // Earlier copies may still wait: they are independent, but a zero fill must not come late.
            return self.land(&list);
        }
        for copy in &list {
            self.shared.forget(copy.to as usize, copy.bytes.into());
        }
        self.copies[w.id as usize].waiting.push_back((clock, list));
        Ok(())
    }

    fn check_source(&mut self, address: u64, size: u32, source_bytes: u32, lane: usize) -> Exec {
        let space = MemorySpace::Global;
        if !address.is_multiple_of(size.into()) {
            return Err(FaultKind::Misaligned { space, address, alignment: size }.lane(lane));
        }
        let Some((index, offset)) = self.view.locate(address, source_bytes) else {
            return Err(FaultKind::OutOfBounds { space, address, bytes: source_bytes }.lane(lane));
        };
        let storage = &self.view.allocation(index).storage;
        if self.grid.options.check_initialised && !storage.initialised(offset, source_bytes) {
            return Err(FaultKind::Uninitialised { space, address, bytes: source_bytes }.lane(lane));
        }
        Ok(())
    }

    /// Applies the copies of a warp up to `clock`.
    pub(super) fn land_copies(&mut self, warp: u32, clock: u32) -> Exec {
        while self.copies[warp as usize].waiting.front().is_some_and(|(c, _)| *c <= clock) {
            if let Some((_, list)) = self.copies[warp as usize].waiting.pop_front() {
                self.land(&list)?;
            }
        }
        Ok(())
    }

    fn land(&mut self, list: &[Copy]) -> Exec {
        for copy in list {
            let mut data = [0; 16];
            if copy.source_bytes > 0 {
                let bytes = u32::from(copy.source_bytes);
                let (index, offset) = self.view.locate(copy.from, bytes).ok_or({
                    FaultKind::OutOfBounds { space: MemorySpace::Global, address: copy.from, bytes }
                })?;
                self.view.allocation(index).storage.read_words(offset, &mut data[..bytes as usize]);
            }
            self.shared.put(copy.to as usize, &data[..usize::from(copy.bytes)]);
        }
        Ok(())
    }

    /// An arrival that happens once all earlier copies of the lanes have landed.
    fn copies_arrive(&mut self, w: &Warp, i: &Inst, m: u32, no_increment: bool, wide: bool) -> Exec {
        let addresses = self.shared_addresses(w, i.a, wide, i.imm);
        let clock = self.copies[w.id as usize].issued;
        for lane in (0..32).filter(|l| m >> l & 1 == 1) {
            let offset = self.shared.offset(addresses[lane], 8, 8).map_err(|k| k.lane(lane))?;
            let barrier = self.mbarriers.get(addresses[lane] as u32).map_err(|k| k.lane(lane))?;
            if !no_increment {
                barrier.add_pending(1);
            }
            if let Some(races) = &mut self.races {
                races.by_lane(w.id, lane, offset, 8, AccessKind::Atomic)?;
                races.release(w.id, 1 << lane, w.live, barrier.gathering());
            }
            let action = Action::CopyArrival { clock, mbarrier: addresses[lane] as u32 };
            self.submit(Pending { warp: w.id, pc: w.pc, action })?;
        }
        Ok(())
    }
}
