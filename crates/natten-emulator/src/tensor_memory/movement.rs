//! `tcgen05.ld` and `tcgen05.st`: which cell each register of each lane of a warp holds.

use super::cells::{LANES, Place, Unit, Written};
use super::{fault, uniform};
use crate::fault::{Exec, FaultKind, TensorMemoryProblem};
use crate::inst::{Inst, Movement, MovementShape};
use crate::machine::cta::Cta;
use crate::machine::warp::Warp;
use crate::scalar::Lanes;

/// Sixteen lanes of the warp's quarter at a time: the shapes of 16 lanes move one such part.
const PART: usize = 16;

impl MovementShape {
    /// Lanes of tensor memory that it covers.
    fn lanes(self) -> u32 {
        if self == Self::L32B32 { 32 } else { 16 }
    }

    /// Columns of 32 bits that one repetition takes, of either part where there are two.
    fn columns(self) -> u32 {
        match self {
            Self::L32B32 | Self::L16B32X2 { .. } => 1,
            Self::L16B64 => 2,
            Self::L16B128 => 4,
            Self::L16B256 => 8,
        }
    }

    /// Lane and column, from the first of each, that register `register` of lane `lane` holds.
    fn cell(self, register: usize, lane: usize) -> (usize, usize) {
        let (row, t) = (lane / 4, lane % 4);
        match self {
            Self::L32B32 => (lane, register),
            // Lanes take turns between rows 0 to 7 and 8 to 15, and pairs of them between two columns.
            Self::L16B64 => (row + 8 * (t % 2), 2 * register + t / 2),
            // Two registers for rows 0 to 7 and rows 8 to 15, as accumulators of `mma.sync` lie.
            Self::L16B128 => (row + 8 * (register % 2), 4 * (register / 2) + t),
            // The same with two neighbours to a lane.
            Self::L16B256 => {
                let (repeat, register) = (register / 4, register % 4);
                (row + 8 * (register / 2), 8 * repeat + 2 * t + register % 2)
            }
            Self::L16B32X2 { split } => {
                (lane % PART, register + if lane < PART { 0 } else { split as usize })
            }
        }
    }
}

impl Movement {
    /// Columns of tensor memory from the first one on, and those of a second part.
    fn ranges(self) -> [(u32, u32); 2] {
        let columns = self.shape.columns() * u32::from(self.repeats) * if self.halves { 2 } else { 1 };
        match self.shape {
            MovementShape::L16B32X2 { split } => [(0, columns), (split, columns)],
            _ => [(0, columns), (0, 0)],
        }
    }

    /// The first place of the access, if all of it is the warp's to touch.
    fn place(self, w: &Warp, address: u32) -> Result<Place, FaultKind> {
        let (place, warp) = (Place::of(address), w.id % 4);
        let lane = place.lane;
        let refuse = |problem| Err(fault(problem));
        if lane >= LANES {
            let (_, columns) = self.ranges()[0];
            return refuse(TensorMemoryProblem::OutOfRange { address, columns });
        }
        if lane / 32 != warp {
            return refuse(TensorMemoryProblem::ForeignLane { lane, warp });
        }
        let alignment = self.shape.lanes();
        if !lane.is_multiple_of(alignment) {
            return refuse(TensorMemoryProblem::LaneAlignment { lane, alignment });
        }
        Ok(place)
    }

    fn units(self, place: Place) -> impl Iterator<Item = Unit> + Clone {
        let (first, count) = (place.lane / 16, self.shape.lanes() / 16);
        self.ranges().into_iter().flat_map(move |(offset, columns)| {
            let start = place.column + offset;
            (start..start + columns)
                .flat_map(move |column| (first..first + count).map(move |group| Unit { column, group }))
        })
    }
}

impl Cta<'_> {
    /// Bounds, initialisation and order of an access; where it begins.
    fn tensor_access(&mut self, w: &Warp, i: &Inst, movement: Movement, is_store: bool) -> Exec<Place> {
        let address = uniform(w.regs.word(i.a))?.wrapping_add(i.imm as u32);
        let place = movement.place(w, address)?;
        for (offset, columns) in movement.ranges() {
            let column = place.column.saturating_add(offset);
            self.tensor_memory.allocations.check_range(Place { column, ..place }, columns)?;
        }
        let units = movement.units(place);
        if !is_store {
            for unit in units.clone() {
                self.tensor_memory.cells.check_written(unit, Written::Halves)?;
            }
        }
        if let Some(races) = &mut self.races {
            races.tensor.by_warp(w.id, is_store, units)?;
        }
        Ok(place)
    }

    pub(super) fn tensor_load(&mut self, w: &mut Warp, i: &Inst, movement: Movement) -> Exec {
        let place = self.tensor_access(w, i, movement, false)?;
        let kernel = self.kernel;
        let list = kernel.list(i);
        let cells = &self.tensor_memory.cells;
        let word = |lane: usize, column: usize| {
            let lane = place.lane as usize + lane;
            let unit = Unit { column: place.column + column as u32, group: lane as u32 / 16 };
            cells.read(unit)[lane % 16]
        };
        for (register, &slot) in list.iter().enumerate() {
            let value: Lanes = std::array::from_fn(|lane| match movement.shape.cell(register, lane) {
                (at, column) if movement.halves => {
                    word(at, 2 * column) & 0xffff | word(at, 2 * column + 1) << 16
                }
                (at, column) => word(at, column),
            });
            w.regs.set_word(slot, !0, &value);
        }
        w.loading.issue(list);
        Ok(())
    }

    pub(super) fn tensor_store(&mut self, w: &Warp, i: &Inst, movement: Movement) -> Exec {
        let place = self.tensor_access(w, i, movement, true)?;
        let kernel = self.kernel;
        let cells = &mut self.tensor_memory.cells;
        let at = |lane: usize, column: usize| {
            let lane = place.lane as usize + lane;
            (Unit { column: place.column + column as u32, group: lane as u32 / 16 }, lane % 16)
        };
        for (register, &slot) in kernel.list(i).iter().enumerate() {
            let value = w.regs.word(slot);
            for (lane, &value) in value.iter().enumerate() {
                let (to, column) = movement.shape.cell(register, lane);
                if movement.halves {
                    let ((low, lane), (high, _)) = (at(to, 2 * column), at(to, 2 * column + 1));
                    cells.set_half(low, lane, value & 0xffff);
                    cells.set_half(high, lane, value >> 16);
                } else {
                    let (unit, lane) = at(to, column);
                    cells.set(unit, lane, value);
                }
            }
        }
        let written = if movement.halves { Written::Halves } else { Written::Words };
        movement.units(place).for_each(|unit| cells.mark(unit, written));
        self.events += 1;
        Ok(())
    }
}
