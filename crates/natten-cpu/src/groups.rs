//! Lane groups: a vector's lanes hold a small box of neighbours, and a tile is made of such boxes. Which vector, and which
//! of its lanes, each position of a tile is.

use std::ops::Range;

/// Where groups of lanes lie in a tile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Groups {
    /// Lanes of a group along each axis.
    pub group: [usize; 3],
    /// Groups of the tile along each axis.
    pub counts: [usize; 3],
    /// Lanes of the tile along each axis.
    pub lanes: [usize; 3],
}

impl Groups {
    /// The groups that cover `lanes`.
    pub(crate) fn new(group: [usize; 3], lanes: [usize; 3]) -> Self {
        Groups { group, counts: std::array::from_fn(|a| lanes[a].div_ceil(group[a])), lanes }
    }

    /// The lanes of a group with a given coordinate, one bit a lane, by axis.
    pub(crate) fn bits(&self) -> [[u32; 16]; 3] {
        let mut bits = [[0; 16]; 3];
        let mut lane = 1;
        for x in 0..self.group[0] {
            for y in 0..self.group[1] {
                for z in 0..self.group[2] {
                    bits[0][x] |= lane;
                    bits[1][y] |= lane;
                    bits[2][z] |= lane;
                    lane <<= 1;
                }
            }
        }
        bits
    }

    /// Number of groups.
    pub(crate) fn len(&self) -> usize {
        self.counts.iter().product()
    }

    /// Lanes of a group.
    #[inline(always)]
    pub(crate) fn lane_count(&self) -> usize {
        self.group.iter().product()
    }

    /// Number of pairs.
    pub(crate) fn pair_count(&self) -> usize {
        self.counts[0] * self.counts[1] * self.counts[2].div_ceil(2)
    }

    /// First lane of group `index`.
    #[inline(always)]
    pub(crate) fn origin(&self, index: usize) -> [usize; 3] {
        let [_, y, z] = self.counts;
        [index / (y * z) * self.group[0], index / z % y * self.group[1], index % z * self.group[2]]
    }

    /// Lanes along an axis that a group with this origin has in the tile.
    #[inline(always)]
    pub(crate) fn present(&self, axis: usize, origin: usize) -> usize {
        self.group[axis].min(self.lanes[axis] - origin)
    }

    /// The lanes of group `index` that are in the tile, those along the last axis together: number of the first in
    /// the group, and coordinates in the tile.
    #[inline(always)]
    pub(crate) fn rows_of(&self, index: usize) -> impl Iterator<Item = (usize, [usize; 2], Range<usize>)> {
        let [x, y, z] = self.origin(index);
        let last = z..z + self.present(2, z);
        let (of_x, of_y, [_, gy, gz]) = (self.present(0, x), self.present(1, y), self.group);
        // Divisions of small numbers, and one for several lanes.
        (0..of_x * of_y).map(move |i| {
            let (ix, iy) = (i / of_y, i % of_y);
            ((ix * gy + iy) * gz, [x + ix, y + iy], last.clone())
        })
    }
}

/// One or two groups, neighbours along the last axis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    /// Its number.
    pub index: usize,
    /// Index of the first group.
    pub first: usize,
    /// One or two.
    pub count: usize,
}

/// The groups of a tile, two at a time where the last axis has two.
#[inline(always)]
pub(crate) fn pairs(groups: &Groups) -> impl Iterator<Item = Pair> + use<> {
    let along = groups.counts[2];
    let of_row = along.div_ceil(2);
    (0..groups.pair_count()).map(move |index| {
        let (row, z) = (index / of_row, 2 * (index % of_row));
        Pair { index, first: row * along + z, count: (along - z).min(2) }
    })
}
