//! The boxes that a problem can be cut into: power-of-two sides, or a few such boxes side by side.

use crate::window::Axis;

/// All boxes of `size` tokens with power-of-two sides, `size` itself a power of two (none for 0). Axes of one token get 1;
/// if all have one token, the box extends along the last.
pub fn tile_boxes(size: usize, axes: &[Axis; 3]) -> Vec<[usize; 3]> {
    let is_single = |axis: &Axis| axis.query_extent.max(axis.key_extent) == 1;
    let single = axes.each_ref().map(is_single);
    let mut boxes: Vec<[usize; 3]> =
        all_boxes(size).filter(|sides| (0..3).all(|a| !single[a] || sides[a] == 1)).collect();
    // A problem of a single token has no axis to spend the size on.
    if boxes.is_empty() && size > 0 {
        boxes.push([1, 1, size]);
    }
    boxes
}

/// The boxes of `size` tokens no side of which reaches past its extent by a factor of two; all, if there is none such.
pub fn fitting_boxes(size: usize, extents: &[usize; 3]) -> Vec<[usize; 3]> {
    let fits = |sides: &[usize; 3]| (0..3).all(|a| sides[a] < extents[a].max(1).saturating_mul(2));
    let boxes: Vec<[usize; 3]> = all_boxes(size).filter(fits).collect();
    if boxes.is_empty() { all_boxes(size).collect() } else { boxes }
}

/// The box that `count` boxes have together that stand side by side along an axis.
pub fn abreast(mut sides: [usize; 3], axis: usize, count: usize) -> [usize; 3] {
    sides[axis] *= count;
    sides
}

/// The sides of a box of `size` tokens, a power of two, as powers of two; nothing if it is no such box.
pub fn box_log2(sides: &[usize; 3], size: usize) -> Option<[u32; 3]> {
    let are_powers = sides.iter().chain([&size]).all(|side| side.is_power_of_two());
    let log2 = sides.map(usize::trailing_zeros);
    (are_powers && log2.iter().sum::<u32>() == size.trailing_zeros()).then_some(log2)
}

/// All boxes of `size` tokens with power-of-two sides, short along the first axis first; none for 0.
fn all_boxes(size: usize) -> impl Iterator<Item = [usize; 3]> {
    let log2 = size.checked_ilog2();
    log2.into_iter().flat_map(|log2| {
        (0..=log2).flat_map(move |x| (0..=log2 - x).map(move |y| [1 << x, 1 << y, 1 << (log2 - x - y)]))
    })
}

impl Axis {
    /// Keys that so many neighbouring queries of a residue see between them, away from the axis's ends: at least, where a
    /// block of queries that share a window begins with them, and at most, where one ends. Bound them by the keys there
    /// are.
    pub fn union_of_windows(&self, queries: usize) -> (usize, usize) {
        let further = queries.max(1) - 1;
        let union = |blocks: usize| self.kernel_size.saturating_add(blocks.saturating_mul(self.stride));
        (union(further / self.stride), union(further.div_ceil(self.stride)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_fit_where_any_does() {
        assert_eq!(fitting_boxes(64, &[1, 1, 1 << 22]), [[1, 1, 64]]);
        assert!(fitting_boxes(64, &[4, 100, 1]).iter().all(|sides| sides[0] <= 4 && sides[2] == 1));
        // 5 takes 8, 4 takes 4.
        assert_eq!(fitting_boxes(32, &[1, 4, 5]), [[1, 4, 8]]);
        assert_eq!(fitting_boxes(64, &[1, 1, 1]).len(), all_boxes(64).count());
        assert_eq!(all_boxes(64).count(), 28);
        assert_eq!(all_boxes(0).count(), 0);
        assert_eq!(abreast([2, 4, 8], 1, 3), [2, 12, 8]);
        assert_eq!(box_log2(&[2, 4, 8], 64), Some([1, 2, 3]));
        for (sides, size) in [([2, 4, 8], 32), ([3, 4, 8], 96), ([0, 1, 1], 0), ([1 << 40; 3], 1 << 56)] {
            assert_eq!(box_log2(&sides, size), None);
        }
    }

    /// Boxes of queries somewhere in the middle, at every phase.
    #[test]
    fn unions_are_reached_and_not_exceeded() {
        for stride in 1..=6 {
            for kernel_size in stride..=9 {
                let extent = 200;
                let axis = Axis { kernel_size, stride, ..Axis::whole(extent) };
                for queries in 1..=20 {
                    let found =
                        (60..60 + stride).map(|first| axis.residue(0).keys_of(first..first + queries).len());
                    let (least, most) =
                        found.fold((usize::MAX, 0), |(least, most), n| (least.min(n), most.max(n)));
                    assert_eq!(axis.union_of_windows(queries), (least, most), "{axis:?} {queries}");
                }
            }
        }
    }
}
