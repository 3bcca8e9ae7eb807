//! Races on shared memory, found by vector clocks (after FastTrack).
//!
//! Every warp has a clock. So has each queue of asynchronous work: operations complete in the order
//! their waits speak of (groups of a warp, phases of an mbarrier), so one clock per queue says
//! exactly which of them a waiter may rely on. An access is recorded when it is issued, whenever it
//! takes effect; it is a race if the last conflicting access is not in what the issuer knows.
//!
//! Two views are kept of what is known: everything, and that part which a proxy fence made visible
//! to the asynchronous proxy. Asynchronous accesses see ordinary writes only through the latter.
//!
//! Clocks are of warps: what one lane acquires counts for its whole warp. What one lane releases is what
//! its warp did until its lanes last met, and what that lane did since. Order among the lanes of a warp is
//! a matter of its own ([`lanes`]), and so is which of them accessed a cell.

mod clocks;
pub(crate) mod global;
mod lanes;
mod readers;
pub(crate) mod tensor;

use std::collections::HashMap;

use crate::fault::{Accessor, Actor, Exec, FaultKind, MemorySpace};
use crate::memory::SHARED_BASE;
use crate::scalar::Lanes;
pub(crate) use clocks::{Clocks, Edge};
use clocks::{Epoch, SomeLanes, WarpClocks};
use lanes::{LaneOrder, Touch};
use readers::{NOBODY, Readers};
use tensor::TensorOrder;

/// How an access takes part in races.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessKind {
    Read,
    Write,
    /// Atomic, volatile or relaxed: such accesses do not race with each other.
    Atomic,
}

/// Last accesses to four bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cell {
    /// Who wrote, at clock zero if nobody did.
    actor: u32,
    clock: u32,
    /// Number of the set of readers since.
    readers: u32,
    /// A bit for each byte written, and [`ATOMIC`].
    bytes: u32,
}

/// Bit of [`Cell::bytes`]: the write was atomic.
const ATOMIC: u32 = 1 << 31;

impl Cell {
    fn writer(&self) -> Epoch {
        Epoch { actor: self.actor, clock: self.clock }
    }
}

/// Who accesses, and how.
#[derive(Debug, Clone, Copy)]
struct By {
    epoch: Epoch,
    /// The warp whose knowledge counts: it issued the access.
    warp: u32,
    /// Through the asynchronous proxy.
    proxy: bool,
    kind: AccessKind,
}

/// A step just taken: neighbouring cells mostly have the same past, and the same becomes of them.
#[derive(Debug, Clone, Copy)]
struct Step {
    before: Cell,
    mask: u32,
    after: Cell,
}

impl Step {
    /// Fits no access.
    const NONE: Step = {
        let cell = Cell { actor: 0, clock: 0, readers: NOBODY, bytes: 0 };
        Step { before: cell, mask: 0, after: cell }
    };
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
    readers: Readers,
    lanes: LaneOrder,
    /// Edges through single addresses: flags and locks.
    variables: HashMap<u64, Edge>,
    /// Actors that are no queue of a warp, numbered behind those.
    others: Vec<Actor>,
    /// Of the last `tcgen05.mma` of each actor: the copies that its issuer had waited for.
    copied_before: HashMap<u32, Clocks>,
    pub(crate) tensor: TensorOrder,
    /// The last check hung on which lanes had accessed the cell.
    asked_lanes: bool,
}

impl Races {
    pub(crate) fn new(warps: usize, shared_bytes: usize) -> Self {
        let clocks = |w: usize| {
            let mut own = WarpClocks::default();
            own.known.raise(KINDS * w as u32, 1);
            own
        };
        let cells = shared_bytes.div_ceil(4);
        Self {
            warps: (0..warps).map(clocks).collect(),
            cells: vec![Cell::default(); cells],
            readers: Readers::default(),
            lanes: LaneOrder::new(warps, cells),
            variables: HashMap::new(),
            others: Vec::new(),
            copied_before: HashMap::new(),
            tensor: TensorOrder::new(warps),
            asked_lanes: false,
        }
    }

    /// The actor for one of a warp's queues.
    pub(crate) fn queue(warp: u32, kind: u32) -> u32 {
        KINDS * warp + kind
    }

    /// The actor for bulk loads that complete on an mbarrier.
    pub(crate) fn mbarrier_actor(&mut self, address: u32) -> u32 {
        self.other(Actor::BulkLoad(address))
    }

    /// The actor for what the `tcgen05.mma` of one thread read.
    pub(crate) fn mma_actor(&mut self, warp: u32, lane: u32) -> u32 {
        self.other(Actor::TensorMma { warp, lane })
    }

    /// A `tcgen05.mma` of an actor is issued by a warp: it comes after the copies that the warp has waited for.
    pub(crate) fn mma_issued(&mut self, actor: u32, warp: u32) {
        let first = KINDS * self.warps.len() as u32;
        let known = &self.warps[warp as usize].known;
        self.copied_before.entry(actor).or_default().join_from(known, first);
    }

    /// What is over once the last `tcgen05.mma` of an actor is, of copies to shared memory.
    pub(crate) fn copied_before(&self, actor: u32) -> Clocks {
        self.copied_before.get(&actor).cloned().unwrap_or_default()
    }

    fn other(&mut self, actor: Actor) -> u32 {
        let index = self.others.iter().position(|&other| other == actor).unwrap_or_else(|| {
            self.others.push(actor);
            self.others.len() - 1
        });
        KINDS * self.warps.len() as u32 + index as u32
    }

    fn name(&self, actor: u32) -> Actor {
        let warps = self.warps.len() as u32;
        if actor >= KINDS * warps {
            let index = (actor - KINDS * warps) as usize;
            return self.others.get(index).copied().unwrap_or(Actor::BulkLoad(0));
        }
        let warp = actor / KINDS;
        match actor % KINDS {
            COPIES => Actor::CpAsync(warp),
            BULK => Actor::BulkStore(warp),
            WGMMA => Actor::Wgmma(warp),
            _ => Actor::Warp(warp),
        }
    }

    fn now(&self, warp: u32) -> u32 {
        self.warps[warp as usize].known.get(Self::queue(warp, 0))
    }

    fn by(&self, warp: u32, kind: AccessKind) -> By {
        By { epoch: Epoch { actor: Self::queue(warp, 0), clock: self.now(warp) }, warp, proxy: false, kind }
    }

    /// An ordinary access by one lane of a warp to `bytes` bytes at `offset`.
    pub(crate) fn by_lane(
        &mut self,
        warp: u32,
        lane: usize,
        offset: usize,
        bytes: u32,
        kind: AccessKind,
    ) -> Exec {
        self.by_lanes(warp, 1 << lane, &[offset as u32; 32], bytes, kind, false)
    }

    /// Ordinary accesses of `bytes` bytes by lanes of a warp, at checked offsets. `collective`: the data belong to the
    /// warp, the lanes give addresses only.
    pub(crate) fn by_lanes(
        &mut self,
        warp: u32,
        m: u32,
        offsets: &Lanes,
        bytes: u32,
        kind: AccessKind,
        collective: bool,
    ) -> Exec {
        let by = self.by(warp, kind);
        let mut step = Step::NONE;
        let mut previous = u32::MAX;
        for lane in 0..32 {
            // Lanes that share an address, as in a broadcast, need only one look.
            if m >> lane & 1 == 1 && offsets[lane] != previous {
                previous = offsets[lane];
                let offset = previous as usize;
                // Single words are so common that their loop of one is unrolled.
                let result = if bytes == 4 {
                    self.access(by, offset, 4, &mut step)
                } else {
                    self.access(by, offset, bytes, &mut step)
                };
                result.map_err(|kind| kind.lane(lane))?;
            }
        }
        let touch = Touch { warp, bytes, kind, collective };
        self.lanes.request(touch, m, offsets).map_err(|(lane, cell, other)| {
            let of_lane = |lane: u32| Actor::Lane { warp, lane };
            let current = Accessor { actor: of_lane(lane as u32), is_write: kind != AccessKind::Read };
            let actor = other.map_or(Actor::Warp(warp), of_lane);
            let (space, address) = (MemorySpace::Shared, u64::from(SHARED_BASE) + 4 * cell as u64);
            // Of a write the other side may have been a read; it is named as what makes it a race.
            let previous = Accessor { actor, is_write: kind == AccessKind::Read };
            FaultKind::Race { space, address, current, previous }.lane(lane)
        })
    }

    /// A write by an instruction that orders it before and after what its own warp does there.
    pub(crate) fn by_warp(&mut self, warp: u32, offset: usize, bytes: u32) -> Result<(), FaultKind> {
        self.access(self.by(warp, AccessKind::Write), offset, bytes, &mut Step::NONE.clone())
    }

    /// Accesses by asynchronous work that `warp` issued, to ranges given as offset and length; fails with the number of
    /// the range. `proxy`: through the asynchronous proxy.
    pub(crate) fn by_queue(
        &mut self,
        (actor, clock): (u32, u32),
        warp: u32,
        proxy: bool,
        kind: AccessKind,
        ranges: impl Iterator<Item = (usize, u32)>,
    ) -> Result<(), (usize, FaultKind)> {
        let by = By { epoch: Epoch { actor, clock }, warp, proxy, kind };
        let mut step = Step::NONE;
        for (number, (offset, bytes)) in ranges.enumerate() {
            self.access(by, offset, bytes, &mut step).map_err(|kind| (number, kind))?;
        }
        Ok(())
    }

    #[inline(always)]
    fn access(&mut self, by: By, offset: usize, bytes: u32, step: &mut Step) -> Result<(), FaultKind> {
        // Accesses are aligned to their length, or to 4 bytes where that is longer and no power of two.
        let (first, end) = (offset / 4, offset / 4 + bytes.div_ceil(4) as usize);
        let mask = if bytes >= 4 { 0xf } else { ((1u32 << bytes) - 1) << (offset % 4) };
        for index in first..end {
            let before = self.cells[index];
            if before != step.before || mask != step.mask {
                *step = self.step(by, before, mask, index)?;
            }
            self.cells[index] = step.after;
        }
        Ok(())
    }

    fn step(&mut self, by: By, before: Cell, mask: u32, index: usize) -> Result<Step, FaultKind> {
        self.asked_lanes = false;
        let after = self.follow(by, before, mask, index)?;
        // What hung on lanes holds for this cell alone. The cell is read again since a sweep renumbers sets.
        let mask = if self.asked_lanes { 0 } else { mask };
        Ok(Step { before: self.cells[index], mask, after })
    }

    /// What becomes of a cell; fails if an earlier conflicting access is not ordered before this one.
    fn follow(&mut self, by: By, before: Cell, mask: u32, index: usize) -> Result<Cell, FaultKind> {
        self.check_write(by, &before, mask, index)?;
        if by.kind == AccessKind::Read {
            if self.readers.is_crowded() {
                self.readers.sweep(self.cells.iter_mut().map(|cell| &mut cell.readers));
                let before = self.cells[index];
                return self.follow(by, before, mask, index);
            }
            let known = &self.warps[by.warp as usize].known;
            return Ok(Cell { readers: self.readers.join(before.readers, by.epoch, mask, known), ..before });
        }
        self.check_readers(by, before.readers, mask, index)?;
        let atomic = if by.kind == AccessKind::Atomic { ATOMIC } else { 0 };
        let same = before.writer() == by.epoch && before.bytes & ATOMIC == atomic;
        Ok(Cell {
            actor: by.epoch.actor,
            clock: by.epoch.clock,
            readers: if self.readers.set(before.readers).bytes & !mask == 0 {
                NOBODY
            } else {
                before.readers
            },
            bytes: if same { before.bytes | mask } else { mask | atomic },
        })
    }

    fn check_write(&mut self, by: By, cell: &Cell, mask: u32, index: usize) -> Result<(), FaultKind> {
        let writer = cell.writer();
        if writer.clock == 0 || cell.bytes & mask == 0 {
            return Ok(());
        }
        let clocks = &self.warps[by.warp as usize];
        let known = clocks.known.get(writer.actor) >= writer.clock;
        if writer.actor == by.epoch.actor {
            // Work of one asynchronous queue is unordered within itself when it writes.
            let unordered = by.kind == AccessKind::Write
                && !self.is_warp(writer.actor)
                && !known
                && writer.clock != by.epoch.clock;
            return if unordered { Err(self.conflict(by, writer, true, index)) } else { Ok(()) };
        }
        if by.kind == AccessKind::Atomic && cell.bytes & ATOMIC != 0 {
            return Ok(());
        }
        let ordinary = writer.actor < KINDS * self.warps.len() as u32 && writer.actor % KINDS <= COPIES;
        let fenced = !by.proxy || !ordinary || clocks.proxied.get(writer.actor) >= writer.clock;
        let known = known || self.vouched_for(by, writer, true, index);
        if known && fenced { Ok(()) } else { Err(self.conflict(by, writer, true, index)) }
    }

    fn check_readers(&mut self, by: By, readers: u32, mask: u32, index: usize) -> Result<(), FaultKind> {
        let set = self.readers.set(readers);
        if set.bytes & mask == 0 {
            return Ok(());
        }
        let known = &self.warps[by.warp as usize].known;
        let is_late = |e: Epoch| e.actor != by.epoch.actor && known.get(e.actor) < e.clock;
        let mut late =
            set.readers.iter().filter(|reader| reader.bytes & mask != 0 && is_late(reader.epoch)).peekable();
        if late.peek().is_none() {
            return Ok(());
        }
        let late: Vec<Epoch> = late.map(|reader| reader.epoch).collect();
        match late.into_iter().find(|&reader| !self.vouched_for(by, reader, false, index)) {
            Some(reader) => Err(self.conflict(by, reader, false, index)),
            None => Ok(()),
        }
    }

    /// Whether the lanes of `other`'s warp that accessed this cell are among those that handed it on.
    fn vouched_for(&mut self, by: By, other: Epoch, is_write: bool, index: usize) -> bool {
        if !self.is_warp(other.actor) {
            return false;
        }
        let warp = other.actor / KINDS;
        let some = self.warps[by.warp as usize].of_lanes.get(warp);
        self.asked_lanes = true;
        some.clock >= other.clock && self.lanes.touched_only_by(index, warp, some.lanes, is_write)
    }

    #[cold]
    fn conflict(&self, by: By, previous: Epoch, is_write: bool, index: usize) -> FaultKind {
        let address = u64::from(SHARED_BASE) + 4 * index as u64;
        let current = Accessor { actor: self.name(by.epoch.actor), is_write: by.kind != AccessKind::Read };
        let accessor = Accessor { actor: self.name(previous.actor), is_write };
        let known = self.warps[by.warp as usize].known.get(previous.actor) >= previous.clock;
        if known && previous.actor != by.epoch.actor {
            FaultKind::MissingProxyFence { address, current, previous: accessor }
        } else {
            FaultKind::Race { space: MemorySpace::Shared, address, current, previous: accessor }
        }
    }

    fn is_warp(&self, actor: u32) -> bool {
        actor < KINDS * self.warps.len() as u32 && actor.is_multiple_of(KINDS)
    }

    /// Hands what some of a warp's `live` lanes know to a synchronisation object, and starts a new time for the warp.
    pub(crate) fn release(&mut self, warp: u32, lanes: u32, live: u32, edge: &mut Edge) {
        let (actor, clock) = (Self::queue(warp, 0), self.now(warp));
        let clocks = &mut self.warps[warp as usize];
        edge.of_lanes.join(&clocks.of_lanes);
        edge.proxied.join(&clocks.proxied);
        self.tensor.release(warp, &mut edge.tensor);
        if lanes & live == live {
            edge.known.join(&clocks.known);
        } else {
            let met = self.lanes.since(warp) - 1;
            edge.known.join_except(&clocks.known, actor);
            edge.known.raise(actor, met);
            edge.of_lanes.raise(warp, SomeLanes { lanes, clock });
        }
        self.tick(warp);
    }

    fn tick(&mut self, warp: u32) {
        let now = self.now(warp);
        self.warps[warp as usize].known.raise(Self::queue(warp, 0), now + 1);
    }

    pub(crate) fn acquire(&mut self, warp: u32, edge: &Edge) {
        let clocks = &mut self.warps[warp as usize];
        clocks.known.join(&edge.known);
        clocks.proxied.join(&edge.proxied);
        clocks.of_lanes.join(&edge.of_lanes);
        self.tensor.acquire(warp, &edge.tensor);
        let since = self.lanes.since(warp);
        let some = edge.of_lanes.get(warp);
        let mut back = if some.clock >= since { some.lanes } else { 0 };
        if edge.known.get(Self::queue(warp, 0)) >= since {
            back = !0;
        }
        if self.lanes.returned(warp, back) {
            self.lanes_met(warp);
        }
    }

    /// The warp's lanes waited for each other, in an instruction that orders their memory accesses.
    pub(crate) fn lanes_met(&mut self, warp: u32) {
        self.tick(warp);
        let now = self.now(warp);
        self.lanes.meet(warp, now);
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
        clocks.proxied.join(&clocks.known);
        // Stores after the fence are of a new time, which the fence does not cover.
        self.tick(warp);
    }

    pub(crate) fn memory_fence(&mut self, warp: u32) {
        self.warps[warp as usize].fenced = true;
    }

    pub(crate) fn fenced(&self, warp: u32) -> bool {
        self.warps[warp as usize].fenced
    }

    pub(crate) fn release_at(&mut self, warp: u32, lane: usize, live: u32, address: u64) {
        let mut edge = self.variables.remove(&address).unwrap_or_default();
        self.release(warp, 1 << lane, live, &mut edge);
        self.variables.insert(address, edge);
    }

    pub(crate) fn acquire_at(&mut self, warp: u32, address: u64) {
        if let Some(edge) = self.variables.remove(&address) {
            self.acquire(warp, &edge);
            self.variables.insert(address, edge);
        }
    }
}
