//! The two descriptors of `tcgen05.mma.kind::f16`: of the operation, and of a matrix in shared memory. Every bit is
//! looked at; what is reserved must be what the instruction set says.

use crate::Swizzle;
use crate::fault::{DescriptorProblem, FaultKind, MatrixOperand};
use crate::inst::MmaType;
use crate::tensor::operand::Descriptor;

/// What an instruction descriptor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Operation {
    pub m: u32,
    pub n: u32,
    /// Element types of A and B.
    pub types: [MmaType; 2],
    pub negate: [bool; 2],
    /// M or N is contiguous in shared memory, not K.
    pub transpose: [bool; 2],
    /// D holds f16, one to a word, instead of f32.
    pub half_accumulators: bool,
}

/// Bits `first` to `last`.
fn field(bits: u64, first: u32, last: u32) -> u64 {
    bits >> first & ((1 << (last - first + 1)) - 1)
}

fn fixed(bits: u64, first: u32, last: u32, needed: u64) -> Result<(), DescriptorProblem> {
    match field(bits, first, last) {
        got if got == needed => Ok(()),
        got => Err(DescriptorProblem::FixedBits { first, last, got, needed }),
    }
}

impl Operation {
    pub(super) fn decode(bits: u32) -> Result<Self, FaultKind> {
        Self::fields(bits.into()).map_err(|problem| FaultKind::InstructionDescriptor { bits, problem })
    }

    fn fields(bits: u64) -> Result<Self, DescriptorProblem> {
        if field(bits, 2, 2) == 1 {
            return Err(DescriptorProblem::NotModelled { what: "a sparse A" });
        }
        // The selector of sparsity, saturation of integers, reserved bits, and the shift of `.ws`.
        for (first, last) in [(0, 1), (3, 3), (6, 6), (23, 23), (29, 29), (30, 31)] {
            fixed(bits, first, last, 0)?;
        }
        let illegal = |field, got| Err(DescriptorProblem::Illegal { field, got });
        let half_accumulators = match field(bits, 4, 5) {
            0 => true,
            1 => false,
            got => return illegal("the type of D", got),
        };
        let element = |first: u32, name| match field(bits, first, first + 2) {
            0 => Ok(MmaType::F16),
            1 => Ok(MmaType::Bf16),
            got => Err(DescriptorProblem::Illegal { field: name, got }),
        };
        let types = [element(7, "the type of A")?, element(10, "the type of B")?];
        if half_accumulators && types != [MmaType::F16; 2] {
            return Err(DescriptorProblem::Combination { what: "D of f16 needs A and B of f16" });
        }
        let flag = |at: u32| field(bits, at, at) == 1;
        let (n, m) = (8 * field(bits, 17, 22) as u32, 16 * field(bits, 24, 28) as u32);
        if !matches!(m, 64 | 128) {
            return illegal("M", m.into());
        }
        if !(8..=256).contains(&n) {
            return illegal("N", n.into());
        }
        let (negate, transpose) = ([flag(13), flag(14)], [flag(15), flag(16)]);
        Ok(Self { m, n, types, negate, transpose, half_accumulators })
    }
}

/// Decodes a shared-memory descriptor.
pub(super) fn matrix(bits: u64, operand: MatrixOperand) -> Result<Descriptor, FaultKind> {
    matrix_fields(bits).map_err(|problem| FaultKind::MatrixDescriptor { bits, operand, problem })
}

fn matrix_fields(bits: u64) -> Result<Descriptor, DescriptorProblem> {
    // Gaps between the fields, the constant that tells this descriptor from `wgmma`'s, and more reserved bits.
    for (first, last, needed) in [(14, 15, 0), (30, 31, 0), (46, 48, 1), (53, 60, 0)] {
        fixed(bits, first, last, needed)?;
    }
    if field(bits, 52, 52) == 1 {
        return Err(DescriptorProblem::NotModelled { what: "an absolute address for the leading dimension" });
    }
    let swizzle = match field(bits, 61, 63) {
        0 => Swizzle::None,
        1 => return Err(DescriptorProblem::NotModelled { what: "128-byte swizzle of 32-byte atoms" }),
        2 => Swizzle::B128,
        4 => Swizzle::B64,
        6 => Swizzle::B32,
        got => return Err(DescriptorProblem::Illegal { field: "the swizzle", got }),
    };
    let base = field(bits, 49, 51) as u32;
    if base != 0 && swizzle == Swizzle::None {
        return Err(DescriptorProblem::Combination { what: "a base offset without a swizzle" });
    }
    let bytes = |first: u32| (field(bits, first, first + 13) as u32) << 4;
    Ok(Descriptor { start: bytes(0), leading: bytes(16), stride: bytes(32), swizzle, base })
}
