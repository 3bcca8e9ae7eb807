//! Kernels broken on purpose, by operator: every edit that an operator can make on the decoded instructions of a kernel, a
//! seeded sample of them, and the edited kernel.
//!
//! Edits are made on what the machine executes, not on text, so they need no care when a kernel is compiled anew. An edit
//! that a suite does not notice is a hole in the suite, or one after which the kernel is still right.

mod addresses;
mod apply;
pub(crate) mod beside;
mod bits;
mod block;
mod constants;
mod lanes;
mod multiples;
mod operands;
mod operators;
mod ranges;
mod reach;
mod readers;
mod sample;
mod site;
mod synchronisation;
mod widths;

use crate::inst::{Inst, Slot};
use crate::module::{Kernel, Module};
use crate::ptx::ast::RegClass;
pub use beside::Difference;
pub use operators::OPERATORS;
pub use sample::sample;

/// One edit of one instruction.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Edit {
    /// What kind of mistake it is: one of [`OPERATORS`].
    pub operator: &'static str,
    /// Number of the instruction in the kernel's text, from 0.
    pub instruction: usize,
    /// Its line in the text.
    pub line: u32,
    /// The instruction as it stands there.
    pub from: String,
    /// What becomes of it.
    pub to: String,
    change: Change,
}

impl Edit {
    /// Whether it concerns the instruction's guard, and so lanes that do not execute it as well.
    pub fn is_of_guard(&self) -> bool {
        self.operator == operators::GUARD
    }
}

/// How code changes.
#[derive(Debug, Clone)]
struct Change {
    /// The instruction in place of the old one. Slots of new constants and registers are those that follow the kernel's.
    inst: Inst,
    /// Its vector operands, if others.
    list: Option<Vec<Slot>>,
    /// New constants, in the order of their slots.
    constants: Vec<(RegClass, u64)>,
    /// Runs right before it, and right behind it, under its guard.
    before: Option<Inst>,
    behind: Option<Inst>,
    /// Moves to this place among the old instructions.
    place: Option<usize>,
}

/// Each says why an edit changes nothing, if it can tell.
const PROOFS: [fn(&Kernel, &Edit) -> Option<String>; 8] = [
    ranges::proof,
    multiples::proof,
    widths::proof,
    bits::proof,
    lanes::proof,
    readers::proof,
    addresses::proof,
    reach::proof,
];

impl Module {
    /// Every edit of the kernel `entry`, in the order of its instructions.
    pub fn edits(&self, entry: &str) -> Vec<Edit> {
        self.entry(entry).map(|entry| operators::all(&entry.kernel)).unwrap_or_default()
    }

    /// Why an edit of `entry` changes nothing, where definitions of its instruction's operands tell, what becomes of its result, or
    /// that no way leads to it.
    pub fn proof(&self, entry: &str, edit: &Edit) -> Option<String> {
        let kernel = &self.entry(entry)?.kernel;
        PROOFS.iter().find_map(|proof| proof(kernel, edit))
    }

    /// The module with one edit made in `entry`, of which it was an edit.
    pub fn edited(&self, entry: &str, edit: &Edit) -> Module {
        let mut module = self.clone();
        if let Some(entry) = module.entries.iter_mut().find(|e| e.name == entry) {
            entry.kernel = apply::apply(&entry.kernel, edit).into();
        }
        module
    }
}
