//! Which instructions the kernels use: what the machine has, what the caller or the environment asks for.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::arch::processor::has_two_wide_units;
use crate::error::CpuError;

/// The environment variable that forces an instruction set: one of [`Isa::name`].
pub const ISA_VARIABLE: &str = "NATTEN_CPU_ISA";

/// An instruction set with kernels of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// Portable code: any machine.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with bfloat16 dot products.
    Avx512Bf16,
    /// AVX-512 with bfloat16 dot products, and AMX for bfloat16: a forward in bf16 multiplies in tiles, all else is as with
    /// [`Isa::Avx512`]. The operating system must allow it, which it is asked once.
    Amx,
    /// AArch64.
    Neon,
    /// The path of [`Isa::Amx`] with a software model in place of the tile unit, to the bit: any machine, at a hundredth of
    /// the speed. For tests, and to reproduce results; not in [`Isa::ALL`], and never chosen by itself.
    AmxModel,
    /// [`Isa::Avx512`] with eight queries to a group, which it has on a processor that begins one 512-bit multiply-add a clock. This
    /// and the next three fix what those two otherwise choose by the processor's family and model; not in [`Isa::ALL`].
    Avx512Short,
    /// [`Isa::Avx512`] with sixteen queries to a group, which it has on a processor that begins two 512-bit multiply-adds a clock.
    Avx512Long,
    /// [`Isa::Avx512Bf16`] with eight queries to a group.
    Avx512Bf16Short,
    /// [`Isa::Avx512Bf16`] with sixteen queries to a group.
    Avx512Bf16Long,
}

impl Isa {
    /// Every instruction set, worst first.
    pub const ALL: [Isa; 6] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx, Isa::Neon];

    /// What is only taken when asked for by name: to reproduce the results of another machine, and for tests.
    pub const BY_NAME: [Isa; 5] =
        [Isa::AmxModel, Isa::Avx512Short, Isa::Avx512Long, Isa::Avx512Bf16Short, Isa::Avx512Bf16Long];

    /// Its name, as [`ISA_VARIABLE`] takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512_bf16",
            Isa::Amx => "amx",
            Isa::Neon => "neon",
            Isa::AmxModel => "amx_model",
            Isa::Avx512Short => "avx512_short",
            Isa::Avx512Long => "avx512_long",
            Isa::Avx512Bf16Short => "avx512_bf16_short",
            Isa::Avx512Bf16Long => "avx512_bf16_long",
        }
    }

    /// Whether this machine has it. The answer never changes.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar | Isa::AmxModel => true,
            Isa::Amx => self.lack().is_none(),
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Isa::Avx512 | Isa::Avx512Short | Isa::Avx512Long => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Isa::Avx512Bf16 | Isa::Avx512Bf16Short | Isa::Avx512Bf16Long => {
                Isa::Avx512.is_available() && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(all(target_arch = "aarch64", not(miri)))]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[allow(unreachable_patterns, reason = "which variants are left over depends on the target")]
            _ => false,
        }
    }

    /// What the machine lacks of it, where that can be told more closely than that it is not there.
    pub fn lack(self) -> Option<Lack> {
        match self {
            Isa::Amx if !Isa::Avx512Bf16.is_available() => Some(Lack::Vectors),
            Isa::Amx => crate::arch::tiles::lack(),
            _ => None,
        }
    }

    /// The instructions for all but tiles, and how many queries to a group.
    pub(crate) fn of_vectors(self) -> Isa {
        match self {
            Isa::Avx512 | Isa::Amx if has_two_wide_units() => Isa::Avx512Long,
            Isa::Avx512 | Isa::Amx => Isa::Avx512Short,
            Isa::Avx512Bf16 if has_two_wide_units() => Isa::Avx512Bf16Long,
            Isa::Avx512Bf16 => Isa::Avx512Bf16Short,
            Isa::AmxModel => {
                let has_dots = |isa: &Isa| matches!(isa, Isa::Avx512Bf16 | Isa::Amx);
                Isa::available().filter(|isa| !has_dots(isa)).last().unwrap_or(Isa::Scalar).of_vectors()
            }
            _ => self,
        }
    }

    /// Whether it multiplies bf16 in tiles.
    pub(crate) fn has_tiles(self) -> bool {
        matches!(self, Isa::Amx | Isa::AmxModel)
    }

    /// All that this machine can run, what is only taken [by name](Isa::BY_NAME) too.
    pub fn every_available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().chain(Isa::BY_NAME).filter(|isa| isa.is_available())
    }

    /// The instruction sets that this machine has, worst first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// Whether it is faster here than the one before it. Intel's processors run `vdpbf16ps` at a quarter of the rate of
    /// multiply-adds (docs/performance.md), so that widening bf16 beats it.
    fn is_profitable(self) -> bool {
        match self {
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Isa::Avx512Bf16 => !crate::arch::processor::is_intel(),
            _ => true,
        }
    }

    /// The best one, or what [`ISA_VARIABLE`] asks for; read once.
    pub(crate) fn preferred() -> Result<Isa, CpuError> {
        static PREFERRED: OnceLock<Result<Isa, CpuError>> = OnceLock::new();
        PREFERRED.get_or_init(|| Isa::choose(std::env::var(ISA_VARIABLE).ok().as_deref())).clone()
    }

    /// What a value of [`ISA_VARIABLE`] means on this machine.
    fn choose(value: Option<&str>) -> Result<Isa, CpuError> {
        match value {
            None | Some("") => {
                Ok(Isa::available().filter(|isa| isa.is_profitable()).last().unwrap_or(Isa::Scalar))
            }
            Some(name) => name.parse::<Isa>()?.require(),
        }
    }

    /// Itself, if this machine has it.
    pub(crate) fn require(self) -> Result<Isa, CpuError> {
        match self.lack() {
            Some(lack) => Err(CpuError::IsaLacks { isa: self, lack }),
            None if !self.is_available() => Err(CpuError::IsaUnavailable { isa: self }),
            None => Ok(self),
        }
    }
}

/// What keeps an instruction set from being used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Lack {
    /// The path needs vectors beside its tiles.
    #[error("the processor has no AVX-512 BF16")]
    Vectors,
    /// The processor does not show the flags `amx_tile` and `amx_bf16`.
    #[error("the processor has no flags amx_tile and amx_bf16")]
    Flags,
    /// The system is not Linux, or its kernel is too old or forbids programs to use tiles.
    #[error("the processor has it, the operating system gives no permission to use it")]
    Permission,
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = CpuError;

    fn from_str(name: &str) -> Result<Self, CpuError> {
        let known =
            Isa::ALL.into_iter().chain(Isa::BY_NAME).find(|isa| isa.name().eq_ignore_ascii_case(name));
        known.ok_or_else(|| CpuError::UnknownIsa { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for isa in Isa::ALL.into_iter().chain(Isa::BY_NAME) {
            assert_eq!(isa.name().parse::<Isa>(), Ok(isa));
        }
    }

    #[test]
    fn a_wrong_environment_is_a_typed_error() {
        assert_eq!(Isa::choose(Some("mmx")), Err(CpuError::UnknownIsa { name: "mmx".into() }));
        assert_eq!(Isa::choose(Some("scalar")), Ok(Isa::Scalar));
        assert!(Isa::choose(None).is_ok());
        match Isa::Amx.lack() {
            None => assert_eq!(Isa::choose(Some("amx")), Ok(Isa::Amx)),
            Some(lack) => {
                assert_eq!(Isa::choose(Some("amx")), Err(CpuError::IsaLacks { isa: Isa::Amx, lack }));
            }
        }
        let absent = if cfg!(target_arch = "x86_64") { Isa::Neon } else { Isa::Avx2 };
        assert_eq!(Isa::choose(Some(absent.name())), Err(CpuError::IsaUnavailable { isa: absent }));
    }
}
