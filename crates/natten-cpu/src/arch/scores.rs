//! Scores: lanes of queries times rows of keys, generic over the instruction set. An accumulator for each key stays in
//! a register, over the lanes of one group or of two:
//!
//! ```text
//! for d in words:  q = lanes[d][..]              one load
//!                  for each key: acc[key] += q * broadcast(key[d])
//! ```
//!
//! What limits this is not multiplying but broadcasting: one number a cycle. Two groups side by side therefore share
//! each broadcast, in one vector of twice the length where there is one ([`Simd::D`]).
//!
//! With `PAIRS` a number is a word of two `bf16` and the product is a dot product of two. With `SOFTMAX` scores are
//! masked and their maximum is taken while they are still in registers.

use super::prefetch::Ahead;
use super::{Kernel, Simd};

/// A row of the stream, the slot of the strip that its scores go to, and which lanes of the pair see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowSlot {
    /// Index of the row.
    pub row: u32,
    /// Slot, in vectors over the lanes of two groups.
    pub slot: u32,
    /// One bit a lane, those of the second group after those of the first.
    pub seen: u32,
}

/// Which groups of a pair a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// The first alone.
    First,
    /// The second alone.
    Second,
    /// Both.
    Both,
}

/// Operands of [`scores`].
pub(crate) struct Scores<'a> {
    /// The pair's lanes: `words` vectors over the lanes of two groups.
    pub lanes: &'a [f32],
    /// Words of a row.
    pub words: usize,
    /// Where the rows are.
    pub stream: &'a [f32],
    /// Words from one row to the next.
    pub pitch: usize,
    /// Which rows, and where their scores go.
    pub rows: &'a [RowSlot],
    /// Whose scores.
    pub of: Of,
    /// Factor on each score.
    pub scale: f32,
    /// Whether some lane does not see some row.
    pub masked: bool,
}

/// `out[slot][lane] = scale * lanes[lane] . row`
///
/// With `SOFTMAX`, minus infinity for lanes that do not see the row; and `maxima`, over the lanes of two groups, becomes
/// the largest of itself and these scores. NaN is passed over there.
#[inline(always)]
pub(crate) fn scores<S: Simd, const PAIRS: bool, const SOFTMAX: bool>(
    simd: S,
    job: &Scores<'_>,
    ahead: &mut Ahead,
    out: &mut [f32],
    maxima: &mut [f32],
) {
    simd.vectorize(ScoresKernel::<'_, '_, PAIRS, SOFTMAX> { job, ahead, out, maxima });
}

struct ScoresKernel<'a, 'j, const PAIRS: bool, const SOFTMAX: bool> {
    job: &'a Scores<'j>,
    ahead: &'a mut Ahead,
    out: &'a mut [f32],
    maxima: &'a mut [f32],
}

impl<const PAIRS: bool, const SOFTMAX: bool> Kernel for ScoresKernel<'_, '_, PAIRS, SOFTMAX> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let ScoresKernel { job, ahead, out, maxima } = self;
        assert!(job.lanes.len() >= 2 * job.words * S::LANES);
        match job.of {
            Of::Both => all::<S, Two, PAIRS, SOFTMAX>(simd, job, 0, ahead, (out, maxima)),
            Of::First => all::<S, One, PAIRS, SOFTMAX>(simd, job, 0, ahead, (out, maxima)),
            Of::Second => all::<S, One, PAIRS, SOFTMAX>(simd, job, S::LANES, ahead, (out, maxima)),
        }
    }
}

/// All rows of a job, a register tile after the other, for the lanes from `first` on.
#[inline(always)]
fn all<S: Simd, L: Lanes<S>, const PAIRS: bool, const SOFTMAX: bool>(
    simd: S,
    job: &Scores<'_>,
    first: usize,
    ahead: &mut Ahead,
    (out, maxima): (&mut [f32], &mut [f32]),
) {
    let mut max = L::load(simd, &maxima[first..]);
    let mut rest = job.rows;
    let few = L::REGISTERS == 2 && !S::MANY_REGISTERS;
    while !rest.is_empty() {
        ahead.fetch(simd);
        if let (false, Some((rows, after))) = (few, rest.split_first_chunk::<8>()) {
            tile::<S, L, PAIRS, SOFTMAX, 8>(simd, (job, first), rows, out, &mut max);
            rest = after;
        } else if let Some((rows, after)) = rest.split_first_chunk::<4>() {
            tile::<S, L, PAIRS, SOFTMAX, 4>(simd, (job, first), rows, out, &mut max);
            rest = after;
        } else {
            // A tile short of rows repeats its last one.
            let rows = std::array::from_fn(|i| rest[i.min(rest.len() - 1)]);
            tile::<S, L, PAIRS, SOFTMAX, 4>(simd, (job, first), &rows, out, &mut max);
            rest = &[];
        }
    }
    L::store(simd, &mut maxima[first..], max);
}

/// One register tile.
#[inline(always)]
fn tile<S: Simd, L: Lanes<S>, const PAIRS: bool, const SOFTMAX: bool, const KEYS: usize>(
    simd: S,
    (job, first): (&Scores<'_>, usize),
    rows: &[RowSlot; KEYS],
    out: &mut [f32],
    max: &mut L::Vector,
) {
    let mut from = [job.stream.as_ptr(); KEYS];
    for (from, row) in from.iter_mut().zip(rows) {
        let start = row.row as usize * job.pitch;
        assert!(start + job.words <= job.stream.len());
        *from = from.wrapping_add(start);
    }
    let mut acc = [L::splat(simd, 0.0); KEYS];
    let mut lanes = job.lanes[first..].as_ptr();
    for d in 0..job.words {
        // SAFETY: the kernel checked that there are `words` vectors over two groups; d < words, and `first` is 0 or,
        // for one group, the length of one.
        let q = unsafe { L::load_at(simd, lanes) };
        lanes = lanes.wrapping_add(2 * S::LANES);
        for (acc, from) in acc.iter_mut().zip(from) {
            // SAFETY: the row was checked above to have `words` words; d < words.
            let k = L::splat(simd, unsafe { *from.add(d) });
            *acc = if PAIRS { L::dot(simd, *acc, q, k) } else { L::fma(simd, q, k, *acc) };
        }
    }
    let (scale, lowest) = (L::splat(simd, job.scale), L::splat(simd, f32::NEG_INFINITY));
    for (acc, row) in acc.iter().zip(rows) {
        let mut score = L::mul(simd, *acc, scale);
        if SOFTMAX {
            if job.masked {
                score = L::select(simd, row.seen >> first, score, lowest);
            }
            *max = L::max(simd, score, *max);
        }
        L::store(simd, &mut out[row.slot as usize * 2 * S::LANES + first..], score);
    }
}

/// Vectors over the lanes of one group or of two.
trait Lanes<S: Simd> {
    /// The vector.
    type Vector: Copy;
    /// Registers that it takes.
    const REGISTERS: usize;
    fn splat(simd: S, x: f32) -> Self::Vector;
    fn load(simd: S, from: &[f32]) -> Self::Vector;
    /// # Safety
    /// All lanes must be readable at `from`.
    unsafe fn load_at(simd: S, from: *const f32) -> Self::Vector;
    fn store(simd: S, to: &mut [f32], x: Self::Vector);
    fn fma(simd: S, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    fn dot(simd: S, acc: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn mul(simd: S, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn max(simd: S, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn select(simd: S, bits: u32, a: Self::Vector, b: Self::Vector) -> Self::Vector;
}

/// One group.
struct One;

/// Two groups.
struct Two;

macro_rules! lanes {
    ($of:ident, $vector:ident, $registers:expr, $splat:ident $load:ident $load_at:ident $store:ident $fma:ident $dot:ident
     $mul:ident $max:ident $select:ident) => {
        impl<S: Simd> Lanes<S> for $of {
            type Vector = S::$vector;
            const REGISTERS: usize = $registers;
            #[inline(always)]
            fn splat(simd: S, x: f32) -> S::$vector {
                simd.$splat(x)
            }
            #[inline(always)]
            fn load(simd: S, from: &[f32]) -> S::$vector {
                simd.$load(from)
            }
            #[inline(always)]
            unsafe fn load_at(simd: S, from: *const f32) -> S::$vector {
                // SAFETY: passed on.
                unsafe { simd.$load_at(from) }
            }
            #[inline(always)]
            fn store(simd: S, to: &mut [f32], x: S::$vector) {
                simd.$store(to, x);
            }
            #[inline(always)]
            fn fma(simd: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                simd.$fma(a, b, c)
            }
            #[inline(always)]
            fn dot(simd: S, acc: S::$vector, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$dot(acc, a, b)
            }
            #[inline(always)]
            fn mul(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$mul(a, b)
            }
            #[inline(always)]
            fn max(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$max(a, b)
            }
            #[inline(always)]
            fn select(simd: S, bits: u32, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$select(bits, a, b)
            }
        }
    };
}

lanes!(One, V, 1, splat load load_at store fma dot mul max select);
lanes!(Two, D, S::D_REGISTERS, splat_double load_double load_double_at store_double fma_double dot_double mul_double
    max_double select_double);
