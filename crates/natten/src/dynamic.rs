//! The same operator when the element type is known only at run time, as in candle and burn.

use std::fmt;

use natten_core::{
    Backend, Element, ElementType, Error, Gradients, Inputs, Layout, Output, Role, Saved, bf16, f16,
};
#[cfg(feature = "cpu")]
use natten_core::{Tensor, TensorView, TensorViewMut};

#[cfg(feature = "cpu")]
use crate::Host;
use crate::call::Call;
use crate::mask::Mask;

/// A tensor on `B` to read, of any element type.
#[non_exhaustive]
pub enum AnyViewOn<'a, B: Backend> {
    /// Of [`struct@f16`].
    F16(B::View<'a, f16>),
    /// Of [`bf16`].
    Bf16(B::View<'a, bf16>),
    /// Of `f32`.
    F32(B::View<'a, f32>),
    /// Of `f64`.
    F64(B::View<'a, f64>),
}

/// A tensor on `B` to write, of any element type.
#[non_exhaustive]
pub enum AnyViewMutOn<'a, B: Backend> {
    /// Of [`struct@f16`].
    F16(B::ViewMut<'a, f16>),
    /// Of [`bf16`].
    Bf16(B::ViewMut<'a, bf16>),
    /// Of `f32`.
    F32(B::ViewMut<'a, f32>),
    /// Of `f64`.
    F64(B::ViewMut<'a, f64>),
}

/// An owned tensor on `B` of any element type.
#[non_exhaustive]
pub enum AnyTensorOn<B: Backend> {
    /// Of [`struct@f16`].
    F16(B::Tensor<f16>),
    /// Of [`bf16`].
    Bf16(B::Tensor<bf16>),
    /// Of `f32`.
    F32(B::Tensor<f32>),
    /// Of `f64`.
    F64(B::Tensor<f64>),
}

/// A host tensor to read, of any element type.
#[cfg(feature = "cpu")]
pub type AnyView<'a> = AnyViewOn<'a, Host>;

/// A host tensor to write, of any element type.
#[cfg(feature = "cpu")]
pub type AnyViewMut<'a> = AnyViewMutOn<'a, Host>;

/// An owned host tensor of any element type.
#[cfg(feature = "cpu")]
pub type AnyTensor = AnyTensorOn<Host>;

/// The same expression for whatever type is inside.
macro_rules! inside {
    ($any:expr, $enum:ident, $inner:ident => $result:expr) => {
        match $any {
            $enum::F16($inner) => $result,
            $enum::Bf16($inner) => $result,
            $enum::F32($inner) => $result,
            $enum::F64($inner) => $result,
        }
    };
}

impl<B: Backend> Clone for AnyViewOn<'_, B> {
    fn clone(&self) -> Self {
        match self {
            AnyViewOn::F16(view) => AnyViewOn::F16(view.clone()),
            AnyViewOn::Bf16(view) => AnyViewOn::Bf16(view.clone()),
            AnyViewOn::F32(view) => AnyViewOn::F32(view.clone()),
            AnyViewOn::F64(view) => AnyViewOn::F64(view.clone()),
        }
    }
}

impl<'a, B: Backend> Copy for AnyViewOn<'a, B>
where
    B::View<'a, f16>: Copy,
    B::View<'a, bf16>: Copy,
    B::View<'a, f32>: Copy,
    B::View<'a, f64>: Copy,
{
}

impl<B: Backend> fmt::Debug for AnyViewOn<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(self.element_type().name()).field("layout", &self.to_layout()).finish_non_exhaustive()
    }
}

impl<B: Backend> fmt::Debug for AnyTensorOn<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.view();
        f.debug_struct(view.element_type().name()).field("layout", &view.to_layout()).finish_non_exhaustive()
    }
}

impl<B: Backend> Clone for AnyTensorOn<B>
where
    B::Tensor<f16>: Clone,
    B::Tensor<bf16>: Clone,
    B::Tensor<f32>: Clone,
    B::Tensor<f64>: Clone,
{
    fn clone(&self) -> Self {
        match self {
            AnyTensorOn::F16(tensor) => AnyTensorOn::F16(tensor.clone()),
            AnyTensorOn::Bf16(tensor) => AnyTensorOn::Bf16(tensor.clone()),
            AnyTensorOn::F32(tensor) => AnyTensorOn::F32(tensor.clone()),
            AnyTensorOn::F64(tensor) => AnyTensorOn::F64(tensor.clone()),
        }
    }
}

impl<B: Backend> PartialEq for AnyTensorOn<B>
where
    B::Tensor<f16>: PartialEq,
    B::Tensor<bf16>: PartialEq,
    B::Tensor<f32>: PartialEq,
    B::Tensor<f64>: PartialEq,
{
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (AnyTensorOn::F16(a), AnyTensorOn::F16(b)) => a == b,
            (AnyTensorOn::Bf16(a), AnyTensorOn::Bf16(b)) => a == b,
            (AnyTensorOn::F32(a), AnyTensorOn::F32(b)) => a == b,
            (AnyTensorOn::F64(a), AnyTensorOn::F64(b)) => a == b,
            _ => false,
        }
    }
}

#[cfg(feature = "cpu")]
macro_rules! conversions {
    ($($type:ty => $variant:ident),*) => {$(
        impl<'a> From<TensorView<'a, $type>> for AnyView<'a> {
            fn from(view: TensorView<'a, $type>) -> Self {
                AnyView::$variant(view)
            }
        }
        impl<'a> From<TensorViewMut<'a, $type>> for AnyViewMut<'a> {
            fn from(view: TensorViewMut<'a, $type>) -> Self {
                AnyViewMut::$variant(view)
            }
        }
        impl<'a> From<&'a mut Tensor<$type>> for AnyViewMut<'a> {
            fn from(tensor: &'a mut Tensor<$type>) -> Self {
                AnyViewMut::$variant(tensor.view_mut())
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

#[cfg(feature = "cpu")]
conversions!(f16 => F16, bf16 => Bf16, f32 => F32, f64 => F64);

impl<B: Backend> AnyViewOn<'_, B> {
    /// The element type.
    pub fn element_type(&self) -> ElementType {
        match self {
            AnyViewOn::F16(_) => ElementType::F16,
            AnyViewOn::Bf16(_) => ElementType::Bf16,
            AnyViewOn::F32(_) => ElementType::F32,
            AnyViewOn::F64(_) => ElementType::F64,
        }
    }

    /// A copy of shape and strides.
    pub fn to_layout(&self) -> Layout {
        inside!(self, AnyViewOn, view => B::layout(view))
    }

    pub(crate) fn expect<E: InEnum>(&self, tensor: Role) -> Result<B::View<'_, E>, Error> {
        let mismatch = || Error::ElementMismatch { tensor, expected: E::TYPE, found: self.element_type() };
        E::view_in(self).map(|view| B::reborrow(view)).ok_or_else(mismatch)
    }
}

impl<B: Backend> AnyViewMutOn<'_, B> {
    /// The element type.
    pub fn element_type(&self) -> ElementType {
        match self {
            AnyViewMutOn::F16(_) => ElementType::F16,
            AnyViewMutOn::Bf16(_) => ElementType::Bf16,
            AnyViewMutOn::F32(_) => ElementType::F32,
            AnyViewMutOn::F64(_) => ElementType::F64,
        }
    }

    fn expect<E: InEnum>(&mut self, tensor: Role) -> Result<B::ViewMut<'_, E>, Error> {
        let mismatch = Error::ElementMismatch { tensor, expected: E::TYPE, found: self.element_type() };
        E::view_mut_in(self).map(|view| B::reborrow_mut(view)).ok_or(mismatch)
    }
}

impl<B: Backend> AnyTensorOn<B> {
    /// A view of the whole, to write.
    pub fn view_mut(&mut self) -> AnyViewMutOn<'_, B> {
        match self {
            AnyTensorOn::F16(tensor) => AnyViewMutOn::F16(B::view_mut(tensor)),
            AnyTensorOn::Bf16(tensor) => AnyViewMutOn::Bf16(B::view_mut(tensor)),
            AnyTensorOn::F32(tensor) => AnyViewMutOn::F32(B::view_mut(tensor)),
            AnyTensorOn::F64(tensor) => AnyViewMutOn::F64(B::view_mut(tensor)),
        }
    }

    /// A view of the whole.
    pub fn view(&self) -> AnyViewOn<'_, B> {
        match self {
            AnyTensorOn::F16(tensor) => AnyViewOn::F16(B::view(tensor)),
            AnyTensorOn::Bf16(tensor) => AnyViewOn::Bf16(B::view(tensor)),
            AnyTensorOn::F32(tensor) => AnyViewOn::F32(B::view(tensor)),
            AnyTensorOn::F64(tensor) => AnyViewOn::F64(B::view(tensor)),
        }
    }
}

#[cfg(feature = "cpu")]
impl AnyView<'_> {
    /// Shape and strides.
    pub fn layout(&self) -> &Layout {
        inside!(self, AnyView, view => view.layout())
    }
}

#[cfg(feature = "cpu")]
impl AnyTensor {
    /// Extent of each axis.
    pub fn shape(&self) -> &[usize] {
        inside!(self, AnyTensor, tensor => tensor.shape())
    }
}

/// Which variant holds an element type.
pub(crate) trait InEnum: Element {
    fn view_in<'v, 'a, B: Backend>(any: &'v AnyViewOn<'a, B>) -> Option<&'v B::View<'a, Self>>;
    fn view_mut_in<'v, 'a, B: Backend>(
        any: &'v mut AnyViewMutOn<'a, B>,
    ) -> Option<&'v mut B::ViewMut<'a, Self>>;
    fn tensor_from<B: Backend>(tensor: B::Tensor<Self>) -> AnyTensorOn<B>;
}

macro_rules! in_enum {
    ($($type:ty => $variant:ident),*) => {$(
        impl InEnum for $type {
            fn view_in<'v, 'a, B: Backend>(any: &'v AnyViewOn<'a, B>) -> Option<&'v B::View<'a, Self>> {
                if let AnyViewOn::$variant(view) = any { Some(view) } else { None }
            }

            fn view_mut_in<'v, 'a, B: Backend>(
        any: &'v mut AnyViewMutOn<'a, B>,
    ) -> Option<&'v mut B::ViewMut<'a, Self>> {
                if let AnyViewMutOn::$variant(view) = any { Some(view) } else { None }
            }

            fn tensor_from<B: Backend>(tensor: B::Tensor<Self>) -> AnyTensorOn<B> {
                AnyTensorOn::$variant(tensor)
            }
        }
    )*};
}

in_enum!(f16 => F16, bf16 => Bf16, f32 => F32, f64 => F64);

/// Any mask with the element type (and, with [`DynParams`](crate::DynParams), the rank) as a value: output and
/// log-sum-exp, of host tensors.
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
#[cfg(feature = "cpu")]
pub fn forward(inputs: &Inputs<AnyView<'_>>, mask: &impl Mask) -> Result<(AnyTensor, Tensor<f32>), Error> {
    forward_on(&Host::default(), inputs, mask)
}

/// The backward of [`forward`].
///
/// # Errors
/// As [`forward`].
#[cfg(feature = "cpu")]
pub fn backward(
    inputs: &Inputs<AnyView<'_>>,
    mask: &impl Mask,
    saved: &Saved<AnyView<'_>, TensorView<'_, f32>>,
) -> Result<Gradients<AnyTensor>, Error> {
    backward_on(&Host::default(), inputs, mask, saved)
}

/// [`forward`] of tensors on any backend.
///
/// # Errors
/// As [`forward`].
pub fn forward_on<B: Backend>(
    backend: &B,
    inputs: &Inputs<AnyViewOn<'_, B>>,
    mask: &impl Mask,
) -> Result<(AnyTensorOn<B>, B::Tensor<f32>), Error> {
    match inputs.query {
        AnyViewOn::F16(_) => forward_as::<f16, B>(backend, inputs, mask),
        AnyViewOn::Bf16(_) => forward_as::<bf16, B>(backend, inputs, mask),
        AnyViewOn::F32(_) => forward_as::<f32, B>(backend, inputs, mask),
        AnyViewOn::F64(_) => forward_as::<f64, B>(backend, inputs, mask),
    }
}

/// [`backward`] of tensors on any backend.
///
/// # Errors
/// As [`forward`].
pub fn backward_on<B: Backend>(
    backend: &B,
    inputs: &Inputs<AnyViewOn<'_, B>>,
    mask: &impl Mask,
    saved: &Saved<AnyViewOn<'_, B>, B::View<'_, f32>>,
) -> Result<Gradients<AnyTensorOn<B>>, Error> {
    match inputs.query {
        AnyViewOn::F16(_) => backward_as::<f16, B>(backend, inputs, mask, saved),
        AnyViewOn::Bf16(_) => backward_as::<bf16, B>(backend, inputs, mask, saved),
        AnyViewOn::F32(_) => backward_as::<f32, B>(backend, inputs, mask, saved),
        AnyViewOn::F64(_) => backward_as::<f64, B>(backend, inputs, mask, saved),
    }
}

/// [`forward_on`] into tensors of the caller's, every element of which is written.
///
/// # Errors
/// As [`forward`]; a wrong element type or shape of an output is one too.
pub fn forward_into_on<B: Backend>(
    backend: &B,
    inputs: &Inputs<AnyViewOn<'_, B>>,
    mask: &impl Mask,
    output: Output<AnyViewMutOn<'_, B>, B::ViewMut<'_, f32>>,
) -> Result<(), Error> {
    match inputs.query {
        AnyViewOn::F16(_) => forward_into_as::<f16, B>(backend, inputs, mask, output),
        AnyViewOn::Bf16(_) => forward_into_as::<bf16, B>(backend, inputs, mask, output),
        AnyViewOn::F32(_) => forward_into_as::<f32, B>(backend, inputs, mask, output),
        AnyViewOn::F64(_) => forward_into_as::<f64, B>(backend, inputs, mask, output),
    }
}

/// [`backward_on`] into tensors of the caller's, every element of which is written.
///
/// # Errors
/// As [`forward_into_on`].
pub fn backward_into_on<B: Backend>(
    backend: &B,
    inputs: &Inputs<AnyViewOn<'_, B>>,
    mask: &impl Mask,
    saved: &Saved<AnyViewOn<'_, B>, B::View<'_, f32>>,
    gradients: Gradients<AnyViewMutOn<'_, B>>,
) -> Result<(), Error> {
    match inputs.query {
        AnyViewOn::F16(_) => backward_into_as::<f16, B>(backend, inputs, mask, saved, gradients),
        AnyViewOn::Bf16(_) => backward_into_as::<bf16, B>(backend, inputs, mask, saved, gradients),
        AnyViewOn::F32(_) => backward_into_as::<f32, B>(backend, inputs, mask, saved, gradients),
        AnyViewOn::F64(_) => backward_into_as::<f64, B>(backend, inputs, mask, saved, gradients),
    }
}

fn forward_into_as<E: InEnum, B: Backend>(
    backend: &B,
    inputs: &Inputs<AnyViewOn<'_, B>>,
    mask: &impl Mask,
    mut output: Output<AnyViewMutOn<'_, B>, B::ViewMut<'_, f32>>,
) -> Result<(), Error> {
    let lse = output.lse.as_mut().map(|lse| B::reborrow_mut(lse));
    let output = Output { out: output.out.expect::<E>(Role::Out)?, lse };
    call::<E, B>(backend, inputs)?.forward_into_views(mask, output)
}

fn backward_into_as<E: InEnum, B: Backend>(
    backend: &B,
    inputs: &Inputs<AnyViewOn<'_, B>>,
    mask: &impl Mask,
    saved: &Saved<AnyViewOn<'_, B>, B::View<'_, f32>>,
    mut gradients: Gradients<AnyViewMutOn<'_, B>>,
) -> Result<(), Error> {
    let saved = saved.try_map(|role, view| view.expect::<E>(role), |_, lse| Ok(B::reborrow(lse)))?;
    let Gradients { query, key, value, additional } = &mut gradients;
    let gradients = Gradients {
        query: query.expect::<E>(Role::DQuery)?,
        key: key.expect::<E>(Role::DKey)?,
        value: value.expect::<E>(Role::DValue)?,
        additional: match additional {
            Some([keys, values]) => {
                Some([keys.expect::<E>(Role::DAdditionalKeys)?, values.expect::<E>(Role::DAdditionalValues)?])
            }
            None => None,
        },
    };
    call::<E, B>(backend, inputs)?.backward_into_views(mask, &saved, gradients)
}

fn forward_as<E: InEnum, B: Backend>(
    backend: &B,
    inputs: &Inputs<AnyViewOn<'_, B>>,
    mask: &impl Mask,
) -> Result<(AnyTensorOn<B>, B::Tensor<f32>), Error> {
    let (out, lse) = call::<E, B>(backend, inputs)?.forward_with_lse(mask)?;
    Ok((E::tensor_from(out), lse))
}

fn backward_as<E: InEnum, B: Backend>(
    backend: &B,
    inputs: &Inputs<AnyViewOn<'_, B>>,
    mask: &impl Mask,
    saved: &Saved<AnyViewOn<'_, B>, B::View<'_, f32>>,
) -> Result<Gradients<AnyTensorOn<B>>, Error> {
    let saved = saved.try_map(|role, view| view.expect::<E>(role), |_, lse| Ok(B::reborrow(lse)))?;
    let gradients = call::<E, B>(backend, inputs)?.backward_of_views(mask, &saved)?;
    Ok(gradients.into_map(E::tensor_from))
}

/// The call on operands that are all of one element type.
fn call<'a, E: InEnum, B: Backend>(
    backend: &B,
    inputs: &'a Inputs<AnyViewOn<'_, B>>,
) -> Result<Call<'a, B, E>, Error> {
    Ok(Call::of_views(backend.clone(), inputs.try_map(|role, view| view.expect::<E>(role))?))
}
