//! `tcgen05.alloc`, `dealloc` and `relinquish_alloc_permit`.
//!
//! The CTAs of a multiprocessor share its 512 columns, and an allocation waits until there are enough. Here a CTA runs
//! alone. So that no kernel hangs on being so, a neighbour holds columns in front of its first allocation, unless
//! operations complete as early as they can: the address is not 0 then, the neighbour leaves only when the CTA waits
//! for something, and an allocation of all columns has to wait for that.

use super::cells::{COLUMNS, GROUPS, Place, Unit};
use super::{fault, uniform};
use crate::asynchronous::{Action, Pending};
use crate::fault::{Exec, FaultKind, TensorMemoryProblem};
use crate::inst::Inst;
use crate::machine::cta::Cta;
use crate::machine::execute::Flow;
use crate::machine::warp::{Wait, Warp};
use crate::options::Completion;

/// Columns that are allocated at once, at the least.
const UNIT: u32 = 32;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Allocation {
    first: u32,
    pub columns: u32,
    /// Who made it, and with which instruction.
    pub warp: u32,
    pub pc: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Allocations {
    list: Vec<Allocation>,
    /// Columns of another CTA: from 0 up to this one.
    neighbour: u32,
    /// Columns asked for last.
    latest: Option<u32>,
    relinquished: bool,
}

impl Allocations {
    pub(super) fn relinquish(&mut self) {
        self.relinquished = true;
    }

    /// The other CTA has given its columns back.
    pub(crate) fn neighbour_left(&mut self) {
        self.neighbour = 0;
    }

    /// What was never given back.
    pub(crate) fn leaked(&self) -> Option<Allocation> {
        self.list.first().copied()
    }

    /// The first column of the lowest place with room for so many.
    fn place(&self, columns: u32) -> Option<u32> {
        let is_free = |first: u32| {
            let overlaps = |a: &Allocation| a.first < first + columns && first < a.first + a.columns;
            first >= self.neighbour && !self.list.iter().any(overlaps)
        };
        (0..=COLUMNS - columns).step_by(UNIT as usize).find(|&first| is_free(first))
    }

    pub(crate) fn has_room(&self, columns: u32) -> bool {
        self.place(columns).is_some()
    }

    fn check(&self, columns: u32) -> Result<(), FaultKind> {
        check_count(columns)?;
        if self.relinquished {
            return Err(fault(TensorMemoryProblem::PermitRelinquished));
        }
        match self.latest {
            Some(before) if columns > before => {
                Err(fault(TensorMemoryProblem::AllocationGrew { columns, before }))
            }
            _ => Ok(()),
        }
    }

    /// Fails unless a range of columns belongs to one allocation of the CTA.
    pub(super) fn check_range(&self, at: Place, columns: u32) -> Result<(), FaultKind> {
        if at.column >= COLUMNS || columns > COLUMNS - at.column || at.lane >= super::cells::LANES {
            return Err(fault(TensorMemoryProblem::OutOfRange { address: at.address(), columns }));
        }
        let holds = |column: u32| self.list.iter().any(|a| (a.first..a.first + a.columns).contains(&column));
        match (at.column..at.column + columns).find(|&column| !holds(column)) {
            Some(column) => Err(fault(TensorMemoryProblem::ColumnNotAllocated { column })),
            None => Ok(()),
        }
    }
}

fn check_count(columns: u32) -> Result<(), FaultKind> {
    if columns.is_power_of_two() && (UNIT..=COLUMNS).contains(&columns) {
        return Ok(());
    }
    Err(fault(TensorMemoryProblem::ColumnCount { columns }))
}

impl Cta<'_> {
    pub(super) fn tensor_alloc(&mut self, w: &Warp, i: &Inst, wide_address: bool) -> Exec<Flow> {
        let columns = uniform(w.regs.word(i.b))?;
        self.tensor_memory.allocations.check(columns)?;
        let to = self.shared_addresses(w, i.a, wide_address, i.imm);
        if to.iter().any(|address| *address != to[0]) {
            return Err(fault(TensorMemoryProblem::OperandsDiffer).into());
        }
        let to = self.shared.offset(to[0], 4, 4)?;
        if self.tensor_memory.allocations.latest.is_none() {
            self.tensor_memory.allocations.latest = Some(columns);
            self.neighbour_comes(w, columns);
        }
        let Some(first) = self.tensor_memory.allocations.place(columns) else {
            return Ok(Flow::Wait(Wait::TensorMemory(columns)));
        };
        // An ordinary store, but for its order with what its own warp does at that address.
        if let Some(races) = &mut self.races {
            races.by_warp(w.id, to, 4)?;
        }
        self.shared.put(to, &Place { lane: 0, column: first }.address().to_le_bytes());
        let allocations = &mut self.tensor_memory.allocations;
        allocations.latest = Some(columns);
        allocations.list.push(Allocation { first, columns, warp: w.id, pc: w.pc });
        self.tensor_memory.cells.provide(first, columns);
        self.events += 1;
        Ok(Flow::Next)
    }

    /// Another CTA holds columns when this one first asks for some.
    fn neighbour_comes(&mut self, w: &Warp, columns: u32) {
        let held = match self.grid.options.completion {
            Completion::Earliest => 0,
            // As much as leaves room, or a little too much where that would be nothing.
            Completion::Latest => (COLUMNS - columns).max(UNIT),
            Completion::Random => UNIT * self.rng.below((COLUMNS / UNIT + 1) as usize) as u32,
        };
        self.tensor_memory.allocations.neighbour = held;
        if held > 0 {
            self.pending.push(Pending { warp: w.id, pc: w.pc, action: Action::NeighbourLeaves });
        }
    }

    pub(super) fn tensor_dealloc(&mut self, w: &Warp, i: &Inst) -> Exec {
        let address = uniform(w.regs.word(i.a))?;
        let columns = uniform(w.regs.word(i.b))?;
        check_count(columns)?;
        let place = Place::of(address);
        let allocations = &self.tensor_memory.allocations;
        let index = allocations.list.iter().position(|a| place.lane == 0 && a.first == place.column);
        let Some(index) = index else {
            return Err(fault(TensorMemoryProblem::NotAllocated { address }).into());
        };
        let allocated = allocations.list[index].columns;
        if columns != allocated {
            return Err(fault(TensorMemoryProblem::DeallocatedSize { columns, allocated }).into());
        }
        if let Some(races) = &mut self.races {
            let units = (place.column..place.column + columns)
                .flat_map(|column| (0..GROUPS).map(move |group| Unit { column, group }));
            races.tensor.free(w.id, units)?;
        }
        self.tensor_memory.allocations.list.swap_remove(index);
        self.events += 1;
        Ok(())
    }
}
