//! The same operator when the element type is known only at run time, as in candle and burn.

use natten_core::{
    Element, ElementType, Error, Gradients, Inputs, Layout, Role, Saved, Tensor, TensorView, bf16, f16,
};
use natten_cpu::Cpu;

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
    /// Extent of each axis.
    pub fn shape(&self) -> &[usize] {
        match self {
            AnyTensor::F16(tensor) => tensor.shape(),
            AnyTensor::Bf16(tensor) => tensor.shape(),
            AnyTensor::F32(tensor) => tensor.shape(),
            AnyTensor::F64(tensor) => tensor.shape(),
        }
    }

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

impl AnyView<'_> {
    /// Shape and strides.
    pub fn layout(&self) -> &Layout {
        match self {
            AnyView::F16(view) => view.layout(),
            AnyView::Bf16(view) => view.layout(),
            AnyView::F32(view) => view.layout(),
            AnyView::F64(view) => view.layout(),
        }
    }

    fn mismatch(self, tensor: Role, expected: ElementType) -> Error {
        Error::ElementMismatch { tensor, expected, found: self.element_type() }
    }
}

/// Unwraps operands that must all be of one element type.
trait Unwrap<'a, E> {
    fn unwrap_as(self, tensor: Role) -> Result<TensorView<'a, E>, Error>;
}

macro_rules! unwrap {
    ($($type:ty => $variant:ident),*) => {$(
        impl<'a> Unwrap<'a, $type> for AnyView<'a> {
            fn unwrap_as(self, tensor: Role) -> Result<TensorView<'a, $type>, Error> {
                match self {
                    AnyView::$variant(view) => Ok(view),
                    other => Err(other.mismatch(tensor, ElementType::$variant)),
                }
            }
        }
    )*};
}

unwrap!(f16 => F16, bf16 => Bf16, f32 => F32, f64 => F64);

/// Any mask with the element type (and, with [`DynParams`](crate::DynParams), the rank) as a value: output and
/// log-sum-exp.
///
/// # Errors
/// [`Error::ElementMismatch`] when the operands' types differ, and those of [`na2d`](crate::na2d).
///
/// # Examples
/// ```
/// use natten::dynamic::{self, AnyView};
/// use natten::{AxisParams, DynParams, Inputs, KernelSizePolicy, Tensor, bf16};
/// # fn main() -> Result<(), natten::Error> {
/// let x = Tensor::from_fn(&[1, 16, 2, 8], |i| bf16::from_f32(i as f32 * 0.01))?;
/// let params = DynParams::new(&[AxisParams::new(5)], None, KernelSizePolicy::Exact);
/// let view = AnyView::from(&x);
/// let (out, _lse) = dynamic::forward(&Inputs::new(view, view, view), &params)?;
/// assert_eq!(out.view().element_type(), natten::ElementType::Bf16);
/// # Ok(())
/// # }
/// ```
pub fn forward(inputs: &Inputs<AnyView<'_>>, mask: &impl Mask) -> Result<(AnyTensor, Tensor<f32>), Error> {
    match inputs.query {
        AnyView::F16(_) => forward_as::<f16>(inputs, mask),
        AnyView::Bf16(_) => forward_as::<bf16>(inputs, mask),
        AnyView::F32(_) => forward_as::<f32>(inputs, mask),
        AnyView::F64(_) => forward_as::<f64>(inputs, mask),
    }
}

/// The backward of [`forward`].
///
/// # Errors
/// As [`forward`].
pub fn backward(
    inputs: &Inputs<AnyView<'_>>,
    mask: &impl Mask,
    saved: &Saved<AnyView<'_>, TensorView<'_, f32>>,
) -> Result<Gradients<AnyTensor>, Error> {
    match inputs.query {
        AnyView::F16(_) => backward_as::<f16>(inputs, mask, saved),
        AnyView::Bf16(_) => backward_as::<bf16>(inputs, mask, saved),
        AnyView::F32(_) => backward_as::<f32>(inputs, mask, saved),
        AnyView::F64(_) => backward_as::<f64>(inputs, mask, saved),
    }
}

fn forward_as<'a, E>(
    inputs: &Inputs<AnyView<'a>>,
    mask: &impl Mask,
) -> Result<(AnyTensor, Tensor<f32>), Error>
where
    E: Element,
    AnyView<'a>: Unwrap<'a, E>,
    AnyTensor: From<Tensor<E>>,
{
    let (out, lse) = call(&views_of::<E>(inputs)?)?.forward_with_lse(mask)?;
    Ok((out.into(), lse))
}

fn backward_as<'a, E>(
    inputs: &Inputs<AnyView<'a>>,
    mask: &impl Mask,
    saved: &Saved<AnyView<'a>, TensorView<'a, f32>>,
) -> Result<Gradients<AnyTensor>, Error>
where
    E: Element,
    AnyView<'a>: Unwrap<'a, E>,
    AnyTensor: From<Tensor<E>>,
{
    let (out, d_out) = (saved.out.unwrap_as(Role::Out)?, saved.d_out.unwrap_as(Role::DOut)?);
    let saved = Saved { out: &out, lse: &saved.lse, d_out: &d_out, d_lse: saved.d_lse.as_ref() };
    let gradients = call(&views_of::<E>(inputs)?)?.backward(mask, &saved)?;
    Ok(Gradients {
        query: gradients.query.into(),
        key: gradients.key.into(),
        value: gradients.value.into(),
        additional: gradients.additional.map(|pair| pair.map(AnyTensor::from)),
    })
}

fn views_of<'a, E>(inputs: &Inputs<AnyView<'a>>) -> Result<Inputs<TensorView<'a, E>>, Error>
where
    AnyView<'a>: Unwrap<'a, E>,
{
    let additional = match inputs.additional {
        Some([keys, values]) => {
            Some([keys.unwrap_as(Role::AdditionalKeys)?, values.unwrap_as(Role::AdditionalValues)?])
        }
        None => None,
    };
    Ok(Inputs {
        query: inputs.query.unwrap_as(Role::Query)?,
        key: inputs.key.unwrap_as(Role::Key)?,
        value: inputs.value.unwrap_as(Role::Value)?,
        additional,
    })
}

fn call<'a, E: Element>(inputs: &'a Inputs<TensorView<'_, E>>) -> Result<Call<'a, Cpu, E>, Error> {
    let call = Call::new(&inputs.query, &inputs.key, &inputs.value)?;
    match &inputs.additional {
        Some([keys, values]) => call.additional(keys, values),
        None => Ok(call),
    }
}
