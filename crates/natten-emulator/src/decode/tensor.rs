//! To be filled: nothing asynchronous or tensor-like is decoded yet.

use super::modifiers::Modifiers;
use super::{Decoded, Decoder};
use crate::ptx::ast::Operand;

impl Decoder<'_> {
    pub(super) fn tensor(&mut self, _base: &str, _m: &mut Modifiers, _o: &[Operand]) -> Decoded<bool> {
        Ok(false)
    }
}
