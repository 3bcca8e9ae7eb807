//! A backward pass in the words of both: rows are what it writes gradients of, columns what these meet.

use natten_core::window::Axis;

use super::Design;
pub(in crate::families) use crate::classes::Rows;
use crate::registry::Kernel;

/// What a cut of one mask costs, for one head of one batch item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Row tiles.
    pub rows: u64,
    /// Column tiles, summed over row tiles.
    pub columns: u64,
    /// Those that need no mask.
    pub full: u64,
    /// Pairs of a box of rows and a column tile that meet, summed over row tiles: others are left out.
    pub met: u64,
}

/// What is to be cut: one mask.
#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    pub design: &'a Design,
    pub axes: &'a [Axis; 3],
    pub rows: Rows,
    /// Bucket of head_dim, and columns of a tile.
    pub head_dim: u32,
    pub columns: usize,
    /// Batch items times heads of the rows, and heads that share a row's columns.
    pub heads: usize,
    pub sharing: usize,
    /// Keys that every query sees.
    pub additional: usize,
    pub multiprocessors: u32,
}

impl Work<'_> {
    /// See [`gradients`].
    pub fn gradients(&self) -> usize {
        gradients_of(self.head_dim, self.rows)
    }
}

/// Gradients that are worked out by items of their own: registers hold one of 64 rows that are longer than 128.
pub(super) fn gradients(kernel: &Kernel, rows: Rows) -> usize {
    gradients_of(kernel.max_head_dim, rows)
}

fn gradients_of(head_dim: u32, rows: Rows) -> usize {
    if rows == Rows::Keys && head_dim > 128 { 2 } else { 1 }
}
