//! Rows that will be needed soon, fetched a few at a time between the products: memory answers while they run.

use super::Simd;

/// Rows to fetch, and how fast.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    rows: Vec<AheadRow>,
    next: usize,
    /// Rows that are due, and how many more each register tile of scores makes due; both in [`Ahead::PART`]s.
    due: usize,
    pace: usize,
}

#[derive(Clone, Copy, Debug)]
struct AheadRow {
    address: usize,
    bytes: usize,
}

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

impl Ahead {
    /// Parts of a row.
    const PART: usize = 256;

    /// Forgets what is left.
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        (self.next, self.due) = (0, 0);
    }

    /// One more row.
    #[inline(always)]
    pub(crate) fn push<E>(&mut self, row: &[E]) {
        self.push_at(row.as_ptr().addr(), size_of_val(row));
    }

    /// One more row, by its address.
    #[inline(always)]
    pub(crate) fn push_at(&mut self, address: usize, bytes: usize) {
        self.rows.push(AheadRow { address, bytes });
    }

    /// Spreads the rows over this many register tiles.
    pub(crate) fn spread(&mut self, tiles: usize) {
        self.pace = (self.rows.len() * Self::PART).div_ceil(tiles.max(1));
    }

    /// Fetches the next few.
    #[inline(always)]
    pub(super) fn fetch<S: Simd>(&mut self, simd: S) {
        if self.next == self.rows.len() {
            return;
        }
        self.due += self.pace;
        let end = (self.due / Self::PART).min(self.rows.len());
        for row in &self.rows[self.next..end] {
            // From the line's start: a row that is not aligned ends in one line more.
            let (first, last) = (row.address & !(LINE_BYTES - 1), row.address + row.bytes);
            for address in (first..last).step_by(LINE_BYTES) {
                simd.prefetch(address);
            }
        }
        self.next = end;
    }
}
