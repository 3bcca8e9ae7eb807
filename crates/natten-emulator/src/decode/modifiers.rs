//! The modifiers of an opcode, consumed one by one; anything left over is an error.

use super::Decoded;
use crate::fault::ParseProblem;
use crate::inst::{FloatMode, Rnd, Ty};
use crate::ptx::parse::parse_type;

pub(super) struct Modifiers<'s> {
    left: Vec<&'s str>,
}

impl<'s> Modifiers<'s> {
    /// All parts after the base opcode.
    pub(super) fn new(opcode: &'s [String]) -> Self {
        Self { left: opcode[1..].iter().map(String::as_str).collect() }
    }

    /// Takes `name` if present anywhere.
    pub(super) fn take(&mut self, name: &str) -> bool {
        match self.left.iter().position(|&part| part == name) {
            Some(i) => {
                self.left.remove(i);
                true
            }
            None => false,
        }
    }

    /// Takes the first modifier that `parse` knows.
    pub(super) fn find<T>(&mut self, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (i, value) = self.left.iter().enumerate().find_map(|(i, &part)| Some((i, parse(part)?)))?;
        self.left.remove(i);
        Some(value)
    }

    /// Takes the first type.
    pub(super) fn ty(&mut self) -> Decoded<Ty> {
        self.find(parse_type).ok_or(ParseProblem::Unsupported { reason: "no type modifier".to_owned() })
    }

    pub(super) fn require(&mut self, name: &str) -> Decoded<()> {
        if self.take(name) {
            Ok(())
        } else {
            Err(ParseProblem::Unsupported { reason: format!("form without .{name}") })
        }
    }

    /// Rounding to a float or to an integer.
    pub(super) fn rounding(&mut self) -> Option<Rnd> {
        self.find(|part| {
            Some(match part {
                "rn" => Rnd::Rn,
                "rna" => Rnd::Rna,
                "rz" => Rnd::Rz,
                "rm" => Rnd::Rm,
                "rp" => Rnd::Rp,
                "rni" => Rnd::Rni,
                "rzi" => Rnd::Rzi,
                "rmi" => Rnd::Rmi,
                "rpi" => Rnd::Rpi,
                _ => return None,
            })
        })
    }

    /// Rounding, `.ftz` and `.sat` of f32 arithmetic.
    pub(super) fn float_mode(&mut self) -> FloatMode {
        FloatMode { rnd: self.rounding().unwrap_or(Rnd::Rn), ftz: self.take("ftz"), sat: self.take("sat") }
    }

    /// Cache hints and prefetch sizes, which change nothing that can be observed here.
    pub(super) fn cache_hints(&mut self) {
        while self
            .find(|part| {
                let hint = matches!(part, "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "nc")
                    || part.starts_with("L1::")
                    || part.starts_with("L2::");
                (hint && part != "L2::cache_hint").then_some(())
            })
            .is_some()
        {}
    }

    pub(super) fn finish(&self) -> Decoded<()> {
        match self.left.first() {
            None => Ok(()),
            Some(part) => Err(ParseProblem::Unsupported { reason: format!("modifier .{part}") }),
        }
    }
}
