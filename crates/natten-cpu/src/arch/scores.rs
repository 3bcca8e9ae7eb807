//! The micro-kernel of scores: lanes of queries times rows of keys, generic over the instruction set. A register block is
//! some keys by the lanes of one group or of two; each key's accumulator stays in a register:
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

use std::ops::Range;

use super::prefetch::PrefetchQueue;
use super::{Kernel, Simd};

/// A packed row, the slot of the score tile that its scores go to, and which lanes of the pair see it.
#[derive(Clone, Copy, Debug)]
struct RowSlot {
    /// Line of the row, and its column there.
    line: u16,
    column: u16,
    /// Slot, in vectors over the lanes of two groups.
    slot: u32,
    /// One bit a lane, those of the second group after those of the first.
    seen: u32,
}

/// Rows of one or more calls of [`scores`].
#[derive(Debug, Default)]
pub(crate) struct RowList {
    rows: Vec<RowSlot>,
    /// One more than the largest slot: what a call checks once instead of for each row.
    slot_end: usize,
}

impl RowList {
    /// Empties the list.
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.slot_end = 0;
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Adds rows that follow each other in a line, and their slots, which do too.
    pub(crate) fn extend(
        &mut self,
        line: usize,
        column: usize,
        slot: usize,
        seen: impl ExactSizeIterator<Item = u32>,
    ) {
        self.slot_end = self.slot_end.max(slot + seen.len());
        let rows = seen.enumerate().map(|(i, seen)| RowSlot {
            line: line as u16,
            column: (column + i) as u16,
            slot: (slot + i) as u32,
            seen,
        });
        self.rows.extend(rows);
    }

    /// Those in a range.
    #[inline(always)]
    pub(crate) fn part(&self, range: Range<usize>) -> ScoreRows<'_> {
        ScoreRows { rows: &self.rows[range], slot_end: self.slot_end }
    }
}

/// Some of a [`RowList`].
#[derive(Clone, Copy)]
pub(crate) struct ScoreRows<'a> {
    rows: &'a [RowSlot],
    slot_end: usize,
}

impl ScoreRows<'_> {
    /// Whether there are none.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// Which groups of a pair scores are computed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PairPart {
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
    pub packed: &'a [f32],
    /// Words from one row to the next.
    pub pitch: usize,
    /// Which rows, and where their scores go.
    pub rows: ScoreRows<'a>,
    /// The row at which each of their lines starts.
    pub starts: &'a [u32],
    /// Whose scores.
    pub of: PairPart,
    /// Factor on each score.
    pub scale: f32,
}

/// `out[slot][lane] = scale * lanes[lane] . row`
///
/// With `SOFTMAX`, minus infinity for lanes that do not see the row; and `maxima`, over the lanes of two groups, becomes
/// the largest of itself and these scores. NaN is passed over there.
#[inline(always)]
pub(crate) fn scores<S: Simd, const PAIRS: bool, const SOFTMAX: bool>(
    simd: S,
    args: &Scores<'_>,
    prefetch: &mut PrefetchQueue,
    out: &mut [f32],
    maxima: &mut [f32],
) {
    simd.vectorize(ScoresKernel::<'_, '_, PAIRS, SOFTMAX> { args, prefetch, out, maxima });
}

struct ScoresKernel<'a, 'j, const PAIRS: bool, const SOFTMAX: bool> {
    args: &'a Scores<'j>,
    prefetch: &'a mut PrefetchQueue,
    out: &'a mut [f32],
    maxima: &'a mut [f32],
}

impl<const PAIRS: bool, const SOFTMAX: bool> Kernel for ScoresKernel<'_, '_, PAIRS, SOFTMAX> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let ScoresKernel { args, prefetch, out, maxima } = self;
        assert!(args.lanes.len() >= 2 * args.words * S::LANES);
        assert!(args.rows.slot_end * 2 * S::LANES <= out.len());
        match args.of {
            PairPart::Both => all_rows::<S, Two, PAIRS, SOFTMAX>(simd, args, 0, prefetch, (out, maxima)),
            PairPart::First => all_rows::<S, One, PAIRS, SOFTMAX>(simd, args, 0, prefetch, (out, maxima)),
            PairPart::Second => {
                all_rows::<S, One, PAIRS, SOFTMAX>(simd, args, S::LANES, prefetch, (out, maxima))
            }
        }
    }
}

/// All rows, a register block after the other, for the lanes from `first` on.
#[inline(always)]
fn all_rows<S: Simd, L: Lanes<S>, const PAIRS: bool, const SOFTMAX: bool>(
    simd: S,
    args: &Scores<'_>,
    first: usize,
    prefetch: &mut PrefetchQueue,
    (out, maxima): (&mut [f32], &mut [f32]),
) {
    let mut max = L::load(simd, &maxima[first..]);
    let mut rest = args.rows.rows;
    let most = if L::REGISTERS == 2 && !S::MANY_REGISTERS { 4 } else { 8 };
    while !rest.is_empty() {
        prefetch.fetch(simd);
        // The last two as equal as may be: a small block takes as long as a large one.
        let count = match rest.len() {
            len if len >= 2 * most => most,
            len if len > most => len.div_ceil(2),
            len => len,
        };
        let (rows, after) = rest.split_at(count);
        macro_rules! of_size {
            ($($size:literal)*) => {
                match count {
                    $($size if $size <= most => if let Some(rows) = rows.first_chunk::<$size>() {
                        register_block::<S, L, PAIRS, SOFTMAX, $size>(simd, (args, first), rows, out, &mut max);
                    },)*
                    // Too few for a size of their own: the last one fills it up.
                    _ => {
                        let rows = std::array::from_fn(|i| rows[i.min(count - 1)]);
                        register_block::<S, L, PAIRS, SOFTMAX, 4>(simd, (args, first), &rows, out, &mut max);
                    }
                }
            };
        }
        of_size!(8 7 6 5 4);
        rest = after;
    }
    L::store(simd, &mut maxima[first..], max);
}

/// One register block.
#[inline(always)]
fn register_block<S: Simd, L: Lanes<S>, const PAIRS: bool, const SOFTMAX: bool, const KEYS: usize>(
    simd: S,
    (args, first): (&Scores<'_>, usize),
    rows: &[RowSlot; KEYS],
    out: &mut [f32],
    max: &mut L::Vector,
) {
    let mut from = [args.packed.as_ptr(); KEYS];
    for (from, row) in from.iter_mut().zip(rows) {
        let start = (args.starts[usize::from(row.line)] as usize + usize::from(row.column)) * args.pitch;
        assert!(start + args.words <= args.packed.len());
        *from = from.wrapping_add(start);
    }
    let mut acc = [L::splat(simd, 0.0); KEYS];
    let mut lanes = args.lanes[first..].as_ptr();
    for d in 0..args.words {
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
    let (scale, lowest) = (L::splat(simd, args.scale), L::splat(simd, f32::NEG_INFINITY));
    for (acc, row) in acc.iter().zip(rows) {
        let mut score = L::mul(simd, *acc, scale);
        if SOFTMAX {
            score = L::select(simd, row.seen >> first, score, lowest);
            *max = L::max(simd, score, *max);
        }
        // SAFETY: the kernel checked that the list's last slot is there; `first` and what is stored are within a slot.
        let slot = unsafe { out.as_mut_ptr().add(row.slot as usize * 2 * S::LANES + first) };
        // SAFETY: as above; nothing else refers to `out` meanwhile.
        L::store(simd, unsafe { std::slice::from_raw_parts_mut(slot, L::REACH) }, score);
    }
}

/// Vectors over the lanes of one group or of two.
trait Lanes<S: Simd> {
    /// The vector.
    type Vector: Copy;
    /// Registers that it takes.
    const REGISTERS: usize;
    /// Its numbers.
    const REACH: usize;
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
    ($of:ident, $vector:ident, $registers:expr, $reach:expr, $splat:ident $load:ident $load_at:ident $store:ident $fma:ident $dot:ident
     $mul:ident $max:ident $select:ident) => {
        impl<S: Simd> Lanes<S> for $of {
            type Vector = S::$vector;
            const REGISTERS: usize = $registers;
            const REACH: usize = $reach;
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

lanes!(One, V, 1, S::LANES, splat load load_at store fma dot mul max select);
lanes!(Two, D, S::D_REGISTERS, 2 * S::LANES, splat_double load_double load_double_at store_double fma_double dot_double mul_double
    max_double select_double);
