//! The mask, one axis at a time: which keys a query sees, and which queries see a key.
//!
//! A token `x` of an axis with dilation `d` belongs to residue `g = x mod d` at position `p = x div d`; tokens
//! see only their own residue. Inside a residue of `L` tokens, with window `w` and stride `s`:
//!
//! ```text
//! not causal   leader = min((p div s) s + s div 2, L-1)   window = [clamp(leader - w div 2, 0, L-w), +w)
//! causal       leader = min((p div s) s + s - 1,   L-1)   window = [max(leader - w + 1, 0), p+1)
//! ```
//!
//! A call may hold a part of the axis: its queries are the tokens `q0..q1`, its keys the tokens `k0..k1`. All of the above is
//! said of the whole axis, and what a call sees of a window are the keys that it holds. With `n(x) = x div d + [g < x mod d]`
//! tokens of residue `g` before token `x`, the queries of the residue are its positions `n(q0)..n(q1)`, the first of them
//! token `n(q0) d + g - q0` of the call; likewise the keys.
//!
//! Both ends never fall as `p` grows. So the keys that a range of queries sees are a range, and so are the
//! queries that see a range of keys; with several axes, boxes. All the rest (tiles, backward) follows.

use std::ops::Range;

mod residue;

pub use residue::Residue;

/// One token axis of a problem: the whole, and the part of it that a call holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Axis {
    /// Tokens of the whole axis, at whose ends windows stop.
    pub extent: usize,
    /// Where in the whole the queries begin.
    pub query_start: usize,
    /// Queries along the axis, in tokens.
    pub query_extent: usize,
    /// Where in the whole the keys begin.
    pub key_start: usize,
    /// Keys along the axis, in tokens.
    pub key_extent: usize,
    /// Window, in tokens of one residue. Plain causal attention has `max(query_extent, key_extent)`.
    pub kernel_size: usize,
    /// Queries that share one window, in tokens of one residue.
    pub stride: usize,
    /// Number of residues.
    pub dilation: usize,
    /// Whether keys after the query are hidden.
    pub is_causal: bool,
}

impl Axis {
    /// An axis of one token that sees itself: what missing axes are.
    pub const UNIT: Axis = Axis::whole(1);

    /// An axis of so many tokens, each of which sees itself, in a call that holds all of it.
    pub const fn whole(extent: usize) -> Axis {
        Axis {
            extent,
            query_start: 0,
            query_extent: extent,
            key_start: 0,
            key_extent: extent,
            kernel_size: 1,
            stride: 1,
            dilation: 1,
            is_causal: false,
        }
    }

    /// Plain attention: every query sees every key. The whole are the keys, however many queries there are.
    pub const fn attention(queries: usize, keys: usize) -> Axis {
        Axis { query_extent: queries, kernel_size: keys, ..Axis::whole(keys) }
    }

    /// Plain attention that is causal from the start: query `i` sees the keys up to key `i`.
    pub fn causal_from_start(queries: usize, keys: usize) -> Axis {
        let extent = queries.max(keys);
        let whole = Axis { kernel_size: extent, is_causal: true, ..Axis::whole(extent) };
        Axis { query_extent: queries, key_extent: keys, ..whole }
    }

    /// Plain attention that is causal from the end: the last query stands at the last key. The shorter of both is the end of
    /// the whole.
    pub fn causal_from_end(queries: usize, keys: usize) -> Axis {
        let axis = Axis::causal_from_start(queries, keys);
        Axis { query_start: axis.extent - queries, key_start: axis.extent - keys, ..axis }
    }

    /// The tokens `g, g + dilation, ..` of the whole, which see only each other.
    pub fn residue(&self, g: usize) -> Residue {
        debug_assert!(g < self.dilation);
        let [query_start, key_start] =
            [self.query_start, self.key_start].map(|start| self.tokens_before(g, start));
        Residue {
            len: self.tokens_before(g, self.extent),
            query_start,
            query_len: self.tokens_before(g, self.query_start + self.query_extent) - query_start,
            key_start,
            key_len: self.tokens_before(g, self.key_start + self.key_extent) - key_start,
            kernel_size: self.kernel_size,
            stride: self.stride,
            is_causal: self.is_causal,
        }
    }

    /// The query of the call that is the first of residue `g`; the others follow in steps of the dilation. There may be none.
    pub fn first_query(&self, g: usize) -> usize {
        self.tokens_before(g, self.query_start) * self.dilation + g - self.query_start
    }

    /// The key of the call that is the first of residue `g`, as [`Axis::first_query`].
    pub fn first_key(&self, g: usize) -> usize {
        self.tokens_before(g, self.key_start) * self.dilation + g - self.key_start
    }

    /// The residue of query `token` of the call, and its place among the queries of the residue.
    pub fn place_of_query(&self, token: usize) -> (usize, usize) {
        self.place(self.query_start, token)
    }

    /// The residue of key `token` of the call, and its place among the keys of the residue.
    pub fn place_of_key(&self, token: usize) -> (usize, usize) {
        self.place(self.key_start, token)
    }

    fn place(&self, start: usize, token: usize) -> (usize, usize) {
        let of_whole = start + token;
        let g = of_whole % self.dilation;
        (g, of_whole / self.dilation - self.tokens_before(g, start))
    }

    /// Tokens of residue `g` before token `x` of the whole.
    pub(crate) fn tokens_before(&self, g: usize, x: usize) -> usize {
        x / self.dilation + usize::from(g < x % self.dilation)
    }

    /// Most runs that [`Axis::residue_runs`] has.
    pub const MOST_RESIDUE_RUNS: usize = 6;

    /// Runs of residues that are alike. A whole axis has at most two, a part of one at most six: where the whole, the queries
    /// and the keys begin or end in the middle of a round of residues.
    pub fn residue_runs(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let ends = [
            0,
            self.extent,
            self.query_start,
            self.query_start + self.query_extent,
            self.key_start,
            self.key_start + self.key_extent,
        ];
        let mut cuts = [0; Axis::MOST_RESIDUE_RUNS];
        // Without a dilation there is one residue: nothing to divide by, or to sort.
        if self.dilation > 1 {
            cuts = ends.map(|end| end % self.dilation);
            cuts.sort_unstable();
        }
        let ends = [cuts[1], cuts[2], cuts[3], cuts[4], cuts[5], self.dilation];
        cuts.into_iter().zip(ends).map(|(first, end)| first..end).filter(|run| !run.is_empty())
    }

    /// The distinct residues with how many of each there are, as [`Axis::residue_runs`] has them.
    pub fn residue_kinds(&self) -> impl Iterator<Item = (Residue, usize)> {
        self.residue_runs().map(|run| (self.residue(run.start), run.len()))
    }

    /// Whether every query sees every key.
    pub fn is_full(&self) -> bool {
        self.dilation == 1 && !self.is_causal && self.kernel_size >= self.extent
    }

    /// Whether the call holds every token, as a query and as a key.
    pub fn is_whole(&self) -> bool {
        let Axis { extent, query_start, query_extent, key_start, key_extent, .. } = *self;
        [query_start, key_start] == [0; 2] && [query_extent, key_extent] == [extent; 2]
    }

    /// The same queries and keys in the shortest whole, of those that begin at a stride block's edge of every residue, in which
    /// windows are the same: without the tokens that no window of theirs ends at or begins after. An axis of which a call holds
    /// all stays as it is.
    ///
    /// What is planned for a call that moves along an endless axis is the same step after step, and counts from near 0.
    ///
    /// ```
    /// use natten_core::window::Axis;
    ///
    /// let far = Axis { kernel_size: 5, query_start: 1000, key_start: 998, ..Axis::whole(1 << 60) };
    /// let axis = Axis { query_extent: 8, key_extent: 12, ..far }.shortened();
    /// assert_eq!((axis.extent, axis.query_start, axis.key_start), (12, 2, 0));
    /// ```
    pub fn shortened(&self) -> Axis {
        let (d, s, w) = (self.dilation, self.stride, self.kernel_size);
        let (ahead, behind) = self.residue(0).reach();
        let unit = d * s;
        // So many stride blocks from the beginning on have windows that it stops.
        let stopped = behind.saturating_sub(ahead).div_ceil(s);
        let in_front = (self.query_start / unit).saturating_sub(stopped);
        let room = self.extent.saturating_sub(w.saturating_mul(d)) / unit;
        let skipped = in_front.min(self.key_start / unit).min(room) * unit;
        let (query_start, key_start) = (self.query_start - skipped, self.key_start - skipped);
        let (query_end, key_end) = (query_start + self.query_extent, key_start + self.key_extent);
        // The last block's window has room before the whole ends.
        let last_block = query_end.saturating_sub(1) / unit * s;
        let last_window = ((last_block + ahead).saturating_sub(behind) + w).saturating_mul(d);
        let extent = last_window.max(query_end).max(key_end).min(self.extent - skipped);
        Axis { extent, query_start, key_start, ..*self }
    }

    /// Tokens from the first key to the first query: query `x` of the call stands at its key `x + query_offset`, which it need
    /// not hold. 0 but for a part of an axis, and for plain attention that is causal from the end.
    pub fn query_offset(&self) -> isize {
        (self.query_start as isize).wrapping_sub(self.key_start as isize)
    }
}

#[cfg(test)]
pub(crate) mod small;
#[cfg(test)]
mod tests;
