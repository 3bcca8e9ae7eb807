//! Vector clocks: what a warp, or a synchronisation object, knows of everyone's past.

/// Clock values by actor; missing ones are zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Clocks(Vec<u32>);

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

/// What a synchronisation object hands from those who release to those who acquire.
#[derive(Debug, Clone, Default)]
pub(crate) struct Edge {
    pub(super) known: Clocks,
    pub(super) proxied: Clocks,
}

impl Edge {
    /// Adds the completion of an asynchronous operation.
    pub(crate) fn complete(&mut self, actor: u32, clock: u32) {
        self.known.raise(actor, clock);
        self.proxied.raise(actor, clock);
    }
}

/// A warp's own view.
#[derive(Debug, Clone, Default)]
pub(super) struct WarpClocks {
    pub known: Clocks,
    /// The part of it that a proxy fence made visible to the asynchronous proxy.
    pub proxied: Clocks,
    /// Executed a memory fence, so that a later relaxed store or atomic releases.
    pub fenced: bool,
}
