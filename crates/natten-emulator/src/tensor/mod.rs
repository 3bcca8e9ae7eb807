//! Tensor-core instructions, the matrix loads that feed them, and register reallocation.

mod fragment;
pub(crate) mod in_flight;
pub(crate) mod matrix;
pub(crate) mod mma;
pub(crate) mod operand;
pub(crate) mod wgmma;

use crate::fault::{Exec, FaultKind};
use crate::inst::{Inst, MmaType, Op};
use crate::machine::cta::Cta;
use crate::machine::execute::Flow;
use crate::machine::warp::{Wait, Warp};
use crate::scalar::half;

impl Cta<'_> {
    pub(crate) fn execute_tensor(&mut self, w: &mut Warp, i: &Inst, m: u32) -> Exec<Flow> {
        let aligned = matches!(
            i.op,
            Op::Mma(_)
                | Op::LdMatrix { .. }
                | Op::StMatrix { .. }
                | Op::MovMatrix
                | Op::Wgmma(_)
                | Op::WgmmaFence
                | Op::WgmmaCommit
                | Op::WgmmaWait
                | Op::SetMaxNReg { .. }
        );
        if aligned && m != w.live {
            return Ok(Flow::Wait(Wait::Lanes(w.live)));
        }
        match i.op {
            Op::Mma(shape) => self.mma(w, i, shape),
            Op::LdMatrix { .. } => self.load_matrix(w, i, m)?,
            Op::StMatrix { .. } => self.store_matrix(w, i, m)?,
            Op::MovMatrix => {
                let value = matrix::transposed(w.regs.word(i.a));
                w.regs.set_word(i.d, m, &value);
            }
            Op::CpAsync { .. } | Op::CpCommit | Op::CpWait | Op::CpWaitAll | Op::CpMbarrierArrive { .. } => {
                return self.cp_async(w, i, m);
            }
            Op::Mbarrier(kind, wide) => return self.mbarrier(w, i, m, kind, wide),
            Op::Bulk(_) | Op::BulkCommit | Op::BulkWait { .. } => return self.bulk(w, i, m),
            Op::Wgmma(_) | Op::WgmmaFence | Op::WgmmaCommit | Op::WgmmaWait => self.wgmma(w, i)?,
            Op::Tcgen05(operation) => return self.tcgen05(w, i, m, operation),
            Op::SetMaxNReg { increase } => return self.set_registers(w, i, increase),
            // Every operation is handled by one of the dispatchers.
            _ => return Err(FaultKind::Trap.into()),
        }
        Ok(Flow::Next)
    }

    /// `setmaxnreg`: the sum over all warps must fit what the multiprocessor has.
    fn set_registers(&mut self, w: &mut Warp, i: &Inst, increase: bool) -> Exec<Flow> {
        let count = i.imm as u32;
        let refuse = |what| Err(FaultKind::RegisterCount { count, what }.into());
        if !(24..=256).contains(&i.imm) || !count.is_multiple_of(8) {
            return refuse("the count must be a multiple of 8 from 24 to 256");
        }
        if increase && count < w.register_count {
            return refuse("an increase below the current count");
        }
        if !increase && count > w.register_count {
            return refuse("a decrease above the current count");
        }
        if !self.registers_fit(w, count) {
            return Ok(Flow::Wait(Wait::Registers(count)));
        }
        self.registers_used = self.registers_used - w.register_count + count;
        w.register_count = count;
        self.events += 1;
        Ok(Flow::Next)
    }

    pub(crate) fn registers_fit(&self, w: &Warp, count: u32) -> bool {
        self.registers_used - w.register_count + count <= self.registers_pool
    }
}

/// An operand element as the tensor core sees it; tf32 ignores the low 13 bits.
pub(crate) fn element(ty: MmaType, bits: u32) -> f32 {
    match ty {
        MmaType::F16 => half::f16_to_f32(bits & 0xffff),
        MmaType::Bf16 => half::bf16_to_f32(bits & 0xffff),
        MmaType::Tf32 => f32::from_bits(bits & 0xffff_e000),
    }
}
