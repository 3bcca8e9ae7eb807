//! An edit run beside the instruction that it changes, to see whether the two ever differ.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::{Change, Edit, apply, operators};
use crate::inst::{Inst, Op, Space};
use crate::module::Module;

/// The other version of one instruction, and how its results have differed.
#[derive(Debug)]
pub(crate) struct Beside {
    pub at: u32,
    /// In order: what the edit puts before the instruction, the edited one, what it puts behind.
    pub insts: Vec<Inst>,
    pub difference: Arc<Difference>,
}

/// How the results of an edited instruction have differed from those of the one as it stands, on the same operands.
#[derive(Debug, Default)]
pub struct Difference {
    runs: AtomicU64,
    differs: AtomicBool,
    /// Bits of the widest relative difference of two finite numbers.
    widest: AtomicU64,
    /// What 32-bit results are.
    numbers: Numbers,
}

/// What a 32-bit register holds.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Numbers {
    #[default]
    F32,
    PairOfF16,
    PairOfBf16,
}

impl Numbers {
    fn of(inst: &Inst) -> Self {
        match inst.op {
            Op::ConvertPair { bf16: true, .. } => Numbers::PairOfBf16,
            Op::ConvertPair { bf16: false, .. } => Numbers::PairOfF16,
            _ => Numbers::F32,
        }
    }

    /// The widest difference, relative to the larger one or, where that is less, to the smallest number that has all digits.
    fn relative(self, a: u32, b: u32) -> f64 {
        let of = |a: f64, b: f64, least: f64| match a.is_finite() && b.is_finite() {
            true => (a - b).abs() / a.abs().max(b.abs()).max(least),
            false if a == b => 0.0,
            false => f64::INFINITY,
        };
        let bf16 = |bits: u32| f64::from(f32::from_bits(bits << 16));
        let f16 = |bits: u32| {
            let (exponent, digits) = (bits >> 10 & 31, f64::from(bits & 1023) / 1024.0);
            let size = match exponent {
                0 => digits * 2f64.powi(-14),
                31 => f64::INFINITY,
                _ => (1.0 + digits) * 2f64.powi(exponent as i32 - 15),
            };
            if bits >> 15 & 1 == 1 { -size } else { size }
        };
        let halves = |x: u32| [x & 0xffff, x >> 16];
        let pair = |of_one: &dyn Fn(usize) -> f64| of_one(0).max(of_one(1));
        let (first, second) = (halves(a), halves(b));
        match self {
            Numbers::F32 => of(f64::from(f32::from_bits(a)), f64::from(f32::from_bits(b)), 2f64.powi(-126)),
            Numbers::PairOfF16 => pair(&|at| of(f16(first[at]), f16(second[at]), 2f64.powi(-14))),
            Numbers::PairOfBf16 => pair(&|at| of(bf16(first[at]), bf16(second[at]), 2f64.powi(-126))),
        }
    }
}

impl Difference {
    /// How often both ran.
    pub fn runs(&self) -> u64 {
        self.runs.load(Relaxed)
    }

    /// Whether any result was another.
    pub fn differs(&self) -> bool {
        self.differs.load(Relaxed)
    }

    /// The widest relative difference of results as floats, or pairs of those; infinite where one alone was not finite.
    pub fn widest(&self) -> f64 {
        f64::from_bits(self.widest.load(Relaxed))
    }

    pub(crate) fn ran(&self) {
        self.runs.fetch_add(1, Relaxed);
    }

    /// A lane's two results in a 32-bit register, known to differ.
    pub(crate) fn of_words(&self, a: u32, b: u32) {
        self.differs.store(true, Relaxed);
        // Bits of numbers that are not negative are ordered as they are.
        self.widest.fetch_max(self.numbers.relative(a, b).to_bits(), Relaxed);
    }

    pub(crate) fn of_others(&self) {
        self.differs.store(true, Relaxed);
        self.widest.fetch_max(f64::INFINITY.to_bits(), Relaxed);
    }
}

impl Module {
    /// The module as it is, with the edited instruction run beside the one in the text at every execution. `None` for edits
    /// of instructions that do more than compute registers.
    pub fn beside(&self, entry: &str, edit: &Edit) -> Option<(Module, Arc<Difference>)> {
        let Change { inst, before, behind, place, .. } = &edit.change;
        let is_pure = place.is_none() && computes(inst.op) && edit.operator != operators::GUARD;
        if !is_pure {
            return None;
        }
        let mut module = self.clone();
        let entry = module.entries.iter_mut().find(|e| e.name == entry)?;
        let mut kernel = (*entry.kernel).clone();
        let inst = apply::prepare(&mut kernel, &edit.change);
        let insts = before.iter().cloned().chain([inst]).chain(behind.iter().cloned()).collect();
        let numbers = Numbers::of(&kernel.code[edit.instruction]);
        let difference = Arc::new(Difference { numbers, ..Difference::default() });
        // What looks at registers before an instruction runs the other one, too.
        kernel.code[edit.instruction].watched = true;
        kernel.beside = Some(Arc::new(Beside {
            at: edit.instruction as u32,
            insts,
            difference: Arc::clone(&difference),
        }));
        entry.kernel = kernel.into();
        Some((module, difference))
    }
}

/// Whether the operation only computes registers from registers and parameters.
pub(super) fn computes(op: Op) -> bool {
    use Op::*;
    match op {
        Load(access) => access.space == Space::Param,
        Bra(_) | BrxIdx | Exit | Trap | Store(_) | Atom(_) | Clock { .. } | Bar(_) | WarpSync | Fence(_) => {
            false
        }
        Nanosleep | LdMatrix { .. } | StMatrix { .. } | CpAsync { .. } | CpCommit | CpWait | CpWaitAll => {
            false
        }
        CpMbarrierArrive { .. } | Mbarrier(..) | Bulk(_) | BulkCommit | BulkWait { .. } | Wgmma(_) => false,
        Tcgen05(_) => false,
        WgmmaFence | WgmmaCommit | WgmmaWait | SetMaxNReg { .. } | ClusterArrive | ClusterWait | Nop => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_differ_as_their_halves_do() {
        // 1 and the next number of f16, below it the smallest number and 0.
        assert_eq!(
            Numbers::PairOfF16.relative(0x3c00_0000, 0x3c01_0000),
            2f64.powi(-10) / (1.0 + 2f64.powi(-10))
        );
        assert_eq!(Numbers::PairOfF16.relative(0x0001_0000, 0), 2f64.powi(-10));
        assert_eq!(Numbers::PairOfF16.relative(0x7c00_3c00, 0x7bff_3c00), f64::INFINITY);
        assert_eq!(Numbers::PairOfF16.relative(0x7c00_3c00, 0x7c00_bc00), 2.0);
        assert_eq!(
            Numbers::PairOfBf16.relative(0x3f80_0000, 0x3f81_0000),
            2f64.powi(-7) / (1.0 + 2f64.powi(-7))
        );
        assert_eq!(Numbers::F32.relative(1f32.to_bits(), 3f32.to_bits()), 2.0 / 3.0);
    }
}
