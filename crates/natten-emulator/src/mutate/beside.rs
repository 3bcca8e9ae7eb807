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
    /// Bits of the widest relative difference of two finite f32.
    widest: AtomicU64,
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

    /// The widest relative difference of results as f32; infinite where one was not finite, or the signs differed.
    pub fn widest(&self) -> f64 {
        f64::from_bits(self.widest.load(Relaxed))
    }

    pub(crate) fn ran(&self) {
        self.runs.fetch_add(1, Relaxed);
    }

    /// A lane's two results in a 32-bit register, known to differ.
    pub(crate) fn of_words(&self, a: u32, b: u32) {
        self.differs.store(true, Relaxed);
        let (a, b) = (f64::from(f32::from_bits(a)), f64::from(f32::from_bits(b)));
        let relative = (a - b).abs() / a.abs().max(b.abs());
        let relative = if a.is_finite() && b.is_finite() { relative } else { f64::INFINITY };
        // Bits of numbers that are not negative are ordered as they are.
        self.widest.fetch_max(relative.to_bits(), Relaxed);
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
        let difference = Arc::new(Difference::default());
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
        WgmmaFence | WgmmaCommit | WgmmaWait | SetMaxNReg { .. } | ClusterArrive | ClusterWait | Nop => false,
        _ => true,
    }
}
