//! Element types of tensors: `f16`, `bf16`, `f32`, and `f64` for the reference.

use std::fmt;

use half::{bf16, f16};

/// The element type of a tensor, for code that learns it at run time. Exhaustive on purpose: a new type shall not compile
/// before every backend says what it does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

/// What queries, keys and values can hold. Sealed: the types of [`ElementType`] implement it.
pub trait InputElement:
    sealed::Sealed + bytemuck::Pod + PartialEq + fmt::Debug + Default + Send + Sync + 'static
{
    /// What outputs and gradients hold when the operands hold this: the same type, unless it is too narrow for results.
    type Out: Element;

    /// The same type as a value.
    const ELEMENT_TYPE: ElementType;

    /// Widens to `f64`, exactly.
    fn widen(self) -> f64;
    /// Rounds to nearest, ties to even.
    fn narrow(value: f64) -> Self;
}

/// An element whose results are of its own type: code that is generic over it need not tell operands from results.
pub trait Element: InputElement<Out = Self> {
    /// The same type as a value.
    const TYPE: ElementType = Self::ELEMENT_TYPE;

    /// Widens (or, from `f64`, rounds) to `f32`.
    fn to_f32(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn from_f32(value: f32) -> Self;

    /// Widens to `f64`, exactly.
    #[inline]
    fn to_f64(self) -> f64 {
        self.widen()
    }

    /// Rounds to nearest, ties to even.
    #[inline]
    fn from_f64(value: f64) -> Self {
        Self::narrow(value)
    }
}

macro_rules! element {
    ($type:ty, $variant:ident, $widen:expr, $narrow:expr, $to_f32:expr, $from_f32:expr) => {
        impl sealed::Sealed for $type {}
        impl InputElement for $type {
            type Out = $type;
            const ELEMENT_TYPE: ElementType = ElementType::$variant;
            #[inline]
            fn widen(self) -> f64 {
                $widen(self)
            }
            #[inline]
            fn narrow(value: f64) -> Self {
                $narrow(value)
            }
        }
        impl Element for $type {
            #[inline]
            fn to_f32(self) -> f32 {
                $to_f32(self)
            }
            #[inline]
            fn from_f32(value: f32) -> Self {
                $from_f32(value)
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

element!(f32, F32, f64::from, |value| value as f32, |value| value, |value| value);
element!(f64, F64, |value| value, |value| value, |value| value as f32, f64::from);
element!(f16, F16, f16::to_f64, |value| f16::from_f32(to_odd(value)), f16::to_f32, f16::from_f32);
element!(bf16, Bf16, bf16::to_f64, |value| bf16::from_f32(to_odd(value)), bf16::to_f32, bf16::from_f32);

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
