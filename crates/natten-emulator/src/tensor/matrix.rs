//! `ldmatrix`, `stmatrix` and `movmatrix`: 8 x 8 matrices of 16-bit elements over a warp. Lanes
//! 8i..8i+7 give the addresses of the rows of matrix i, which goes to register i.

use crate::fault::Exec;
use crate::inst::{Inst, Op};
use crate::machine::cta::Cta;
use crate::machine::warp::Warp;
use crate::scalar::Lanes;

/// A register whose lane 4 r + c holds elements 2 c and 2 c + 1 of row r, turned into one that holds them of the
/// transposed matrix, and back.
pub(super) fn transposed(register: &Lanes) -> Lanes {
    let half = |row: usize, column: usize| register[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff;
    let mut result: Lanes = [0; 32];
    for row in 0..8 {
        for t in 0..4 {
            result[4 * row + t] = half(2 * t, row) | half(2 * t + 1, row) << 16;
        }
    }
    result
}

impl Cta<'_> {
    pub(super) fn load_matrix(&mut self, w: &mut Warp, i: &Inst, m: u32) -> Exec {
        let Op::LdMatrix { trans, wide_address } = i.op else { return Ok(()) };
        let kernel = self.kernel;
        let list = kernel.list(i);
        let addresses = self.shared_addresses(w, i.a, wide_address, i.imm);
        let offsets = self.shared_rows(w, rows_mask(list.len()), &addresses, false)?;
        for (index, &slot) in list.iter().enumerate() {
            let mut register: Lanes = [0; 32];
            for (row, words) in register.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let lane = 8 * index + row;
                *words = self.shared.row(offsets[lane], lane)?;
            }
            w.regs.set_word(slot, m, &if trans { transposed(&register) } else { register });
        }
        Ok(())
    }

    pub(super) fn store_matrix(&mut self, w: &mut Warp, i: &Inst, _m: u32) -> Exec {
        let Op::StMatrix { trans, wide_address } = i.op else { return Ok(()) };
        let kernel = self.kernel;
        let list = kernel.list(i);
        let addresses = self.shared_addresses(w, i.a, wide_address, i.imm);
        self.events += 1;
        let offsets = self.shared_rows(w, rows_mask(list.len()), &addresses, true)?;
        for (index, &slot) in list.iter().enumerate() {
            let register = w.regs.word(slot);
            let register = if trans { transposed(register) } else { *register };
            for (row, words) in register.as_chunks::<4>().0.iter().enumerate() {
                let mut bytes = [0; 16];
                for (bytes, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
                    *bytes = word.to_le_bytes();
                }
                self.shared.put(offsets[8 * index + row] as usize, &bytes);
            }
        }
        Ok(())
    }
}

/// Lanes whose addresses count.
fn rows_mask(matrices: usize) -> u32 {
    if matrices == 4 { !0 } else { (1 << (8 * matrices)) - 1 }
}
