//! The micro-kernel of weighted sums: weights of lanes times rows of values, generic over the instruction set. A register
//! block is `LANES x COLUMNS` accumulators, which stay in registers over all the rows that up to four neighbours see:
//!
//! ```text
//! for line, for run in runs, for row of the run:
//!     v[c] = row[c][..]                          one load for each vector of components
//!     for each lane of the run: acc[lane][c] += v[c] * broadcast(weight[lane])
//! ```
//!
//! A run is what a part of the lanes sees in common, so exactly the visible pairs are multiplied. With `PAIRS` a number
//! is a word of two neighbouring rows in `bf16` and the product is a dot product of two.
//!
//! Where rows of values are short, four neighbours leave accumulators unused, and each multiply-add waits for the one before it.
//! Two rows of neighbours are then summed together, over the lines that both see.

use std::ops::Range;

use super::{Kernel, Simd};

/// Rows of a line that some of up to four neighbouring lanes see in common.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// First row, from the tile's first column.
    pub first: usize,
    /// Rows.
    pub len: usize,
    /// The lanes.
    pub lanes: Range<usize>,
}

/// Operands of [`weighted_sum`].
pub(crate) struct WeightedSum<'a> {
    /// Vectors over the lanes of two groups, one for each row; those of consecutive rows follow each other.
    pub weights: &'a [f32],
    /// Index of the first lane's weight for the first column of the first line.
    pub weights_start: usize,
    /// Steps from one line to the next along both axes.
    pub weights_strides: [usize; 2],
    /// Where the rows are; consecutive ones are `width` apart.
    pub packed: &'a [f32],
    /// Index of the first column in a line.
    pub column: usize,
    /// Lines of packed rows, `lines_pitch` from one to the next along the first axis.
    pub lines: &'a [u32],
    /// See `lines`.
    pub lines_pitch: usize,
    /// Numbers of a line.
    pub line_len: usize,
    /// The lines to sum along the first axis.
    pub x: Range<usize>,
    /// And along the second.
    pub y: Range<usize>,
    /// Those along the second axis that the next row of neighbours sees, if that is summed as well: neither begins nor ends before
    /// `y` does. Its weights and sums follow `row_lanes` lanes later.
    pub next_y: Option<Range<usize>>,
    /// Lanes from one row of neighbours to the next.
    pub row_lanes: usize,
    /// The rows to sum of each line.
    pub runs: &'a [Run],
    /// Neighbouring lanes: 1, 2 or 4.
    pub queries: usize,
    /// Words of a row, a multiple of [`Simd::WIDE`]; also the distance of the sums.
    pub width: usize,
    /// Index of the first lane's sum.
    pub sums_start: usize,
    /// Whether sums start at 0 rather than where they are.
    pub overwrite: bool,
    /// With `PAIRS`: whether some row is not finite. A word at the edge of a window pairs a row that is seen with one
    /// that is not; the latter weighs 0, and 0 times NaN is not 0.
    pub has_non_finite: bool,
}

/// How weights and rows are multiplied.
mod product {
    /// As f32.
    pub(super) const SINGLE: u8 = 0;
    /// As words of two.
    pub(super) const PAIRS: u8 = 1;
    /// As words of two, rows without weight left out whatever they are.
    pub(super) const CHECKED_PAIRS: u8 = 2;
}

/// `sums[lane] += sum over rows of weight[row][lane] * row`
#[inline(always)]
pub(crate) fn weighted_sum<S: Simd, const PAIRS: bool>(simd: S, args: &WeightedSum<'_>, sums: &mut [f32]) {
    simd.vectorize(SumKernel::<'_, '_, PAIRS>(args, sums));
}

struct SumKernel<'a, 'j, const PAIRS: bool>(&'a WeightedSum<'j>, &'a mut [f32]);

impl<const PAIRS: bool> Kernel for SumKernel<'_, '_, PAIRS> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let SumKernel(args, sums) = self;
        assert!(args.width.is_multiple_of(S::WIDE) && [1, 2, 4].contains(&args.queries));
        let lanes = if args.next_y.is_some() { args.row_lanes } else { 0 } + args.queries;
        assert!(args.sums_start + lanes * args.width <= sums.len());
        assert!(args.runs.iter().all(|run| run.lanes.end <= args.queries));
        match (PAIRS, args.has_non_finite) {
            (false, _) => by_columns::<S, { product::SINGLE }>(simd, args, sums),
            (true, false) => by_columns::<S, { product::PAIRS }>(simd, args, sums),
            (true, true) => by_columns::<S, { product::CHECKED_PAIRS }>(simd, args, sums),
        }
    }
}

/// As many columns at once as registers allow: 16 accumulators of 32 registers, 8 of 16.
#[inline(always)]
fn by_columns<S: Simd, const PRODUCT: u8>(simd: S, args: &WeightedSum<'_>, sums: &mut [f32]) {
    let most = if args.next_y.is_some() || !S::MANY_REGISTERS && args.queries > 2 { 2 } else { 4 };
    let mut column = 0;
    while column < args.width {
        let vectors = ((args.width - column) / S::WIDE).min(most);
        let vectors = if vectors == 3 { 2 } else { vectors };
        match (args.queries, vectors) {
            (4, 1) if S::MANY_REGISTERS && args.next_y.is_some() => {
                sum::<S, PRODUCT, 2, 4, 1>(simd, args, column, sums)
            }
            (4, 2) if S::MANY_REGISTERS && args.next_y.is_some() => {
                sum::<S, PRODUCT, 2, 4, 2>(simd, args, column, sums)
            }
            (1, 1) => sum::<S, PRODUCT, 1, 1, 1>(simd, args, column, sums),
            (1, 2) => sum::<S, PRODUCT, 1, 1, 2>(simd, args, column, sums),
            (1, _) => sum::<S, PRODUCT, 1, 1, 4>(simd, args, column, sums),
            (2, 1) => sum::<S, PRODUCT, 1, 2, 1>(simd, args, column, sums),
            (2, 2) => sum::<S, PRODUCT, 1, 2, 2>(simd, args, column, sums),
            (2, _) => sum::<S, PRODUCT, 1, 2, 4>(simd, args, column, sums),
            (_, 1) => sum::<S, PRODUCT, 1, 4, 1>(simd, args, column, sums),
            (_, 2) => sum::<S, PRODUCT, 1, 4, 2>(simd, args, column, sums),
            (_, _) => sum::<S, PRODUCT, 1, 4, 4>(simd, args, column, sums),
        }
        column += vectors * S::WIDE;
    }
}

/// All lines into `ROWS x QUERIES x COLUMNS` accumulators.
#[inline(always)]
fn sum<S: Simd, const PRODUCT: u8, const ROWS: usize, const QUERIES: usize, const COLUMNS: usize>(
    simd: S,
    args: &WeightedSum<'_>,
    column: usize,
    sums: &mut [f32],
) {
    let second = if ROWS == 2 { args.row_lanes } else { 0 };
    let sums = &mut sums[args.sums_start + column..];
    assert!((second + QUERIES - 1) * args.width + COLUMNS * S::WIDE <= sums.len());
    let sums = sums.as_mut_ptr();
    let mut acc = [[[simd.splat_wide(0.0); COLUMNS]; QUERIES]; ROWS];
    if !args.overwrite {
        for (row, acc) in acc.iter_mut().enumerate() {
            for (q, acc) in acc.iter_mut().enumerate() {
                for (c, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: the sums of all lanes and columns were just checked.
                    *acc = unsafe { simd.load_wide(sums.add((row * second + q) * args.width + c * S::WIDE)) };
                }
            }
        }
    }
    let end = args.runs.last().map_or(0, |run| run.first + run.len);
    let [step_x, step_y] = args.weights_strides;
    let first_y = args.y.clone();
    let next_y = args.next_y.clone().unwrap_or(first_y.end..first_y.end);
    let len_y = if ROWS == 2 { next_y.end - first_y.start } else { first_y.len() };
    if !args.x.is_empty() && len_y > 0 {
        let last = args.weights_start + (args.x.len() - 1) * step_x + (len_y - 1) * step_y;
        assert!(last + end * 2 * S::LANES + second <= args.weights.len() + 2 * S::LANES - QUERIES);
    }
    let lines = SumLines { simd, args, column, end, sliding_windows: sliding_windows(args.runs) };
    let mut weights = args.weights.as_ptr().wrapping_add(args.weights_start);
    for x in args.x.clone() {
        // SAFETY: the weights of every line of both rows of neighbours, up to the runs' end, were just checked.
        unsafe {
            if ROWS == 1 {
                lines.add::<PRODUCT, ROWS, QUERIES, COLUMNS>(weights, 0, (x, first_y.clone()), &mut acc);
            } else {
                let common = next_y.start.min(first_y.end)..first_y.end;
                let alone = [first_y.start..common.start, next_y.start.max(common.end)..next_y.end];
                let [before, after] = alone;
                let first = std::array::from_mut(&mut acc[0]);
                lines.add::<PRODUCT, 1, QUERIES, COLUMNS>(weights, 0, (x, before), first);
                lines.add::<PRODUCT, ROWS, QUERIES, COLUMNS>(weights, 0, (x, common), &mut acc);
                let last = std::array::from_mut(&mut acc[ROWS - 1]);
                lines.add::<PRODUCT, 1, QUERIES, COLUMNS>(weights, second, (x, after), last);
            }
        }
        weights = weights.wrapping_add(step_x);
    }
    for (row, acc) in acc.iter().enumerate() {
        for (q, acc) in acc.iter().enumerate() {
            for (c, acc) in acc.iter().enumerate() {
                // SAFETY: as where they were read.
                unsafe { simd.store_wide(sums.add((row * second + q) * args.width + c * S::WIDE), *acc) };
            }
        }
    }
}

/// What the lines of a sum have in common.
struct SumLines<'a, 'j, S> {
    simd: S,
    args: &'a WeightedSum<'j>,
    /// First component.
    column: usize,
    /// Rows of each line, from its start to the end of the last run.
    end: usize,
    sliding_windows: Option<SlidingWindows>,
}

impl<S: Simd> SumLines<'_, '_, S> {
    /// Adds lines to the sums of some rows of neighbours, which all see them. `weights` are those of the first line that the first
    /// row sees, and `lane` is the first lane's number, from the same.
    ///
    /// # Safety
    /// The weights of `QUERIES` lanes of each row must be readable for all lines and runs, and columns be inside `width`.
    #[inline(always)]
    unsafe fn add<const PRODUCT: u8, const ROWS: usize, const QUERIES: usize, const COLUMNS: usize>(
        &self,
        weights: *const f32,
        lane: usize,
        (x, y): (usize, Range<usize>),
        acc: &mut [[[S::W; COLUMNS]; QUERIES]; ROWS],
    ) {
        let args = self.args;
        let mut weight = weights.wrapping_add((y.start - args.y.start) * args.weights_strides[1] + lane);
        for &line in &args.lines[x * args.lines_pitch..][y] {
            let start = line as usize * args.line_len + args.column;
            assert!(start + self.end * args.width <= args.packed.len());
            let row = args.packed.as_ptr().wrapping_add(start + self.column);
            let line = SumLine { simd: self.simd, row, weight, width: args.width, row_lanes: args.row_lanes };
            weight = weight.wrapping_add(args.weights_strides[1]);
            // SAFETY: runs ascend, so rows up to `end` cover them, which were just checked; the caller vouches for their weights.
            unsafe {
                match self.sliding_windows {
                    Some(windows) if QUERIES == 4 => {
                        line.add_sliding::<PRODUCT, ROWS, QUERIES, COLUMNS>(windows, acc);
                    }
                    _ => line.add_all::<PRODUCT, ROWS, QUERIES, COLUMNS>(args.runs, acc),
                }
            }
        }
    }
}

/// The runs of four neighbours whose windows slide by one row: three that begin, what all four see, three that end.
#[derive(Clone, Copy)]
struct SlidingWindows {
    /// First row.
    first: usize,
    /// Rows that all four see.
    common: usize,
}

/// The runs as sliding windows, if they are such.
#[inline(always)]
fn sliding_windows(runs: &[Run]) -> Option<SlidingWindows> {
    let (start, end) = (runs.first()?, runs.last()?);
    let (first, rows) = (start.first, end.first + end.len - start.first);
    let common = rows.checked_sub(6)?;
    let lanes = [0..1, 0..2, 0..3, 0..4, 1..4, 2..4, 3..4];
    let lens = [1, 1, 1, common, 1, 1, 1];
    let mut runs = runs.iter();
    let slides = lanes
        .into_iter()
        .zip(lens)
        .filter(|&(_, len)| len > 0)
        .all(|(lanes, len)| runs.next().is_some_and(|run| run.lanes == lanes && run.len == len));
    if !slides || runs.next().is_some() {
        return None;
    }
    Some(SlidingWindows { first, common })
}

/// One line of packed rows and its weights.
struct SumLine<S> {
    simd: S,
    row: *const f32,
    weight: *const f32,
    width: usize,
    row_lanes: usize,
}

impl<S: Simd> SumLine<S> {
    /// # Safety
    /// As [`SumLine::add`] for each run.
    #[inline(always)]
    unsafe fn add_all<const PRODUCT: u8, const ROWS: usize, const QUERIES: usize, const COLUMNS: usize>(
        &self,
        runs: &[Run],
        acc: &mut [[[S::W; COLUMNS]; QUERIES]; ROWS],
    ) {
        for run in runs {
            // SAFETY: passed on.
            unsafe { self.add::<PRODUCT, ROWS, QUERIES, COLUMNS>(run, acc) };
        }
    }

    /// Adds a run, with a loop for each set of lanes so that accumulators stay in registers.
    ///
    /// # Safety
    /// The run's rows must be readable from `row` on, and their weights for `QUERIES` lanes of each row of neighbours from `weight`
    /// on.
    #[inline(always)]
    unsafe fn add<const PRODUCT: u8, const ROWS: usize, const QUERIES: usize, const COLUMNS: usize>(
        &self,
        run: &Run,
        acc: &mut [[[S::W; COLUMNS]; QUERIES]; ROWS],
    ) {
        macro_rules! lanes {
            ($($first:literal $last:literal),*) => {
                match (run.lanes.start, run.lanes.end) {
                    // SAFETY: passed on.
                    $(($first, $last) if $last <= QUERIES => unsafe {
                        self.add_lanes::<PRODUCT, ROWS, QUERIES, COLUMNS, $first, $last>(run.first, run.len, acc);
                    },)*
                    _ => {}
                }
            };
        }
        lanes!(0 4, 0 1, 0 2, 0 3, 1 4, 2 4, 3 4, 1 2, 1 3, 2 3);
    }

    /// Adds all runs of sliding windows: no run is worth a branch of its own.
    ///
    /// # Safety
    /// As [`SumLine::add`] for each run.
    #[inline(always)]
    unsafe fn add_sliding<
        const PRODUCT: u8,
        const ROWS: usize,
        const QUERIES: usize,
        const COLUMNS: usize,
    >(
        &self,
        windows: SlidingWindows,
        acc: &mut [[[S::W; COLUMNS]; QUERIES]; ROWS],
    ) {
        let mut at = windows.first;
        macro_rules! steps {
            ($($first:literal $last:literal $len:expr),*) => {
                $(
                    // SAFETY: passed on.
                    unsafe { self.add_lanes::<PRODUCT, ROWS, QUERIES, COLUMNS, $first, $last>(at, $len, acc) };
                    at += $len;
                )*
                let _ = at;
            };
        }
        steps!(0 1 1, 0 2 1, 0 3 1, 0 4 windows.common, 1 4 1, 2 4 1, 3 4 1);
    }

    /// # Safety
    /// As [`SumLine::add`].
    #[allow(clippy::needless_range_loop, reason = "the indices name registers of several arrays at once")]
    #[inline(always)]
    unsafe fn add_lanes<
        const PRODUCT: u8,
        const ROWS: usize,
        const QUERIES: usize,
        const COLUMNS: usize,
        const FIRST: usize,
        const LAST: usize,
    >(
        &self,
        first: usize,
        len: usize,
        acc: &mut [[[S::W; COLUMNS]; QUERIES]; ROWS],
    ) {
        let simd = self.simd;
        let mut row = self.row.wrapping_add(first * self.width);
        let mut weight = self.weight.wrapping_add(first * 2 * S::LANES);
        for _ in 0..len {
            let mut v = [simd.splat_wide(0.0); COLUMNS];
            for (c, v) in v.iter_mut().enumerate() {
                // SAFETY: the caller vouches for every row.
                *v = unsafe { simd.load_wide(row.add(c * S::WIDE)) };
            }
            for r in 0..ROWS {
                for q in FIRST..LAST.min(QUERIES) {
                    // SAFETY: the caller vouches for every weight.
                    let word = unsafe { *weight.add(r * self.row_lanes + q) };
                    let p = simd.splat_wide(word);
                    for c in 0..COLUMNS {
                        acc[r][q][c] = match PRODUCT {
                            product::SINGLE => simd.fma_wide(v[c], p, acc[r][q][c]),
                            product::PAIRS => simd.dot_wide(acc[r][q][c], v[c], p),
                            _ => simd.dot_wide(acc[r][q][c], simd.keep_weighted(v[c], word), p),
                        };
                    }
                }
            }
            row = row.wrapping_add(self.width);
            weight = weight.wrapping_add(2 * S::LANES);
        }
    }
}
