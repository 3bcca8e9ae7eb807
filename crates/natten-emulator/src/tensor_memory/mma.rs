//! `tcgen05.mma.cta_group::1.kind::f16`: M x N accumulators in tensor memory plus an A of M x 16, from shared or tensor
//! memory, times a B of 16 x N from shared memory. One thread issues it.
//!
//! Row r of an operation of 128 rows is lane r. Of one with 64 rows, each warp's quarter of the lanes has sixteen, its
//! lower or its upper half of them as D's address says.

use super::cells::{Place, Unit, Written};
use super::descriptor::{self, Operation};
use super::fault;
use super::sum::{self, DEPTH, Split};
use crate::fault::{DescriptorProblem, Exec, FaultKind, MatrixOperand, TensorMemoryProblem};
use crate::inst::{Inst, TensorMma};
use crate::machine::cta::Cta;
use crate::machine::warp::Warp;
use crate::options::Completion;
use crate::race::AccessKind;
use crate::race::tensor::Chain;
use crate::tensor::element;
use crate::tensor::operand::Part;

/// A thread that issued operations, and how many.
#[derive(Debug)]
struct Issuer {
    warp: u32,
    lane: u32,
    issued: u32,
}

/// Operations that have not taken effect everywhere, by issuer in order.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    issuers: Vec<Issuer>,
    waiting: Vec<Issued>,
}

/// Where A lies.
#[derive(Debug, Clone, Copy)]
enum Left {
    /// All of its rows.
    Shared(Part),
    Tensor(Place),
}

#[derive(Debug, Clone, Copy)]
struct Issued {
    issuer: usize,
    /// Its number among the issuer's.
    clock: u32,
    operation: Operation,
    a: Left,
    b: Part,
    d: Place,
    /// D is added to, not replaced.
    accumulate: bool,
    /// A bit for each sixteen lanes in which it has not taken effect.
    groups: u8,
}

impl Queue {
    /// The number of a thread, and how many operations it has issued.
    pub(super) fn issuer(&self, warp: u32, lane: u32) -> Option<(usize, u32)> {
        let index = self.issuers.iter().position(|i| (i.warp, i.lane) == (warp, lane))?;
        Some((index, self.issuers[index].issued))
    }

    /// A thread issues one more.
    fn next(&mut self, warp: u32, lane: u32) -> (usize, u32) {
        let index = self.issuer(warp, lane).map_or(self.issuers.len(), |(index, _)| index);
        if index == self.issuers.len() {
            self.issuers.push(Issuer { warp, lane, issued: 0 });
        }
        self.issuers[index].issued += 1;
        (index, self.issuers[index].issued)
    }
}

impl Operation {
    /// Groups of sixteen lanes that hold rows, from D's first lane on.
    fn groups(self, first_lane: u32) -> u8 {
        if self.m == 128 { 0xff } else { 0x55 << (first_lane / 16) }
    }

    /// The first row of a group.
    fn first_row(self, group: u32) -> u32 {
        if self.m == 128 { 16 * group } else { group / 2 * 16 }
    }

    /// A matrix in shared memory, by its descriptor.
    fn part(self, descriptor: u64, operand: MatrixOperand) -> Result<Part, FaultKind> {
        let (index, count) = match operand {
            MatrixOperand::A => (0, self.m),
            MatrixOperand::B => (1, self.n),
        };
        let (ty, k_major) = (self.types[index], !self.transpose[index]);
        Ok(Part { descriptor: descriptor::matrix(descriptor, operand)?, ty, k_major, first: 0, count })
    }

    fn check_lane(self, place: Place) -> Result<(), FaultKind> {
        let lane = place.lane;
        let alignment = if self.m == 128 { 128 } else { 16 };
        if lane >= 32 || !lane.is_multiple_of(alignment) {
            return Err(fault(TensorMemoryProblem::LaneAlignment { lane, alignment }));
        }
        Ok(())
    }
}

/// Numbers of the bits that are set.
fn set_bits(groups: u8) -> impl Iterator<Item = u32> + Clone {
    (0..8).filter(move |group| groups >> group & 1 == 1)
}

fn units(groups: u8, column: u32, columns: u32) -> impl Iterator<Item = Unit> + Clone {
    (column..column + columns)
        .flat_map(move |column| set_bits(groups).map(move |group| Unit { column, group }))
}

/// Columns of A in tensor memory: two 16-bit elements to a word.
const A_COLUMNS: u32 = DEPTH as u32 / 2;

impl Cta<'_> {
    pub(super) fn issue_mma(&mut self, w: &Warp, i: &Inst, m: u32, mma: TensorMma) -> Exec {
        let lane = m.trailing_zeros();
        if m.count_ones() != 1 {
            let lanes = m.count_ones();
            return Err(fault(TensorMemoryProblem::SeveralIssuers { lanes }).into());
        }
        let mut issued = self.operands(w, i, lane as usize, mma)?;
        (issued.issuer, issued.clock) = self.tensor_memory.mmas.next(w.id, lane);
        self.check_tensor_operands(w, lane, &issued)?;
        self.check_shared_operands(w, lane, &issued)?;
        let (operation, groups) = (issued.operation, issued.groups);
        self.counters.mma_flops += 2 * u64::from(operation.m) * u64::from(operation.n) * DEPTH as u64;
        self.tensor_memory.mmas.waiting.push(issued);
        if self.grid.options.completion == Completion::Earliest {
            let last = self.tensor_memory.mmas.waiting.len() - 1;
            self.take_effect(last, groups);
            self.tensor_memory.mmas.waiting.retain(|issued| issued.groups != 0);
        }
        Ok(())
    }

    /// Reads and checks what the instruction names.
    fn operands(&self, w: &Warp, i: &Inst, lane: usize, mma: TensorMma) -> Result<Issued, FaultKind> {
        let list = self.kernel.list(i);
        let word = |at: usize| w.regs.word(list[at])[lane];
        let operation = Operation::decode(word(2))?;
        let d = Place::of(word(0).wrapping_add(word(1)));
        operation.check_lane(d)?;
        self.tensor_memory.allocations.check_range(d, operation.n)?;
        let a = if mma.a_in_tensor_memory {
            let place = Place::of(w.regs.word(i.a)[lane].wrapping_add(word(3)));
            self.check_a(place, d, operation, word(2))?;
            Left::Tensor(place)
        } else {
            Left::Shared(operation.part(w.regs.wide(i.a)[lane], MatrixOperand::A)?)
        };
        let b = operation.part(w.regs.wide(i.b)[lane], MatrixOperand::B)?;
        let accumulate = (w.regs.pred(i.c) >> lane & 1 == 1) != (i.imm != 0);
        let groups = operation.groups(d.lane);
        Ok(Issued { issuer: 0, clock: 0, operation, a, b, d, accumulate, groups })
    }

    /// An A in tensor memory lies in D's lanes, by rows.
    fn check_a(&self, a: Place, d: Place, operation: Operation, bits: u32) -> Result<(), FaultKind> {
        operation.check_lane(a)?;
        if a.lane != d.lane {
            return Err(fault(TensorMemoryProblem::LaneMismatch { a: a.lane, d: d.lane }));
        }
        if operation.transpose[0] {
            let problem = DescriptorProblem::Combination { what: "a transposed A in tensor memory" };
            return Err(FaultKind::InstructionDescriptor { bits, problem });
        }
        self.tensor_memory.allocations.check_range(a, A_COLUMNS)
    }

    /// Initialisation and order of what lies in tensor memory. D counts as written from here on: nobody may look at it
    /// before it is.
    fn check_tensor_operands(&mut self, w: &Warp, lane: u32, issued: &Issued) -> Exec {
        let Issued { operation, d, groups, .. } = *issued;
        let of_d = units(groups, d.column, operation.n);
        let cells = &mut self.tensor_memory.cells;
        let who = (w.id, lane, issued.clock);
        if let Left::Tensor(a) = issued.a {
            let of_a = units(groups, a.column, A_COLUMNS);
            for unit in of_a.clone() {
                cells.check_written(unit, Written::Words)?;
            }
            if let Some(races) = &mut self.races {
                races.tensor.by_mma(who, None, of_a)?;
            }
        }
        let of_each = if operation.half_accumulators { Written::Halves } else { Written::Words };
        for unit in of_d.clone() {
            if issued.accumulate {
                cells.check_written(unit, of_each)?;
            }
            cells.mark(unit, of_each);
        }
        if let Some(races) = &mut self.races {
            let chain = Chain { address: d.address(), m: operation.m, n: operation.n };
            races.tensor.by_mma(who, Some(chain), of_d)?;
        }
        Ok(())
    }

    /// Bounds, initialisation and races of what it reads from shared memory, through the asynchronous proxy.
    fn check_shared_operands(&mut self, w: &Warp, lane: u32, issued: &Issued) -> Exec {
        let a = match issued.a {
            Left::Shared(part) => Some(part),
            Left::Tensor(_) => None,
        };
        let mut offsets = Vec::with_capacity(1024);
        for part in a.into_iter().chain([issued.b]) {
            for (_, _, address) in part.chunks() {
                let offset = self.shared.offset(address.into(), 16, 16)?;
                self.shared.check_init(offset, 16)?;
                offsets.push(offset);
            }
        }
        if let Some(races) = &mut self.races {
            let actor = (races.mma_actor(w.id, lane), issued.clock);
            races.mma_issued(actor.0, w.id);
            let ranges = offsets.iter().map(|&offset| (offset, 16));
            races.by_queue(actor, w.id, true, AccessKind::Read, ranges).map_err(|(_, kind)| kind)?;
        }
        Ok(())
    }

    /// What a thread issued takes effect, up to its operation number `clock`.
    pub(super) fn land_all(&mut self, issuer: usize, clock: u32) {
        for index in 0..self.tensor_memory.mmas.waiting.len() {
            let issued = self.tensor_memory.mmas.waiting[index];
            if issued.issuer == issuer && issued.clock <= clock {
                self.take_effect(index, issued.groups);
            }
        }
        self.tensor_memory.mmas.waiting.retain(|issued| issued.groups != 0);
    }

    /// Now and then some operation takes effect in some of its lanes.
    pub(crate) fn land_some(&mut self) {
        let count = self.tensor_memory.mmas.waiting.len();
        if count == 0 || self.rng.below(3) != 0 {
            return;
        }
        let (chosen, groups) = (self.rng.below(count), self.rng.below(256) as u8);
        let issued = self.tensor_memory.mmas.waiting[chosen];
        // Operations on the same accumulators keep their order, others have none.
        for index in 0..=chosen {
            let before = self.tensor_memory.mmas.waiting[index];
            let same = |a: &Issued, b: &Issued| {
                (a.d, a.operation.m, a.operation.n) == (b.d, b.operation.m, b.operation.n)
            };
            if before.issuer == issued.issuer && same(&before, &issued) {
                self.take_effect(index, groups);
            }
        }
        self.tensor_memory.mmas.waiting.retain(|issued| issued.groups != 0);
    }

    /// An operation takes effect in those of `groups` that it has not yet.
    fn take_effect(&mut self, index: usize, groups: u8) {
        let issued = &mut self.tensor_memory.mmas.waiting[index];
        let groups = groups & issued.groups;
        issued.groups &= !groups;
        let issued = *issued;
        let Operation { n, types, negate, half_accumulators, .. } = issued.operation;
        let columns: Vec<Split<8>> = self
            .matrices
            .blocks(&self.shared, Part { count: n, ..issued.b })
            .iter()
            .map(|block| Split::of(block, types[1], negate[1]))
            .collect();
        for group in set_bits(groups) {
            let a = Split::of(&self.rows(&issued, group), types[0], negate[0]);
            for column in 0..n {
                let unit = Unit { column: issued.d.column + column, group };
                let cells = &mut self.tensor_memory.cells;
                let mut sums = [0; 16];
                if issued.accumulate {
                    sums.copy_from_slice(cells.read(unit));
                }
                let block = &columns[column as usize / 8];
                let sums = sum::accumulate(sums, &a, block, column as usize % 8, half_accumulators);
                for (lane, sum) in sums.into_iter().enumerate() {
                    match half_accumulators {
                        true => cells.set_half(unit, lane, sum),
                        false => cells.set(unit, lane, sum),
                    }
                }
            }
        }
    }

    /// A's rows of sixteen lanes: (k, lane).
    fn rows(&self, issued: &Issued, group: u32) -> [[f32; 16]; DEPTH] {
        let mut rows = [[0.0; 16]; DEPTH];
        match issued.a {
            Left::Shared(part) => {
                let part = Part { first: issued.operation.first_row(group), count: 16, ..part };
                for (lane, row) in part.rows(&self.shared).iter().enumerate() {
                    row.iter().enumerate().for_each(|(k, value)| rows[k][lane] = *value);
                }
            }
            Left::Tensor(place) => {
                let ty = issued.operation.types[0];
                for column in 0..A_COLUMNS {
                    let words = self.tensor_memory.cells.read(Unit { column: place.column + column, group });
                    for (lane, word) in words.iter().enumerate() {
                        rows[2 * column as usize][lane] = element(ty, *word);
                        rows[2 * column as usize + 1][lane] = element(ty, word >> 16);
                    }
                }
            }
        }
        rows
    }
}
