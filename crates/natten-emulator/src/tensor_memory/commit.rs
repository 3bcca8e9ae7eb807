//! `tcgen05.commit`: an arrival at an mbarrier once the `mma` that a thread issued before are over.

use crate::asynchronous::{Action, Pending};
use crate::fault::Exec;
use crate::inst::Inst;
use crate::machine::cta::Cta;
use crate::machine::warp::Warp;
use crate::race::tensor::TensorEdge;
use crate::race::{AccessKind, Clocks};

/// A commit on its way.
#[derive(Debug)]
pub(crate) struct Commit {
    mbarrier: u32,
    /// Of whose operations it tells, and up to which; nobody's if the thread had issued none.
    issuer: Option<(usize, u32)>,
    /// The actor of their reads from shared memory.
    actor: u32,
    /// What is over then of tensor memory.
    done: TensorEdge,
    /// And of copies to shared memory, which they came after.
    copied: Clocks,
}

impl Cta<'_> {
    pub(super) fn tensor_commit(&mut self, w: &Warp, i: &Inst, m: u32, wide_address: bool) -> Exec {
        let addresses = self.shared_addresses(w, i.a, wide_address, i.imm);
        for lane in (0..32).filter(|l| m >> l & 1 == 1) {
            let offset = self.shared.offset(addresses[lane], 8, 8).map_err(|kind| kind.lane(lane))?;
            let mbarrier = addresses[lane] as u32;
            self.mbarriers.get(mbarrier).map_err(|kind| kind.lane(lane))?;
            let issuer = self.tensor_memory.mmas.issuer(w.id, lane as u32);
            let (done, copied) = (TensorEdge::default(), Clocks::default());
            let mut commit = Commit { mbarrier, issuer, actor: 0, done, copied };
            if let Some(races) = &mut self.races {
                races.by_lane(w.id, lane, offset, 8, AccessKind::Atomic)?;
                if let Some((_, clock)) = issuer {
                    commit.actor = races.mma_actor(w.id, lane as u32);
                    commit.done = races.tensor.over_with(w.id, lane as u32, clock);
                    commit.copied = races.copied_before(commit.actor);
                }
            }
            self.submit(Pending { warp: w.id, pc: w.pc, action: Action::TensorCommit(commit) })?;
        }
        Ok(())
    }

    /// The operations are over, and the mbarrier hears of it.
    pub(crate) fn complete_commit(&mut self, commit: &Commit) -> Exec {
        if let Some((issuer, clock)) = commit.issuer {
            self.land_all(issuer, clock);
        }
        let barrier = self.mbarriers.get(commit.mbarrier)?;
        if let Some((_, clock)) = commit.issuer {
            let gathering = barrier.gathering();
            gathering.complete(commit.actor, clock);
            gathering.complete_all(&commit.copied);
            gathering.tensor.complete(&commit.done);
        }
        barrier.arrive(1).map_err(Box::<crate::fault::Trap>::from)
    }
}
