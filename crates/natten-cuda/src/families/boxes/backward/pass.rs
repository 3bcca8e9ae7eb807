//! A backward pass in the words of both: rows are what it writes gradients of, columns what these meet.

use std::ops::Range;

use natten_core::window::{Axis, Residue};

use super::Design;
use crate::classes::Class;
use crate::registry::Kernel;

/// Which tokens are the rows of a pass; the others are its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::families) enum Rows {
    Queries,
    Keys,
}

impl Rows {
    pub fn extent(self, axis: &Axis) -> usize {
        match self {
            Rows::Queries => axis.query_extent,
            Rows::Keys => axis.key_extent,
        }
    }

    pub fn columns(self, axis: &Axis) -> usize {
        match self {
            Rows::Queries => axis.key_extent,
            Rows::Keys => axis.query_extent,
        }
    }

    pub fn len(self, residue: &Residue) -> usize {
        match self {
            Rows::Queries => residue.query_len,
            Rows::Keys => residue.key_len,
        }
    }

    /// The columns that some of the rows meet, and those that all of them meet; either may be empty.
    pub fn meet(self, residue: &Residue, rows: Range<usize>) -> (Range<usize>, Range<usize>) {
        let met = |row| match self {
            Rows::Queries => residue.window(row),
            Rows::Keys => residue.inverse_window(row),
        };
        let (first, last) = (met(rows.start), met(rows.end - 1));
        (first.start..last.end, last.start..first.end)
    }

    /// Tiles of a class along each axis, of so many rows.
    pub fn tiles(self, class: &Class, sides: &[usize; 3]) -> [usize; 3] {
        std::array::from_fn(|a| {
            let axis = &class.axes[a];
            class.residues[a] * self.extent(axis).div_ceil(axis.dilation).div_ceil(sides[a])
        })
    }
}

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
