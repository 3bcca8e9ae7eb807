//! Named barriers of a CTA, fences, and the cluster barrier.

use super::cta::Cta;
use super::execute::Flow;
use super::warp::{Wait, Warp};
use crate::fault::{Exec, FaultKind, WaitReason};
use crate::inst::{Bar, BarKind, Fence, Inst, NONE, Op};
use crate::race::Edge;

/// One of the sixteen barriers.
#[derive(Debug, Default, Clone)]
pub(crate) struct Barrier {
    /// Counts completions, so that waiters know theirs.
    generation: u32,
    /// Lanes of each warp that arrived in this generation.
    arrived: Vec<(u32, u32)>,
    /// Warps that arrived in full, in threads.
    threads: u32,
    /// Threads needed, or all of the CTA that live.
    expected: Option<u32>,
    popc: u32,
    all: bool,
    any: bool,
    /// Results of the generation that completed last: population count, and, or.
    result: (u32, bool, bool),
    gathering: Edge,
    released: Edge,
}

impl Cta<'_> {
    pub(super) fn bar(&mut self, w: &mut Warp, i: &Inst, m: u32, bar: Bar) -> Exec<Flow> {
        if bar.aligned && m != w.live {
            return Ok(Flow::Wait(Wait::Lanes(w.live)));
        }
        let first = m.trailing_zeros() as usize & 31;
        let id = w.regs.word(i.a)[first];
        if id >= 16 {
            return Err(FaultKind::InvalidOperand { what: "barrier number", got: u64::from(id) }.into());
        }
        let expected = (i.b != NONE).then(|| w.regs.word(i.b)[first]);
        if let Some(count) = expected
            && (count == 0 || count % 32 != 0 || count > self.grid.threads().next_multiple_of(32))
        {
            return Err(
                FaultKind::InvalidOperand { what: "barrier thread count", got: u64::from(count) }.into()
            );
        }
        let id = id as usize;
        let barrier = &mut self.barriers[id];
        if !barrier.arrived.is_empty() && barrier.expected != expected {
            let what = "barrier thread count that differs from earlier arrivals";
            return Err(FaultKind::InvalidOperand { what, got: u64::from(expected.unwrap_or(0)) }.into());
        }
        barrier.expected = expected;
        let generation = barrier.generation;
        if !matches!(bar.kind, BarKind::Sync | BarKind::Arrive) {
            let p = (w.regs.pred(i.c) ^ if i.imm != 0 { !0 } else { 0 }) & m;
            if barrier.arrived.is_empty() {
                (barrier.popc, barrier.all, barrier.any) = (0, true, false);
            }
            barrier.popc += p.count_ones();
            barrier.all &= p == m;
            barrier.any |= p != 0;
        }
        let slot = match barrier.arrived.iter().position(|a| a.0 == w.id) {
            Some(at) => at,
            None => {
                barrier.arrived.push((w.id, 0));
                barrier.arrived.len() - 1
            }
        };
        let lanes = &mut barrier.arrived[slot].1;
        if *lanes & m != 0 && bar.kind == BarKind::Arrive {
            let what = "second arrival of a warp at a barrier, number";
            return Err(FaultKind::InvalidOperand { what, got: id as u64 }.into());
        }
        let was_complete = *lanes & w.live == w.live;
        *lanes |= m;
        if !was_complete && *lanes & w.live == w.live {
            barrier.threads += 32;
        }
        if let Some(races) = &mut self.races {
            races.release(w.id, m, w.live, &mut barrier.gathering);
        }
        self.events += 1;
        self.try_release(id);
        if bar.kind == BarKind::Arrive {
            return Ok(Flow::Next);
        }
        if self.barriers[id].generation != generation {
            self.leave_barrier(w, i, m, id);
            return Ok(Flow::Next);
        }
        Ok(Flow::Wait(Wait::Barrier { id, generation }))
    }

    /// Completes the barrier if everyone is there.
    fn try_release(&mut self, id: usize) {
        let all = self.live_threads();
        let barrier = &mut self.barriers[id];
        if barrier.arrived.is_empty() || barrier.threads < barrier.expected.unwrap_or(all) {
            return;
        }
        barrier.generation += 1;
        barrier.arrived.clear();
        barrier.threads = 0;
        barrier.expected = None;
        barrier.result = (barrier.popc, barrier.all, barrier.any);
        barrier.released = std::mem::take(&mut barrier.gathering);
        self.events += 1;
    }

    /// Threads of warps that have not exited, in whole warps.
    fn live_threads(&self) -> u32 {
        32 * self.live_warps
    }

    /// Acquires what the barrier released, and takes a reduction's result.
    fn leave_barrier(&mut self, w: &mut Warp, i: &Inst, m: u32, id: usize) {
        let barrier = &self.barriers[id];
        if let Some(races) = &mut self.races {
            races.acquire(w.id, &barrier.released);
            races.lanes_met(w.id);
        }
        let (popc, all, any) = barrier.result;
        if let Op::Bar(bar) = i.op {
            match bar.kind {
                BarKind::Popc => w.regs.set_word(i.d, m, &[popc; 32]),
                BarKind::And => w.regs.set_pred(i.d, m, if all { !0 } else { 0 }),
                BarKind::Or => w.regs.set_pred(i.d, m, if any { !0 } else { 0 }),
                BarKind::Sync | BarKind::Arrive => {}
            }
        }
    }

    /// Wakes groups of this warp whose wait is over.
    pub(super) fn wake(&mut self, w: &mut Warp) -> Exec {
        let kernel = self.kernel;
        for index in 0..w.others.len() {
            let group = w.others[index];
            match group.wait {
                Wait::Barrier { id, generation } if self.barriers[id].generation != generation => {
                    self.leave_barrier(w, &kernel.code[group.pc as usize], group.mask, id);
                    w.others[index].pc += 1;
                    w.others[index].wait = Wait::Ready;
                }
                Wait::Registers(count) if self.registers_fit(w, count) => w.others[index].wait = Wait::Ready,
                Wait::TensorMemory(columns) if self.tensor_memory.allocations.has_room(columns) => {
                    w.others[index].wait = Wait::Ready;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Some lanes exited: a barrier may now be complete for this warp.
    pub(super) fn barrier_recheck(&mut self, w: &Warp) {
        for id in 0..self.barriers.len() {
            let barrier = &mut self.barriers[id];
            for (warp, lanes) in &barrier.arrived {
                let complete_now = *warp == w.id && *lanes & w.live == w.live;
                let counted = barrier.threads >= 32 * barrier.arrived.len() as u32;
                if complete_now && !counted {
                    barrier.threads += 32;
                }
            }
            self.try_release(id);
        }
    }

    pub(super) fn warp_exited(&mut self) {
        // Its registers do not go back to the pool: nothing says so but for `setmaxnreg.dec`.
        self.live_warps -= 1;
        self.events += 1;
        for id in 0..self.barriers.len() {
            self.try_release(id);
        }
    }

    pub(super) fn barrier_wait(&self, id: usize) -> WaitReason {
        let barrier = &self.barriers[id];
        let expected = barrier.expected.unwrap_or_else(|| self.live_threads());
        WaitReason::Barrier { id: id as u32, arrived: barrier.threads, expected }
    }

    pub(super) fn fence(&mut self, w: &Warp, fence: Fence) {
        if fence == Fence::MbarrierInit {
            self.mbarriers.fence_init(w.id);
        }
        if fence == Fence::Memory
            && let Some(races) = &self.grid.races
        {
            races.synchronised(self.index);
        }
        let Some(races) = &mut self.races else {
            if fence == Fence::ProxyAsync {
                self.mbarriers.fence_init(w.id);
            }
            return;
        };
        match fence {
            Fence::ProxyAsync => {
                races.proxy_fence(w.id);
                self.mbarriers.fence_init(w.id);
            }
            Fence::Memory => races.memory_fence(w.id),
            Fence::MbarrierInit | Fence::Other => {}
        }
    }

    /// The barrier of a cluster of one CTA: the CTA's own warps.
    pub(super) fn cluster_barrier(&mut self, w: &mut Warp, i: &Inst, m: u32) -> Exec<Flow> {
        if m != w.live {
            return Ok(Flow::Wait(Wait::Lanes(w.live)));
        }
        let id = CLUSTER_BARRIER;
        if i.op == Op::ClusterArrive {
            w.cluster_generation = self.barriers[id].generation;
            let barrier = &mut self.barriers[id];
            barrier.arrived.push((w.id, m));
            barrier.threads += 32;
            if let Some(races) = &mut self.races {
                races.release(w.id, m, w.live, &mut barrier.gathering);
            }
            self.try_release(id);
            return Ok(Flow::Next);
        }
        let generation = w.cluster_generation;
        if self.barriers[id].generation != generation {
            self.leave_barrier(w, i, m, id);
            return Ok(Flow::Next);
        }
        Ok(Flow::Wait(Wait::Barrier { id, generation }))
    }
}

/// The cluster's barrier lives behind the sixteen of the CTA.
pub(crate) const CLUSTER_BARRIER: usize = 16;
