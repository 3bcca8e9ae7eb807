//! One instruction as operators see it: what is there, and the edits made of it so far.

use super::{Change, Edit};
use crate::inst::{CONST, Inst, NONE, Op, Slot};
use crate::module::Kernel;
use crate::ptx::ast::RegClass;

/// Where an instruction has an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    A,
    B,
    C,
    List(usize),
}

pub(super) struct Site<'k> {
    pub kernel: &'k Kernel,
    pub at: usize,
    pub inst: &'k Inst,
    pub edits: Vec<Edit>,
}

impl<'k> Site<'k> {
    pub(super) fn new(kernel: &'k Kernel, at: usize) -> Self {
        Site { kernel, at, inst: &kernel.code[at], edits: Vec::new() }
    }

    pub(super) fn text(&self) -> &'k str {
        self.kernel.lines.get(self.at).map_or("", |line| &line.text)
    }

    pub(super) fn list(&self) -> &'k [Slot] {
        self.kernel.list(self.inst)
    }

    /// The change that changes nothing, to begin with.
    pub(super) fn unchanged(&self) -> Change {
        let inst = self.inst.clone();
        Change { inst, list: None, constants: Vec::new(), before: None, behind: None, place: None }
    }

    pub(super) fn add(&mut self, operator: &'static str, to: impl Into<String>, change: Change) {
        let line = self.kernel.lines.get(self.at).map_or(0, |line| line.line);
        let (instruction, from, to) = (self.at, self.text().to_owned(), to.into());
        self.edits.push(Edit { operator, instruction, line, from, to, change });
    }

    /// The same instruction with some fields others.
    pub(super) fn change(
        &mut self,
        operator: &'static str,
        to: impl Into<String>,
        edit: impl FnOnce(&mut Inst),
    ) {
        let mut change = self.unchanged();
        edit(&mut change.inst);
        self.add(operator, to, change);
    }

    /// Another operation on the same operands.
    pub(super) fn operation(&mut self, operator: &'static str, op: Op) {
        if op != self.inst.op {
            self.change(operator, format!("{:?}", op).to_lowercase(), |inst| inst.op = op);
        }
    }

    /// The same with other vector operands.
    pub(super) fn other_list(&mut self, operator: &'static str, to: &str, list: Vec<Slot>) {
        if list != self.list() {
            let change = Change { list: Some(list), ..self.unchanged() };
            self.add(operator, to, change);
        }
    }

    pub(super) fn slot(&self, place: Place) -> Slot {
        match place {
            Place::A => self.inst.a,
            Place::B => self.inst.b,
            Place::C => self.inst.c,
            Place::List(at) => self.list()[at],
        }
    }

    /// Bits of an operand that is a literal.
    pub(super) fn literal(&self, place: Place, class: RegClass) -> Option<u64> {
        let slot = self.slot(place);
        let constants = &self.kernel.constants;
        let index = (slot & CONST != 0).then_some((slot ^ CONST) as usize)?;
        Some(match class {
            RegClass::Word => u64::from(constants.words[index][0]),
            RegClass::Wide => constants.wides[index][0],
            RegClass::Pred => u64::from(constants.preds[index] != 0),
        })
    }

    /// The slot that the first new constant of a class gets.
    pub(super) fn fresh_constant(&self, class: RegClass) -> Slot {
        let constants = &self.kernel.constants;
        let count = match class {
            RegClass::Word => constants.words.len(),
            RegClass::Wide => constants.wides.len(),
            RegClass::Pred => constants.preds.len(),
        };
        CONST | count as u32
    }

    /// A register that the kernel does not have.
    pub(super) fn scratch(&self, class: RegClass) -> Slot {
        match class {
            RegClass::Word => self.kernel.words as Slot,
            RegClass::Wide => self.kernel.wides as Slot,
            RegClass::Pred => self.kernel.preds as Slot,
        }
    }

    /// The change that puts another slot in an operand's place.
    pub(super) fn with_slot(&self, place: Place, slot: Slot) -> Change {
        let mut change = self.unchanged();
        match place {
            Place::A => change.inst.a = slot,
            Place::B => change.inst.b = slot,
            Place::C => change.inst.c = slot,
            Place::List(at) => {
                let mut list = self.list().to_vec();
                list[at] = slot;
                change.list = Some(list);
            }
        }
        change
    }

    /// A literal in an operand's place.
    pub(super) fn put(
        &mut self,
        operator: &'static str,
        to: impl Into<String>,
        place: Place,
        (class, bits): (RegClass, u64),
    ) {
        let mut change = self.with_slot(place, self.fresh_constant(class));
        change.constants.push((class, bits));
        self.add(operator, to, change);
    }

    /// An operand combined with a literal before the instruction sees it.
    pub(super) fn combine(
        &mut self,
        operator: &'static str,
        to: impl Into<String>,
        (place, op, bits): (Place, Op, u64),
    ) {
        let scratch = self.scratch(RegClass::Word);
        let mut change = self.with_slot(place, scratch);
        let (a, b) = (self.slot(place), self.fresh_constant(RegClass::Word));
        change.before = Some(Inst { op, d: scratch, a, b, c: NONE, imm: 0, ..self.inst.clone() });
        change.constants.push((RegClass::Word, bits));
        self.add(operator, to, change);
    }

    /// Nothing in its place.
    pub(super) fn drop_it(&mut self, operator: &'static str) {
        self.change(operator, "nothing", |inst| inst.op = Op::Nop);
    }
}
