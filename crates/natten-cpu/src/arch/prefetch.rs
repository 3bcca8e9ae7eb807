//! The prefetch queue: rows that will be needed soon, fetched a few at a time between the products, so that memory
//! answers while they run.

use super::Simd;

/// Rows to fetch, and how fast.
#[derive(Debug, Default)]
pub(crate) struct PrefetchQueue {
    lines: Vec<PrefetchLine>,
    /// The line at hand.
    next: usize,
    /// Rows of all lines.
    rows: usize,
    /// Rows that are due, and how many more each register block of scores makes due; both in [`PrefetchQueue::PART`]s.
    due: usize,
    pace: usize,
}

/// Rows at equal distances.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PrefetchLine {
    /// Address of the first.
    pub address: usize,
    /// Bytes of one.
    pub bytes: usize,
    /// Bytes from one to the next.
    pub step: isize,
    /// How many there are.
    pub rows: usize,
}

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

impl PrefetchQueue {
    /// Parts of a row.
    const PART: usize = 256;

    /// Forgets what is left.
    pub(crate) fn clear(&mut self) {
        self.lines.clear();
        (self.next, self.rows, self.due) = (0, 0, 0);
    }

    /// More rows.
    #[inline(always)]
    pub(crate) fn push(&mut self, line: PrefetchLine) {
        if line.rows > 0 {
            self.rows += line.rows;
            self.lines.push(line);
        }
    }

    /// Spreads the rows over this many register blocks.
    pub(crate) fn spread_over(&mut self, blocks: usize) {
        self.pace = (self.rows * Self::PART).div_ceil(blocks.max(1));
    }

    /// Fetches the next few.
    #[inline(always)]
    pub(super) fn fetch<S: Simd>(&mut self, simd: S) {
        if self.next == self.lines.len() {
            return;
        }
        self.due += self.pace;
        // Lines may be shorter than what is due: those of a few tokens are as many as there are register blocks, or more.
        while self.due >= Self::PART {
            let Some(line) = self.lines.get_mut(self.next) else { return };
            let rows = (self.due / Self::PART).min(line.rows);
            self.due -= rows * Self::PART;
            line.rows -= rows;
            self.next += usize::from(line.rows == 0);
            for _ in 0..rows {
                // From the cache line's start: a row that is not aligned ends in one line more.
                let (first, end) = (line.address & !(LINE_BYTES - 1), line.address + line.bytes);
                for address in (first..end).step_by(LINE_BYTES) {
                    simd.prefetch(address);
                }
                line.address = line.address.wrapping_add_signed(line.step);
            }
        }
    }
}
