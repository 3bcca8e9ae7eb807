//! In which order the tiles of a head are handed out: `TileOrder` of `kernels/include/natten/params_sm90.h`.

use bytemuck::{Pod, Zeroable};

use crate::error::CudaError;
use crate::params::Divisor;

/// Tiles come in boxes of neighbours, axis 2 fastest inside and among them; boxes at the end of an axis may be shorter. Which boxes
/// and sides there are is known beforehand, so a kernel divides by these alone. Fields are explained in the header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TileOrder {
    all: Divisor,
    slab: Divisor,
    line: [Divisor; 2],
    boxes: [Divisor; 4],
    side: [[Divisor; 2]; 3],
}

impl TileOrder {
    /// So many tiles along each axis, in boxes with sides of so many of them.
    ///
    /// # Errors
    /// [`CudaError::TooLarge`] where the tiles are 2^31 or more.
    pub fn new(tiles: [usize; 3], sides: [usize; 3]) -> Result<Self, CudaError> {
        let of = |count: usize| Divisor::new("the number of tiles", count.max(1));
        // Of a whole box and of the one at the end of the axis; there may be no shorter one, and nothing is divided by its side then.
        let lengths = |a: usize| [sides[a], tiles[a] % sides[a]];
        let [x, y, z] = [lengths(0), lengths(1), lengths(2)];
        let line = |x: usize| of(x * sides[1] * tiles[2]);
        let cut = |x: usize, y: usize| of(x * y * sides[2]);
        let side = |[whole, end]: [usize; 2]| Ok::<_, CudaError>([of(whole)?, of(end)?]);
        Ok(TileOrder {
            all: of(tiles.iter().product())?,
            slab: of(sides[0] * tiles[1] * tiles[2])?,
            line: [line(x[0])?, line(x[1])?],
            boxes: [cut(x[0], y[0])?, cut(x[0], y[1])?, cut(x[1], y[0])?, cut(x[1], y[1])?],
            side: [side(x)?, side(y)?, side(z)?],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl TileOrder {
        /// `find_tiles` of kernels/include/natten/sm90/work.cuh.
        fn find(&self, tiles: [usize; 3], mut index: u32) -> (u32, [u32; 3]) {
            let take_slowest = |index: &mut u32, step: &Divisor| {
                let taken = *index / step.value;
                *index -= taken * step.value;
                taken
            };
            let rest = take_slowest(&mut index, &self.all);
            let (mut first, mut short) = ([0; 3], [0; 3]);
            for a in 0..3 {
                let step = [self.slab, self.line[short[0]], self.boxes[2 * short[0] + short[1]]][a];
                let side = self.side[a][0].value;
                first[a] = take_slowest(&mut index, &step) * side;
                short[a] = usize::from(first[a] + side > tiles[a] as u32);
            }
            let mut at = first;
            for a in [2, 1] {
                let side = self.side[a][short[a]].value;
                at[a] += index % side;
                index /= side;
            }
            at[0] += index;
            (rest, at)
        }
    }

    /// Where the boxes along an axis begin and end.
    fn cut(tiles: usize, side: usize) -> impl Iterator<Item = std::ops::Range<u32>> + Clone {
        (0..tiles).step_by(side).map(move |first| first as u32..tiles.min(first + side) as u32)
    }

    #[test]
    fn boxes_come_one_behind_the_other() {
        for tiles in [[1, 1, 1], [1, 1, 9], [2, 5, 7], [4, 6, 8], [5, 3, 1]] {
            for sides in [[1, 1, 1], [2, 2, 2], [1, 3, 4], [4, 6, 8], [3, 1, 5]] {
                let sides = std::array::from_fn(|a| sides[a].min(tiles[a]));
                let order = TileOrder::new(tiles, sides).unwrap();
                let mut index = 0;
                for head in 0..2 {
                    for x in cut(tiles[0], sides[0]) {
                        for (y, z) in cut(tiles[1], sides[1])
                            .flat_map(|y| cut(tiles[2], sides[2]).map(move |z| (y.clone(), z)))
                        {
                            for at in x.clone().flat_map(|i| y.clone().map(move |j| (i, j))) {
                                for k in z.clone() {
                                    let expected = (head, [at.0, at.1, k]);
                                    assert_eq!(order.find(tiles, index), expected, "{tiles:?} in {sides:?}");
                                    index += 1;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
