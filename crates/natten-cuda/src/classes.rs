//! What one launch works on: residues of the same length along every axis.
//!
//! Past a residue's end the copy engine must deliver zeros, which it does past the end of an axis of its map, and nowhere
//! else. So all residues that a map serves must end at the same position. Where a dilation divides its axis, they do.
//! Where it does not, the first residues are a token longer than the others: either kind is a problem of its own, with
//! fewer residues than the dilation, on the tokens from its first residue on.

use std::ops::Range;

use natten_core::window::Axis;

/// Residues of each axis that have the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Class {
    /// The first of them along each axis: the token at which this launch's tensors begin.
    pub first: [usize; 3],
    /// The axes from there on: the class's residues are their first.
    pub axes: [Axis; 3],
    /// How many.
    pub residues: [usize; 3],
    /// Queries that each has.
    pub queries: [usize; 3],
}

impl Class {
    /// Tiles along each axis, of so many queries.
    pub fn tiles(&self, sides: &[usize; 3]) -> [usize; 3] {
        std::array::from_fn(|a| self.residues[a] * self.queries[a].div_ceil(sides[a]))
    }
}

/// The classes of a problem: one where every dilation divides its axis, twice as many for every one that does not.
pub(crate) fn classes(axes: &[Axis; 3]) -> Vec<Class> {
    let mut classes = vec![Class { first: [0; 3], axes: *axes, residues: [1; 3], queries: [0; 3] }];
    for (a, axis) in axes.iter().enumerate() {
        let with = |class: &Class, run: &Range<usize>| {
            let mut class = *class;
            (class.first[a], class.residues[a]) = (run.start, run.len());
            class.axes[a].extent = axis.extent.saturating_sub(run.start);
            class.axes[a].query_extent -= run.start;
            class.queries[a] = class.axes[a].query_extent.div_ceil(axis.dilation);
            class.axes[a].key_extent = axis.key_extent.saturating_sub(run.start);
            class
        };
        let runs = runs(axis);
        classes = classes.iter().flat_map(|class| runs.iter().map(move |run| with(class, run))).collect();
    }
    classes
}

/// The runs of residues that are alike, those without queries left out.
fn runs(axis: &Axis) -> Vec<Range<usize>> {
    axis.residue_runs().filter(|run| axis.residue(run.start).query_len > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(extent: usize, dilation: usize) -> Axis {
        Axis { dilation, ..Axis::whole(extent) }
    }

    /// Every residue is in one class, where it has the length that it has in the whole; all of a class have the same.
    #[test]
    fn residues_keep_their_lengths() {
        for query_extent in 1..24 {
            for key_extent in [query_extent, query_extent + 1, query_extent + 5, 30 - query_extent] {
                for dilation in 1..=26 {
                    let whole = Axis { query_extent, dilation, ..Axis::whole(key_extent) };
                    let mut seen = 0;
                    for class in classes(&[Axis::UNIT, whole, Axis::UNIT]) {
                        let part = class.axes[1];
                        assert_eq!(class.first[1], seen, "{whole:?}");
                        for residue in 0..class.residues[1] {
                            assert_eq!(part.residue(residue), whole.residue(seen + residue), "{whole:?}");
                            assert_eq!(part.residue(residue), part.residue(0), "{whole:?}");
                            assert_eq!(part.residue(residue).query_len, class.queries[1], "{whole:?}");
                        }
                        seen += class.residues[1];
                    }
                    assert!((seen..dilation).all(|g| whole.residue(g).query_len == 0), "{whole:?}");
                }
            }
        }
    }

    #[test]
    fn classes_are_the_product_over_axes() {
        let count = |axes: [Axis; 3]| classes(&axes).len();
        assert_eq!(count([Axis::UNIT; 3]), 1);
        assert_eq!(count([axis(8, 2), axis(9, 3), axis(30, 1)]), 1);
        assert_eq!(count([Axis::UNIT, axis(10, 3), axis(9, 3)]), 2);
        assert_eq!(count([axis(5, 2), axis(7, 3), axis(9, 4)]), 8);
        let uneven = classes(&[Axis::UNIT, axis(23, 10), axis(25, 9)]);
        let seen: Vec<_> = uneven.iter().map(|c| (c.first, c.residues, c.tiles(&[1, 2, 2]))).collect();
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
        let short = classes(&[Axis::UNIT, Axis::UNIT, axis(4, 7)]);
        assert_eq!(short.iter().map(|c| c.residues[2]).collect::<Vec<_>>(), [4]);
        assert!(classes(&[Axis::UNIT, Axis::UNIT, axis(0, 1)]).is_empty());
    }
}
