//! The body of an entry: register and variable declarations, brace scopes, labels, instructions.

use std::collections::HashMap;

use super::ast::{BranchTable, EntryAst, Label, RegClass, Statement, Symbol, VReg};
use super::cursor::{Cursor, Parsed};
use super::parse::{Globals, Variable, parse_type, place, variable};
use crate::fault::ParseProblem;

/// Registers of an entry, before they are allotted: some ten times what a large kernel declares.
const MOST_REGISTERS: u64 = 1 << 16;

/// Names of one `{ }`.
#[derive(Default)]
struct Scope {
    id: usize,
    /// Registers declared one by one.
    named: HashMap<String, VReg>,
    /// `%r<570>`: prefix, first register, count.
    ranges: Vec<(String, VReg, u32)>,
    variables: HashMap<String, Symbol>,
}

pub(super) struct Body<'c, 'a> {
    pub(super) cursor: &'c mut Cursor<'a>,
    globals: &'c Globals,
    entry: EntryAst,
    scopes: Vec<Scope>,
    source: Option<(u32, u32)>,
}

impl<'c, 'a> Body<'c, 'a> {
    pub(super) fn new(cursor: &'c mut Cursor<'a>, globals: &'c Globals, entry: EntryAst) -> Self {
        Self { cursor, globals, entry, scopes: Vec::new(), source: None }
    }

    /// Parses `{ ... }`.
    pub(super) fn parse(mut self) -> Parsed<EntryAst> {
        self.cursor.expect(b'{', "the kernel's body")?;
        self.open();
        while !self.scopes.is_empty() {
            match self.cursor.peek() {
                None => return Err(self.cursor.syntax("`}`")),
                Some(b'{') => {
                    self.cursor.eat(b'{');
                    self.open();
                }
                Some(b'}') => {
                    self.cursor.eat(b'}');
                    self.scopes.pop();
                }
                Some(b';') => {
                    self.cursor.eat(b';');
                }
                Some(b'.') => self.directive()?,
                Some(_) => self.statement()?,
            }
        }
        Ok(self.entry)
    }

    fn open(&mut self) {
        let id = self.entry.scopes.len();
        self.entry.scopes.push(self.scopes.last().map_or(id, |s| s.id));
        self.scopes.push(Scope { id, ..Scope::default() });
    }

    fn scope(&mut self) -> &mut Scope {
        self.scopes.last_mut().expect("a body has at least one scope while it is parsed")
    }

    fn directive(&mut self) -> Parsed<()> {
        let start = self.cursor.pos();
        let name = self.cursor.directive();
        self.directive_named(name, start)
    }

    fn directive_named(&mut self, name: &str, start: usize) -> Parsed<()> {
        match name {
            ".reg" => self.registers(),
            ".local" => {
                let Variable { name, bytes, align, .. } = self.variable()?;
                let offset = place(self.cursor, &mut self.entry.local_bytes, bytes, align)?;
                self.scope().variables.insert(name, Symbol::Local(offset));
                Ok(())
            }
            ".shared" => {
                let Variable { name, bytes, align, .. } = self.variable()?;
                let offset = place(self.cursor, &mut self.entry.shared_bytes, bytes, align)?;
                self.scope().variables.insert(name, Symbol::Shared(offset));
                Ok(())
            }
            ".loc" => self.loc(),
            ".pragma" => {
                self.cursor.skip_statement();
                Ok(())
            }
            _ => {
                self.cursor.skip_statement();
                let reason = "directive in a kernel body".to_owned();
                Err(self.cursor.error(self.cursor.since(start), ParseProblem::Unsupported { reason }))
            }
        }
    }

    /// `.loc file line column ...`, which ends with its line.
    fn loc(&mut self) -> Parsed<()> {
        let file = self.cursor.count()?;
        let line = self.cursor.count()?;
        self.source = Some((file, line));
        self.cursor.skip_line();
        Ok(())
    }

    /// `.reg .b32 %r<570>;` or `.reg .pred p, q;`
    fn registers(&mut self) -> Parsed<()> {
        let directive = self.cursor.directive();
        let ty = directive.strip_prefix('.').and_then(parse_type);
        let ty = ty.ok_or_else(|| self.cursor.syntax("a scalar register type"))?;
        let class = RegClass::of(ty);
        loop {
            let name = self.cursor.name().to_owned();
            let first = self.entry.registers.len() as VReg;
            if self.cursor.eat(b'<') {
                let count = self.cursor.count()?;
                self.cursor.expect(b'>', "`>`")?;
                if u64::from(count) + u64::from(first) > MOST_REGISTERS {
                    return Err(self.cursor.syntax("at most 65536 registers in a kernel"));
                }
                self.entry.registers.extend(std::iter::repeat_n(class, count as usize));
                self.scope().ranges.push((name, first, count));
            } else {
                self.entry.registers.push(class);
                self.scope().named.insert(name, first);
            }
            if self.cursor.eat(b';') {
                return Ok(());
            }
            self.cursor.expect(b',', "`,` or `;`")?;
        }
    }

    /// `[.align n] .type name[count];` of `.local` or `.shared`.
    fn variable(&mut self) -> Parsed<Variable> {
        let variable = variable(self.cursor)?;
        self.cursor.expect(b';', "`;`")?;
        Ok(variable)
    }

    fn statement(&mut self) -> Parsed<()> {
        let mut start = self.cursor.pos();
        let mut line = self.cursor.line();
        let guard = self.guard()?;
        let word = self.cursor.dotted();
        let after = self.cursor.pos();
        if guard.is_none() && self.cursor.eat(b':') {
            return self.label(word.to_owned());
        }
        if guard.is_none() {
            // Without a guard the statement starts at its opcode, past white space.
            start = after - word.len();
            line = self.cursor.line();
        }
        if word.is_empty() {
            return Err(self.cursor.syntax("an instruction"));
        }
        let opcode: Vec<String> = word.split('.').map(str::to_owned).collect();
        let operands = self.operands().map_err(|mut e| {
            e.text = format!("{word} ... {}", e.text);
            e
        })?;
        let mut text = self.cursor.since(start);
        if text.ends_with(';') {
            text.pop();
        }
        let scope = self.scope().id;
        self.entry.statements.push(Statement {
            line,
            text,
            source: self.source,
            guard,
            opcode,
            operands,
            scope,
        });
        Ok(())
    }

    fn guard(&mut self) -> Parsed<Option<(VReg, bool)>> {
        if !self.cursor.eat(b'@') {
            return Ok(None);
        }
        let negated = self.cursor.eat(b'!');
        let name = self.cursor.name();
        match self.register(name) {
            Some(register) if self.entry.registers[register as usize] == RegClass::Pred => {
                Ok(Some((register, negated)))
            }
            _ => Err(self.cursor.syntax("a predicate register")),
        }
    }

    fn label(&mut self, name: String) -> Parsed<()> {
        let scope = self.scope().id;
        if self.cursor.peek() == Some(b'.') {
            let start = self.cursor.pos();
            let directive = self.cursor.directive();
            if directive != ".branchtargets" {
                self.place(name, scope);
                return self.directive_named(directive, start);
            }
            let mut labels = Vec::new();
            loop {
                labels.push(self.cursor.name().to_owned());
                if self.cursor.eat(b';') {
                    break;
                }
                self.cursor.expect(b',', "`,` or `;`")?;
            }
            self.entry.tables.push(BranchTable { name, scope, labels });
            return Ok(());
        }
        self.place(name, scope);
        Ok(())
    }

    fn place(&mut self, name: String, scope: usize) {
        let target = self.entry.statements.len() as u32;
        self.entry.labels.push(Label { name, scope, target });
    }

    /// The register `name` means here, innermost scope first.
    pub(super) fn register(&self, name: &str) -> Option<VReg> {
        let split = name.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |i| i + 1);
        let (prefix, digits) = name.split_at(split);
        for scope in self.scopes.iter().rev() {
            if let Some(&register) = scope.named.get(name) {
                return Some(register);
            }
            if digits.is_empty() {
                continue;
            }
            for (range, first, count) in &scope.ranges {
                if range == prefix
                    && let Ok(index) = digits.parse::<u32>()
                    && index < *count
                {
                    return Some(first + index);
                }
            }
        }
        None
    }

    /// The variable or parameter `name` means here.
    pub(super) fn symbol(&self, name: &str) -> Option<Symbol> {
        for scope in self.scopes.iter().rev() {
            if let Some(&symbol) = scope.variables.get(name) {
                return Some(symbol);
            }
        }
        if let Some(param) = self.entry.params.iter().find(|p| p.name == name) {
            return Some(Symbol::Param(param.offset));
        }
        self.globals.names.get(name).copied()
    }
}
