//! Which instructions the kernels use: what the machine has, what the caller or the environment asks for.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

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
    /// AArch64.
    Neon,
}

impl Isa {
    /// Every instruction set, worst first.
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Neon];

    /// Its name, as [`ISA_VARIABLE`] takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512_bf16",
            Isa::Neon => "neon",
        }
    }

    /// Whether this machine has it. The answer never changes.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Isa::Avx512Bf16 => Isa::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(all(target_arch = "aarch64", not(miri)))]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[allow(unreachable_patterns, reason = "which variants are left over depends on the target")]
            _ => false,
        }
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
            Isa::Avx512Bf16 => !crate::arch::is_intel(),
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
        if self.is_available() { Ok(self) } else { Err(CpuError::IsaUnavailable { isa: self }) }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = CpuError;

    fn from_str(name: &str) -> Result<Self, CpuError> {
        let known = Isa::ALL.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name));
        known.ok_or_else(|| CpuError::UnknownIsa { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse::<Isa>(), Ok(isa));
        }
    }

    #[test]
    fn a_wrong_environment_is_a_typed_error() {
        assert_eq!(Isa::choose(Some("mmx")), Err(CpuError::UnknownIsa { name: "mmx".into() }));
        assert_eq!(Isa::choose(Some("scalar")), Ok(Isa::Scalar));
        assert!(Isa::choose(None).is_ok());
        let absent = if cfg!(target_arch = "x86_64") { Isa::Neon } else { Isa::Avx2 };
        assert_eq!(Isa::choose(Some(absent.name())), Err(CpuError::IsaUnavailable { isa: absent }));
    }
}
