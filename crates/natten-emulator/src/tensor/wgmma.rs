//! `wgmma`: 64 x N outputs of a warpgroup, of which each warp owns 16 rows. Matrices come from
//! shared memory by descriptor, A also from registers.

use std::collections::VecDeque;

use super::element;
use super::in_flight::InFlight;
use crate::Swizzle;
use crate::fault::{Exec, FaultKind, WgmmaProblem};
use crate::inst::{Inst, MmaType, Op, Wgmma};
use crate::machine::cta::Cta;
use crate::machine::warp::Warp;
use crate::memory::SHARED_BASE;
use crate::options::Completion;
use crate::race::{AccessKind, Races, WGMMA};
use crate::scalar::{Lanes, half};

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

/// A matrix in shared memory. Offsets in bytes; see [`chunk_offset`] for their meaning.
#[derive(Debug, Clone, Copy, Default)]
struct Descriptor {
    start: u32,
    leading: u32,
    stride: u32,
    swizzle: Swizzle,
    /// Base offset: which row of addresses, of 128 bytes, has the pattern's row 0. For matrices that start inside a period.
    base: u32,
}

impl Descriptor {
    fn decode(bits: u64) -> Self {
        let field = |at: u32| ((bits >> at) as u32 & 0x3fff) << 4;
        let swizzle = match bits >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::B128,
            2 => Swizzle::B64,
            _ => Swizzle::B32,
        };
        let base = (bits >> 49) as u32 & 7;
        Self { start: field(0), leading: field(16), stride: field(32), swizzle, base }
    }

    /// Where the 16-byte chunk lies whose place is [`Self::chunk_offset`].
    fn chunk_address(&self, k_major: bool, line: u32, chunk: u32) -> u32 {
        self.swizzle.apply_from(self.start + self.chunk_offset(k_major, line, chunk), self.base)
    }

    /// Unswizzled offset of the 16-byte chunk `chunk` along the contiguous axis, at index `line` of
    /// the other. `k_major`: k is contiguous.
    fn chunk_offset(&self, k_major: bool, line: u32, chunk: u32) -> u32 {
        match (self.swizzle.row_bytes(), k_major) {
            // Rows of the swizzle's width in groups of eight; k stays inside the row.
            (Some(width), true) => line / 8 * self.stride + line % 8 * width + 16 * chunk,
            // Blocks of the swizzle's width along MN, lines of k in groups of eight.
            (Some(width), false) => {
                16 * chunk / width * self.leading
                    + line / 8 * self.stride
                    + line % 8 * width
                    + 16 * chunk % width
            }
            // Core matrices of 8 rows of 16 bytes.
            (None, true) => line / 8 * self.stride + line % 8 * 16 + chunk * self.leading,
            (None, false) => chunk * self.stride + line / 8 * self.leading + line % 8 * 16,
        }
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
        w.wgmma.registers.issue(accumulators, operands)?;
        w.wgmma.waiting.push_back(issued);
        self.counters.mma_flops += 2 * 16 * u64::from(shape.n) * depth(shape.ty) as u64;
        let at_once = match self.grid.options.completion {
            Completion::Earliest => true,
            Completion::Latest => false,
            Completion::Random => self.rng.below(2) == 0,
        };
        if at_once { self.compute_waiting(w, u32::MAX) } else { Ok(()) }
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
        let actor = (Races::queue(w.id, WGMMA), issued.clock);
        let mut check = |descriptor: &Descriptor, k_major: bool, first: u32, count: u32| -> Exec {
            for (line, chunk) in chunks(shape.ty, k_major, first, count) {
                let address = descriptor.chunk_address(k_major, line, chunk);
                let offset = self.shared.offset(address.into(), 16, 16)?;
                self.shared.check_init(offset, 16)?;
                if let Some(races) = &mut self.races {
                    races.by_queue(actor, w.id, true, offset, 16, AccessKind::Read)?;
                }
            }
            Ok(())
        };
        if !shape.a_in_registers {
            check(&issued.descriptor_a, !shape.transpose_a, 16 * (w.id % 4), 16)?;
        }
        check(&issued.descriptor_b, !shape.transpose_b, 0, shape.n.into())
    }

    fn wait_wgmma(&mut self, w: &mut Warp, until: u32) -> Exec {
        self.compute_waiting(w, until)?;
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
    fn compute_waiting(&mut self, w: &mut Warp, until: u32) -> Exec {
        let kernel = self.kernel;
        let mut waiting = std::mem::take(&mut w.wgmma.waiting);
        for issued in waiting.iter_mut().filter(|i| !i.computed && i.clock <= until) {
            let inst = &kernel.code[issued.pc as usize];
            if let Op::Wgmma(shape) = inst.op {
                self.compute(w, inst, shape, issued)?;
            }
            issued.computed = true;
        }
        w.wgmma.waiting = waiting;
        Ok(())
    }

    fn compute(&mut self, w: &mut Warp, inst: &Inst, shape: Wgmma, issued: &Issued) -> Exec {
        let kernel = self.kernel;
        let (accumulators, operands) = kernel.list(inst).split_at(accumulator_count(shape));
        let (k, n) = (depth(shape.ty), usize::from(shape.n));
        let mut a = if shape.a_in_registers {
            register_rows(w, operands, shape.ty)
        } else {
            self.matrix(&issued.descriptor_a, shape.ty, !shape.transpose_a, 16 * (w.id % 4), 16)?
        };
        if shape.negate_a != shape.negate_b {
            a.iter_mut().for_each(|x| *x = -*x);
        }
        let b = self.matrix(&issued.descriptor_b, shape.ty, !shape.transpose_b, 0, shape.n.into())?;
        // B by k, so that the inner loop runs over columns.
        let mut by_k = vec![0f32; k * n];
        for column in 0..n {
            for step in 0..k {
                by_k[step * n + column] = b[column * k + step];
            }
        }
        let mut acc = vec![0f32; 16 * n];
        if issued.scale_d {
            load_accumulators(w, accumulators, shape.half_accumulators, n, &mut acc);
        }
        for row in 0..16 {
            let sums = &mut acc[row * n..][..n];
            for step in 0..k {
                let factor = a[row * k + step];
                for (sum, b) in sums.iter_mut().zip(&by_k[step * n..][..n]) {
                    *sum += factor * b;
                }
            }
        }
        store_accumulators(w, accumulators, shape.half_accumulators, n, &acc);
        Ok(())
    }

    /// `count` lines from `first` along MN, each of the operation's depth along k: (mn, k).
    fn matrix(&self, d: &Descriptor, ty: MmaType, k_major: bool, first: u32, count: u32) -> Exec<Vec<f32>> {
        let k = depth(ty);
        let mut values = vec![0f32; count as usize * k];
        let bytes_each = if ty == MmaType::Tf32 { 4 } else { 2 };
        for (line, chunk) in chunks(ty, k_major, first, count) {
            let address = d.chunk_address(k_major, line, chunk);
            let data = self.shared.slice((address - SHARED_BASE) as usize, 16);
            for (e, bytes) in data.chunks_exact(bytes_each).enumerate() {
                let mut bits = [0; 4];
                bits[..bytes_each].copy_from_slice(bytes);
                let along = chunk as usize * (16 / bytes_each) + e;
                let (mn, step) = if k_major { (line as usize, along) } else { (along, line as usize) };
                values[(mn - first as usize) * k + step] = element(ty, u32::from_le_bytes(bits));
            }
        }
        Ok(values)
    }
}

/// (line, chunk) of every 16 bytes of `count` rows from `first` along MN.
fn chunks(ty: MmaType, k_major: bool, first: u32, count: u32) -> impl Iterator<Item = (u32, u32)> {
    let per_chunk = if ty == MmaType::Tf32 { 4 } else { 8 };
    let (lines, chunks) = if k_major {
        (first..first + count, 0..depth(ty) as u32 / per_chunk)
    } else {
        (0..depth(ty) as u32, first / per_chunk..(first + count) / per_chunk)
    };
    lines.flat_map(move |line| chunks.clone().map(move |chunk| (line, chunk)))
}

/// Elements along k: always 32 bytes.
fn depth(ty: MmaType) -> usize {
    if ty == MmaType::Tf32 { 8 } else { 16 }
}

fn accumulator_count(shape: Wgmma) -> usize {
    usize::from(shape.n) / if shape.half_accumulators { 4 } else { 2 }
}

/// A from registers: the fragment of `mma.sync`, (row, k).
fn register_rows(w: &Warp, slots: &[u32], ty: MmaType) -> Vec<f32> {
    let k = depth(ty);
    let per_register = if ty == MmaType::Tf32 { 1 } else { 2 };
    let mut rows = vec![0f32; 16 * k];
    for (index, &slot) in slots.iter().enumerate() {
        let values = w.regs.word(slot);
        for lane in 0..32 {
            for e in 0..per_register {
                let row = 8 * (index % 2) + lane / 4;
                let step = 4 * per_register * (index / 2) + per_register * (lane % 4) + e;
                rows[row * k + step] = element(ty, values[lane] >> (16 * e));
            }
        }
    }
    rows
}

/// Accumulators repeat the layout of `mma.sync` for every eight columns.
fn load_accumulators(w: &Warp, slots: &[u32], half_accumulators: bool, n: usize, acc: &mut [f32]) {
    for (index, &slot) in slots.iter().enumerate() {
        let values = w.regs.word(slot);
        for lane in 0..32 {
            if half_accumulators {
                let at = (8 * (index % 2) + lane / 4) * n + 8 * (index / 2) + 2 * (lane % 4);
                acc[at] = half::f16_to_f32(values[lane] & 0xffff);
                acc[at + 1] = half::f16_to_f32(values[lane] >> 16);
            } else {
                let column = 8 * (index / 4) + 2 * (lane % 4) + index % 2;
                acc[(8 * (index / 2 % 2) + lane / 4) * n + column] = f32::from_bits(values[lane]);
            }
        }
    }
}

fn store_accumulators(w: &mut Warp, slots: &[u32], half_accumulators: bool, n: usize, acc: &[f32]) {
    for (index, &slot) in slots.iter().enumerate() {
        let value: Lanes = std::array::from_fn(|lane| {
            if half_accumulators {
                let at = (8 * (index % 2) + lane / 4) * n + 8 * (index / 2) + 2 * (lane % 4);
                half::f32_to_f16(acc[at]) | half::f32_to_f16(acc[at + 1]) << 16
            } else {
                let column = 8 * (index / 4) + 2 * (lane % 4) + index % 2;
                acc[(8 * (index / 2 % 2) + lane / 4) * n + column].to_bits()
            }
        });
        w.regs.set_word(slot, !0, &value);
    }
}
