//! Operands of an instruction: registers, literals, vectors, addresses, pairs.

use super::ast::Operand;
use super::body::Body;
use super::cursor::{Parsed, parse_integer};
use crate::fault::ParseProblem;

impl Body<'_, '_> {
    /// Parses `a, b, ...` up to the semicolon, which it takes.
    pub(super) fn operands(&mut self) -> Parsed<Vec<Operand>> {
        let mut operands = Vec::new();
        if self.cursor.eat(b';') {
            return Ok(operands);
        }
        loop {
            operands.push(self.operand(0)?);
            if self.cursor.eat(b';') {
                return Ok(operands);
            }
            self.cursor.expect(b',', "`,` or `;`")?;
        }
    }

    /// An operand inside so many others.
    fn operand(&mut self, depth: u32) -> Parsed<Operand> {
        /// Coordinates in a vector in an address in brackets; nothing nests deeper, and text that does could nest forever.
        const DEEPEST: u32 = 3;
        if depth > DEEPEST {
            return Err(self.cursor.syntax("operands that nest less deep"));
        }
        match self.cursor.peek() {
            Some(b'{') => {
                self.cursor.eat(b'{');
                Ok(Operand::Vector(self.list(b'}', depth + 1)?))
            }
            Some(b'[') => {
                self.cursor.eat(b'[');
                self.address(depth + 1)
            }
            Some(b'!') => {
                self.cursor.eat(b'!');
                Ok(Operand::Not(Box::new(self.operand(depth + 1)?)))
            }
            Some(b'(') => Err(self.cursor.syntax("no call: device functions must be inlined")),
            _ => {
                let first = self.atom()?;
                if self.cursor.eat(b'|') {
                    return Ok(Operand::Pair(Box::new(first), Box::new(self.atom()?)));
                }
                if self.cursor.eat(b'+') {
                    let offset = self.cursor.integer()?;
                    return Ok(Operand::Address { base: Box::new(first), offset, coordinates: Vec::new() });
                }
                Ok(first)
            }
        }
    }

    fn list(&mut self, end: u8, depth: u32) -> Parsed<Vec<Operand>> {
        let mut items = Vec::new();
        loop {
            items.push(self.operand(depth)?);
            if self.cursor.eat(end) {
                return Ok(items);
            }
            self.cursor.expect(b',', "`,` or the list's end")?;
        }
    }

    /// The inside of `[...]`.
    fn address(&mut self, depth: u32) -> Parsed<Operand> {
        let base = Box::new(self.atom()?);
        let mut offset = 0;
        let mut coordinates = Vec::new();
        if self.cursor.eat(b'+') || self.cursor.peek() == Some(b'-') {
            offset = self.cursor.integer()?;
        } else if self.cursor.eat(b',') {
            coordinates = match self.operand(depth)? {
                Operand::Vector(items) => items,
                _ => return Err(self.cursor.syntax("tensor coordinates in braces")),
            };
        }
        self.cursor.expect(b']', "`]`")?;
        Ok(Operand::Address { base, offset, coordinates })
    }

    /// A register, literal or name.
    fn atom(&mut self) -> Parsed<Operand> {
        if self.cursor.peek() == Some(b'-') {
            return Ok(Operand::Int(self.cursor.integer()?));
        }
        let word = self.cursor.dotted();
        if word == "_" {
            return Ok(Operand::Sink);
        }
        if let Some(bits) = word.strip_prefix("0f").or_else(|| word.strip_prefix("0F")) {
            let bits =
                u32::from_str_radix(bits, 16).map_err(|_| self.cursor.syntax("eight hexadecimal digits"))?;
            return Ok(Operand::F32(bits));
        }
        if let Some(bits) = word.strip_prefix("0d").or_else(|| word.strip_prefix("0D")) {
            let bits = u64::from_str_radix(bits, 16)
                .map_err(|_| self.cursor.syntax("sixteen hexadecimal digits"))?;
            return Ok(Operand::F64(bits));
        }
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            let value = parse_integer(word).ok_or_else(|| self.cursor.syntax("a number"))?;
            return Ok(Operand::Int(value));
        }
        if word.is_empty() {
            return Err(self.cursor.syntax("an operand"));
        }
        if let Some(register) = self.register(word) {
            return Ok(Operand::Reg(register));
        }
        if let Some(symbol) = self.symbol(word) {
            return Ok(Operand::Symbol(symbol));
        }
        if word == "WARP_SZ" {
            return Ok(Operand::Int(32));
        }
        match word.strip_prefix('%') {
            Some(special) if is_special(special) => Ok(Operand::Special(special.to_owned())),
            Some(_) => {
                let problem = ParseProblem::UnknownName { name: word.to_owned() };
                Err(self.cursor.error(word.to_owned(), problem))
            }
            None => Ok(Operand::Label(word.to_owned())),
        }
    }
}

/// Special registers the machine provides.
fn is_special(name: &str) -> bool {
    let base = name.split('.').next().unwrap_or(name);
    matches!(
        base,
        "tid"
            | "ntid"
            | "ctaid"
            | "nctaid"
            | "laneid"
            | "warpid"
            | "nwarpid"
            | "smid"
            | "nsmid"
            | "gridid"
            | "lanemask_eq"
            | "lanemask_le"
            | "lanemask_lt"
            | "lanemask_ge"
            | "lanemask_gt"
            | "clock"
            | "clock_hi"
            | "clock64"
            | "globaltimer"
            | "globaltimer_lo"
            | "globaltimer_hi"
            | "clusterid"
            | "nclusterid"
            | "cluster_ctaid"
            | "cluster_nctaid"
            | "cluster_ctarank"
            | "cluster_nctarank"
            | "is_explicit_cluster"
            | "dynamic_smem_size"
            | "total_smem_size"
            | "aggr_smem_size"
            | "envreg0"
    )
}
