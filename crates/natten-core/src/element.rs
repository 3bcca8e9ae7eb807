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
                <$type>::from_f64(value)
            }
        }
    };
}

native!(f32, F32);
native!(f64, F64);
half_width!(f16, F16);
half_width!(bf16, Bf16);
