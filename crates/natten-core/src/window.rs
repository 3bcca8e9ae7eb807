//! The mask, one axis at a time: which keys a query sees, and which queries see a key.
//!
//! A token `x` of an axis with dilation `d` belongs to residue `g = x mod d` at position `i = x div d`; tokens
//! see only their own residue. Inside a residue of `L` tokens, with window `w` and stride `s`:
//!
//! ```text
//! not causal   leader = min((i div s) s + s div 2, L-1)   window = [clamp(leader - w div 2, 0, L-w), +w)
//! causal       leader = min((i div s) s + s - 1,   L-1)   window = [max(leader - w + 1, 0), i+1)
//! ```
//!
//! Of a causal axis queries may stand elsewhere among the keys: query `i` at `i + o`, with the query offset `o`, which
//! is added to the leader and to `i`; both ends are then clamped to the keys there are, and a query before the first key
//! sees none.
//!
//! Both ends never fall as `i` grows. So the keys that a range of queries sees are a range, and so are the
//! queries that see a range of keys; with several axes, boxes. All the rest (tiles, backward) follows.

use std::ops::Range;

/// One token axis of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Axis {
    /// Queries along the axis, in tokens.
    pub query_extent: usize,
    /// Keys along the axis, in tokens. Equal to `query_extent` but for plain attention.
    pub key_extent: usize,
    /// Window, in tokens of one residue. Plain causal attention has `max(query_extent, key_extent)`.
    pub kernel_size: usize,
    /// Queries that share one window, in tokens of one residue.
    pub stride: usize,
    /// Number of residues.
    pub dilation: usize,
    /// Whether keys after the query are hidden.
    pub is_causal: bool,
    /// Where among the keys the first query of a causal axis stands, in tokens, a multiple of the dilation: query `x`
    /// at key `x + query_offset`. 0 but for plain attention that is causal from the end, which has
    /// `key_extent - query_extent`, below 0 with more queries than keys.
    pub query_offset: isize,
}

impl Axis {
    /// An axis of one token that sees itself: what missing axes are.
    pub const UNIT: Axis = Axis {
        query_extent: 1,
        key_extent: 1,
        kernel_size: 1,
        stride: 1,
        dilation: 1,
        is_causal: false,
        query_offset: 0,
    };

    /// The tokens `g, g + dilation, ..`, which see only each other.
    pub fn residue(&self, g: usize) -> Residue {
        debug_assert!(g < self.dilation);
        let len = |extent: usize| extent / self.dilation + usize::from(g < extent % self.dilation);
        Residue {
            query_len: len(self.query_extent),
            key_len: len(self.key_extent),
            kernel_size: self.kernel_size,
            stride: self.stride,
            is_causal: self.is_causal,
            query_offset: self.query_offset / self.dilation as isize,
        }
    }

    /// The distinct residues with how many of each there are. Queries have at most two lengths, and keys.
    pub fn residue_kinds(&self) -> impl Iterator<Item = (Residue, usize)> {
        let [queries, keys] = [self.query_extent, self.key_extent].map(|extent| extent % self.dilation);
        let kinds = [
            (0, queries.min(keys)),
            (queries.min(keys), queries.max(keys)),
            (queries.max(keys), self.dilation),
        ];
        let kinds = kinds.into_iter().filter(|&(first, end)| first < end);
        kinds.map(|(first, end)| (self.residue(first), end - first))
    }

    /// Whether every query sees every key.
    pub fn is_full(&self) -> bool {
        self.dilation == 1 && !self.is_causal && self.kernel_size >= self.key_extent
    }
}

/// One residue of an axis: an undilated axis of its own. Positions count inside the residue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Residue {
    /// Queries in the residue.
    pub query_len: usize,
    /// Keys in the residue.
    pub key_len: usize,
    /// Window, in positions.
    pub kernel_size: usize,
    /// Queries that share one window.
    pub stride: usize,
    /// Whether keys after the query are hidden.
    pub is_causal: bool,
    /// Where among the keys the first query of a causal axis stands.
    pub query_offset: isize,
}

impl Residue {
    /// The keys that query `i` sees; none where it stands before the first.
    #[inline]
    pub fn window(&self, i: usize) -> Range<usize> {
        debug_assert!(i < self.query_len);
        let (w, s) = (self.kernel_size, self.stride);
        let block = i / s * s;
        if self.is_causal {
            let leader = (block + s - 1).min(self.query_len - 1);
            let start = self.key_after(leader).saturating_sub(w);
            start.min(self.key_len)..self.key_after(i).min(self.key_len)
        } else {
            let leader = (block + s / 2).min(self.query_len - 1);
            let start = leader.saturating_sub(w / 2).min(self.key_len - w);
            start..start + w
        }
    }

    /// The key after that beside which a query of a causal axis stands; 0 where it stands before the first. There may be
    /// no such key.
    #[inline]
    pub(crate) fn key_after(&self, i: usize) -> usize {
        (i + 1).saturating_add_signed(self.query_offset)
    }

    /// The first query of a causal axis that stands at a key or after it. There may be no such query.
    #[inline]
    pub(crate) fn query_at(&self, k: usize) -> usize {
        k.saturating_add_signed(-self.query_offset)
    }

    /// The queries of a causal axis that each see a key more than the one before: those before them see none, those
    /// after them the last.
    pub fn rising(&self) -> Range<usize> {
        let [start, end] = [0, self.key_len].map(|k| self.query_at(k).min(self.query_len));
        start..end
    }

    /// The queries whose windows move by one stride from block to block. Those before them see a window that starts at
    /// key 0, those after them windows that start where the last one does.
    pub fn sliding(&self) -> Range<usize> {
        let (w, s, len) = (self.kernel_size, self.stride, self.query_len);
        let (start, end) = if self.is_causal {
            (self.query_at(w).div_ceil(s).saturating_sub(1) * s, (len / s * s).min(self.rising().end))
        } else {
            // The leader of a block is `half` after its start, at least `w / 2` and at most `last`.
            let half = s / 2;
            let last = (self.key_len - w + w / 2).min(len.saturating_sub(1));
            let end = if last < half { 0 } else { ((last - half) / s + 1) * s };
            ((w / 2).saturating_sub(half).div_ceil(s) * s, end)
        };
        let end = end.min(len);
        start.min(end)..end
    }

    /// The queries that see key `k`.
    ///
    /// A query block sees `k` as soon as its window reaches far enough right, and until it has moved past; both
    /// are the window formulas solved for the block. Checked against them for all small axes.
    #[inline]
    pub fn inverse_window(&self, k: usize) -> Range<usize> {
        debug_assert!(k < self.key_len);
        let (w, s, len) = (self.kernel_size, self.stride, self.query_len);
        if self.is_causal {
            // The first query past whose block the key is.
            let past = self.query_at(k + w);
            let end = if past >= len { len } else { past / s * s };
            return self.query_at(k).min(len)..end;
        }
        let left = w / 2;
        let right = w - left - 1;
        let ahead = s - s / 2 - 1;
        let start = if k >= w { (k - right + ahead) / s * s } else { 0 };
        let end = if k + w >= self.key_len { len } else { ((k + left + ahead + 1) / s * s).min(len) };
        start..end
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

#[cfg(test)]
mod tests {
    use super::*;

    /// An independent statement of the mask: of the `w` consecutive members of the query's residue, those whose
    /// part left of the leader is closest to `w div 2`; causal ones end at the query and start `w` before the
    /// last query of its block.
    fn sees(axis: &Axis, q: usize, k: usize) -> bool {
        let (w, s, d) = (axis.kernel_size as i64, axis.stride as i64, axis.dilation);
        if q % d != k % d {
            return false;
        }
        let members: Vec<usize> = (0..axis.key_extent).filter(|x| x % d == q % d).collect();
        let n = members.len() as i64;
        let at = members.iter().position(|&x| x == q).unwrap() as i64;
        let target = members.iter().position(|&x| x == k).unwrap() as i64;
        let block: Vec<i64> = (0..n).filter(|p| p / s == at / s).collect();
        if axis.is_causal {
            let last = (at / s * s + s - 1).min(n - 1);
            return target <= at && target > last - w;
        }
        let centre = (block[0] + s / 2).min(n - 1);
        let start = (0..=n - w).min_by_key(|&start| (centre - start - w / 2).abs()).unwrap();
        (start..start + w).contains(&target)
    }

    #[test]
    fn windows_and_inverses_match_brute_force() {
        let mut checked = 0usize;
        for extent in 1..=24 {
            for d in 1..=extent {
                for w in 1..=extent / d {
                    for s in 1..=w {
                        for is_causal in [false, true] {
                            let axis = Axis {
                                query_extent: extent,
                                key_extent: extent,
                                kernel_size: w,
                                stride: s,
                                dilation: d,
                                is_causal,
                                ..Axis::UNIT
                            };
                            checked += check_axis(&axis);
                        }
                    }
                }
            }
        }
        assert!(checked > 500_000, "only {checked} pairs were checked");
    }

    fn check_axis(axis: &Axis) -> usize {
        for q in 0..axis.query_extent {
            let (g, i) = (q % axis.dilation, q / axis.dilation);
            let residue = axis.residue(g);
            let window = residue.window(i);
            assert!(window.start < window.end && window.end <= residue.key_len, "{axis:?} query {q}");
            for k in 0..axis.key_extent {
                let position = k / axis.dilation;
                let expected = sees(axis, q, k);
                let same = k % axis.dilation == g;
                assert_eq!(same && window.contains(&position), expected, "{axis:?} query {q} key {k}");
                let inverse = residue.inverse_window(position.min(residue.key_len - 1));
                if same {
                    assert_eq!(inverse.contains(&i), expected, "{axis:?} inverse, query {q} key {k}");
                }
            }
        }
        axis.query_extent * axis.key_extent
    }

    /// A token that sees itself, to be changed.
    fn causal(is_causal: bool) -> Residue {
        Residue { is_causal, ..Axis::UNIT.residue(0) }
    }

    /// Before the sliding queries windows start at 0, after them where the last does, and between them windows move along.
    #[test]
    fn windows_slide_between_the_ends() {
        for len in 1..=30 {
            for (kernel_size, stride) in (1..=len).flat_map(|w| (1..=w).map(move |s| (w, s))) {
                for is_causal in [false, true] {
                    let residue =
                        Residue { query_len: len, key_len: len, kernel_size, stride, ..causal(is_causal) };
                    let sliding = residue.sliding();
                    assert!(sliding.end <= len, "{residue:?}");
                    for i in 0..len {
                        let window = residue.window(i);
                        if i < sliding.start {
                            assert_eq!(window.start, 0, "{residue:?} query {i}");
                        } else if i >= sliding.end {
                            assert_eq!(window.start, residue.window(len - 1).start, "{residue:?} query {i}");
                        } else if i + stride < sliding.end {
                            let next = residue.window(i + stride);
                            let moved = window.start + stride..window.end + stride;
                            assert_eq!(next, moved, "{residue:?} query {i}");
                        }
                    }
                }
            }
        }
        let line = Residue { query_len: 100, key_len: 100, kernel_size: 7, ..causal(false) };
        assert_eq!(line.sliding(), 3..97);
        assert_eq!(Residue { is_causal: true, ..line }.sliding(), 6..100);
    }

    #[test]
    fn plain_attention_is_a_window_of_its_own() {
        for queries in 1..9 {
            for keys in 1..9 {
                for is_causal in [false, true] {
                    let kernel_size = if is_causal { queries.max(keys) } else { keys };
                    let residue =
                        Residue { query_len: queries, key_len: keys, kernel_size, ..causal(is_causal) };
                    for i in 0..queries {
                        let end = if is_causal { keys.min(i + 1) } else { keys };
                        assert_eq!(residue.window(i), 0..end);
                    }
                    for k in 0..keys {
                        let start = if is_causal { k.min(queries) } else { 0 };
                        assert_eq!(residue.inverse_window(k), start..queries);
                    }
                }
            }
        }
    }

    /// Queries anywhere among the keys, before the first and after the last too, with windows of any size: a key is seen
    /// if it is not after the query's place, and less than a window before the place of its block's last query.
    #[test]
    fn causal_queries_stand_anywhere_among_the_keys() {
        for (queries, keys) in (0..8).flat_map(|queries| (0..9).map(move |keys| (queries, keys))) {
            for (kernel_size, stride) in (1..7).flat_map(|w| (1..=w).map(move |s| (w, s))) {
                for query_offset in -9..=9 {
                    let (query_len, key_len, is_causal) = (queries, keys, true);
                    let residue =
                        Residue { query_len, key_len, kernel_size, stride, is_causal, query_offset };
                    let place = |i: usize| i as isize + query_offset;
                    let sees = |i: usize, k: usize| {
                        let last = (i / stride * stride + stride).min(queries) - 1;
                        (k as isize) <= place(i) && k as isize > place(last) - kernel_size as isize
                    };
                    for i in 0..queries {
                        let window = residue.window(i);
                        assert!(window.start <= window.end && window.end <= keys, "{residue:?} query {i}");
                        for k in 0..keys {
                            let told = format!("{residue:?} query {i} key {k}");
                            assert_eq!(window.contains(&k), sees(i, k), "{told}");
                            assert_eq!(residue.inverse_window(k).contains(&i), sees(i, k), "{told}");
                        }
                    }
                    let rising = residue.rising();
                    let rises = |i: usize| (0..keys as isize).contains(&place(i));
                    assert!((0..queries).all(|i| rising.contains(&i) == rises(i)), "{residue:?} {rising:?}");
                }
            }
        }
    }

    /// The last queries of a square causal mask, and where there are more queries than keys, the last keys of it.
    #[test]
    fn causal_from_the_end_is_the_end_of_a_square() {
        for (queries, keys) in (0..9).flat_map(|queries| (0..9).map(move |keys| (queries, keys))) {
            let side: usize = queries.max(keys);
            let square = Residue { query_len: side, key_len: side, kernel_size: side, ..causal(true) };
            let query_offset = keys as isize - queries as isize;
            let from_end = Residue { query_len: queries, key_len: keys, query_offset, ..square };
            for i in 0..queries {
                let of_square = square.window(i + side - queries);
                let hidden = side - keys;
                assert_eq!(
                    from_end.window(i),
                    0..of_square.end.saturating_sub(hidden),
                    "{from_end:?} query {i}"
                );
            }
            for k in 0..keys {
                let start = square.inverse_window(k + side - keys).start.saturating_sub(side - queries);
                assert_eq!(from_end.inverse_window(k), start..queries, "{from_end:?} key {k}");
            }
        }
    }

    #[test]
    fn residue_kinds_cover_the_axis() {
        for extent in 1..40 {
            for dilation in 1..=extent {
                let axis =
                    Axis { query_extent: extent, key_extent: extent, kernel_size: 1, dilation, ..Axis::UNIT };
                let total: usize = axis.residue_kinds().map(|(r, count)| r.query_len * count).sum();
                assert_eq!(total, extent);
            }
        }
    }
}
