//! Packed batches: sequences of different lengths, one after another along the token axis.

use std::ops::Range;

use crate::error::{ProblemError, Role};
use crate::window::Axis;

/// Where each sequence of a packed batch begins and ends, for queries and for keys. Empty sequences are legal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    query_offsets: Vec<usize>,
    key_offsets: Vec<usize>,
}

impl Sequences {
    /// From cumulative lengths: `[0, len_0, len_0 + len_1, ..]`, one entry more than sequences.
    ///
    /// # Errors
    /// [`ProblemError::NoCumulativeLengths`] when a list is empty, [`ProblemError::CumulativeLengths`] when one does
    /// not start at 0 or falls,
    /// [`ProblemError::SequenceCount`] when the two lists differ in length.
    pub fn from_offsets(query_offsets: Vec<usize>, key_offsets: Vec<usize>) -> Result<Self, ProblemError> {
        check_offsets(Role::Query, &query_offsets)?;
        check_offsets(Role::Key, &key_offsets)?;
        if query_offsets.len() != key_offsets.len() {
            return Err(ProblemError::SequenceCount {
                queries: query_offsets.len() - 1,
                keys: key_offsets.len() - 1,
            });
        }
        Ok(Sequences { query_offsets, key_offsets })
    }

    /// From the lengths themselves.
    ///
    /// # Errors
    /// [`ProblemError::SequenceCount`] when the two lists differ in length. A total that overflows matches no
    /// tensor, and is reported with the tensors.
    pub fn from_lengths(queries: &[usize], keys: &[usize]) -> Result<Self, ProblemError> {
        Self::from_offsets(accumulate(queries), accumulate(keys))
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.query_offsets.len() - 1
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The query tokens and the key tokens of each sequence.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Range<usize>, Range<usize>)> + '_ {
        let range = |offsets: &[usize], i: usize| offsets[i]..offsets[i + 1];
        (0..self.len()).map(move |i| (range(&self.query_offsets, i), range(&self.key_offsets, i)))
    }

    pub(crate) fn expect_totals(&self, queries: usize, keys: usize) -> Result<(), ProblemError> {
        for (tensor, offsets, expected) in
            [(Role::Query, &self.query_offsets, queries), (Role::Key, &self.key_offsets, keys)]
        {
            let (index, found) = (offsets.len() - 1, offsets[offsets.len() - 1]);
            if found != expected {
                return Err(ProblemError::CumulativeLengths { tensor, index, expected, found });
            }
        }
        Ok(())
    }
}

/// An overflowing sum saturates; it can then match no tensor's extent and is reported there.
fn accumulate(lengths: &[usize]) -> Vec<usize> {
    let sums = lengths.iter().scan(0usize, |sum, &len| {
        *sum = sum.saturating_add(len);
        Some(*sum)
    });
    std::iter::once(0).chain(sums).collect()
}

fn check_offsets(tensor: Role, offsets: &[usize]) -> Result<(), ProblemError> {
    if offsets.is_empty() {
        return Err(ProblemError::NoCumulativeLengths { tensor });
    }
    let mut expected = 0;
    for (index, &found) in offsets.iter().enumerate() {
        if found < expected || (index == 0 && found != 0) {
            return Err(ProblemError::CumulativeLengths { tensor, index, expected, found });
        }
        expected = found;
    }
    Ok(())
}

/// One independent mask of a problem, and where its tokens begin along the last token axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedSequence {
    /// First query token.
    pub query_start: usize,
    /// First key token.
    pub key_start: usize,
    /// Extents and mask of each axis.
    pub axes: [Axis; 3],
}
