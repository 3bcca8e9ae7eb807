//! Races on shared memory, found by vector clocks (after FastTrack).
//!
//! Every warp has a clock. So has each queue of asynchronous work: operations complete in the order
//! their waits speak of (groups of a warp, phases of an mbarrier), so one clock per queue says
//! exactly which of them a waiter may rely on. An access is recorded when it is issued, whenever it
//! takes effect; it is a race if the last conflicting access is not in what the issuer knows.
//!
//! Two views are kept of what is known: everything, and that part which a proxy fence made visible
//! to the asynchronous proxy. Asynchronous accesses see ordinary writes only through the latter.

use std::collections::HashMap;

use crate::fault::{Accessor, Actor, Exec, FaultKind, MemorySpace};
use crate::memory::SHARED_BASE;
use crate::scalar::Wides;

/// How an access takes part in races.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessKind {
    Read,
    Write,
    /// Atomic, volatile or relaxed: such accesses do not race with each other.
    Atomic,
}

/// Clock values by actor; missing ones are zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Clocks(Vec<u32>);

impl Clocks {
    fn get(&self, actor: u32) -> u32 {
        self.0.get(actor as usize).copied().unwrap_or(0)
    }

    fn raise(&mut self, actor: u32, clock: u32) {
        if self.0.len() <= actor as usize {
            self.0.resize(actor as usize + 1, 0);
        }
        let entry = &mut self.0[actor as usize];
        *entry = (*entry).max(clock);
    }

    fn join(&mut self, other: &Clocks) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }
}

/// What a synchronisation object hands from those who release to those who acquire.
#[derive(Debug, Clone, Default)]
pub(crate) struct Edge {
    known: Clocks,
    proxied: Clocks,
}

impl Edge {
    /// Adds the completion of an asynchronous operation.
    pub(crate) fn complete(&mut self, actor: u32, clock: u32) {
        self.known.raise(actor, clock);
        self.proxied.raise(actor, clock);
    }
}

#[derive(Debug, Clone, Default)]
struct WarpClocks {
    known: Clocks,
    proxied: Clocks,
    /// Executed a memory fence, so that a later relaxed store or atomic releases.
    fenced: bool,
}

/// Actor and clock of an access; clock zero means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Epoch {
    actor: u32,
    clock: u32,
}

/// Last accesses to four bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    write: Epoch,
    /// The only reader since the last write, unless `readers` says there are more.
    read: Epoch,
    /// Index + 1 into the table of reader lists.
    readers: u32,
    write_bytes: u8,
    read_bytes: u8,
    atomic: bool,
}

/// Queues of a warp, each an actor: ordinary accesses, cp.async, bulk stores, wgmma.
const KINDS: u32 = 4;
pub(crate) const COPIES: u32 = 1;
pub(crate) const BULK: u32 = 2;
pub(crate) const WGMMA: u32 = 3;

#[derive(Debug)]
pub(crate) struct Races {
    warps: Vec<WarpClocks>,
    cells: Vec<Cell>,
    /// Clock of the last read by each actor, for cells with several readers. Only warps' queues read.
    lists: Vec<Vec<u32>>,
    free_lists: Vec<u32>,
    /// Edges through single addresses: flags and locks.
    variables: HashMap<u64, Edge>,
    /// Shared address of each mbarrier that became an actor.
    mbarriers: Vec<u32>,
}

impl Races {
    pub(crate) fn new(warps: usize, shared_bytes: usize) -> Self {
        let clocks = |w: usize| {
            let mut own = WarpClocks::default();
            own.known.raise(KINDS * w as u32, 1);
            own
        };
        Self {
            warps: (0..warps).map(clocks).collect(),
            cells: vec![Cell::default(); shared_bytes.div_ceil(4)],
            lists: Vec::new(),
            free_lists: Vec::new(),
            variables: HashMap::new(),
            mbarriers: Vec::new(),
        }
    }

    /// The actor for one of a warp's queues.
    pub(crate) fn queue(warp: u32, kind: u32) -> u32 {
        KINDS * warp + kind
    }

    /// The actor for bulk loads that complete on an mbarrier.
    pub(crate) fn mbarrier_actor(&mut self, address: u32) -> u32 {
        let index = match self.mbarriers.iter().position(|&a| a == address) {
            Some(index) => index,
            None => {
                self.mbarriers.push(address);
                self.mbarriers.len() - 1
            }
        };
        KINDS * self.warps.len() as u32 + index as u32
    }

    fn name(&self, actor: u32) -> Actor {
        let warps = self.warps.len() as u32;
        if actor >= KINDS * warps {
            let index = (actor - KINDS * warps) as usize;
            return Actor::BulkLoad(self.mbarriers.get(index).copied().unwrap_or(0));
        }
        let warp = actor / KINDS;
        match actor % KINDS {
            COPIES => Actor::CpAsync(warp),
            BULK => Actor::BulkStore(warp),
            WGMMA => Actor::Wgmma(warp),
            _ => Actor::Warp(warp),
        }
    }

    /// An ordinary access by a warp to `bytes` bytes at `offset`.
    pub(crate) fn by_warp(
        &mut self,
        warp: u32,
        offset: usize,
        bytes: u32,
        kind: AccessKind,
    ) -> Result<(), FaultKind> {
        self.access(self.epoch(warp), warp, false, offset, bytes, kind)
    }

    fn epoch(&self, warp: u32) -> Epoch {
        let actor = Self::queue(warp, 0);
        Epoch { actor, clock: self.warps[warp as usize].known.get(actor) }
    }

    /// Ordinary accesses of `bytes` bytes by lanes of a warp, at checked shared addresses.
    pub(crate) fn by_lanes(
        &mut self,
        warp: u32,
        m: u32,
        addresses: &Wides,
        bytes: u32,
        kind: AccessKind,
    ) -> Exec {
        let epoch = self.epoch(warp);
        let mut previous = u64::MAX;
        for lane in 0..32 {
            // Lanes that share an address, as in a broadcast, need only one look.
            if m >> lane & 1 == 1 && addresses[lane] != previous {
                previous = addresses[lane];
                let offset = (addresses[lane] - u64::from(SHARED_BASE)) as usize;
                self.access(epoch, warp, false, offset, bytes, kind).map_err(|kind| kind.lane(lane))?;
            }
        }
        Ok(())
    }

    /// An access by asynchronous work that `warp` issued. `proxy`: through the asynchronous proxy.
    pub(crate) fn by_queue(
        &mut self,
        (actor, clock): (u32, u32),
        warp: u32,
        proxy: bool,
        offset: usize,
        bytes: u32,
        kind: AccessKind,
    ) -> Result<(), FaultKind> {
        self.access(Epoch { actor, clock }, warp, proxy, offset, bytes, kind)
    }

    #[inline(always)]
    fn access(
        &mut self,
        epoch: Epoch,
        warp: u32,
        proxy: bool,
        offset: usize,
        bytes: u32,
        kind: AccessKind,
    ) -> Result<(), FaultKind> {
        let end = offset + bytes as usize;
        for index in offset / 4..end.div_ceil(4) {
            let low = offset.max(4 * index) - 4 * index;
            let high = end.min(4 * index + 4) - 4 * index;
            let mask = ((1u32 << high) - (1 << low)) as u8;
            if !self.repeated(index, epoch, mask, kind) {
                self.check(index, epoch, warp, proxy, mask, kind)?;
                self.record(index, epoch, warp, mask, kind);
            }
        }
        Ok(())
    }

    /// The same access again, the commonest case: nothing new can follow from it.
    #[inline(always)]
    fn repeated(&self, index: usize, epoch: Epoch, mask: u8, kind: AccessKind) -> bool {
        let cell = &self.cells[index];
        match kind {
            AccessKind::Read if mask & !cell.read_bytes != 0 => false,
            AccessKind::Read if cell.readers == 0 => cell.read == epoch,
            AccessKind::Read => {
                self.lists[cell.readers as usize - 1].get(epoch.actor as usize) == Some(&epoch.clock)
            }
            AccessKind::Write => {
                cell.write == epoch
                    && cell.write_bytes == mask
                    && !cell.atomic
                    && cell.read.clock == 0
                    && cell.readers == 0
            }
            AccessKind::Atomic => false,
        }
    }

    /// Fails if an earlier conflicting access is not ordered before this one.
    fn check(
        &self,
        index: usize,
        epoch: Epoch,
        warp: u32,
        proxy: bool,
        mask: u8,
        kind: AccessKind,
    ) -> Result<(), FaultKind> {
        let cell = &self.cells[index];
        let clocks = &self.warps[warp as usize];
        let both_atomic = kind == AccessKind::Atomic && cell.atomic;
        let ordinary = |e: Epoch| e.actor < KINDS * self.warps.len() as u32 && e.actor % KINDS <= COPIES;
        let conflict = |previous: Epoch, is_write: bool| {
            let address = u64::from(SHARED_BASE) + 4 * index as u64;
            let current = Accessor { actor: self.name(epoch.actor), is_write: kind != AccessKind::Read };
            let previous_accessor = Accessor { actor: self.name(previous.actor), is_write };
            if clocks.known.get(previous.actor) >= previous.clock && previous.actor != epoch.actor {
                FaultKind::MissingProxyFence { address, current, previous: previous_accessor }
            } else {
                FaultKind::Race { space: MemorySpace::Shared, address, current, previous: previous_accessor }
            }
        };
        if cell.write.clock != 0
            && cell.write_bytes & mask != 0
            && !both_atomic
            && cell.write.actor != epoch.actor
        {
            let known = clocks.known.get(cell.write.actor) >= cell.write.clock;
            let fenced =
                !proxy || !ordinary(cell.write) || clocks.proxied.get(cell.write.actor) >= cell.write.clock;
            if !known || !fenced {
                return Err(conflict(cell.write, true));
            }
        }
        // Work of one asynchronous queue is unordered within itself when it writes.
        if cell.write.actor == epoch.actor
            && cell.write.clock != 0
            && cell.write_bytes & mask != 0
            && kind == AccessKind::Write
            && !self.is_warp(epoch.actor)
            && clocks.known.get(epoch.actor) < cell.write.clock
            && cell.write.clock != epoch.clock
        {
            return Err(conflict(cell.write, true));
        }
        if kind == AccessKind::Read || cell.read_bytes & mask == 0 {
            return Ok(());
        }
        let late = |e: &Epoch| e.clock != 0 && e.actor != epoch.actor && clocks.known.get(e.actor) < e.clock;
        let reader = match cell.readers {
            0 => Some(cell.read).filter(late),
            n => {
                let list = self.lists[n as usize - 1].iter().enumerate();
                list.map(|(actor, &clock)| Epoch { actor: actor as u32, clock }).find(late)
            }
        };
        reader.map_or(Ok(()), |reader| Err(conflict(reader, false)))
    }

    fn is_warp(&self, actor: u32) -> bool {
        actor < KINDS * self.warps.len() as u32 && actor.is_multiple_of(KINDS)
    }

    fn record(&mut self, index: usize, epoch: Epoch, warp: u32, mask: u8, kind: AccessKind) {
        let cell = &mut self.cells[index];
        if kind != AccessKind::Read {
            let same = cell.write == epoch && cell.atomic == (kind == AccessKind::Atomic);
            cell.write_bytes = if same { cell.write_bytes | mask } else { mask };
            cell.write = epoch;
            cell.atomic = kind == AccessKind::Atomic;
            if mask & cell.read_bytes == cell.read_bytes {
                if cell.readers != 0 {
                    self.free_lists.push(cell.readers);
                }
                cell.read = Epoch::default();
                cell.readers = 0;
                cell.read_bytes = 0;
            }
            return;
        }
        cell.read_bytes |= mask;
        if cell.readers != 0 {
            self.lists[cell.readers as usize - 1][epoch.actor as usize] = epoch.clock;
            return;
        }
        let before = cell.read;
        let ordered = before.clock == 0
            || before.actor == epoch.actor
            || self.warps[warp as usize].known.get(before.actor) >= before.clock;
        if ordered {
            cell.read = epoch;
        } else {
            let index = self.free_lists.pop().unwrap_or_else(|| {
                self.lists.push(Vec::new());
                self.lists.len() as u32
            });
            let list = &mut self.lists[index as usize - 1];
            list.clear();
            list.resize(KINDS as usize * self.warps.len(), 0);
            list[before.actor as usize] = before.clock;
            list[epoch.actor as usize] = epoch.clock;
            cell.readers = index;
        }
    }

    /// Hands what the warp knows to a synchronisation object, and starts a new time for the warp.
    pub(crate) fn release(&mut self, warp: u32, edge: &mut Edge) {
        let clocks = &mut self.warps[warp as usize];
        edge.known.join(&clocks.known);
        edge.proxied.join(&clocks.proxied);
        let actor = Self::queue(warp, 0);
        let now = clocks.known.get(actor);
        clocks.known.raise(actor, now + 1);
    }

    pub(crate) fn acquire(&mut self, warp: u32, edge: &Edge) {
        let clocks = &mut self.warps[warp as usize];
        clocks.known.join(&edge.known);
        clocks.proxied.join(&edge.proxied);
    }

    /// The warp waited for work of a queue up to `clock`.
    pub(crate) fn waited(&mut self, warp: u32, actor: u32, clock: u32) {
        let clocks = &mut self.warps[warp as usize];
        clocks.known.raise(actor, clock);
        // Work of the asynchronous proxy needs no further fence; cp.async is ordinary and does.
        if actor % KINDS != COPIES || actor >= KINDS * self.warps.len() as u32 {
            self.warps[warp as usize].proxied.raise(actor, clock);
        }
    }

    /// `fence.proxy.async`: what the warp knows now is visible to the asynchronous proxy.
    pub(crate) fn proxy_fence(&mut self, warp: u32) {
        let clocks = &mut self.warps[warp as usize];
        let known = clocks.known.clone();
        clocks.proxied.join(&known);
        // Stores after the fence are of a new time, which the fence does not cover.
        let actor = Self::queue(warp, 0);
        let now = clocks.known.get(actor);
        clocks.known.raise(actor, now + 1);
    }

    pub(crate) fn memory_fence(&mut self, warp: u32) {
        self.warps[warp as usize].fenced = true;
    }

    pub(crate) fn fenced(&self, warp: u32) -> bool {
        self.warps[warp as usize].fenced
    }

    pub(crate) fn release_at(&mut self, warp: u32, address: u64) {
        let mut edge = self.variables.remove(&address).unwrap_or_default();
        self.release(warp, &mut edge);
        self.variables.insert(address, edge);
    }

    pub(crate) fn acquire_at(&mut self, warp: u32, address: u64) {
        if let Some(edge) = self.variables.get(&address) {
            let clocks = &mut self.warps[warp as usize];
            clocks.known.join(&edge.known);
            clocks.proxied.join(&edge.proxied);
        }
    }
}
