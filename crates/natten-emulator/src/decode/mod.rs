//! From parsed statements to predecoded instructions. Every modifier must be consumed by someone:
//! what is left over is an error, so no form is ever executed half understood.

mod allocate;
mod asynchronous;
mod collective;
mod memory;
mod modifiers;
mod scalar;
mod target;
mod tcgen05;
mod tensor;
pub(crate) mod watch;

use std::collections::HashMap;

use crate::counters::Class;
use crate::fault::{ParseError, ParseProblem};
use crate::inst::{CONST, Inst, NONE, Op, Slot};
use crate::memory::{LOCAL_BASE, SHARED_BASE};
use crate::module::{Constants, Kernel, Line, Origin, Preload, SpecialRegister};
use crate::ptx::ast::{EntryAst, Operand, RegClass, Statement, Symbol, VReg};
use crate::ptx::parse::DYNAMIC_SHARED;
use modifiers::Modifiers;
pub(crate) use target::Target;

type Decoded<T> = Result<T, ParseProblem>;

/// Registers one instruction reads and writes, for liveness.
#[derive(Default, Clone)]
struct Touched {
    uses: Vec<VReg>,
    defs: Vec<VReg>,
    guard: Option<VReg>,
    /// Uses behind these only keep old values where the guard disables a lane.
    sources: Option<usize>,
}

impl Touched {
    /// What the instruction itself reads.
    fn sources(&self) -> &[VReg] {
        &self.uses[..self.sources.unwrap_or(self.uses.len())]
    }
}

struct Decoder<'e> {
    entry: &'e EntryAst,
    target: &'e Target,
    code: Vec<Inst>,
    lists: Vec<Slot>,
    touched: Vec<Touched>,
    current: Touched,
    constants: Constants,
    constant_index: HashMap<(RegClass, u64), Slot>,
    /// Class of every virtual register, those of special registers included.
    classes: Vec<RegClass>,
    specials: HashMap<(SpecialRegister, RegClass), VReg>,
    /// Registers that a `wgmma` uses or a `tcgen05.ld` loads: they keep a physical register of their own.
    in_flight: Vec<bool>,
    /// Those of the latter alone, until moves are followed.
    loaded: Vec<bool>,
    tables: Vec<Vec<u32>>,
}

/// Decodes a whole entry.
pub(crate) fn decode(entry: &EntryAst, target: &Target) -> Result<Kernel, ParseError> {
    let mut decoder = Decoder {
        entry,
        target,
        code: Vec::with_capacity(entry.statements.len() + 1),
        lists: Vec::new(),
        touched: Vec::new(),
        current: Touched::default(),
        constants: Constants::default(),
        constant_index: HashMap::new(),
        classes: entry.registers.clone(),
        specials: HashMap::new(),
        in_flight: vec![false; entry.registers.len()],
        loaded: vec![false; entry.registers.len()],
        tables: Vec::new(),
    };
    for statement in &entry.statements {
        decoder.statement(statement).map_err(|problem| ParseError {
            line: statement.line,
            text: statement.text.clone(),
            problem,
        })?;
    }
    // Running past the last instruction is a trap, not a panic.
    decoder.emit(Op::Trap, Class::Control, [NONE; 4], 0, &[]);
    decoder.check_size()?;
    Ok(decoder.finish())
}

fn unsupported<T>(reason: impl Into<String>) -> Decoded<T> {
    Err(ParseProblem::Unsupported { reason: reason.into() })
}

/// An operand's index and text for errors.
fn wrong<T>(index: usize, expected: &'static str) -> Decoded<T> {
    Err(ParseProblem::Operand { index, expected })
}

impl Decoder<'_> {
    /// Which registers live where is a bit for each of them and each block: text that asks for more than memory holds is
    /// refused. A large kernel of ours has 10 million.
    fn check_size(&self) -> Result<(), ParseError> {
        const MOST_BITS: usize = 1 << 30;
        let ends = |inst: &&Inst| matches!(inst.op, Op::Bra(_) | Op::BrxIdx | Op::Exit | Op::Trap);
        let branches = self.code.iter().filter(ends).count();
        let targets = branches + self.tables.iter().map(Vec::len).sum::<usize>();
        let registers = self.classes.len();
        if targets.saturating_mul(registers) <= MOST_BITS {
            return Ok(());
        }
        let reason = format!("{registers} registers beside {targets} branches and targets");
        let line = self.entry.statements.last().map_or(1, |statement| statement.line);
        let text = self.entry.name.clone();
        Err(ParseError { line, text, problem: ParseProblem::Unsupported { reason } })
    }

    fn finish(mut self) -> Kernel {
        self.follow_loaded();
        let preloads: Vec<(VReg, SpecialRegister)> =
            self.specials.iter().map(|(&(s, _), &v)| (v, s)).collect();
        let mut pinned: Vec<bool> = self.in_flight.clone();
        pinned.resize(self.classes.len(), false);
        for &(register, _) in &preloads {
            pinned[register as usize] = true;
        }
        let origin = self.origin(&preloads).into();
        let map = allocate::allocate(&self.code, &self.touched, &self.classes, &pinned, &self.tables);
        for inst in &mut self.code {
            for slot in [&mut inst.guard, &mut inst.d, &mut inst.a, &mut inst.b, &mut inst.c] {
                *slot = map.slot(*slot);
            }
        }
        for slot in &mut self.lists {
            *slot = map.slot(*slot);
        }
        let registers = self.entry.registers.len();
        let followed = watch::Followed::new(&map.live_at_start, &self.code, &self.touched, registers);
        let watches = self.watches(&map, &followed);
        let mut preloads: Vec<Preload> = preloads
            .iter()
            .map(|&(v, register)| Preload { slot: map.slot(v), class: self.classes[v as usize], register })
            .collect();
        preloads.sort_by_key(|p| (p.class != RegClass::Word, p.slot));
        let lines = self.entry.statements.iter().map(|s| Line {
            line: s.line,
            text: s.text.clone(),
            source: s.source,
        });
        Kernel {
            code: self.code,
            lists: self.lists,
            constants: self.constants.into(),
            words: map.words,
            wides: map.wides,
            preds: map.preds,
            preloads,
            lines: lines.collect(),
            tables: self.tables,
            local_bytes: self.entry.local_bytes,
            watches,
            followed: followed.count,
            origin,
            beside: None,
        }
    }

    fn origin(&self, specials: &[(VReg, SpecialRegister)]) -> Origin {
        let mut written = vec![0u32; self.classes.len()];
        let mut definitions = vec![None; self.classes.len()];
        let mut readers = vec![Vec::new(); self.classes.len()];
        for (at, touched) in self.touched.iter().enumerate() {
            touched.sources().iter().for_each(|&register| readers[register as usize].push(at as u32));
            for &register in &touched.defs {
                written[register as usize] += 1;
                let is_only = written[register as usize] == 1;
                definitions[register as usize] = is_only.then_some(at as u32);
            }
        }
        let writes = self.touched.iter().map(|touched| touched.defs.clone().into()).collect();
        let slots = self.code.iter().map(|inst| [inst.d, inst.a, inst.b, inst.c]).collect();
        let guards = self.code.iter().map(|inst| inst.guard).collect();
        Origin { slots, guards, definitions, readers, writes, written, specials: specials.to_vec() }
    }

    fn statement(&mut self, st: &Statement) -> Decoded<()> {
        self.current = Touched::default();
        if let Some((guard, _)) = st.guard {
            self.current.uses.push(guard);
            self.current.guard = Some(guard);
        }
        let before = self.code.len();
        let mut m = Modifiers::new(&st.opcode);
        let o = &st.operands;
        let base = st.opcode[0].as_str();
        let known = self.scalar(base, &mut m, o)?
            || self.memory(base, &mut m, o)?
            || self.collective(base, &mut m, o)?
            || self.tensor(base, &mut m, o)?
            || self.tcgen05(base, &mut m, o)?
            || self.asynchronous(base, &mut m, o)?
            || self.control(base, &mut m, st)?;
        if !known {
            return unsupported(format!("opcode `{base}`"));
        }
        m.finish()?;
        debug_assert_eq!(self.code.len(), before + 1, "one statement is one instruction");
        if let (Some((guard, negated)), Some(inst)) = (st.guard, self.code.last_mut()) {
            inst.guard = guard;
            inst.guard_negated = negated;
            // A guarded write keeps the old value in disabled lanes, so it reads it too.
            if let Some(touched) = self.touched.last_mut() {
                touched.sources = Some(touched.uses.len());
                touched.uses.extend(touched.defs.iter().copied());
            }
        }
        Ok(())
    }

    /// Branches and the end of a thread.
    fn control(&mut self, base: &str, m: &mut Modifiers, st: &Statement) -> Decoded<bool> {
        let o = &st.operands;
        match base {
            "bra" => {
                m.take("uni");
                let Some(Operand::Label(name)) = o.first() else { return wrong(0, "a label") };
                let target = self.label(name, st.scope)?;
                self.emit(Op::Bra(target), Class::Control, [NONE; 4], 0, &[]);
            }
            "brx" => {
                if !m.take("idx") {
                    return unsupported("brx without .idx");
                }
                m.take("uni");
                let index = self.word(o, 0)?;
                let Some(Operand::Label(name)) = o.get(1) else { return wrong(1, "a branch table") };
                let table = self.entry.tables.iter().find(|t| t.name == *name);
                let table = table.ok_or_else(|| ParseProblem::UnknownName { name: name.clone() })?;
                let targets: Vec<u32> =
                    table.labels.iter().map(|l| self.label(l, table.scope)).collect::<Decoded<_>>()?;
                self.tables.push(targets);
                let id = self.tables.len() as i64 - 1;
                self.emit(Op::BrxIdx, Class::Control, [NONE, index, NONE, NONE], id, &[]);
            }
            "ret" | "exit" => {
                m.take("uni");
                self.emit(Op::Exit, Class::Control, [NONE; 4], 0, &[]);
            }
            "trap" => self.emit(Op::Trap, Class::Control, [NONE; 4], 0, &[]),
            "brkpt" | "pmevent" => self.emit(Op::Nop, Class::Control, [NONE; 4], 0, &[]),
            "call" => return unsupported("call: device functions must be inlined"),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Instruction index of a label seen from brace scope `scope`.
    fn label(&self, name: &str, scope: usize) -> Decoded<u32> {
        let mut at = scope;
        loop {
            if let Some(label) = self.entry.labels.iter().find(|l| l.scope == at && l.name == name) {
                return Ok(label.target);
            }
            if self.entry.scopes[at] == at {
                return Err(ParseProblem::UnknownName { name: name.to_owned() });
            }
            at = self.entry.scopes[at];
        }
    }

    /// Appends an instruction; slots are d, a, b, c.
    fn emit(&mut self, op: Op, class: Class, slots: [Slot; 4], imm: i64, list: &[Slot]) {
        let start = self.lists.len() as u32;
        self.lists.extend_from_slice(list);
        let [d, a, b, c] = slots;
        self.code.push(Inst {
            op,
            guard: NONE,
            guard_negated: false,
            watched: false,
            class,
            d,
            a,
            b,
            c,
            imm,
            list: (start, list.len() as u16),
        });
        self.touched.push(std::mem::take(&mut self.current));
    }

    fn class_of(&self, register: VReg) -> RegClass {
        self.classes[register as usize]
    }

    fn constant(&mut self, class: RegClass, bits: u64) -> Slot {
        let constants = &mut self.constants;
        *self.constant_index.entry((class, bits)).or_insert_with(|| {
            CONST
                | match class {
                    RegClass::Word => {
                        constants.words.push([bits as u32; 32]);
                        constants.words.len() as u32 - 1
                    }
                    RegClass::Wide => {
                        constants.wides.push([bits; 32]);
                        constants.wides.len() as u32 - 1
                    }
                    RegClass::Pred => {
                        constants.preds.push(if bits == 0 { 0 } else { !0 });
                        constants.preds.len() as u32 - 1
                    }
                }
        })
    }

    fn special(&mut self, register: SpecialRegister, class: RegClass) -> Slot {
        let classes = &mut self.classes;
        let slot = *self.specials.entry((register, class)).or_insert_with(|| {
            classes.push(class);
            classes.len() as u32 - 1
        });
        self.current.uses.push(slot);
        slot
    }

    /// A readable operand in a register of `class`; literals become constants.
    fn source(&mut self, operand: &Operand, index: usize, class: RegClass) -> Decoded<Slot> {
        match operand {
            Operand::Reg(v) if self.class_of(*v) == class => {
                self.current.uses.push(*v);
                Ok(*v)
            }
            Operand::Int(value) if class == RegClass::Word => Ok(self.constant(class, *value as u32 as u64)),
            Operand::Int(value) => Ok(self.constant(class, *value as u64)),
            Operand::F32(bits) if class == RegClass::Word => Ok(self.constant(class, u64::from(*bits))),
            Operand::F64(bits) if class == RegClass::Word => {
                Ok(self.constant(class, u64::from((f64::from_bits(*bits) as f32).to_bits())))
            }
            Operand::F64(bits) if class == RegClass::Wide => Ok(self.constant(class, *bits)),
            Operand::F32(bits) if class == RegClass::Wide => {
                Ok(self.constant(class, f64::from(f32::from_bits(*bits)).to_bits()))
            }
            Operand::Symbol(symbol) if class != RegClass::Pred => Ok(self.symbol(*symbol, class, 0)),
            Operand::Address { base, offset, coordinates } if coordinates.is_empty() => match **base {
                Operand::Symbol(symbol) if class != RegClass::Pred => Ok(self.symbol(symbol, class, *offset)),
                _ => wrong(index, "a register or literal"),
            },
            Operand::Special(name) => match SpecialRegister::named(name) {
                Some(register) if class != RegClass::Pred => Ok(self.special(register, class)),
                _ => unsupported(format!("special register %{name} here")),
            },
            _ => wrong(
                index,
                match class {
                    RegClass::Word => "a register of up to 32 bits or a literal",
                    RegClass::Wide => "a 64-bit register or a literal",
                    RegClass::Pred => "a predicate",
                },
            ),
        }
    }

    fn symbol(&mut self, symbol: Symbol, class: RegClass, offset: i64) -> Slot {
        let address = match symbol {
            Symbol::Param(at) => u64::from(at),
            Symbol::Shared(DYNAMIC_SHARED) => u64::from(SHARED_BASE + self.entry.dynamic_shared),
            Symbol::Shared(at) => u64::from(SHARED_BASE + at),
            Symbol::Local(at) => u64::from(LOCAL_BASE + at),
            Symbol::Global(index) => {
                return self.special(SpecialRegister::GlobalVariable(index, offset), class);
            }
        };
        self.constant(class, address.wrapping_add(offset as u64))
    }

    fn destination(&mut self, operand: &Operand, index: usize, class: RegClass) -> Decoded<Slot> {
        match operand {
            Operand::Reg(v) if self.class_of(*v) == class => {
                self.current.defs.push(*v);
                Ok(*v)
            }
            Operand::Sink => Ok(NONE),
            _ => wrong(
                index,
                match class {
                    RegClass::Word => "a register of up to 32 bits",
                    RegClass::Wide => "a 64-bit register",
                    RegClass::Pred => "a predicate register",
                },
            ),
        }
    }

    fn at<'o>(&self, operands: &'o [Operand], index: usize) -> Decoded<&'o Operand> {
        operands.get(index).ok_or(ParseProblem::Operand { index, expected: "present" })
    }

    fn word(&mut self, o: &[Operand], index: usize) -> Decoded<Slot> {
        let operand = self.at(o, index)?;
        self.source(operand, index, RegClass::Word)
    }

    fn wide(&mut self, o: &[Operand], index: usize) -> Decoded<Slot> {
        let operand = self.at(o, index)?;
        self.source(operand, index, RegClass::Wide)
    }

    fn result_word(&mut self, o: &[Operand], index: usize) -> Decoded<Slot> {
        let operand = self.at(o, index)?;
        self.destination(operand, index, RegClass::Word)
    }

    fn result_wide(&mut self, o: &[Operand], index: usize) -> Decoded<Slot> {
        let operand = self.at(o, index)?;
        self.destination(operand, index, RegClass::Wide)
    }

    fn result_pred(&mut self, o: &[Operand], index: usize) -> Decoded<Slot> {
        let operand = self.at(o, index)?;
        self.destination(operand, index, RegClass::Pred)
    }

    /// A predicate source and whether it is negated.
    fn pred(&mut self, o: &[Operand], index: usize) -> Decoded<(Slot, bool)> {
        match self.at(o, index)? {
            Operand::Not(inner) => Ok((self.source(inner, index, RegClass::Pred)?, true)),
            operand => Ok((self.source(operand, index, RegClass::Pred)?, false)),
        }
    }

    /// Class of the register at `index`, or of a literal by `otherwise`.
    fn class_at(&self, o: &[Operand], index: usize, otherwise: RegClass) -> RegClass {
        match o.get(index) {
            Some(Operand::Reg(v)) => self.class_of(*v),
            _ => otherwise,
        }
    }

    /// `[base + offset]`: the address slot, whether it is 64 bits wide, and the offset.
    fn address(&mut self, o: &[Operand], index: usize) -> Decoded<(Slot, bool, i64)> {
        let Operand::Address { base, offset, .. } = self.at(o, index)? else {
            return wrong(index, "an address in brackets");
        };
        match &**base {
            Operand::Reg(v) => {
                let class = self.class_of(*v);
                Ok((self.source(base, index, class)?, class == RegClass::Wide, *offset))
            }
            _ => Ok((self.source(base, index, RegClass::Wide)?, true, *offset)),
        }
    }

    /// An immediate integer.
    fn immediate(&self, o: &[Operand], index: usize) -> Decoded<i64> {
        match self.at(o, index)? {
            Operand::Int(value) => Ok(*value),
            _ => wrong(index, "an integer literal"),
        }
    }

    /// The elements of a vector operand, or a single register as a vector of one.
    fn elements<'o>(&self, o: &'o [Operand], index: usize) -> Decoded<&'o [Operand]> {
        match self.at(o, index)? {
            Operand::Vector(items) => Ok(items),
            operand => Ok(std::slice::from_ref(operand)),
        }
    }

    fn word_sources(&mut self, o: &[Operand], index: usize, count: usize) -> Decoded<Vec<Slot>> {
        let items = self.elements(o, index)?;
        if items.len() != count {
            return wrong(index, "a vector of another length");
        }
        items.iter().map(|item| self.source(item, index, RegClass::Word)).collect()
    }

    fn word_destinations(&mut self, o: &[Operand], index: usize, count: usize) -> Decoded<Vec<Slot>> {
        let items = self.elements(o, index)?;
        if items.len() != count {
            return wrong(index, "a vector of another length");
        }
        items.iter().map(|item| self.destination(item, index, RegClass::Word)).collect()
    }

    /// Fails unless exactly `count` operands were given.
    fn arity(&self, o: &[Operand], count: usize) -> Decoded<()> {
        if o.len() == count { Ok(()) } else { wrong(o.len().min(count), "the last, or more are missing") }
    }
}
