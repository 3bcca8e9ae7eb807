//! Decoding of tensor-core instructions and the matrix loads around them.

use super::modifiers::Modifiers;
use super::{Decoded, Decoder, unsupported, wrong};
use crate::counters::Class;
use crate::inst::*;
use crate::ptx::ast::{Operand, RegClass};

type Ops<'o> = &'o [Operand];

impl Decoder<'_> {
    pub(super) fn tensor(&mut self, base: &str, m: &mut Modifiers, o: Ops) -> Decoded<bool> {
        match base {
            "mma" => self.mma(m, o)?,
            "ldmatrix" => self.matrix(true, m, o)?,
            "stmatrix" => self.matrix(false, m, o)?,
            "movmatrix" => {
                for part in ["sync", "aligned", "m8n8", "trans", "b16"] {
                    m.require(part)?;
                }
                let slots = [self.result_word(o, 0)?, self.word(o, 1)?, NONE, NONE];
                self.emit(Op::MovMatrix, Class::Collective, slots, 0, &[]);
            }
            "wgmma" => self.wgmma(m, o)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `mma.sync.aligned.m16n8kK.row.col.D.A.B.C d, a, b, c`
    fn mma(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        for part in ["sync", "aligned", "row", "col"] {
            m.require(part)?;
        }
        let k = m.find(|p| match p {
            "m16n8k4" => Some(4u8),
            "m16n8k8" => Some(8),
            "m16n8k16" => Some(16),
            _ => None,
        });
        let Some(k) = k else { return unsupported("mma of this shape") };
        let (d, a, b, c) = (m.ty()?, m.ty()?, m.ty()?, m.ty()?);
        let ty = match (a, b, k) {
            (Ty::F16, Ty::F16, 8 | 16) => MmaType::F16,
            (Ty::Bf16, Ty::Bf16, 8 | 16) => MmaType::Bf16,
            (Ty::Tf32, Ty::Tf32, 4 | 8) => MmaType::Tf32,
            _ => return unsupported("mma of these types and shape"),
        };
        let half_accumulators = match (d, c, ty) {
            (Ty::F32, Ty::F32, _) => false,
            (Ty::F16, Ty::F16, MmaType::F16) => true,
            _ => return unsupported("mma with these accumulators"),
        };
        self.arity(o, 4)?;
        let b_registers = match ty {
            MmaType::Tf32 => usize::from(k) / 4,
            _ => usize::from(k) / 8,
        };
        let accumulators = if half_accumulators { 2 } else { 4 };
        let mut list = self.word_destinations(o, 0, accumulators)?;
        list.extend(self.word_sources(o, 1, 2 * b_registers)?);
        list.extend(self.word_sources(o, 2, b_registers)?);
        list.extend(self.word_sources(o, 3, accumulators)?);
        self.emit(Op::Mma(Mma { ty, k, half_accumulators }), Class::Mma, [NONE; 4], 0, &list);
        Ok(())
    }

    fn matrix(&mut self, load: bool, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        for part in ["sync", "aligned", "m8n8"] {
            m.require(part)?;
        }
        let count = m.find(|p| match p {
            "x1" => Some(1),
            "x2" => Some(2),
            "x4" => Some(4),
            _ => None,
        });
        let Some(count) = count else { return unsupported("no matrix count") };
        let trans = m.take("trans");
        m.find(super::memory::state_space);
        m.require("b16")?;
        let (data, address) = if load { (0, 1) } else { (1, 0) };
        let (a, wide_address, offset) = self.address(o, address)?;
        let list =
            if load { self.word_destinations(o, data, count)? } else { self.word_sources(o, data, count)? };
        let (op, class) = if load {
            (Op::LdMatrix { trans, wide_address }, Class::LoadShared)
        } else {
            (Op::StMatrix { trans, wide_address }, Class::StoreShared)
        };
        self.emit(op, class, [NONE, a, NONE, NONE], offset, &list);
        Ok(())
    }

    fn wgmma(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        if self.target.lost_wgmma() {
            return unsupported(format!("wgmma on target {}", self.target));
        }
        let op = if m.take("fence") {
            Op::WgmmaFence
        } else if m.take("commit_group") {
            Op::WgmmaCommit
        } else if m.take("wait_group") {
            Op::WgmmaWait
        } else {
            m.require("mma_async")?;
            return self.mma_async(m, o);
        };
        m.require("sync")?;
        m.require("aligned")?;
        let count = if op == Op::WgmmaWait { self.immediate(o, 0)? } else { 0 };
        self.emit(op, Class::Sync, [NONE; 4], count, &[]);
        Ok(())
    }

    /// `d, a, b, scale-d, imm-scale-a, imm-scale-b[, trans-a][, trans-b]`; list: D, then A if in registers.
    fn mma_async(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        m.require("sync")?;
        m.require("aligned")?;
        let shape = m.find(|p| {
            let (n, k) = p.strip_prefix("m64n")?.split_once('k')?;
            Some((n.parse::<u16>().ok()?, k.parse::<u8>().ok()?))
        });
        let Some((n, k)) = shape else { return unsupported("wgmma of this shape") };
        let (d, a, b) = (m.ty()?, m.ty()?, m.ty()?);
        let ty = match (a, b, k) {
            (Ty::F16, Ty::F16, 16) => MmaType::F16,
            (Ty::Bf16, Ty::Bf16, 16) => MmaType::Bf16,
            (Ty::Tf32, Ty::Tf32, 8) => MmaType::Tf32,
            _ => return unsupported("wgmma of these types and shape"),
        };
        let half_accumulators = match (d, ty) {
            (Ty::F32, _) => false,
            (Ty::F16, MmaType::F16) => true,
            _ => return unsupported("wgmma with these accumulators"),
        };
        if n == 0 || n > 256 || n % 8 != 0 {
            return unsupported("wgmma of this width");
        }
        let a_in_registers = matches!(o.get(1), Some(Operand::Vector(_)));
        let transposes = if ty == MmaType::Tf32 { 0 } else { 2 - usize::from(a_in_registers) };
        self.arity(o, 6 + transposes)?;
        let flag = |this: &Self, index: usize, zero: i64, one: i64| match this.immediate(o, index)? {
            v if v == zero => Ok(false),
            v if v == one => Ok(true),
            _ => wrong(index, "one of the two values allowed"),
        };
        let (negate_a, negate_b) = (flag(self, 4, 1, -1)?, flag(self, 5, 1, -1)?);
        let transpose_a = transposes == 2 && flag(self, 6, 0, 1)?;
        let transpose_b = transposes > 0 && flag(self, 5 + transposes, 0, 1)?;
        let count = usize::from(n) / if half_accumulators { 4 } else { 2 };
        let mut list = self.word_destinations(o, 0, count)?;
        for &slot in &list {
            self.current.uses.push(slot);
        }
        let mut a = NONE;
        if a_in_registers {
            list.extend(self.word_sources(o, 1, 4)?);
        } else {
            a = self.wide(o, 1)?;
        }
        for &slot in &list {
            if let Some(flag) = self.in_flight.get_mut(slot as usize) {
                *flag = true;
            }
        }
        let b = self.wide(o, 2)?;
        let (c, negated) = match &o[3] {
            Operand::Int(v) => (self.constant(RegClass::Pred, u64::from(*v != 0)), false),
            _ => self.pred(o, 3)?,
        };
        if negated {
            return wrong(3, "a predicate that is not negated");
        }
        let op =
            Wgmma { ty, n, half_accumulators, a_in_registers, negate_a, negate_b, transpose_a, transpose_b };
        self.emit(Op::Wgmma(op), Class::Mma, [NONE, a, b, c], 0, &list);
        Ok(())
    }
}
