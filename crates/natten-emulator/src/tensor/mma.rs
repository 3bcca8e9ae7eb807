//! `mma.sync`: 16 x 8 outputs of a warp. Lane = 4 * group + t; a register holds two neighbouring
//! 16-bit elements, the lower index in the low half, or one tf32.

use super::element;
use crate::inst::{Inst, Mma, MmaType};
use crate::machine::cta::Cta;
use crate::machine::warp::Warp;
use crate::scalar::Lanes;
use crate::scalar::half;

impl Cta<'_> {
    pub(super) fn mma(&mut self, w: &mut Warp, i: &Inst, shape: Mma) {
        let kernel = self.kernel;
        let list = kernel.list(i);
        let accumulators = if shape.half_accumulators { 2 } else { 4 };
        let per_register = if shape.ty == MmaType::Tf32 { 1 } else { 2 };
        let k = usize::from(shape.k);
        // Registers of B: each covers 4 lanes' worth of elements along k.
        let b_registers = k / (4 * per_register);
        let (d, rest) = list.split_at(accumulators);
        let (a, rest) = rest.split_at(2 * b_registers);
        let (b, c) = rest.split_at(b_registers);
        let mut a_matrix = [[0f32; 16]; 16]; // (row, k)
        let mut b_matrix = [[0f32; 8]; 16]; // (k, column)
        for (index, &slot) in a.iter().enumerate() {
            let values = *w.regs.word(slot);
            // Even registers hold rows 0-7, odd ones rows 8-15; pairs advance along k.
            let (row, column) = (8 * (index % 2), 4 * per_register * (index / 2));
            for lane in 0..32 {
                for e in 0..per_register {
                    a_matrix[row + lane / 4][column + per_register * (lane % 4) + e] =
                        element(shape.ty, values[lane] >> (16 * e));
                }
            }
        }
        for (index, &slot) in b.iter().enumerate() {
            let values = *w.regs.word(slot);
            for lane in 0..32 {
                for e in 0..per_register {
                    b_matrix[4 * per_register * index + per_register * (lane % 4) + e][lane / 4] =
                        element(shape.ty, values[lane] >> (16 * e));
                }
            }
        }
        let mut acc = load_accumulators(w, c, shape.half_accumulators);
        for (row, sums) in acc.iter_mut().enumerate() {
            for (step, b_row) in b_matrix[..k].iter().enumerate() {
                let factor = a_matrix[row][step];
                for (sum, b) in sums.iter_mut().zip(b_row) {
                    *sum += factor * b;
                }
            }
        }
        store_accumulators(w, d, &acc, shape.half_accumulators);
        self.counters.mma_flops += 2 * 16 * 8 * k as u64;
    }
}

/// C as (row, column): registers 0 and 1 hold row `group`, 2 and 3 row `group + 8`.
fn load_accumulators(w: &Warp, slots: &[u32], half_accumulators: bool) -> [[f32; 8]; 16] {
    let mut acc = [[0f32; 8]; 16];
    for (index, &slot) in slots.iter().enumerate() {
        let values = w.regs.word(slot);
        for lane in 0..32 {
            let (group, t) = (lane / 4, lane % 4);
            if half_accumulators {
                acc[group + 8 * index][2 * t] = half::f16_to_f32(values[lane] & 0xffff);
                acc[group + 8 * index][2 * t + 1] = half::f16_to_f32(values[lane] >> 16);
            } else {
                acc[group + 8 * (index / 2)][2 * t + index % 2] = f32::from_bits(values[lane]);
            }
        }
    }
    acc
}

fn store_accumulators(w: &mut Warp, slots: &[u32], acc: &[[f32; 8]; 16], half_accumulators: bool) {
    for (index, &slot) in slots.iter().enumerate() {
        let value: Lanes = std::array::from_fn(|lane| {
            let (group, t) = (lane / 4, lane % 4);
            if half_accumulators {
                let row = &acc[group + 8 * index];
                half::f32_to_f16(row[2 * t]) | half::f32_to_f16(row[2 * t + 1]) << 16
            } else {
                acc[group + 8 * (index / 2)][2 * t + index % 2].to_bits()
            }
        });
        w.regs.set_word(slot, !0, &value);
    }
}
