//! Vector clocks: what a warp, or a synchronisation object, knows of everyone's past.

use super::tensor::TensorEdge;

/// Clock values by actor; missing ones are zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Clocks(Vec<u32>);

impl Clocks {
    #[inline]
    pub(super) fn get(&self, actor: u32) -> u32 {
        self.0.get(actor as usize).copied().unwrap_or(0)
    }

    pub(super) fn raise(&mut self, actor: u32, clock: u32) {
        if self.0.len() <= actor as usize {
            self.0.resize(actor as usize + 1, 0);
        }
        let entry = &mut self.0[actor as usize];
        *entry = (*entry).max(clock);
    }

    /// Joins all but one actor's clock.
    pub(super) fn join_except(&mut self, other: &Clocks, actor: u32) {
        let mine = self.get(actor);
        self.join(other);
        if let Some(clock) = self.0.get_mut(actor as usize) {
            *clock = mine;
        }
    }

    /// Joins the clocks of actors from this number on.
    pub(super) fn join_from(&mut self, other: &Clocks, first: u32) {
        for (actor, &clock) in other.0.iter().enumerate().skip(first as usize) {
            self.raise(actor as u32, clock);
        }
    }

    pub(super) fn join(&mut self, other: &Clocks) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }
}

/// Actor and clock of an access; clock zero means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Epoch {
    pub actor: u32,
    pub clock: u32,
}

/// What is known of single lanes of a warp: these of them, up to this time. Two such pieces of knowledge are joined to
/// one that covers both, and perhaps more.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SomeLanes {
    pub lanes: u32,
    pub clock: u32,
}

/// By warp.
#[derive(Debug, Clone, Default)]
pub(super) struct LaneClocks(Vec<SomeLanes>);

impl LaneClocks {
    #[inline]
    pub(super) fn get(&self, warp: u32) -> SomeLanes {
        self.0.get(warp as usize).copied().unwrap_or_default()
    }

    pub(super) fn raise(&mut self, warp: u32, some: SomeLanes) {
        if self.0.len() <= warp as usize {
            self.0.resize(warp as usize + 1, SomeLanes::default());
        }
        let mine = &mut self.0[warp as usize];
        *mine = SomeLanes { lanes: mine.lanes | some.lanes, clock: mine.clock.max(some.clock) };
    }

    pub(super) fn join(&mut self, other: &LaneClocks) {
        for (warp, &some) in other.0.iter().enumerate().filter(|(_, some)| some.clock != 0) {
            self.raise(warp as u32, some);
        }
    }
}

/// What a synchronisation object hands from those who release to those who acquire.
#[derive(Debug, Clone, Default)]
pub(crate) struct Edge {
    pub(super) known: Clocks,
    pub(super) of_lanes: LaneClocks,
    pub(super) proxied: Clocks,
    /// What it hands on of accesses to tensor memory.
    pub(crate) tensor: TensorEdge,
}

impl Edge {
    /// Adds the completion of an asynchronous operation.
    pub(crate) fn complete(&mut self, actor: u32, clock: u32) {
        self.known.raise(actor, clock);
        self.proxied.raise(actor, clock);
    }

    /// Adds asynchronous operations that came before one that is complete.
    pub(crate) fn complete_all(&mut self, done: &Clocks) {
        self.known.join(done);
        self.proxied.join(done);
    }
}

/// A warp's own view.
#[derive(Debug, Clone, Default)]
pub(super) struct WarpClocks {
    /// Of a warp, what all its lanes did.
    pub known: Clocks,
    /// And what only some of them vouched for.
    pub of_lanes: LaneClocks,
    /// The part of it that a proxy fence made visible to the asynchronous proxy.
    pub proxied: Clocks,
    /// Executed a memory fence, so that a later relaxed store or atomic releases.
    pub fenced: bool,
}
