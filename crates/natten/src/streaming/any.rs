//! The same with the element type as a value.

use natten_core::{Backend, DynParams, ElementType, Error, Role, bf16, f16};

use super::{FrameCache, Length, StreamError};
use crate::dynamic::{AnyTensorOn, AnyViewOn, InEnum};

/// A [`FrameCache`] of any element type, for callers that learn it at run time. Views are of its own backend's.
#[non_exhaustive]
#[derive(Debug)]
pub enum AnyFrameCache<B: Backend> {
    /// Of [`struct@f16`].
    F16(FrameCache<B, f16>),
    /// Of [`bf16`].
    Bf16(FrameCache<B, bf16>),
    /// Of `f32`.
    F32(FrameCache<B, f32>),
    /// Of `f64`.
    F64(FrameCache<B, f64>),
}

/// The same expression for whatever cache is inside.
macro_rules! inside {
    ($any:expr, $cache:ident => $result:expr) => {
        match $any {
            AnyFrameCache::F16($cache) => $result,
            AnyFrameCache::Bf16($cache) => $result,
            AnyFrameCache::F32($cache) => $result,
            AnyFrameCache::F64($cache) => $result,
        }
    };
}

impl<B: Backend> AnyFrameCache<B> {
    /// As [`FrameCache::new`], of this element type.
    ///
    /// # Errors
    /// Those of [`FrameCache::new`].
    pub fn new(
        backend: B,
        element_type: ElementType,
        params: impl Into<DynParams>,
        length: Length,
        widest: &[usize],
        head_dim_v: usize,
    ) -> Result<Self, StreamError> {
        macro_rules! of {
            ($variant:ident) => {
                AnyFrameCache::$variant(FrameCache::new(backend, params, length, widest, head_dim_v)?)
            };
        }
        Ok(match element_type {
            ElementType::F16 => of!(F16),
            ElementType::Bf16 => of!(Bf16),
            ElementType::F32 => of!(F32),
            ElementType::F64 => of!(F64),
        })
    }

    /// The element type.
    pub fn element_type(&self) -> ElementType {
        match self {
            AnyFrameCache::F16(_) => ElementType::F16,
            AnyFrameCache::Bf16(_) => ElementType::Bf16,
            AnyFrameCache::F32(_) => ElementType::F32,
            AnyFrameCache::F64(_) => ElementType::F64,
        }
    }

    /// As [`FrameCache::append`].
    ///
    /// # Errors
    /// Those of [`FrameCache::append`], and [`StreamError::ElementType`].
    pub fn append(&mut self, key: &AnyViewOn<'_, B>, value: &AnyViewOn<'_, B>) -> Result<(), StreamError> {
        inside!(self, cache => cache.append_views(expect(Role::Key, key)?, expect(Role::Value, value)?))
    }

    /// As [`FrameCache::attend_with_lse`].
    ///
    /// # Errors
    /// Those of [`FrameCache::attend`], and [`StreamError::ElementType`].
    pub fn attend(&self, query: &AnyViewOn<'_, B>) -> Result<(AnyTensorOn<B>, B::Tensor<f32>), StreamError> {
        inside!(self, cache => attend(cache, query))
    }

    /// As [`FrameCache::clear`].
    pub fn clear(&mut self) {
        inside!(self, cache => cache.clear());
    }

    /// As [`FrameCache::frames`].
    pub fn frames(&self) -> u64 {
        inside!(self, cache => cache.frames())
    }
}

fn attend<B: Backend, E: InEnum>(
    cache: &FrameCache<B, E>,
    query: &AnyViewOn<'_, B>,
) -> Result<(AnyTensorOn<B>, B::Tensor<f32>), StreamError> {
    let (call, params) = cache.call_on(expect(Role::Query, query)?)?;
    let (out, lse) = call.forward_with_lse(&params)?;
    Ok((E::tensor_from(out), lse))
}

/// A view of the cache's element type.
fn expect<'v, B: Backend, E: InEnum>(
    tensor: Role,
    view: &'v AnyViewOn<'_, B>,
) -> Result<B::View<'v, E>, StreamError> {
    view.expect::<E>(tensor).map_err(|error| match error {
        Error::ElementMismatch { tensor, expected, found } => {
            StreamError::ElementType { tensor, expected, found }
        }
        other => other.into(),
    })
}
