//! AVX-512 with sixteen lanes beside Intel's tile unit, AMX. The unit's instructions are no intrinsics of the stable compiler, so
//! each block of assembly is a whole micro-kernel: it loads tiles, multiplies and stores. No tile holds anything between blocks,
//! and the compiler knows of none; what lasts is their configuration, for the time of a task.

use std::arch::asm;
use std::arch::x86_64::*;

use natten_core::Element;

use super::avx2::{load_8_wider, narrow, prefetch, transpose_rows, widen};
use super::sixteen::{pair_16, sixteen_lanes};
use super::tiles::{ScoreBlock, SumBlock, model};
use super::{Kernel, Simd};
use crate::isa::{Isa, Lack};

/// Proof that the machine has AVX-512 F, BW, DQ, VL and BF16, and unless the tile unit is `MODELLED` that it has one and may use
/// it.
#[derive(Clone, Copy)]
pub(crate) struct Amx<const MODELLED: bool>(());

impl<const MODELLED: bool> Amx<MODELLED> {
    /// The token, where the machine has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        let isa = if MODELLED { Isa::Avx512Bf16 } else { Isa::Amx };
        isa.is_available().then_some(Amx(()))
    }
}

/// What keeps programs from the tile unit. Asks the kernel for permission, which lasts for all threads.
#[cfg(not(miri))]
pub(super) fn lack() -> Option<Lack> {
    static LACK: std::sync::OnceLock<Option<Lack>> = std::sync::OnceLock::new();
    *LACK.get_or_init(|| match (has_flags(), is_permitted) {
        (false, _) => Some(Lack::Flags),
        (true, is_permitted) => (!is_permitted()).then_some(Lack::Permission),
    })
}

/// `amx_tile` and `amx_bf16`.
#[cfg(not(miri))]
#[allow(
    unused_unsafe,
    reason = "newer compilers know the intrinsic as safe, the oldest that we build with does not"
)]
fn has_flags() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    // SAFETY: every x86-64 processor has the instruction, which answers leaves that it does not know with those that it knows; hence
    // the check that there is leaf 7.
    let flags = unsafe { if __cpuid(0).eax < 7 { 0 } else { __cpuid_count(7, 0).edx } };
    flags & (BF16 | TILE) == BF16 | TILE
}

/// Asks Linux for the state component of tiles, since 5.16; older kernels know no such request.
#[cfg(all(target_os = "linux", not(miri)))]
fn is_permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: a system call that reads and writes no memory of the program; the instruction overwrites rcx and r11.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA, out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(not(any(target_os = "linux", miri)))]
fn is_permitted() -> bool {
    false
}

/// Gives the tile unit back, whichever way a task ends.
struct Release;

impl Drop for Release {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: made by `configure` alone, where the unit is there; no block of assembly expects tiles to last.
        unsafe {
            asm!("tilerelease", out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, nomem));
        }
    }
}

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight tiles of sixteen rows of 64 bytes.
static WHOLE_TILES: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// # Safety
/// The machine must have the tile unit, and the program the permission to use it.
#[inline(always)]
unsafe fn configure() -> Release {
    // SAFETY: the caller vouches for the unit; the operand has 64 bytes and describes tiles that palette 1 has.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE_TILES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, readonly));
    }
    Release
}

/// Two tiles of scores. The queries' tile is loaded once for both.
///
/// # Safety
/// As [`Simd::multiply_scores`], and the unit must be configured.
#[inline(always)]
unsafe fn multiply_scores(block: &ScoreBlock) {
    let chunk_bytes = 16 * block.queries_stride_bytes;
    // SAFETY: the caller vouches for the configuration and for all that is read and written.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm2, [{queries} + {queries_stride}*1]",
            "tileloadd tmm3, [{keys_0} + {keys_stride}*1]",
            "tileloadd tmm4, [{keys_1} + {keys_stride}*1]",
            "tdpbf16ps tmm0, tmm3, tmm2",
            "tdpbf16ps tmm1, tmm4, tmm2",
            "add {queries}, {chunk}",
            "add {keys_0}, 64",
            "add {keys_1}, 64",
            "dec {chunks}",
            "jnz 2b",
            "tilestored [{scores_0} + {line}*1], tmm0",
            "tilestored [{scores_1} + {line}*1], tmm1",
            queries = inout(reg) block.queries => _,
            queries_stride = in(reg) block.queries_stride_bytes,
            keys_0 = inout(reg) block.keys[0] => _,
            keys_1 = inout(reg) block.keys[1] => _,
            keys_stride = in(reg) block.keys_stride_bytes,
            scores_0 = in(reg) block.scores[0],
            scores_1 = in(reg) block.scores[1],
            line = in(reg) 64usize,
            chunk = in(reg) chunk_bytes,
            chunks = inout(reg) block.chunks => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
            options(nostack),
        );
    }
}

/// A micro-kernel for some tiles of sums: each is loaded, gets the products of all weights, and is stored.
macro_rules! sums_of {
    ($name:ident, $($acc:literal $values:literal $at:literal),*) => {
        /// # Safety
        /// As [`Simd::multiply_sums`], for so many tiles, and the unit must be configured.
        #[inline(always)]
        unsafe fn $name(block: &SumBlock) {
            // SAFETY: the caller vouches for the configuration and for all that is read and written.
            unsafe {
                asm!(
                    $(concat!("tileloadd tmm", $acc, ", [{sums} + {line}*1 + ", $at, "]"),)*
                    "2:",
                    "mov {from:e}, dword ptr [{starts}]",
                    "lea {from}, [{values} + {from}*4]",
                    "tileloadd tmm4, [{weights} + {line}*1]",
                    $(
                        concat!("tileloadd tmm", $values, ", [{from} + {values_stride}*1]"),
                        concat!("tdpbf16ps tmm", $acc, ", tmm", $values, ", tmm4"),
                        "add {from}, {sixteen_components}",
                    )*
                    "add {weights}, 1024",
                    "add {starts}, 4",
                    "dec {count}",
                    "jnz 2b",
                    $(concat!("tilestored [{sums} + {line}*1 + ", $at, "], tmm", $acc),)*
                    sums = in(reg) block.sums,
                    line = in(reg) 64usize,
                    starts = inout(reg) block.starts => _,
                    values = in(reg) block.values,
                    values_stride = in(reg) block.values_stride_bytes,
                    sixteen_components = in(reg) 16 * block.values_stride_bytes,
                    weights = inout(reg) block.weights => _,
                    count = inout(reg) block.count => _,
                    from = out(reg) _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, options(nostack),
                );
            }
        }
    };
}

sums_of!(one_tile_of_sums, 0 5 0);
sums_of!(two_tiles_of_sums, 0 5 0, 1 6 1024);
sums_of!(four_tiles_of_sums, 0 5 0, 1 6 1024, 2 5 2048, 3 6 3072);

/// Four chains of products: a product takes less than the time in which four begin.
///
/// # Safety
/// The unit must be configured.
#[inline(always)]
unsafe fn multiply_alone(rounds: usize) -> usize {
    if rounds > 0 {
        // SAFETY: the caller vouches for the configuration; no memory is read or written.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", "tilezero tmm4", "tilezero tmm5",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm5",
                "tdpbf16ps tmm1, tmm4, tmm5",
                "tdpbf16ps tmm2, tmm4, tmm5",
                "tdpbf16ps tmm3, tmm4, tmm5",
                "dec {rounds}",
                "jnz 2b",
                rounds = inout(reg) rounds => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
                options(nostack, nomem),
            );
        }
    }
    4 * rounds
}

impl<const MODELLED: bool> Simd for Amx<MODELLED> {
    const TILES: bool = true;
    sixteen_lanes!();

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
        fn inner<T: Simd, K: Kernel>(token: T, kernel: K) -> K::Output {
            kernel.run(token)
        }
        // SAFETY: `self` exists only where the features were detected.
        unsafe { inner(self, kernel) }
    }

    #[inline(always)]
    fn pair(self, a: __m512, b: __m512) -> __m512 {
        pair_16(a, b)
    }
    #[inline(always)]
    fn add_to_exponent(self, x: __m512, n: __m512) -> __m512 {
        // SAFETY: token.
        unsafe {
            let exponents = _mm512_slli_epi32::<23>(_mm512_castps_si512(n));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), exponents))
        }
    }
    #[inline(always)]
    fn with_tiles<K: Kernel>(self, kernel: K) -> K::Output {
        if MODELLED {
            return self.vectorize(kernel);
        }
        // SAFETY: such a token exists only where the unit is there and permitted.
        let _release = unsafe { configure() };
        self.vectorize(kernel)
    }
    #[inline(always)]
    unsafe fn multiply_scores(self, block: &ScoreBlock) {
        // SAFETY: the caller is inside `with_tiles` and vouches for the rest.
        unsafe { if MODELLED { model::multiply_scores(block) } else { multiply_scores(block) } }
    }
    #[inline(always)]
    unsafe fn multiply_sums(self, block: &SumBlock) {
        // SAFETY: the caller is inside `with_tiles` and vouches for the rest.
        unsafe {
            match block.tiles {
                _ if MODELLED => model::multiply_sums(block),
                4 => four_tiles_of_sums(block),
                2 => two_tiles_of_sums(block),
                _ => one_tile_of_sums(block),
            }
        }
    }
    #[inline(always)]
    unsafe fn multiply_alone(self, rounds: usize) -> usize {
        // SAFETY: the caller is inside `with_tiles`.
        if MODELLED { 0 } else { unsafe { multiply_alone(rounds) } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The palette that is configured; 0 is none.
    fn palette() -> u8 {
        let mut stored =
            Configuration { palette: 9, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        // SAFETY: the test runs it where the unit is there alone; 64 bytes are written.
        unsafe { asm!("sttilecfg [{}]", in(reg) &raw mut stored, options(nostack)) };
        stored.palette
    }

    struct Palette {
        fails: bool,
    }

    impl Kernel for Palette {
        type Output = u8;
        fn run<S: Simd>(self, _: S) -> u8 {
            assert!(!self.fails, "a task that fails");
            palette()
        }
    }

    #[test]
    fn the_unit_is_released_however_a_task_ends() {
        let Some(token) = Amx::<false>::detect() else {
            println!("SKIP: this machine has no amx");
            return;
        };
        assert_eq!(palette(), 0);
        assert_eq!(token.with_tiles(Palette { fails: false }), 1);
        assert_eq!(palette(), 0);
        let unwound = std::panic::catch_unwind(|| token.with_tiles(Palette { fails: true }));
        assert!(unwound.is_err());
        assert_eq!(palette(), 0);
    }
}
