//! `mma.sync`: 16 x 8 outputs of a warp.

use super::{element, fragment};
use crate::inst::{Inst, Mma, MmaType};
use crate::machine::cta::Cta;
use crate::machine::warp::Warp;

impl Cta<'_> {
    pub(super) fn mma(&mut self, w: &mut Warp, i: &Inst, shape: Mma) {
        let kernel = self.kernel;
        let list = kernel.list(i);
        let accumulators = if shape.half_accumulators { 2 } else { 4 };
        let k = usize::from(shape.k);
        // Registers of B: each covers four lanes' worth of elements along k.
        let b_registers = if shape.ty == MmaType::Tf32 { k / 4 } else { k / 8 };
        let (d, rest) = list.split_at(accumulators);
        let (a, rest) = rest.split_at(2 * b_registers);
        let (b, c) = rest.split_at(b_registers);
        let a = fragment::operand_a(w, a, shape.ty);
        let b = operand_b(w, b, shape.ty);
        let mut sums = fragment::accumulators(w, c, shape.half_accumulators);
        for (sums, a) in sums.iter_mut().zip(a.as_chunks::<8>().0) {
            fragment::multiply(sums, a, &b[..k]);
        }
        fragment::set_accumulators(w, d, shape.half_accumulators, &sums);
        self.counters.mma_flops += 2 * 16 * 8 * k as u64;
    }
}

/// B by k, (k, column). In registers it lies by column.
#[inline(always)]
fn operand_b(w: &Warp, slots: &[u32], ty: MmaType) -> [[f32; 8]; 16] {
    let mut b = [[0f32; 8]; 16];
    for (part, &slot) in slots.iter().enumerate() {
        if ty == MmaType::Tf32 {
            let values = w.regs.word(slot);
            for lane in 0..32 {
                b[4 * part + lane % 4][lane / 4] = element(ty, values[lane]);
            }
        } else {
            let columns = fragment::pairs(ty, w.regs.word(slot));
            for step in 0..8 {
                for column in 0..8 {
                    b[8 * part + step][column] = columns[column][step];
                }
            }
        }
    }
    b
}
