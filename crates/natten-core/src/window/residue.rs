//! One residue of an axis: the window formulas and their inverses.

use std::ops::Range;

/// One residue of an axis: an undilated axis of its own, and the part of it that a call holds. Queries and keys are counted
/// from the first that the call holds.
///
/// A call holds every key that its queries need, or, in plain attention, windows reach over all that there are.
/// [`Residue::window`], [`Residue::inverse_window`] and [`Residue::scores`] do not rely on it, the runs of queries do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Residue {
    /// Positions of the whole, at whose ends windows stop.
    pub len: usize,
    /// The position of the first query.
    pub query_start: usize,
    /// Queries in the residue.
    pub query_len: usize,
    /// The position of the first key.
    pub key_start: usize,
    /// Keys in the residue.
    pub key_len: usize,
    /// Window, in positions.
    pub kernel_size: usize,
    /// Queries that share one window.
    pub stride: usize,
    /// Whether keys after the query are hidden.
    pub is_causal: bool,
}

impl Residue {
    /// The keys that query `i` sees, of those that the call holds.
    #[inline]
    pub fn window(&self, i: usize) -> Range<usize> {
        debug_assert!(i < self.query_len);
        let at = self.query_start + i;
        let start = self.window_start(at);
        let end = if self.is_causal { at + 1 } else { start + self.kernel_size };
        held(start..end, self.key_start, self.key_len)
    }

    /// Where the window of the query at a position of the whole starts. That no leader is past the last token need not be said:
    /// there the bound of the start is the nearer one.
    #[inline]
    fn window_start(&self, at: usize) -> usize {
        let (ahead, behind) = self.reach();
        (at / self.stride * self.stride + ahead).saturating_sub(behind).min(self.last_start())
    }

    /// How far after its block's first query the leader is, and how far before it the window starts; of a causal axis both are
    /// counted one further, so that the start is never below 0 before it is clamped.
    #[inline]
    pub(crate) fn reach(&self) -> (usize, usize) {
        match self.is_causal {
            true => (self.stride, self.kernel_size),
            false => (self.stride / 2, self.kernel_size / 2),
        }
    }

    /// Where the last window starts.
    #[inline]
    pub(crate) fn last_start(&self) -> usize {
        self.len.saturating_sub(self.kernel_size)
    }

    /// The first query that stands at a key or after it. There may be no such query.
    #[inline]
    fn query_at(&self, k: usize) -> usize {
        (self.key_start + k).saturating_sub(self.query_start)
    }

    /// The queries of a causal axis that each see a key more than the one before, as far as ends of windows go: those before
    /// them see none, those after them the last.
    pub fn rising(&self) -> Range<usize> {
        let [start, end] = [0, self.key_len].map(|k| self.query_at(k).min(self.query_len));
        start..end
    }

    /// The queries whose windows move by one stride from block to block. Windows of those before them all start at one key,
    /// and so do those after them.
    pub fn sliding(&self) -> Range<usize> {
        let ((ahead, behind), s) = (self.reach(), self.stride);
        let start = behind.saturating_sub(ahead).div_ceil(s) * s;
        let last = self.last_start() + behind;
        let end = if last < ahead { 0 } else { ((last - ahead) / s + 1) * s };
        let end = held(0..end, self.query_start, self.query_len).end;
        let end = if self.is_causal { end.min(self.rising().end) } else { end };
        start.saturating_sub(self.query_start).min(end)..end
    }

    /// The first query of the next block.
    pub(crate) fn next_block(&self, i: usize) -> usize {
        ((self.query_start + i) / self.stride + 1) * self.stride - self.query_start
    }

    /// The queries that see key `k`, of those that the call holds.
    ///
    /// A query block sees `k` as soon as its window reaches far enough right, and until it has moved past; both
    /// are the window formulas solved for the block. Checked against them for all small axes.
    #[inline]
    pub fn inverse_window(&self, k: usize) -> Range<usize> {
        debug_assert!(k < self.key_len);
        let (w, s, at) = (self.kernel_size, self.stride, self.key_start + k);
        let left = w / 2;
        let (start, past) = if self.is_causal {
            (at, (at + w) / s * s)
        } else {
            let (right, ahead) = (w.saturating_sub(left + 1), s - s / 2 - 1);
            (if at >= w { (at - right + ahead) / s * s } else { 0 }, (at + left + ahead + 1) / s * s)
        };
        let end = if at + w >= self.len { usize::MAX } else { past };
        held(start..end, self.query_start, self.query_len)
    }

    /// The keys that some query of a non-empty range sees.
    #[inline]
    pub fn keys_of(&self, queries: Range<usize>) -> Range<usize> {
        self.window(queries.start).start..self.window(queries.end - 1).end
    }

    /// The keys that every query of a non-empty range sees; empty (start >= end) when there are none.
    #[inline]
    pub fn common_keys_of(&self, queries: Range<usize>) -> Range<usize> {
        self.window(queries.end - 1).start..self.window(queries.start).end
    }

    /// The queries that see some key of a non-empty range.
    #[inline]
    pub fn queries_of(&self, keys: Range<usize>) -> Range<usize> {
        self.inverse_window(keys.start).start..self.inverse_window(keys.end - 1).end
    }
}

/// Positions of the whole as those of `len` that are held from `start` on.
#[inline]
fn held(range: Range<usize>, start: usize, len: usize) -> Range<usize> {
    let local = |at: usize| at.saturating_sub(start).min(len);
    local(range.start)..local(range.end)
}
