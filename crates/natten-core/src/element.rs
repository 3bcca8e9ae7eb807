//! Element types of tensors: `f16`, `bf16`, `f32`, and `f64` for the reference.

use std::fmt;

use half::{bf16, f16};

/// The element type of a tensor, for code that learns it at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ElementType {
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
}

impl ElementType {
    /// Size of one element in bytes.
    pub const fn size_bytes(self) -> usize {
        match self {
            ElementType::F16 | ElementType::Bf16 => 2,
            ElementType::F32 => 4,
            ElementType::F64 => 8,
        }
    }

    /// The name as Rust and the field write it: `f16`, `bf16`, `f32`, `f64`.
    pub const fn name(self) -> &'static str {
        match self {
            ElementType::F16 => "f16",
            ElementType::Bf16 => "bf16",
            ElementType::F32 => "f32",
            ElementType::F64 => "f64",
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
}

/// An element of a tensor. Sealed: the four types of [`ElementType`] implement it.
pub trait Element:
    sealed::Sealed + bytemuck::Pod + PartialEq + fmt::Debug + Default + Send + Sync + 'static
{
    /// The same type as a value.
    const TYPE: ElementType;

    /// Widens (or, from `f64`, rounds) to `f32`.
    fn to_f32(self) -> f32;
    /// Widens to `f64`, exactly.
    fn to_f64(self) -> f64;
    /// Rounds to nearest, ties to even.
    fn from_f32(value: f32) -> Self;
    /// Rounds to nearest, ties to even.
    fn from_f64(value: f64) -> Self;
}

macro_rules! native {
    ($type:ty, $variant:ident) => {
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const TYPE: ElementType = ElementType::$variant;
            #[inline]
            fn to_f32(self) -> f32 {
                self as f32
            }
            #[inline]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline]
            fn from_f32(value: f32) -> Self {
                value as $type
            }
            #[inline]
            fn from_f64(value: f64) -> Self {
                value as $type
            }
        }
    };
}

macro_rules! half_width {
    ($type:ty, $variant:ident) => {
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const TYPE: ElementType = ElementType::$variant;
            #[inline]
            fn to_f32(self) -> f32 {
                <$type>::to_f32(self)
            }
            #[inline]
            fn to_f64(self) -> f64 {
                <$type>::to_f64(self)
            }
            #[inline]
            fn from_f32(value: f32) -> Self {
                <$type>::from_f32(value)
            }
            #[inline]
            fn from_f64(value: f64) -> Self {
                <$type>::from_f32(to_odd(value))
            }
        }
    };
}

/// Rounds to the `f32` neighbour with an odd last bit, unless exact: rounding that once more, to half the width,
/// gives what a single rounding gives. Two roundings to nearest may not (`1 + 2^-11 + 2^-40` to `f16`).
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let bits = nearest.to_bits();
    if f64::from(nearest) == value || nearest.is_nan() || value.is_infinite() || bits & 1 == 1 {
        return nearest;
    }
    // An even neighbour too large in magnitude has the odd one below it, one too small above; infinity included.
    let is_beyond = f64::from(nearest).abs() > value.abs();
    f32::from_bits(if is_beyond { bits - 1 } else { bits + 1 })
}

native!(f32, F32);
native!(f64, F64);
half_width!(f16, F16);
half_width!(bf16, Bf16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f64_rounds_once() {
        let just_above_tie = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        assert_eq!(<f16 as Element>::from_f64(just_above_tie).to_bits(), 0x3C01);
        assert_eq!(<f16 as Element>::from_f64(-just_above_tie).to_bits(), 0xBC01);
        assert_eq!(<f16 as Element>::from_f64(1.0 + 2f64.powi(-11)).to_bits(), 0x3C00);
        let just_below_tie = 1.0 + 3.0 * 2f64.powi(-11) - 2f64.powi(-40);
        assert_eq!(<f16 as Element>::from_f64(just_below_tie).to_bits(), 0x3C01);
        let just_above_tie = 1.0 + 2f64.powi(-8) + 2f64.powi(-45);
        assert_eq!(<bf16 as Element>::from_f64(just_above_tie).to_bits(), 0x3F81);
    }

    #[test]
    fn f64_keeps_what_is_special() {
        for value in [0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(<f16 as Element>::from_f64(value).to_f64().to_bits(), value.to_bits());
            assert_eq!(<bf16 as Element>::from_f64(value).to_f64().to_bits(), value.to_bits());
        }
        assert!(
            <f16 as Element>::from_f64(f64::NAN).is_nan() && <bf16 as Element>::from_f64(f64::NAN).is_nan()
        );
        // Too large for f32 and for half: to infinity, as nearest rounding has it.
        assert_eq!(<f16 as Element>::from_f64(1e300), f16::INFINITY);
        assert_eq!(<bf16 as Element>::from_f64(-1e300), bf16::NEG_INFINITY);
        assert_eq!(<f16 as Element>::from_f64(1e-300).to_bits(), 0);
        assert_eq!(<bf16 as Element>::from_f64(-1e-300).to_bits(), 0x8000);
    }

    #[test]
    fn every_half_survives_f64() {
        for bits in 0..=u16::MAX {
            let (a, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            assert!(a.is_nan() || <f16 as Element>::from_f64(a.to_f64()).to_bits() == bits);
            assert!(b.is_nan() || <bf16 as Element>::from_f64(b.to_f64()).to_bits() == bits);
        }
    }
}
