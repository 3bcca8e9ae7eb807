//! Bulk copies, plain and by tensor map, in both directions.

use std::collections::VecDeque;

use super::tma::TensorMapDesc;
use super::{Action, Pending};
use crate::fault::{Exec, FaultKind, MemorySpace};
use crate::inst::{AtomOp, Bulk, BulkReduce, Inst, Op, Space, Strength, Ty};
use crate::machine::atomics::{combine, update_global};
use crate::machine::cta::Cta;
use crate::machine::execute::{Flow, space_of};
use crate::machine::warp::Warp;
use crate::memory::{PARAM_WINDOW, SHARED_BASE};
use crate::race::{AccessKind, BULK, Races};

/// Bytes that move together: an offset in shared memory, and an address in global memory unless the
/// run lies outside of the tensor.
#[derive(Debug, Clone, Copy)]
struct Run {
    shared: u32,
    global: Option<u64>,
    bytes: u32,
}

#[derive(Debug)]
pub(crate) struct Transfer {
    runs: Vec<Run>,
    reduce: BulkReduce,
}

impl Transfer {
    /// Offset and length of every run in shared memory.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (usize, u32)> {
        self.runs.iter().map(|r| (r.shared as usize, r.bytes))
    }
}

/// Bulk stores of a warp: the queue's clock, and the clock at each commit not yet waited for.
#[derive(Debug, Default)]
pub(crate) struct BulkQueue {
    issued: u32,
    groups: VecDeque<u32>,
}

impl Cta<'_> {
    pub(crate) fn bulk(&mut self, w: &mut Warp, i: &Inst, m: u32) -> Exec<Flow> {
        match i.op {
            Op::Bulk(bulk) => {
                for lane in (0..32).filter(|l| m >> l & 1 == 1) {
                    self.bulk_lane(w, i, lane, bulk).map_err(|mut trap| {
                        trap.lane = trap.lane.or(Some(lane as u32));
                        trap
                    })?;
                }
            }
            Op::BulkCommit => {
                let queue = &mut self.bulk[w.id as usize];
                queue.groups.push_back(queue.issued);
            }
            _ => {
                let queue = &mut self.bulk[w.id as usize];
                let mut until = None;
                while queue.groups.len() as i64 > i.imm {
                    until = queue.groups.pop_front();
                }
                if let Some(clock) = until {
                    self.wait_bulk(w.id, clock)?;
                }
            }
        }
        Ok(Flow::Next)
    }

    fn wait_bulk(&mut self, warp: u32, until: u32) -> Exec {
        let mut at = 0;
        while at < self.pending.len() {
            let pending = &self.pending[at];
            if pending.warp == warp && matches!(pending.action, Action::Store { clock, .. } if clock <= until)
            {
                let pending = self.pending.remove(at);
                self.complete(pending)?;
            } else {
                at += 1;
            }
        }
        if let Some(races) = &mut self.races {
            races.waited(warp, Races::queue(warp, BULK), until);
        }
        Ok(())
    }

    fn bulk_lane(&mut self, w: &Warp, i: &Inst, lane: usize, bulk: Bulk) -> Exec {
        let shared = self.shared_addresses(w, i.c, bulk.wide_shared, 0)[lane];
        let global = self.addresses(w, i.a, bulk.wide_global, i.imm)[lane];
        let kernel = self.kernel;
        let list = kernel.list(i);
        let rank = usize::from(bulk.rank);
        let runs = if rank == 0 {
            let bytes = w.regs.word(i.b)[lane];
            self.plain_runs(shared, global, bytes)?
        } else {
            let map = self.tensor_map(global)?;
            if map.rank != u32::from(bulk.rank) {
                let (what, got, needed) = ("rank of the tensor map", map.rank.into(), rank as u64);
                return Err(FaultKind::BulkCopy { what, got, needed }.into());
            }
            map.check_shared(shared)?;
            let mut coordinates = [0; 5];
            for (coordinate, &slot) in coordinates.iter_mut().zip(&list[..rank]) {
                *coordinate = w.regs.word(slot)[lane] as i32;
            }
            map.check_start(&coordinates, !bulk.to_shared)?;
            self.tensor_runs(&map, &coordinates, shared)?
        };
        if bulk.multicast && w.regs.word(list[rank + 1])[lane] & 0xffff != 1 {
            let (what, got) =
                ("multicast mask in a cluster of one", w.regs.word(list[rank + 1])[lane].into());
            return Err(FaultKind::BulkCopy { what, got, needed: 1 }.into());
        }
        let transfer = Transfer { runs, reduce: bulk.reduce };
        if bulk.to_shared {
            let mbarrier = self.shared_addresses(w, list[rank], bulk.wide_mbarrier, 0)[lane];
            self.issue_load(w, transfer, mbarrier)
        } else {
            self.issue_store(w, transfer)
        }
    }

    fn plain_runs(&mut self, shared: u64, global: u64, bytes: u32) -> Exec<Vec<Run>> {
        Self::require_multiple("size of a bulk copy", bytes.into(), 16)?;
        Self::require_multiple("shared address of a bulk copy", shared, 16)?;
        Self::require_multiple("global address of a bulk copy", global, 16)?;
        let offset = self.shared.offset(shared, bytes, 16)? as u32;
        let run = |at: u32| Run { shared: offset + at, global: Some(global + u64::from(at)), bytes: 16 };
        Ok((0..bytes).step_by(16).map(run).collect())
    }

    /// What a box copies. All of a tensor lies in the allocation in which its map begins.
    fn tensor_runs(&mut self, map: &TensorMapDesc, coordinates: &[i32; 5], shared: u64) -> Exec<Vec<Run>> {
        let (index, _) = self.view.locate(map.base, 1).ok_or(FaultKind::TensorMapBase { base: map.base })?;
        let allocation = self.view.allocation(index);
        let (tensor, tensor_end) = (allocation.base, allocation.base + allocation.bytes);
        let (first, end) = (u64::from(SHARED_BASE), self.shared_end());
        let mut runs = Vec::new();
        let mut outside = None;
        map.for_each_run(coordinates, shared as u32, |address, global, bytes| {
            let at = u64::from(address);
            let out = |space, address| Some(FaultKind::OutOfBounds { space, address, bytes });
            if outside.is_none() && (at < first || at + u64::from(bytes) > end) {
                outside = out(MemorySpace::Shared, at);
            }
            if let Some(from) = global
                && outside.is_none()
                && (from < tensor || from.saturating_add(bytes.into()) > tensor_end)
            {
                outside = out(MemorySpace::Global, from);
            }
            runs.push(Run { shared: address.wrapping_sub(SHARED_BASE), global, bytes });
        });
        outside.map_or(Ok(runs), |kind| Err(kind.into()))
    }

    /// Reads a tensor map from a parameter, or from global memory.
    fn tensor_map(&mut self, address: u64) -> Exec<TensorMapDesc> {
        Self::require_multiple("address of a tensor map", address, 64)?;
        let mut bytes = [0; 128];
        let space = space_of(address);
        if space == Space::Param || address < self.grid.params.len() as u64 {
            let offset = if space == Space::Param { address - PARAM_WINDOW } else { address } as usize;
            let data = offset.checked_add(128).and_then(|end| self.grid.params.get(offset..end));
            let out = FaultKind::OutOfBounds { space: MemorySpace::Param, address, bytes: 128 };
            bytes.copy_from_slice(data.ok_or(out)?);
        } else if space == Space::Global {
            let out = FaultKind::OutOfBounds { space: MemorySpace::Global, address, bytes: 128 };
            let (index, offset) = self.view.locate(address, 128).ok_or(out)?;
            self.view.allocation(index).storage.read(offset, &mut bytes);
        } else {
            return Err(FaultKind::InvalidOperand { what: "address of a tensor map", got: address }.into());
        }
        let map = TensorMapDesc::from_bytes(&bytes);
        map.map_err(|error| FaultKind::TensorMap { error }.into())
    }

    fn issue_load(&mut self, w: &Warp, transfer: Transfer, mbarrier: u64) -> Exec {
        self.shared.offset(mbarrier, 8, 8)?;
        let mbarrier = mbarrier as u32;
        self.mbarrier_for_proxy(mbarrier)?;
        let clock = self.mbarriers.get(mbarrier)?.phase() + 1;
        let mut actor = 0;
        let mut loaded = 0u64;
        if let Some(races) = &mut self.races {
            actor = races.mbarrier_actor(mbarrier);
            let written = races.by_queue((actor, clock), w.id, true, AccessKind::Write, transfer.ranges());
            written.map_err(|(_, kind)| kind)?;
        }
        for run in &transfer.runs {
            if let Some(address) = run.global {
                loaded += u64::from(run.bytes);
                self.check_global(address, run.bytes, self.grid.options.check_initialised)?;
                self.global_race(w.id, 1, &[address; 32], run.bytes, Strength::Weak, false)?;
            }
        }
        self.counters.global_load_bytes += loaded;
        self.counters.global_load_sectors += loaded.div_ceil(32);
        let action = Action::Load { transfer, mbarrier, actor, clock };
        self.submit(Pending { warp: w.id, pc: w.pc, action })
    }

    fn issue_store(&mut self, w: &Warp, transfer: Transfer) -> Exec {
        let queue = &mut self.bulk[w.id as usize];
        queue.issued += 1;
        let clock = queue.issued;
        let mut stored = 0u64;
        if let Some(races) = &mut self.races {
            let actor = (Races::queue(w.id, BULK), clock);
            let read = races.by_queue(actor, w.id, true, AccessKind::Read, transfer.ranges());
            read.map_err(|(_, kind)| kind)?;
        }
        for run in &transfer.runs {
            self.shared.check_init(run.shared as usize, run.bytes as usize)?;
            if let Some(address) = run.global {
                stored += u64::from(run.bytes);
                self.check_global(address, run.bytes, transfer.reduce != BulkReduce::None)?;
                if transfer.reduce == BulkReduce::None {
                    self.global_race(w.id, 1, &[address; 32], run.bytes, Strength::Weak, true)?;
                }
            }
        }
        self.counters.global_store_bytes += stored;
        self.counters.global_store_sectors += stored.div_ceil(32);
        self.submit(Pending { warp: w.id, pc: w.pc, action: Action::Store { transfer, clock } })
    }

    fn check_global(&mut self, address: u64, bytes: u32, initialised: bool) -> Exec {
        let space = MemorySpace::Global;
        let out = FaultKind::OutOfBounds { space, address, bytes };
        let (index, offset) = self.view.locate(address, bytes).ok_or(out)?;
        let storage = &self.view.allocation(index).storage;
        // Whole runs are aligned and asked for at once.
        let at_once = bytes == 16 && offset.is_multiple_of(16) && storage.initialised(offset, 16);
        if initialised && !at_once && !(0..bytes).all(|b| storage.initialised(offset + u64::from(b), 1)) {
            return Err(FaultKind::Uninitialised { space, address, bytes }.into());
        }
        Ok(())
    }

    /// Moves a load's bytes; returns how many count at the mbarrier.
    pub(super) fn transfer_in(&mut self, transfer: &Transfer) -> Exec<i64> {
        let mut total = 0;
        for run in &transfer.runs {
            let mut data = [0; 16];
            let data = &mut data[..run.bytes as usize];
            if let Some(address) = run.global {
                let out = FaultKind::OutOfBounds { space: MemorySpace::Global, address, bytes: run.bytes };
                let (index, offset) = self.view.locate(address, run.bytes).ok_or(out)?;
                self.view.allocation(index).storage.read_words(offset, data);
            }
            self.shared.put(run.shared as usize, data);
            total += i64::from(run.bytes);
        }
        Ok(total)
    }

    pub(super) fn transfer_out(&mut self, transfer: &Transfer) -> Exec {
        for run in &transfer.runs {
            let Some(address) = run.global else { continue };
            let data = self.shared.slice(run.shared as usize, run.bytes as usize);
            let (op, ty) = match transfer.reduce {
                BulkReduce::None => {
                    let out =
                        FaultKind::OutOfBounds { space: MemorySpace::Global, address, bytes: run.bytes };
                    let (index, offset) = self.view.locate(address, run.bytes).ok_or(out)?;
                    self.view.allocation(index).storage.write(offset, data);
                    continue;
                }
                BulkReduce::Add(ty) => (AtomOp::Add, ty),
                BulkReduce::Min(ty) => (AtomOp::Min, ty),
                BulkReduce::Max(ty) => (AtomOp::Max, ty),
            };
            reduce_run(&mut self.view, address, data, op, ty)?;
        }
        Ok(())
    }
}

/// Combines a run with global memory element by element.
fn reduce_run(view: &mut crate::memory::view::View, address: u64, data: &[u8], op: AtomOp, ty: Ty) -> Exec {
    let bytes = ty.bytes() as usize;
    for (index, element) in data.chunks_exact(bytes).enumerate() {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(element);
        let value = u64::from_le_bytes(value);
        let at = address + (index * bytes) as u64;
        update_global(view, at, ty.bytes(), 0, false, |old| combine(op, ty, old, value))?;
    }
    Ok(())
}
