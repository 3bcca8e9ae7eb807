//! `ldmatrix`, `stmatrix` and `movmatrix`: 8 x 8 matrices of 16-bit elements over a warp. Lanes
//! 8i..8i+7 give the addresses of the rows of matrix i, which goes to register i.

use crate::fault::Exec;
use crate::inst::{Inst, Op, Strength};
use crate::machine::cta::Cta;
use crate::machine::warp::Warp;
use crate::scalar::Lanes;

/// One matrix as rows of halves.
type Matrix = [[u16; 8]; 8];

/// Each lane's register: two neighbours of a row, or of a column when transposed.
fn fragment(matrix: &Matrix, trans: bool) -> Lanes {
    std::array::from_fn(|lane| {
        let (row, column) = (lane / 4, 2 * (lane % 4));
        let at = |r: usize, c: usize| u32::from(if trans { matrix[c][r] } else { matrix[r][c] });
        at(row, column) | at(row, column + 1) << 16
    })
}

fn matrix_of(fragment: &Lanes, trans: bool) -> Matrix {
    let mut matrix = [[0; 8]; 8];
    for lane in 0..32 {
        for e in 0..2 {
            let (row, column) = (lane / 4, 2 * (lane % 4) + e);
            let value = (fragment[lane] >> (16 * e)) as u16;
            if trans {
                matrix[column][row] = value;
            } else {
                matrix[row][column] = value;
            }
        }
    }
    matrix
}

pub(super) fn transpose(w: &mut Warp, i: &Inst, m: u32) {
    let value = fragment(&matrix_of(w.regs.word(i.a), false), true);
    w.regs.set_word(i.d, m, &value);
}

impl Cta<'_> {
    pub(super) fn load_matrix(&mut self, w: &mut Warp, i: &Inst, m: u32) -> Exec {
        let Op::LdMatrix { trans, wide_address } = i.op else { return Ok(()) };
        let kernel = self.kernel;
        let list = kernel.list(i);
        let addresses = self.shared_addresses(w, i.a, wide_address, i.imm);
        self.shared_request(w, rows_mask(list.len()), &addresses, 16, Strength::Weak, false)?;
        for (index, &slot) in list.iter().enumerate() {
            let mut matrix: Matrix = [[0; 8]; 8];
            for (row, halves) in matrix.iter_mut().enumerate() {
                let lane = 8 * index + row;
                let bytes: [u8; 16] = self.shared.read(addresses[lane], lane)?;
                for (half, pair) in halves.iter_mut().zip(bytes.chunks_exact(2)) {
                    *half = u16::from_le_bytes([pair[0], pair[1]]);
                }
            }
            w.regs.set_word(slot, m, &fragment(&matrix, trans));
        }
        Ok(())
    }

    pub(super) fn store_matrix(&mut self, w: &mut Warp, i: &Inst, _m: u32) -> Exec {
        let Op::StMatrix { trans, wide_address } = i.op else { return Ok(()) };
        let kernel = self.kernel;
        let list = kernel.list(i);
        let addresses = self.shared_addresses(w, i.a, wide_address, i.imm);
        self.events += 1;
        self.shared_request(w, rows_mask(list.len()), &addresses, 16, Strength::Weak, true)?;
        for (index, &slot) in list.iter().enumerate() {
            let matrix = matrix_of(w.regs.word(slot), trans);
            for (row, halves) in matrix.iter().enumerate() {
                let lane = 8 * index + row;
                let mut bytes = [0; 16];
                for (pair, half) in bytes.chunks_exact_mut(2).zip(halves) {
                    pair.copy_from_slice(&half.to_le_bytes());
                }
                self.shared.write(addresses[lane], bytes, lane)?;
            }
        }
        Ok(())
    }
}

/// Lanes whose addresses count.
fn rows_mask(matrices: usize) -> u32 {
    if matrices == 4 { !0 } else { (1 << (8 * matrices)) - 1 }
}
