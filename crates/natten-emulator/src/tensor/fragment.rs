//! How the tensor core's operands lie in registers. Lane 4 r + t of a register holds the elements of row r at t, two
//! neighbours of 16 bits or one of 32: read lane by lane, a register is eight rows one after the other.

use super::element;
use crate::inst::MmaType;
use crate::machine::warp::Warp;
use crate::scalar::{Lanes, half, map, map2};

/// Eight rows of eight: what a pair of registers of f32, or one of 16-bit elements, holds.
pub(super) type Rows = [[f32; 8]; 8];

/// Puts the elements of two arrays of lanes next to each other.
#[inline(always)]
fn interleaved(even: &[f32; 32], odd: &[f32; 32]) -> Rows {
    let mut rows = [[0f32; 8]; 8];
    for (row, values) in rows.iter_mut().enumerate() {
        for t in 0..4 {
            values[2 * t] = even[4 * row + t];
            values[2 * t + 1] = odd[4 * row + t];
        }
    }
    rows
}

/// Elements of 16 bits, two to a lane.
#[inline(always)]
pub(super) fn pairs(ty: MmaType, register: &Lanes) -> Rows {
    // Asked once, so that each loop over lanes knows its conversion.
    if ty == MmaType::F16 {
        interleaved(
            &map(register, |bits| half::f16_to_f32(bits & 0xffff)),
            &map(register, |bits| half::f16_to_f32(bits >> 16)),
        )
    } else {
        interleaved(
            &map(register, |bits| half::bf16_to_f32(bits & 0xffff)),
            &map(register, |bits| half::bf16_to_f32(bits >> 16)),
        )
    }
}

/// A of 16 rows in memory order, (row, k): two registers for every four lanes' worth of k, rows 0-7 and rows 8-15.
#[inline(always)]
pub(super) fn operand_a(w: &Warp, slots: &[u32], ty: MmaType) -> [[f32; 16]; 16] {
    let mut a = [[0f32; 16]; 16];
    for (index, &slot) in slots.iter().enumerate() {
        let (first, part) = (8 * (index % 2), index / 2);
        if ty == MmaType::Tf32 {
            let values = w.regs.word(slot);
            for lane in 0..32 {
                a[first + lane / 4][4 * part + lane % 4] = element(ty, values[lane]);
            }
        } else {
            let rows = pairs(ty, w.regs.word(slot));
            for (to, from) in a[first..first + 8].iter_mut().zip(&rows) {
                to[8 * part..8 * part + 8].copy_from_slice(from);
            }
        }
    }
    a
}

/// Accumulators of 16 rows and eight columns: rows 0-7, then rows 8-15. Two registers of f32 for each half, or one of
/// f16 pairs.
#[inline(always)]
pub(super) fn accumulators(w: &Warp, slots: &[u32], half_accumulators: bool) -> [Rows; 2] {
    let packed = |slot: u32| pairs(MmaType::F16, w.regs.word(slot));
    let values = |slot: u32| map(w.regs.word(slot), f32::from_bits);
    if half_accumulators {
        [packed(slots[0]), packed(slots[1])]
    } else {
        [interleaved(&values(slots[0]), &values(slots[1])), interleaved(&values(slots[2]), &values(slots[3]))]
    }
}

/// Writes what [`accumulators`] reads.
#[inline(always)]
pub(super) fn set_accumulators(w: &mut Warp, slots: &[u32], half_accumulators: bool, halves: &[Rows; 2]) {
    for (h, rows) in halves.iter().enumerate() {
        let (mut even, mut odd): (Lanes, Lanes) = ([0; 32], [0; 32]);
        for (row, values) in rows.iter().enumerate() {
            for t in 0..4 {
                even[4 * row + t] = values[2 * t].to_bits();
                odd[4 * row + t] = values[2 * t + 1].to_bits();
            }
        }
        if half_accumulators {
            let half = |bits: u32| half::f32_to_f16(f32::from_bits(bits));
            w.regs.set_word(slots[h], !0, &map2(&even, &odd, |even, odd| half(even) | half(odd) << 16));
        } else {
            w.regs.set_word(slots[2 * h], !0, &even);
            w.regs.set_word(slots[2 * h + 1], !0, &odd);
        }
    }
}

/// `sums += a b` for eight rows of `a` and as many columns as `b` has to a step, one step of k after the other.
#[inline(always)]
pub(super) fn multiply<const K: usize>(sums: &mut Rows, a: &[[f32; K]; 8], b: &[[f32; 8]]) {
    for (sums, a) in sums.as_chunks_mut::<4>().0.iter_mut().zip(a.as_chunks::<4>().0) {
        let mut four = *sums;
        for (step, b) in b.iter().enumerate() {
            for (sums, a) in four.iter_mut().zip(a) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum += a[step] * b;
                }
            }
        }
        *sums = four;
    }
}
