//! The kernel families, one folder each.

mod boxes;
pub(crate) mod rows;
mod simt;
mod sm100;
mod sm80;
mod sm90;

use crate::family::Family;

/// All families, preferred ones first where two predict the same time.
pub(crate) static FAMILIES: &[&dyn Family] =
    &[&sm100::Sm100, &sm90::Sm90, &sm80::Sm80, &simt::Simt, &rows::Rows];
