//! A warp: its registers and the groups of lanes that diverged.

use super::registers::Registers;
use crate::memory::local::Local;
use crate::tensor::wgmma::WgmmaQueue;
use crate::tensor_memory::loading::Loading;

/// Why a group of lanes does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It does.
    Ready,
    /// It polled something that has not happened; others go first.
    Yielded,
    /// Until these lanes are all at the same instruction.
    Lanes(u32),
    /// Until the barrier leaves this generation.
    Barrier { id: usize, generation: u32 },
    /// Until the register pool can give this many per thread.
    Registers(u32),
    /// Until so many columns of tensor memory are free.
    TensorMemory(u32),
}

/// Lanes that share a program counter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    pub pc: u32,
    pub mask: u32,
    pub wait: Wait,
}

#[derive(Debug, Default)]
pub(crate) struct Warp {
    pub id: u32,
    pub regs: Registers,
    pub local: Local,
    /// The running group.
    pub pc: u32,
    pub active: u32,
    /// Groups that are not running, in no order.
    pub others: Vec<Group>,
    /// Lanes that exist and have not exited.
    pub live: u32,
    /// Carry flag of each lane.
    pub carry: u32,
    /// Registers per thread, as `setmaxnreg` left them.
    pub register_count: u32,
    /// Generation of the cluster barrier this warp arrived in.
    pub cluster_generation: u32,
    pub wgmma: WgmmaQueue,
    /// Registers that a `tcgen05.ld` may still write.
    pub loading: Loading,
    /// For each register that is followed, the lanes that have not written it.
    pub unwritten: Vec<u32>,
    /// mbarrier address last polled without success, for the deadlock report.
    pub polled: Option<(u32, u32)>,
}

impl Warp {
    pub(crate) fn is_done(&self) -> bool {
        self.live == 0
    }

    /// Sets the running group aside.
    pub(crate) fn park(&mut self, wait: Wait) {
        if self.active != 0 {
            self.others.push(Group { pc: self.pc, mask: self.active, wait });
            self.active = 0;
        }
    }

    /// Merges groups at the same instruction that could run together.
    pub(crate) fn merge(&mut self) {
        let mut i = 0;
        while i < self.others.len() {
            let mut j = i + 1;
            while j < self.others.len() {
                let (a, b) = (self.others[i], self.others[j]);
                if a.pc == b.pc && a.wait.merges() && b.wait.merges() {
                    let wait = if a.wait == b.wait { a.wait } else { Wait::Ready };
                    self.others[i] = Group { pc: a.pc, mask: a.mask | b.mask, wait };
                    self.others.swap_remove(j);
                } else {
                    j += 1;
                }
            }
            i += 1;
        }
        let live = self.live;
        for group in &mut self.others {
            if let Wait::Lanes(needed) = group.wait
                && group.mask & needed == needed & live
            {
                group.wait = Wait::Ready;
            }
        }
    }
}

impl Wait {
    fn merges(self) -> bool {
        matches!(self, Wait::Ready | Wait::Yielded | Wait::Lanes(_))
    }
}
