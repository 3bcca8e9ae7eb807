//! What one launch works on: residues that are alike along every axis.
//!
//! Past a residue's end the copy engine must deliver zeros, which it does past the end of an axis of its map, and nowhere
//! else. So all residues that a map serves must end at the same position. Where a dilation divides its axis, they do.
//! Where it does not, the first residues are a token longer than the others; and where a call holds a part of an axis, some
//! residues begin or end a position earlier than others. Each kind is a problem of its own, with fewer residues than the
//! dilation, on the tokens from its first residue on.

use std::ops::Range;

use natten_core::window::{Axis, Residue};

/// Which tokens are the rows of a pass, of which it writes results; the others are its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rows {
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
            class.residues[a] * (self.extent(axis) / axis.dilation).div_ceil(sides[a])
        })
    }
}

/// Residues of each axis that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Class {
    /// Along each axis the query and the key of the call at which the first of them begins: this launch's tensors begin there.
    pub first_query: [usize; 3],
    pub first_key: [usize; 3],
    /// Axes of which all residues are like these, without remainders; the class's are their first.
    pub axes: [Axis; 3],
    /// How many.
    pub residues: [usize; 3],
}

/// The classes of a pass over rows: one where every dilation divides its axis, and more where it does not or parts of a whole are
/// held. Residues without rows are left out.
pub(crate) fn classes(axes: &[Axis; 3], rows: Rows) -> Vec<Class> {
    let (none, one) = ([0; 3], [1; 3]);
    let mut classes = vec![Class { first_query: none, first_key: none, axes: *axes, residues: one }];
    for (a, axis) in axes.iter().enumerate() {
        let with = |class: &Class, run: &Range<usize>| {
            let mut class = *class;
            class.residues[a] = run.len();
            class.first_query[a] = axis.first_query(run.start);
            class.first_key[a] = axis.first_key(run.start);
            class.axes[a] = of_alike(axis, &axis.residue(run.start));
            class
        };
        let runs: Vec<_> = axis.residue_runs().filter(|run| rows.len(&axis.residue(run.start)) > 0).collect();
        classes = classes.iter().flat_map(|class| runs.iter().map(move |run| with(class, run))).collect();
    }
    classes
}

/// The axis of which every residue is this one.
fn of_alike(axis: &Axis, residue: &Residue) -> Axis {
    let Residue { len, query_start, query_len, key_start, key_len, .. } = *residue;
    let [extent, query_start, query_extent, key_start, key_extent] =
        [len, query_start, query_len, key_start, key_len].map(|positions| positions * axis.dilation);
    Axis { extent, query_start, query_extent, key_start, key_extent, ..*axis }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(extent: usize, dilation: usize) -> Axis {
        Axis { dilation, ..Axis::whole(extent) }
    }

    /// Every residue with rows is in one class, where it is what it is in the whole, and begins where it does.
    #[test]
    fn residues_stay_what_they_are() {
        for rows in [Rows::Queries, Rows::Keys] {
            for extent in 1..14 {
                let ranges =
                    || (0..=extent).flat_map(move |start| (start..=extent).map(move |end| start..end));
                for (queries, keys) in
                    ranges().flat_map(|queries| ranges().map(move |keys| (queries.clone(), keys)))
                {
                    for dilation in 1..=extent + 1 {
                        let (query_start, key_start) = (queries.start, keys.start);
                        let part = Axis { query_start, key_start, dilation, ..Axis::whole(extent) };
                        let part = Axis { query_extent: queries.len(), key_extent: keys.len(), ..part };
                        check(&part, rows);
                    }
                }
            }
        }
    }

    fn check(part: &Axis, rows: Rows) {
        let with_rows = (0..part.dilation).filter(|&g| rows.len(&part.residue(g)) > 0);
        let mut wanted: Vec<(usize, usize, Residue)> =
            with_rows.map(|g| (part.first_query(g), part.first_key(g), part.residue(g))).collect();
        for class in classes(&[Axis::UNIT, *part, Axis::UNIT], rows) {
            let [_, axis, _] = class.axes;
            for g in 0..class.residues[1] {
                let begins = (class.first_query[1] + g, class.first_key[1] + g);
                let found = (begins.0, begins.1, axis.residue(g));
                assert_eq!((axis.first_query(g), axis.first_key(g)), (g, g), "{part:?}");
                let place = wanted.iter().position(|wanted| *wanted == found);
                wanted.remove(place.unwrap_or_else(|| panic!("{part:?}: {found:?}")));
            }
        }
        assert!(wanted.is_empty(), "{part:?}: {wanted:?}");
    }

    #[test]
    fn classes_are_the_product_over_axes() {
        let of_queries = |axes: &[Axis; 3]| classes(axes, Rows::Queries);
        let count = |axes: [Axis; 3]| of_queries(&axes).len();
        assert_eq!(count([Axis::UNIT; 3]), 1);
        assert_eq!(count([axis(8, 2), axis(9, 3), axis(30, 1)]), 1);
        assert_eq!(count([Axis::UNIT, axis(10, 3), axis(9, 3)]), 2);
        assert_eq!(count([axis(5, 2), axis(7, 3), axis(9, 4)]), 8);
        let uneven = of_queries(&[Axis::UNIT, axis(23, 10), axis(25, 9)]);
        let tiles = |class: &Class| Rows::Queries.tiles(class, &[1, 2, 2]);
        let seen: Vec<_> = uneven.iter().map(|c| (c.first_query, c.residues, tiles(c))).collect();
        let expected = [
            ([0, 0, 0], [1, 3, 7], [1, 6, 14]),
            ([0, 0, 7], [1, 3, 2], [1, 6, 2]),
            ([0, 3, 0], [1, 7, 7], [1, 7, 14]),
            ([0, 3, 7], [1, 7, 2], [1, 7, 2]),
        ];
        assert_eq!(seen, expected);
    }

    /// An axis shorter than its dilation has no token in its last residues.
    #[test]
    fn residues_without_tokens_are_left_out() {
        let short = classes(&[Axis::UNIT, Axis::UNIT, axis(4, 7)], Rows::Queries);
        assert_eq!(short.iter().map(|c| c.residues[2]).collect::<Vec<_>>(), [4]);
        assert!(classes(&[Axis::UNIT, Axis::UNIT, axis(0, 1)], Rows::Queries).is_empty());
    }
}
