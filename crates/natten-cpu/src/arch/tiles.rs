//! The two register-tiled products, generic over the instruction set.
//!
//! Scores, lanes of queries times rows of keys, accumulators `KEYS x GROUPS` in registers:
//!
//! ```text
//! for d in words:  q[g] = lanes[g][d][..]        one load for each group of lanes
//!                  for each key: acc[key][g] += q[g] * broadcast(key[d])
//! ```
//!
//! Weighted sums, weights times rows of values, accumulators `QUERIES x COLUMNS` in registers over all the rows
//! that these queries see in common:
//!
//! ```text
//! for row in rows: v[c] = row[c][..]             one load for each vector of components
//!                  for each query: acc[query][c] += v[c] * broadcast(weight[query])
//! ```
//!
//! With `PAIRS` a number is a word of two `bf16` and the product is a dot product of two.

use super::{Kernel, Simd};

/// A row of the stream and the slot of the strip that its scores go to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowSlot {
    /// Index of the row's first word in the stream.
    pub row: u32,
    /// Slot, in vectors over lanes.
    pub slot: u32,
}

/// Operands of [`scores`].
pub(crate) struct Scores<'a> {
    /// Groups of lanes, one after the other: `words` vectors each.
    pub lanes: &'a [f32],
    /// Words of a row.
    pub words: usize,
    /// Where the rows are.
    pub stream: &'a [f32],
    /// Which rows, and where their scores go.
    pub rows: &'a [RowSlot],
    /// First group.
    pub first_group: usize,
    /// One or two groups.
    pub groups: usize,
    /// Distance between the strips of two groups, in numbers.
    pub strip: usize,
    /// Factor on each score.
    pub scale: f32,
}

/// `out[group * strip + slot * LANES + lane] = scale * lanes[group][lane] . row`
#[inline(always)]
pub(crate) fn scores<S: Simd, const PAIRS: bool>(simd: S, job: &Scores<'_>, out: &mut [f32]) {
    simd.vectorize(ScoresKernel::<'_, '_, PAIRS>(job, out));
}

struct ScoresKernel<'a, 'j, const PAIRS: bool>(&'a Scores<'j>, &'a mut [f32]);

impl<const PAIRS: bool> Kernel for ScoresKernel<'_, '_, PAIRS> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        scores_here::<S, PAIRS>(simd, self.0, self.1);
    }
}

#[inline(always)]
fn scores_here<S: Simd, const PAIRS: bool>(simd: S, job: &Scores<'_>, out: &mut [f32]) {
    let end = job.first_group + job.groups;
    assert!(job.lanes.len() >= end * job.words * S::LANES && out.len() >= end * job.strip);
    let wide = job.groups == 2;
    let mut rest = job.rows;
    while !rest.is_empty() {
        if wide && !S::MANY_REGISTERS {
            rest = block::<S, PAIRS, 2, 4>(simd, job, rest, out);
        } else if rest.len() <= 4 {
            rest = match wide {
                true => block::<S, PAIRS, 2, 4>(simd, job, rest, out),
                false => block::<S, PAIRS, 1, 4>(simd, job, rest, out),
            };
        } else {
            rest = match wide {
                true => block::<S, PAIRS, 2, 8>(simd, job, rest, out),
                false => block::<S, PAIRS, 1, 8>(simd, job, rest, out),
            };
        }
    }
}

/// One register tile; returns the rows left. A tile short of rows repeats its last one.
#[allow(clippy::needless_range_loop, reason = "the indices name registers of several arrays at once")]
#[inline(always)]
fn block<'a, S: Simd, const PAIRS: bool, const GROUPS: usize, const KEYS: usize>(
    simd: S,
    job: &Scores<'_>,
    rows: &'a [RowSlot],
    out: &mut [f32],
) -> &'a [RowSlot] {
    let taken = rows.len().min(KEYS);
    let mut slots = [rows[taken - 1]; KEYS];
    slots[..taken].copy_from_slice(&rows[..taken]);
    let step = job.words * S::LANES;
    let mut from = [job.stream.as_ptr(); KEYS];
    for (from, slot) in from.iter_mut().zip(&slots) {
        assert!(slot.row as usize + job.words <= job.stream.len());
        assert!((slot.slot as usize + 1) * S::LANES <= job.strip);
        *from = from.wrapping_add(slot.row as usize);
    }
    let mut acc = [[simd.splat(0.0); GROUPS]; KEYS];
    let mut lanes = job.lanes[job.first_group * step..].as_ptr();
    for d in 0..job.words {
        let mut q = [simd.splat(0.0); GROUPS];
        for (g, q) in q.iter_mut().enumerate() {
            // SAFETY: `scores` checked that each group has `words * LANES` numbers; d < words.
            *q = unsafe { simd.load_at(lanes.add(g * step)) };
        }
        lanes = lanes.wrapping_add(S::LANES);
        for key in 0..KEYS {
            // SAFETY: the row was checked above to have `words` words; d < words.
            let k = simd.splat(unsafe { *from[key].add(d) });
            for g in 0..GROUPS {
                acc[key][g] = match PAIRS {
                    true => simd.dot(acc[key][g], q[g], k),
                    false => simd.fma(q[g], k, acc[key][g]),
                };
            }
        }
    }
    let scale = simd.splat(job.scale);
    for key in 0..KEYS {
        for g in 0..GROUPS {
            let at = (job.first_group + g) * job.strip + slots[key].slot as usize * S::LANES;
            simd.store(&mut out[at..], simd.mul(acc[key][g], scale));
        }
    }
    &rows[taken..]
}

/// Operands of [`weighted_sum`]. Rows form a box: two strided loops around consecutive rows.
pub(crate) struct WeightedSum<'a> {
    /// Vectors over lanes, one for each row; those of consecutive rows follow each other.
    pub weights: &'a [f32],
    /// Index of the first query's weight for the first row.
    pub weights_start: usize,
    /// Steps of the two outer loops in the weights.
    pub weights_strides: [usize; 2],
    /// Where the rows are; consecutive ones are `width` apart.
    pub stream: &'a [f32],
    /// Index of the first row.
    pub stream_start: usize,
    /// Steps of the two outer loops in the stream.
    pub stream_strides: [usize; 2],
    /// Rows along each loop, innermost last.
    pub extents: [usize; 3],
    /// Neighbouring lanes that see all these rows, 1 to 4.
    pub queries: usize,
    /// Words of a row, a multiple of [`Simd::WIDE`]; also the distance of the sums.
    pub width: usize,
    /// Index of the first query's sum.
    pub sums_start: usize,
    /// With `PAIRS`: whether some row is not finite. A word at the edge of a window pairs a row that is seen with one
    /// that is not; the latter weighs 0, and 0 times NaN is not 0.
    pub has_non_finite: bool,
}

impl WeightedSum<'_> {
    /// Whether all rows, weights and sums are inside their buffers.
    fn fits(&self, lanes: usize, wide: usize, sums: usize) -> bool {
        let last = |strides: [usize; 2], step: usize| {
            (self.extents[0] - 1) * strides[0]
                + (self.extents[1] - 1) * strides[1]
                + (self.extents[2] - 1) * step
        };
        let row = self.stream_start + last(self.stream_strides, self.width);
        let weight = self.weights_start + last(self.weights_strides, lanes);
        self.width.is_multiple_of(wide)
            && row + self.width <= self.stream.len()
            && weight + self.queries <= self.weights.len()
            && self.sums_start + self.queries * self.width <= sums
    }
}

/// `sums[query] += sum over rows of weight[row][query] * row`
#[inline(always)]
pub(crate) fn weighted_sum<S: Simd, const PAIRS: bool>(simd: S, job: &WeightedSum<'_>, sums: &mut [f32]) {
    simd.vectorize(SumKernel::<'_, '_, PAIRS>(job, sums));
}

struct SumKernel<'a, 'j, const PAIRS: bool>(&'a WeightedSum<'j>, &'a mut [f32]);

impl<const PAIRS: bool> Kernel for SumKernel<'_, '_, PAIRS> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        weighted_sum_here::<S, PAIRS>(simd, self.0, self.1);
    }
}

#[inline(always)]
fn weighted_sum_here<S: Simd, const PAIRS: bool>(simd: S, job: &WeightedSum<'_>, sums: &mut [f32]) {
    if job.extents.contains(&0) || job.queries == 0 {
        return;
    }
    assert!(job.fits(S::LANES, S::WIDE, sums.len()));
    let most = if S::MANY_REGISTERS { 4 } else { 2 };
    let mut column = 0;
    while column < job.width {
        let vectors = ((job.width - column) / S::WIDE).min(most);
        // SAFETY: `fits` just held, and the columns are inside `width`.
        unsafe {
            match vectors {
                1 => by_queries::<S, PAIRS, 1>(simd, job, column, sums),
                2 => by_queries::<S, PAIRS, 2>(simd, job, column, sums),
                3 => by_queries::<S, PAIRS, 3>(simd, job, column, sums),
                _ => by_queries::<S, PAIRS, 4>(simd, job, column, sums),
            }
        }
        column += vectors * S::WIDE;
    }
}

/// # Safety
/// As [`columns`].
#[inline(always)]
unsafe fn by_queries<S: Simd, const PAIRS: bool, const COLUMNS: usize>(
    simd: S,
    job: &WeightedSum<'_>,
    column: usize,
    sums: &mut [f32],
) {
    // SAFETY: passed on.
    unsafe {
        match job.queries {
            1 => columns::<S, PAIRS, COLUMNS, 1>(simd, job, column, sums),
            2 => columns::<S, PAIRS, COLUMNS, 2>(simd, job, column, sums),
            3 => columns::<S, PAIRS, COLUMNS, 3>(simd, job, column, sums),
            _ => columns::<S, PAIRS, COLUMNS, 4>(simd, job, column, sums),
        }
    }
}

/// # Safety
/// `job.fits` must hold, `QUERIES <= job.queries`, and `column + COLUMNS * WIDE <= job.width`.
#[allow(clippy::needless_range_loop, reason = "the indices name registers of several arrays at once")]
#[inline(always)]
unsafe fn columns<S: Simd, const PAIRS: bool, const COLUMNS: usize, const QUERIES: usize>(
    simd: S,
    job: &WeightedSum<'_>,
    column: usize,
    sums: &mut [f32],
) {
    let mut acc = [[simd.splat_wide(0.0); COLUMNS]; QUERIES];
    let sums = sums[job.sums_start + column..].as_mut_ptr();
    for (q, acc) in acc.iter_mut().enumerate() {
        for (c, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller vouches for the sums of all queries and columns.
            *acc = unsafe { simd.load_wide(sums.add(q * job.width + c * S::WIDE)) };
        }
    }
    let stream = job.stream[job.stream_start + column..].as_ptr();
    let weights = job.weights[job.weights_start..].as_ptr();
    for x in 0..job.extents[0] {
        for y in 0..job.extents[1] {
            let mut row = stream.wrapping_add(x * job.stream_strides[0] + y * job.stream_strides[1]);
            let mut weight = weights.wrapping_add(x * job.weights_strides[0] + y * job.weights_strides[1]);
            for _ in 0..job.extents[2] {
                let mut v = [simd.splat_wide(0.0); COLUMNS];
                for (c, v) in v.iter_mut().enumerate() {
                    // SAFETY: the caller vouches for every row of the box.
                    *v = unsafe { simd.load_wide(row.add(c * S::WIDE)) };
                }
                for q in 0..QUERIES {
                    // SAFETY: the caller vouches for every weight of the box.
                    let p = simd.splat_wide(unsafe { *weight.add(q) });
                    if PAIRS && job.has_non_finite {
                        // SAFETY: as above.
                        let word = unsafe { *weight.add(q) };
                        for c in 0..COLUMNS {
                            acc[q][c] = simd.dot_wide(acc[q][c], simd.keep_weighted(v[c], word), p);
                        }
                        continue;
                    }
                    for c in 0..COLUMNS {
                        acc[q][c] = match PAIRS {
                            true => simd.dot_wide(acc[q][c], v[c], p),
                            false => simd.fma_wide(v[c], p, acc[q][c]),
                        };
                    }
                }
                row = row.wrapping_add(job.width);
                weight = weight.wrapping_add(S::LANES);
            }
        }
    }
    for (q, acc) in acc.iter().enumerate() {
        for (c, acc) in acc.iter().enumerate() {
            // SAFETY: as where they were read.
            unsafe { simd.store_wide(sums.add(q * job.width + c * S::WIDE), *acc) };
        }
    }
}
