//! Order of accesses to tensor memory. `tcgen05` orders almost nothing by itself: a load is over at `tcgen05.wait::ld`, a
//! store at `tcgen05.wait::st`, an `mma` when somebody has waited for a commit behind it; and across threads two fences
//! stand around whatever synchronises them, `before_thread_sync` and `after_thread_sync`.
//!
//! So each warp has four views of what everyone did: what is over as far as it knows; the part of that which was handed
//! to it from behind a first fence; what it may rely on, since it waited for it itself or met a second fence after it was
//! handed; and what it hands on. An access conflicts with an earlier one unless the third view has that. The first two are
//! there to say what is missing.
//!
//! Accesses cover sixteen lanes of a column at a time: no shape of a load, a store or an `mma` cuts that in two. What one
//! lane waits for, or fences, counts for its whole warp.

use super::clocks::{Clocks, Epoch};
use crate::fault::{Accessor, Actor, FaultKind, TensorOrderProblem};
use crate::tensor_memory::cells::{GROUPS, UNITS, Unit};

/// What a synchronisation object hands on of accesses to tensor memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct TensorEdge {
    /// Over, as far as those who release know.
    known: Clocks,
    /// The part of it that stands before a `tcgen05.fence::before_thread_sync`.
    handed: Clocks,
}

impl TensorEdge {
    /// A commit arrives: the issuer's operations up to `clock` are over, and so is what they came after. It stands for
    /// a fence.
    pub(crate) fn complete(&mut self, done: &TensorEdge) {
        self.known.join(&done.known);
        self.handed.join(&done.handed);
    }
}

#[derive(Debug, Clone, Default)]
struct View {
    known: Clocks,
    acquired: Clocks,
    ordered: Clocks,
    handed: Clocks,
}

/// Accumulators that one `mma` after the other adds to: those of one thread keep their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Address of D.
    pub address: u32,
    pub m: u32,
    pub n: u32,
}

/// Last accesses to sixteen lanes of a column.
#[derive(Debug, Clone, Default)]
struct Cell {
    writer: Epoch,
    /// Of the writer, if it was an `mma`.
    chain: Option<Chain>,
    readers: Vec<Epoch>,
}

/// An access that is about to happen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TensorAccess {
    pub warp: u32,
    pub actor: u32,
    pub clock: u32,
    pub is_write: bool,
    pub chain: Option<Chain>,
}

#[derive(Debug)]
pub(crate) struct TensorOrder {
    views: Vec<View>,
    /// Operations issued by each actor, loads and stores.
    issued: Vec<u32>,
    /// Threads that issued an `mma`, with what they relied on at the last.
    issuers: Vec<(Actor, Clocks)>,
    /// Empty until tensor memory is used.
    cells: Vec<Cell>,
}

impl TensorOrder {
    pub(super) fn new(warps: usize) -> Self {
        Self {
            views: vec![View::default(); warps],
            issued: vec![0; 2 * warps],
            issuers: Vec::new(),
            cells: Vec::new(),
        }
    }

    /// The actor for a warp's loads or stores.
    fn queue(warp: u32, is_store: bool) -> u32 {
        2 * warp + u32::from(is_store)
    }

    /// The actor for the `mma` of one thread.
    fn issuer(&mut self, warp: u32, lane: u32) -> u32 {
        let actor = Actor::TensorMma { warp, lane };
        let index = self.issuers.iter().position(|(other, _)| *other == actor).unwrap_or_else(|| {
            self.issuers.push((actor, Clocks::default()));
            self.issuers.len() - 1
        });
        (self.issued.len() + index) as u32
    }

    fn name(&self, actor: u32) -> Actor {
        match (actor as usize).checked_sub(self.issued.len()) {
            Some(issuer) => self.issuers[issuer].0,
            None if actor.is_multiple_of(2) => Actor::TensorLoad(actor / 2),
            None => Actor::TensorStore(actor / 2),
        }
    }

    /// A warp loads or stores.
    pub(crate) fn by_warp(
        &mut self,
        warp: u32,
        is_store: bool,
        units: impl Iterator<Item = Unit>,
    ) -> Result<(), FaultKind> {
        let actor = Self::queue(warp, is_store);
        self.issued[actor as usize] += 1;
        let clock = self.issued[actor as usize];
        self.access(TensorAccess { warp, actor, clock, is_write: is_store, chain: None }, units)
    }

    /// An `mma`, the `clock`th of its thread, reads A or works on D.
    pub(crate) fn by_mma(
        &mut self,
        (warp, lane, clock): (u32, u32, u32),
        chain: Option<Chain>,
        units: impl Iterator<Item = Unit>,
    ) -> Result<(), FaultKind> {
        let actor = self.issuer(warp, lane);
        let relied_on = self.views[warp as usize].ordered.clone();
        self.issuers[actor as usize - self.issued.len()].1 = relied_on;
        self.access(TensorAccess { warp, actor, clock, is_write: chain.is_some(), chain }, units)
    }

    fn access(&mut self, by: TensorAccess, units: impl Iterator<Item = Unit>) -> Result<(), FaultKind> {
        self.cells.resize(UNITS, Cell::default());
        for unit in units {
            let cell = &self.cells[unit.index()];
            let epoch = Epoch { actor: by.actor, clock: by.clock };
            let ordered = &self.views[by.warp as usize].ordered;
            let follows = |earlier: Epoch| earlier == epoch || ordered.get(earlier.actor) >= earlier.clock;
            let writer = cell.writer;
            let in_chain = by.chain.is_some() && by.chain == cell.chain && writer.actor == by.actor;
            if writer.clock != 0 && !in_chain && !follows(writer) {
                return Err(self.conflict(by, writer, true, unit));
            }
            if by.is_write
                && let Some(&reader) = cell.readers.iter().find(|&&reader| !follows(reader))
            {
                return Err(self.conflict(by, reader, false, unit));
            }
            let cell = &mut self.cells[unit.index()];
            if by.is_write {
                (cell.writer, cell.chain) = (epoch, by.chain);
                cell.readers.clear();
            } else {
                cell.readers
                    .retain(|reader| reader.actor != by.actor && ordered.get(reader.actor) < reader.clock);
                cell.readers.push(epoch);
            }
        }
        Ok(())
    }

    /// Columns are given back. That is no asynchronous operation: all accesses must be over and synchronised with, but
    /// no fence is asked for. Nothing is left of what was done there.
    pub(crate) fn free(&mut self, warp: u32, units: impl Iterator<Item = Unit>) -> Result<(), FaultKind> {
        self.cells.resize(UNITS, Cell::default());
        for unit in units {
            let cell = std::mem::take(&mut self.cells[unit.index()]);
            let known = &self.views[warp as usize].known;
            let is_over = |epoch: &Epoch| epoch.clock == 0 || known.get(epoch.actor) >= epoch.clock;
            let late = cell.readers.iter().find(|reader| !is_over(reader)).map(|&reader| (reader, false));
            if let Some((late, is_write)) = (!is_over(&cell.writer)).then_some((cell.writer, true)).or(late) {
                let current = Accessor { actor: Actor::TensorDealloc(warp), is_write: true };
                let previous = Accessor { actor: self.name(late.actor), is_write };
                let missing = self.missing(warp, late);
                return Err(FaultKind::TensorOrder { address: unit.address(), current, previous, missing });
            }
        }
        Ok(())
    }

    #[cold]
    fn conflict(&self, by: TensorAccess, previous: Epoch, is_write: bool, unit: Unit) -> FaultKind {
        let current = Accessor { actor: self.name(by.actor), is_write: by.is_write };
        let missing = self.missing(by.warp, previous);
        let previous = Accessor { actor: self.name(previous.actor), is_write };
        FaultKind::TensorOrder { address: unit.address(), current, previous, missing }
    }

    /// What keeps `warp` from relying on an earlier access.
    fn missing(&self, warp: u32, previous: Epoch) -> TensorOrderProblem {
        let view = &self.views[warp as usize];
        let has = |clocks: &Clocks| clocks.get(previous.actor) >= previous.clock;
        match self.name(previous.actor) {
            _ if has(&view.acquired) => TensorOrderProblem::AfterThreadSync,
            _ if has(&view.known) => TensorOrderProblem::BeforeThreadSync,
            Actor::TensorLoad(other) if other == warp => TensorOrderProblem::WaitLoad,
            Actor::TensorStore(other) if other == warp => TensorOrderProblem::WaitStore,
            Actor::TensorMma { .. } => TensorOrderProblem::Commit,
            _ => TensorOrderProblem::Synchronisation,
        }
    }

    /// `tcgen05.wait::ld` or `tcgen05.wait::st`.
    pub(crate) fn waited(&mut self, warp: u32, is_store: bool) {
        let actor = Self::queue(warp, is_store);
        let clock = self.issued[actor as usize];
        let view = &mut self.views[warp as usize];
        view.known.raise(actor, clock);
        view.ordered.raise(actor, clock);
    }

    pub(crate) fn fence_before(&mut self, warp: u32) {
        let View { ordered, handed, .. } = &mut self.views[warp as usize];
        handed.join(ordered);
    }

    pub(crate) fn fence_after(&mut self, warp: u32) {
        let View { acquired, ordered, .. } = &mut self.views[warp as usize];
        ordered.join(acquired);
    }

    /// What is over once the `mma` of a thread up to `clock` are.
    pub(crate) fn over_with(&mut self, warp: u32, lane: u32, clock: u32) -> TensorEdge {
        let actor = self.issuer(warp, lane);
        let mut done = self.issuers[actor as usize - self.issued.len()].1.clone();
        done.raise(actor, clock);
        TensorEdge { known: done.clone(), handed: done }
    }

    pub(super) fn release(&self, warp: u32, edge: &mut TensorEdge) {
        let view = &self.views[warp as usize];
        edge.known.join(&view.known);
        edge.handed.join(&view.handed);
    }

    pub(super) fn acquire(&mut self, warp: u32, edge: &TensorEdge) {
        let view = &mut self.views[warp as usize];
        view.known.join(&edge.known);
        view.acquired.join(&edge.handed);
    }
}

const _: () = assert!(GROUPS * 16 == 128, "sixteen lanes are the unit of every access");
