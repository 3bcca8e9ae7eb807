//! Asynchronous copies and the mbarriers they complete on. An operation is checked, and recorded for
//! the race checker, when it is issued; when it takes effect is the adversary's choice.

pub(crate) mod bulk;
pub(crate) mod cp_async;
pub(crate) mod mbarrier;
pub(crate) mod tma;

use crate::fault::{Exec, FaultKind};
use crate::machine::cta::Cta;
use crate::machine::warp::Warp;
use crate::memory::{SHARED_WINDOW, WINDOW_BYTES};
use crate::options::Completion;
use crate::race::{COPIES, Races};
use crate::scalar::Wides;
use crate::tensor_memory::commit::Commit;
use bulk::Transfer;

/// An operation issued and not yet done.
#[derive(Debug)]
pub(crate) struct Pending {
    /// Who issued it, and with which instruction.
    pub warp: u32,
    pub pc: u32,
    pub action: Action,
}

#[derive(Debug)]
pub(crate) enum Action {
    /// Global to shared memory; then bytes arrive at the mbarrier.
    Load { transfer: Transfer, mbarrier: u32, actor: u32, clock: u32 },
    /// Shared to global memory; `clock` is its place in the warp's queue of bulk stores.
    Store { transfer: Transfer, clock: u32 },
    /// An arrival once the warp's copies up to `clock` have landed.
    CopyArrival { clock: u32, mbarrier: u32 },
    /// An arrival once the operations of a thread are over.
    TensorCommit(Commit),
    /// Another CTA of the multiprocessor gives its tensor memory back.
    NeighbourLeaves,
}

impl Cta<'_> {
    /// Completes the operation now or keeps it, as the options say.
    pub(crate) fn submit(&mut self, pending: Pending) -> Exec {
        let now = match self.grid.options.completion {
            Completion::Earliest => true,
            Completion::Latest => false,
            Completion::Random => self.rng.below(3) == 0,
        };
        if now {
            return self.complete(pending);
        }
        if let Action::Load { transfer, .. } = &pending.action {
            for (offset, bytes) in transfer.ranges() {
                self.shared.forget(offset, bytes as usize);
            }
        }
        self.pending.push(pending);
        Ok(())
    }

    /// The operation takes effect.
    pub(crate) fn complete(&mut self, pending: Pending) -> Exec {
        self.events += 1;
        match pending.action {
            Action::Load { transfer, mbarrier, actor, clock } => {
                let bytes = self.transfer_in(&transfer)?;
                let barrier = self.mbarriers.get(mbarrier)?;
                barrier.gathering().complete(actor, clock);
                barrier.complete_bytes(bytes).map_err(Box::<crate::fault::Trap>::from)
            }
            Action::Store { transfer, .. } => self.transfer_out(&transfer),
            Action::CopyArrival { clock, mbarrier } => {
                self.land_copies(pending.warp, clock)?;
                let barrier = self.mbarriers.get(mbarrier)?;
                barrier.gathering().complete(Races::queue(pending.warp, COPIES), clock);
                barrier.arrive(1).map_err(Box::<crate::fault::Trap>::from)
            }
            Action::TensorCommit(commit) => self.complete_commit(&commit),
            Action::NeighbourLeaves => {
                self.tensor_memory.allocations.neighbour_left();
                Ok(())
            }
        }
    }

    /// Addresses in shared memory, whether given as such or as generic ones.
    pub(crate) fn shared_addresses(&self, w: &Warp, slot: u32, wide: bool, offset: i64) -> Wides {
        let addresses = self.addresses(w, slot, wide, offset);
        crate::scalar::map(&addresses, |a| {
            if a.wrapping_sub(SHARED_WINDOW) < WINDOW_BYTES { a - SHARED_WINDOW } else { a }
        })
    }

    /// A bulk copy's property that must be a multiple of something.
    pub(crate) fn require_multiple(what: &'static str, got: u64, needed: u64) -> Result<(), FaultKind> {
        if got.is_multiple_of(needed) { Ok(()) } else { Err(FaultKind::BulkCopy { what, got, needed }) }
    }
}
