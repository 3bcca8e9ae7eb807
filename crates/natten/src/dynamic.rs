//! The same operator when the element type is known only at run time, as in candle and burn.

use natten_core::{DynParams, ElementType, Error, Gradients, Role, Saved, Tensor, TensorView, bf16, f16};

use crate::call::{Call, Mask};

/// A host tensor to read, of any element type.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum AnyView<'a> {
    /// Of [`struct@f16`].
    F16(TensorView<'a, f16>),
    /// Of [`bf16`].
    Bf16(TensorView<'a, bf16>),
    /// Of `f32`.
    F32(TensorView<'a, f32>),
    /// Of `f64`.
    F64(TensorView<'a, f64>),
}

/// An owned host tensor of any element type.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum AnyTensor {
    /// Of [`struct@f16`].
    F16(Tensor<f16>),
    /// Of [`bf16`].
    Bf16(Tensor<bf16>),
    /// Of `f32`.
    F32(Tensor<f32>),
    /// Of `f64`.
    F64(Tensor<f64>),
}

macro_rules! conversions {
    ($($type:ty => $variant:ident),*) => {$(
        impl<'a> From<TensorView<'a, $type>> for AnyView<'a> {
            fn from(view: TensorView<'a, $type>) -> Self {
                AnyView::$variant(view)
            }
        }
        impl<'a> From<&'a Tensor<$type>> for AnyView<'a> {
            fn from(tensor: &'a Tensor<$type>) -> Self {
                AnyView::$variant(tensor.view())
            }
        }
        impl From<Tensor<$type>> for AnyTensor {
            fn from(tensor: Tensor<$type>) -> Self {
                AnyTensor::$variant(tensor)
            }
        }
    )*};
}

conversions!(f16 => F16, bf16 => Bf16, f32 => F32, f64 => F64);

impl AnyView<'_> {
    /// The element type.
    pub fn element_type(&self) -> ElementType {
        match self {
            AnyView::F16(_) => ElementType::F16,
            AnyView::Bf16(_) => ElementType::Bf16,
            AnyView::F32(_) => ElementType::F32,
            AnyView::F64(_) => ElementType::F64,
        }
    }
}

impl AnyTensor {
    /// A view of the whole.
    pub fn view(&self) -> AnyView<'_> {
        match self {
            AnyTensor::F16(tensor) => tensor.into(),
            AnyTensor::Bf16(tensor) => tensor.into(),
            AnyTensor::F32(tensor) => tensor.into(),
            AnyTensor::F64(tensor) => tensor.into(),
        }
    }
}

/// Runs a body with the views under their own type; they must all be of one.
macro_rules! dispatch {
    ($query:expr, [$(($role:ident, $name:ident)),*], |$q:ident| $body:expr) => {
        match $query {
            AnyView::F16($q) => dispatch!(@arm F16, [$(($role, $name)),*], $q, $body),
            AnyView::Bf16($q) => dispatch!(@arm Bf16, [$(($role, $name)),*], $q, $body),
            AnyView::F32($q) => dispatch!(@arm F32, [$(($role, $name)),*], $q, $body),
            AnyView::F64($q) => dispatch!(@arm F64, [$(($role, $name)),*], $q, $body),
        }
    };
    (@arm $variant:ident, [$(($role:ident, $name:ident)),*], $q:ident, $body:expr) => {{
        $(let $name = match $name {
            AnyView::$variant(view) => view,
            other => return Err(Error::ElementMismatch {
                tensor: Role::$role,
                expected: ElementType::$variant,
                found: other.element_type(),
            }),
        };)*
        $body
    }};
}

/// Neighborhood attention with the element type and the rank as values: output and log-sum-exp.
///
/// # Errors
/// [`Error::ElementMismatch`] when the operands' types differ, and those of [`na2d`](crate::na2d).
pub fn neighborhood_attention(
    query: AnyView<'_>,
    key: AnyView<'_>,
    value: AnyView<'_>,
    params: &DynParams,
) -> Result<(AnyTensor, Tensor<f32>), Error> {
    forward(query, key, value, params)
}

/// Any mask with the element type as a value: output and log-sum-exp.
///
/// # Errors
/// As [`neighborhood_attention`].
pub fn forward(
    query: AnyView<'_>,
    key: AnyView<'_>,
    value: AnyView<'_>,
    mask: &impl Mask,
) -> Result<(AnyTensor, Tensor<f32>), Error> {
    dispatch!(query, [(Key, key), (Value, value)], |q| {
        let (out, lse) = Call::new(&q, &key, &value)?.forward_with_lse(mask)?;
        Ok((out.into(), lse))
    })
}

/// The backward of [`forward`].
///
/// # Errors
/// As [`neighborhood_attention`].
pub fn backward(
    query: AnyView<'_>,
    key: AnyView<'_>,
    value: AnyView<'_>,
    mask: &impl Mask,
    saved: &Saved<AnyView<'_>, TensorView<'_, f32>>,
) -> Result<Gradients<AnyTensor>, Error> {
    let Saved { out, lse, d_out, d_lse } = *saved;
    dispatch!(query, [(Key, key), (Value, value), (Out, out), (DOut, d_out)], |q| {
        let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: d_lse.as_ref() };
        let Gradients { query, key, value, .. } = Call::new(&q, &key, &value)?.backward(mask, &saved)?;
        Ok(Gradients { query: query.into(), key: key.into(), value: value.into(), additional: None })
    })
}
