//! What the kernels need of a machine: a [`Simd`] token for each instruction set, and all `unsafe` of the crate.
//!
//! A token can only be had on a machine that has its instructions ([`dispatch`]), so code that holds one may use
//! them: everything above this module is safe code, generic over the token.
//!
//! | file | what |
//! |---|---|
//! | `scalar`, `avx2`, `avx512`, `avx512_long`, `amx`, `neon` | one token each; `sixteen` has what two of them share |
//! | `processor` | which processor this is |
//! | `scores`, `sums` | the two micro-kernels, register-blocked, generic over the token |
//! | `tiles` | the same two on a unit that multiplies tiles, and its software model |
//! | `prefetch` | rows to fetch while the products run |
//! | `rows` | disjoint writes from several threads into one tensor |

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_long;
mod double;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod prefetch;
pub(crate) mod processor;
pub(crate) mod rows;
mod scalar;
pub(crate) mod scores;
#[cfg(target_arch = "x86_64")]
mod sixteen;
pub(crate) mod sums;
pub(crate) mod tiles;

use natten_core::Element;

use crate::isa::Isa;

/// Code to be compiled once for each instruction set.
pub(crate) trait Kernel {
    /// What it computes.
    type Output;
    /// Runs with the token's instructions. Implementations are `#[inline(always)]`, or they would be compiled
    /// without those.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs a kernel with the given instructions. An instruction set that this machine lacks falls back to scalar
/// code; [`Isa::require`] keeps that from happening unnoticed.
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa.of_vectors() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => match avx2::Avx2::detect() {
            Some(token) => token.vectorize(kernel),
            None => scalar::Scalar::<4>.vectorize(kernel),
        },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Short => match avx512::Avx512::<false>::detect() {
            Some(token) => token.vectorize(kernel),
            None => scalar::Scalar::<4>.vectorize(kernel),
        },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Long => match avx512_long::Avx512Long::<false>::detect() {
            Some(token) => token.vectorize(kernel),
            None => scalar::Scalar::<4>.vectorize(kernel),
        },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16Short => match avx512::Avx512::<true>::detect() {
            Some(token) => token.vectorize(kernel),
            None => scalar::Scalar::<4>.vectorize(kernel),
        },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16Long => match avx512_long::Avx512Long::<true>::detect() {
            Some(token) => token.vectorize(kernel),
            None => scalar::Scalar::<4>.vectorize(kernel),
        },
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => match neon::Neon::detect() {
            Some(token) => token.vectorize(kernel),
            None => scalar::Scalar::<4>.vectorize(kernel),
        },
        _ => scalar::Scalar::<4>.vectorize(kernel),
    }
}

/// Runs a kernel on a token that has tiles ([`Simd::TILES`]): the machine's where `isa` asks for them, else those of the
/// software model.
pub(crate) fn dispatch_tiles<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    match (isa, amx::Amx::<false>::detect(), amx::Amx::<true>::detect()) {
        (Isa::Amx, Some(token), _) => return token.vectorize(kernel),
        (_, _, Some(token)) => return token.vectorize(kernel),
        _ => {}
    }
    let _ = isa;
    scalar::Scalar::<16>.vectorize(kernel)
}

/// A kernel with the tile unit configured around it.
pub(crate) struct WithTiles<K>(pub K);

impl<K: Kernel> Kernel for WithTiles<K> {
    type Output = K::Output;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> K::Output {
        simd.with_tiles(self.0)
    }
}

/// Vectors of one instruction set.
///
/// `V` holds [`Simd::LANES`] numbers of different lanes (queries of a group); `W` holds [`Simd::WIDE`] components
/// of one row. A buffer of `f32` may also hold *words*, pairs of `bf16` in 32 bits, for [`Simd::dot`].
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Numbers in a `V`; at most 16.
    const LANES: usize;
    /// Numbers in a `W`.
    const WIDE: usize;
    /// Whether there are 32 vector registers rather than 16.
    const MANY_REGISTERS: bool;
    /// Whether [`Simd::times_power_of_two`] takes any `n` up to 127, minus infinity and NaN too.
    const ANY_POWER: bool = false;
    /// Whether [`Simd::dot`] and [`Simd::dot_wide`] exist.
    const BF16_DOT: bool = false;
    /// Whether [`Simd::with_tiles`] and all that needs it exist. [`Simd::LANES`] is 16 then, and [`Simd::pair`] exists.
    const TILES: bool = false;
    /// A vector over lanes.
    type V: Copy;
    /// A vector over components.
    type W: Copy;
    /// A vector over twice [`Simd::LANES`] lanes.
    type D: Copy;
    /// Registers of a `D`.
    const D_REGISTERS: usize;

    /// Runs a kernel compiled with the token's instructions, as a function of its own: what is called from many
    /// places would otherwise be compiled into each.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// The first [`Simd::LANES`] numbers of a slice, which must have them.
    fn load(self, from: &[f32]) -> Self::V;
    /// Into the first [`Simd::LANES`] numbers of a slice, which must have them.
    fn store(self, to: &mut [f32], x: Self::V);
    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger one; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller one; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer.
    fn round(self, x: Self::V) -> Self::V;
    /// `a` in the lanes whose bit is set, `b` in the others.
    fn select(self, bits: u32, a: Self::V, b: Self::V) -> Self::V;
    /// `x * 2^n` for an integer-valued `n` from -200 to 127 (see [`Simd::ANY_POWER`]), `x` about 1. Below the normal numbers
    /// it may be 0.
    fn times_power_of_two(self, x: Self::V, n: Self::V) -> Self::V;
    /// `to[d * pitch + lane] = rows[lane][d]`: [`Simd::LANES`] rows of one length into vectors over lanes.
    #[inline(always)]
    fn transpose<E: Element>(self, rows: &[&[E]], (to, pitch): (&mut [f32], usize)) {
        for (lane, row) in rows.iter().enumerate() {
            for (d, &x) in row.iter().enumerate() {
                to[d * pitch + lane] = x.to_f32();
            }
        }
    }
    /// [`Simd::load`] of any element.
    #[inline(always)]
    fn load_wider<E: Element>(self, from: &[E]) -> Self::V {
        let mut numbers = [0.0; 16];
        for (number, from) in numbers.iter_mut().zip(&from[..Self::LANES]) {
            *number = from.to_f32();
        }
        self.load(&numbers)
    }
    /// Two products of `bf16` pairs added to each lane of `acc`.
    #[inline(always)]
    fn dot(self, acc: Self::V, _a: Self::V, _b: Self::V) -> Self::V {
        debug_assert!(Self::BF16_DOT);
        acc
    }
    /// Lanes of `a` and `b` rounded to `bf16`, `a` in the low half of each word.
    #[inline(always)]
    fn pair(self, a: Self::V, _b: Self::V) -> Self::V {
        debug_assert!(Self::BF16_DOT);
        a
    }

    /// `x * 2^n`, where `n` is an integer plus 1.5 * 2^23 and both `x` and the result are 0 or about normal numbers: `n`'s low
    /// bits are added to the exponent.
    #[inline(always)]
    fn add_to_exponent(self, x: Self::V, _n: Self::V) -> Self::V {
        debug_assert!(Self::TILES);
        x
    }
    /// [`Simd::vectorize`] with the tile unit configured, which is released afterwards.
    #[inline(always)]
    fn with_tiles<K: Kernel>(self, kernel: K) -> K::Output {
        debug_assert!(Self::TILES);
        self.vectorize(kernel)
    }
    /// The products of one or two tiles of scores, see [`tiles::score_tiles`].
    ///
    /// # Safety
    /// Inside [`Simd::with_tiles`] alone, and what [`tiles::ScoreBlock`] says must be there.
    #[inline(always)]
    unsafe fn multiply_scores(self, _block: &tiles::ScoreBlock) {
        debug_assert!(Self::TILES);
    }
    /// The products of one to four tiles of sums, see [`tiles::sum_tiles`].
    ///
    /// # Safety
    /// Inside [`Simd::with_tiles`] alone, and what [`tiles::SumBlock`] says must be there.
    #[inline(always)]
    unsafe fn multiply_sums(self, _block: &tiles::SumBlock) {
        debug_assert!(Self::TILES);
    }

    /// Products of tiles of zeros and nothing else: `rounds` times some. Returns how many products.
    ///
    /// # Safety
    /// Inside [`Simd::with_tiles`] alone.
    #[inline(always)]
    unsafe fn multiply_alone(self, _rounds: usize) -> usize {
        debug_assert!(Self::TILES);
        0
    }

    /// All components `x`.
    fn splat_wide(self, x: f32) -> Self::W;
    /// `a * b + c`, rounded once.
    fn fma_wide(self, a: Self::W, b: Self::W, c: Self::W) -> Self::W;
    /// Two products of `bf16` pairs added to each component of `acc`.
    #[inline(always)]
    fn dot_wide(self, acc: Self::W, _a: Self::W, _b: Self::W) -> Self::W {
        debug_assert!(Self::BF16_DOT);
        acc
    }
    /// The `bf16` pairs of `rows`, those halves set to 0 whose weight in the word `weights` is 0.
    #[inline(always)]
    fn keep_weighted(self, rows: Self::W, _weights: f32) -> Self::W {
        debug_assert!(Self::BF16_DOT);
        rows
    }
    /// Reads a vector over lanes.
    ///
    /// # Safety
    /// [`Simd::LANES`] numbers must be readable at `from`, which needs no alignment beyond that of `f32`.
    unsafe fn load_at(self, from: *const f32) -> Self::V;
    /// Reads a vector over components.
    ///
    /// # Safety
    /// [`Simd::WIDE`] numbers must be readable at `from`.
    unsafe fn load_wide(self, from: *const f32) -> Self::W;
    /// Writes a vector over components.
    ///
    /// # Safety
    /// [`Simd::WIDE`] numbers must be writable at `to`.
    unsafe fn store_wide(self, to: *mut f32, x: Self::W);

    /// [`Simd::splat`] of twice the lanes.
    fn splat_double(self, x: f32) -> Self::D;
    /// [`Simd::load`] of twice the lanes.
    fn load_double(self, from: &[f32]) -> Self::D;
    /// [`Simd::load_at`] of twice the lanes.
    ///
    /// # Safety
    /// Twice [`Simd::LANES`] numbers must be readable at `from`.
    unsafe fn load_double_at(self, from: *const f32) -> Self::D;
    /// [`Simd::store`] of twice the lanes.
    fn store_double(self, to: &mut [f32], x: Self::D);
    /// [`Simd::fma`] of twice the lanes.
    fn fma_double(self, a: Self::D, b: Self::D, c: Self::D) -> Self::D;
    /// [`Simd::dot`] of twice the lanes.
    fn dot_double(self, acc: Self::D, a: Self::D, b: Self::D) -> Self::D;
    /// `a * b` for twice the lanes.
    fn mul_double(self, a: Self::D, b: Self::D) -> Self::D;
    /// [`Simd::max`] of twice the lanes.
    fn max_double(self, a: Self::D, b: Self::D) -> Self::D;
    /// [`Simd::select`] of twice the lanes.
    fn select_double(self, bits: u32, a: Self::D, b: Self::D) -> Self::D;

    /// Asks for the cache line of an address, which need not be one, to be brought into the second-level cache.
    #[inline(always)]
    fn prefetch(self, _address: usize) {}

    /// Widens a row; `to` has the same length.
    #[inline(always)]
    fn widen<E: Element>(self, from: &[E], to: &mut [f32]) {
        widen_plain(from, to);
    }
    /// Rounds a row to nearest, ties to even; `to` has the same length.
    #[inline(always)]
    fn narrow<E: Element>(self, from: &[f32], to: &mut [E]) {
        narrow_plain(from, to);
    }
    /// [`Simd::narrow`] of `from * factor`, by way of `row` where it must be rounded.
    #[inline(always)]
    fn narrow_times<E: Element>(self, from: &[f32], factor: f32, row: &mut [f32], to: &mut [E]) {
        if E::TYPE == natten_core::ElementType::F32 {
            let to: &mut [f32] = bytemuck::cast_slice_mut(to);
            let (to, to_rest) = to.as_chunks_mut::<16>();
            let (from, from_rest) = from.as_chunks::<16>();
            for (to, from) in to.iter_mut().zip(from) {
                *to = from.map(|from| from * factor);
            }
            to_rest.iter_mut().zip(from_rest).for_each(|(to, from)| *to = from * factor);
        } else {
            row.iter_mut().zip(from).for_each(|(to, from)| *to = from * factor);
            self.narrow(row, to);
        }
    }
}

/// Element by element; the compiler makes vectors of it for f32 and bf16.
#[inline(always)]
fn widen_plain<E: Element>(from: &[E], to: &mut [f32]) {
    match E::TYPE {
        natten_core::ElementType::F32 => copy(bytemuck::cast_slice(from), to),
        natten_core::ElementType::Bf16 => {
            let bits: &[u16] = bytemuck::cast_slice(from);
            to.iter_mut().zip(bits).for_each(|(to, &bits)| *to = f32::from_bits(u32::from(bits) << 16));
        }
        _ => to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32()),
    }
}

/// A row is short: sixteen numbers at a time beat a call of the C library.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    let (from, from_rest) = from.as_chunks::<16>();
    let (to, to_rest) = to.as_chunks_mut::<16>();
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    to_rest.iter_mut().zip(from_rest).for_each(|(to, from)| *to = *from);
}

#[inline(always)]
fn narrow_plain<E: Element>(from: &[f32], to: &mut [E]) {
    match E::TYPE {
        natten_core::ElementType::F32 => copy(from, bytemuck::cast_slice_mut(to)),
        natten_core::ElementType::Bf16 => {
            let bits: &mut [u16] = bytemuck::cast_slice_mut(to);
            bits.iter_mut().zip(from).for_each(|(to, &from)| *to = bf16_bits(from));
        }
        _ => to.iter_mut().zip(from).for_each(|(to, &from)| *to = E::from_f32(from)),
    }
}

/// To nearest, ties to even, without a branch. A NaN keeps its sign and stays one.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    let quiet = (bits >> 16) as u16 | 0x40;
    if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }
}
