//! PTX as text: a cursor over the characters, the syntax tree, and the parser that joins them.

pub(crate) mod ast;
pub(crate) mod body;
pub(crate) mod cursor;
pub(crate) mod operands;
pub(crate) mod parse;
