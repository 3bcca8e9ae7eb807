//! The cells of tensor memory, which of them were written, and addresses.

use super::fault;
use crate::fault::{FaultKind, TensorMemoryProblem};

pub(crate) const LANES: u32 = 128;
pub(crate) const COLUMNS: u32 = 512;
/// Groups of sixteen lanes, the least that any access covers of a column.
pub(crate) const GROUPS: u32 = 8;
pub(crate) const UNITS: usize = (GROUPS * COLUMNS) as usize;

/// Sixteen lanes of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unit {
    pub column: u32,
    pub group: u32,
}

impl Unit {
    pub(crate) fn index(self) -> usize {
        (self.column * GROUPS + self.group) as usize
    }

    /// Of its first cell.
    pub(crate) fn address(self) -> u32 {
        self.group << 20 | self.column
    }

    fn first_cell(self) -> usize {
        (self.column * LANES + 16 * self.group) as usize
    }
}

/// A place in tensor memory: what an address says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub lane: u32,
    pub column: u32,
}

impl Place {
    pub(crate) fn of(address: u32) -> Self {
        Self { lane: address >> 16, column: address & 0xffff }
    }

    pub(crate) fn address(self) -> u32 {
        self.lane << 16 | self.column
    }
}

/// What was written of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Written {
    #[default]
    Nothing,
    /// The low halves of its words: 16-bit elements lie one to a word.
    Halves,
    Words,
}

/// What the upper half of a word holds of which only the lower one was written: nothing says so.
const UNSPECIFIED: u32 = 0xdead_0000;

#[derive(Debug, Default)]
pub(crate) struct Cells {
    /// By column, then by lane. Empty until something is allocated.
    words: Vec<u32>,
    written: Vec<Written>,
    check_initialised: bool,
}

impl Cells {
    pub(crate) fn reset(&mut self, check_initialised: bool) {
        self.check_initialised = check_initialised;
        self.written.fill(Written::Nothing);
    }

    /// Columns are allocated: nothing is written in them.
    pub(super) fn provide(&mut self, first: u32, columns: u32) {
        self.words.resize((LANES * COLUMNS) as usize, 0xdead_beef);
        self.written.resize(UNITS, Written::Nothing);
        let units = (first * GROUPS) as usize..((first + columns) * GROUPS) as usize;
        self.written[units].fill(Written::Nothing);
    }

    pub(super) fn read(&self, unit: Unit) -> &[u32] {
        &self.words[unit.first_cell()..][..16]
    }

    pub(super) fn set(&mut self, unit: Unit, lane: usize, word: u32) {
        self.words[unit.first_cell() + lane] = word;
    }

    /// A 16-bit element: it lies in the lower half of a word.
    pub(super) fn set_half(&mut self, unit: Unit, lane: usize, half: u32) {
        self.set(unit, lane, UNSPECIFIED | half);
    }

    pub(super) fn mark(&mut self, unit: Unit, written: Written) {
        self.written[unit.index()] = written;
    }

    /// Fails where less was written than `needed`.
    pub(super) fn check_written(&self, unit: Unit, needed: Written) -> Result<(), FaultKind> {
        let is_written = match self.written[unit.index()] {
            Written::Nothing => false,
            Written::Halves => needed == Written::Halves,
            Written::Words => true,
        };
        if is_written || !self.check_initialised {
            return Ok(());
        }
        let (lane, column) = (16 * unit.group, unit.column);
        Err(fault(TensorMemoryProblem::NeverWritten { lane, column }))
    }
}
