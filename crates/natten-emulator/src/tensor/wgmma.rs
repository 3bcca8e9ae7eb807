//! `wgmma`: 64 x N outputs of a warpgroup, of which each warp owns 16 rows. Matrices come from
//! shared memory by descriptor, A also from registers.

use std::collections::VecDeque;

use super::fragment;
use super::in_flight::InFlight;
use super::operand::{Descriptor, Part, depth};
use crate::fault::{Exec, FaultKind, WgmmaProblem};
use crate::inst::{Inst, Op, Wgmma};
use crate::machine::cta::Cta;
use crate::machine::warp::Warp;
use crate::options::Completion;
use crate::race::{AccessKind, Races, WGMMA};

/// Operations of a warp that have not been computed or waited for.
#[derive(Debug, Default)]
pub(crate) struct WgmmaQueue {
    pub registers: InFlight,
    waiting: VecDeque<Issued>,
    issued: u32,
    groups: VecDeque<u32>,
}

#[derive(Debug)]
struct Issued {
    clock: u32,
    pc: u32,
    descriptor_a: Descriptor,
    descriptor_b: Descriptor,
    scale_d: bool,
    /// Its effect on the accumulators has happened, but nobody waited yet.
    computed: bool,
}

impl WgmmaQueue {
    pub(crate) fn reset(&mut self, registers: usize) {
        self.registers.reset(registers);
        self.waiting.clear();
        self.issued = 0;
        self.groups.clear();
    }
}

impl Cta<'_> {
    pub(super) fn wgmma(&mut self, w: &mut Warp, i: &Inst) -> Exec {
        match i.op {
            Op::WgmmaFence => w.wgmma.registers.fence(),
            Op::WgmmaCommit => {
                let issued = w.wgmma.issued;
                w.wgmma.groups.push_back(issued);
            }
            Op::WgmmaWait => {
                let mut until = None;
                while w.wgmma.groups.len() as i64 > i.imm {
                    until = w.wgmma.groups.pop_front();
                }
                if let Some(clock) = until {
                    self.wait_wgmma(w, clock)?;
                }
            }
            Op::Wgmma(shape) => self.issue_wgmma(w, i, shape)?,
            _ => {}
        }
        Ok(())
    }

    fn issue_wgmma(&mut self, w: &mut Warp, i: &Inst, shape: Wgmma) -> Exec {
        let group = w.id as usize / 4;
        if (4 * group + 4) as u32 * 32 > self.grid.threads() || w.live != !0 {
            return Err(FaultKind::WgmmaRegister { problem: WgmmaProblem::IncompleteWarpgroup }.into());
        }
        let descriptor = |slot: u32| w.regs.wide(slot)[0];
        let (a, b) = (if shape.a_in_registers { 0 } else { descriptor(i.a) }, descriptor(i.b));
        self.agree(w, group, a, b)?;
        let scale_d = w.regs.pred(i.c) & 1 == 1;
        let (descriptor_a, descriptor_b) = (Descriptor::decode(a), Descriptor::decode(b));
        w.wgmma.issued += 1;
        let issued =
            Issued { clock: w.wgmma.issued, pc: w.pc, descriptor_a, descriptor_b, scale_d, computed: false };
        self.check_operands(w, &issued, shape)?;
        let kernel = self.kernel;
        let (accumulators, operands) = kernel.list(i).split_at(accumulator_count(shape));
        w.wgmma.registers.issue(shape, accumulators, operands)?;
        w.wgmma.waiting.push_back(issued);
        self.counters.mma_flops += 2 * 16 * u64::from(shape.n) * depth(shape.ty) as u64;
        let at_once = match self.grid.options.completion {
            Completion::Earliest => true,
            Completion::Latest => false,
            Completion::Random => self.rng.below(2) == 0,
        };
        if at_once {
            self.compute_waiting(w, u32::MAX);
        }
        Ok(())
    }

    /// The four warps of a warpgroup must issue the same operations on the same matrices.
    fn agree(&mut self, w: &Warp, group: usize, a: u64, b: u64) -> Exec {
        let log = &mut self.warpgroup_log[group];
        let entry = (w.pc, a, b);
        match log.get(w.wgmma.issued as usize) {
            None => log.push(entry),
            Some(first) if *first == entry => {}
            Some(_) => return Err(FaultKind::WgmmaRegister { problem: WgmmaProblem::WarpsDisagree }.into()),
        }
        Ok(())
    }

    /// Bounds, initialisation and races of everything the operation will read.
    fn check_operands(&mut self, w: &Warp, issued: &Issued, shape: Wgmma) -> Exec {
        let a = (!shape.a_in_registers).then(|| issued.part_a(w, shape));
        let mut offsets = Vec::with_capacity(512);
        for part in a.into_iter().chain([issued.part_b(shape)]) {
            for (_, _, address) in part.chunks() {
                let offset = self.shared.offset(address.into(), 16, 16)?;
                self.shared.check_init(offset, 16)?;
                offsets.push(offset);
            }
        }
        if let Some(races) = &mut self.races {
            let actor = (Races::queue(w.id, WGMMA), issued.clock);
            let ranges = offsets.iter().map(|&offset| (offset, 16));
            races.by_queue(actor, w.id, true, AccessKind::Read, ranges).map_err(|(_, kind)| kind)?;
        }
        Ok(())
    }

    fn wait_wgmma(&mut self, w: &mut Warp, until: u32) -> Exec {
        self.compute_waiting(w, until);
        let kernel = self.kernel;
        while w.wgmma.waiting.front().is_some_and(|i| i.clock <= until) {
            if let Some(issued) = w.wgmma.waiting.pop_front() {
                let inst = &kernel.code[issued.pc as usize];
                if let Op::Wgmma(shape) = inst.op {
                    let (accumulators, operands) = kernel.list(inst).split_at(accumulator_count(shape));
                    w.wgmma.registers.complete(accumulators, operands);
                }
            }
        }
        if let Some(races) = &mut self.races {
            races.waited(w.id, Races::queue(w.id, WGMMA), until);
        }
        Ok(())
    }

    /// Computes what was issued, in order, up to `until`.
    fn compute_waiting(&mut self, w: &mut Warp, until: u32) {
        let kernel = self.kernel;
        let mut waiting = std::mem::take(&mut w.wgmma.waiting);
        for issued in waiting.iter_mut().filter(|i| !i.computed && i.clock <= until) {
            let inst = &kernel.code[issued.pc as usize];
            if let Op::Wgmma(shape) = inst.op {
                self.compute(w, inst, shape, issued);
            }
            issued.computed = true;
        }
        w.wgmma.waiting = waiting;
    }

    fn compute(&mut self, w: &mut Warp, inst: &Inst, shape: Wgmma, issued: &Issued) {
        let kernel = self.kernel;
        let (accumulators, operands) = kernel.list(inst).split_at(accumulator_count(shape));
        let mut a = if shape.a_in_registers {
            fragment::operand_a(w, operands, shape.ty)
        } else {
            issued.part_a(w, shape).rows(&self.shared)
        };
        if shape.negate_a != shape.negate_b {
            a.as_flattened_mut().iter_mut().for_each(|x| *x = -*x);
        }
        let k = depth(shape.ty);
        let blocks = self.matrices.blocks(&self.shared, issued.part_b(shape));
        // Accumulators repeat the layout of `mma.sync` for every eight columns.
        let registers = if shape.half_accumulators { 2 } else { 4 };
        for (slots, block) in accumulators.chunks_exact(registers).zip(blocks) {
            let mut sums = if issued.scale_d {
                fragment::accumulators(w, slots, shape.half_accumulators)
            } else {
                Default::default()
            };
            for (sums, a) in sums.iter_mut().zip(a.as_chunks::<8>().0) {
                fragment::multiply(sums, a, &block[..k]);
            }
            fragment::set_accumulators(w, slots, shape.half_accumulators, &sums);
        }
    }
}

impl Issued {
    /// The rows of A that a warp multiplies.
    fn part_a(&self, w: &Warp, shape: Wgmma) -> Part {
        let (descriptor, first) = (self.descriptor_a, 16 * (w.id % 4));
        Part { descriptor, ty: shape.ty, k_major: !shape.transpose_a, first, count: 16 }
    }

    fn part_b(&self, shape: Wgmma) -> Part {
        let (descriptor, count) = (self.descriptor_b, shape.n.into());
        Part { descriptor, ty: shape.ty, k_major: !shape.transpose_b, first: 0, count }
    }
}

fn accumulator_count(shape: Wgmma) -> usize {
    usize::from(shape.n) / if shape.half_accumulators { 4 } else { 2 }
}
