//! The operator on Flex's tensors: read where they lie, with their strides, and written to new ones.

use burn::backend::TensorMetadata;
use burn::backend::flex::{self, FlexTensor};
use burn::tensor::{Bytes, DType, Shape};
use natten::{
    Call, Element, ElementType, Gradients, Inputs, Layout, Role, Saved, TensorError, TensorView,
    TensorViewMut, bf16, cpu::Cpu, f16,
};

use crate::{Error, MaskParams};

/// A function of the element type that the query holds.
macro_rules! as_held {
    ($function:ident, $inputs:expr $(, $argument:expr)*) => {
        match element_type(Role::Query, &$inputs.query)? {
            ElementType::F16 => $function::<f16>($inputs $(, $argument)*),
            ElementType::Bf16 => $function::<bf16>($inputs $(, $argument)*),
            ElementType::F32 => $function::<f32>($inputs $(, $argument)*),
            _ => $function::<f64>($inputs $(, $argument)*),
        }
    };
}

/// The output.
pub fn forward(inputs: Inputs<FlexTensor>, params: &MaskParams) -> Result<FlexTensor, Error> {
    as_held!(forward_as, inputs, params)
}

/// The output and the log-sum-exp.
pub fn forward_with_lse(inputs: Inputs<FlexTensor>, params: &MaskParams) -> Result<[FlexTensor; 2], Error> {
    as_held!(forward_with_lse_as, inputs, params)
}

/// The gradients of all inputs.
pub fn backward(
    inputs: Inputs<FlexTensor>,
    params: &MaskParams,
    saved: Saved<FlexTensor, FlexTensor>,
) -> Result<Gradients<FlexTensor>, Error> {
    as_held!(backward_as, inputs, params, saved)
}

fn forward_as<E: Element>(inputs: Inputs<FlexTensor>, params: &MaskParams) -> Result<FlexTensor, Error> {
    let inputs = inputs.into_map(with_rows);
    let views = inputs.try_map(view::<E>)?;
    let call = call(&views)?;
    let mut out = Buffer::<E>::new(call.problem(params)?.out_shape())?;
    call.forward_into(params, &mut out.view_mut()?)?;
    Ok(out.into_tensor())
}

fn forward_with_lse_as<E: Element>(
    inputs: Inputs<FlexTensor>,
    params: &MaskParams,
) -> Result<[FlexTensor; 2], Error> {
    let inputs = inputs.into_map(with_rows);
    let views = inputs.try_map(view::<E>)?;
    let call = call(&views)?;
    let problem = call.problem(params)?;
    let mut out = Buffer::<E>::new(problem.out_shape())?;
    let mut lse = Buffer::<f32>::new(problem.lse_shape())?;
    call.forward_with_lse_into(params, &mut out.view_mut()?, &mut lse.view_mut()?)?;
    Ok([out.into_tensor(), lse.into_tensor()])
}

fn backward_as<E: Element>(
    inputs: Inputs<FlexTensor>,
    params: &MaskParams,
    saved: Saved<FlexTensor, FlexTensor>,
) -> Result<Gradients<FlexTensor>, Error> {
    let inputs = inputs.into_map(with_rows);
    let views = inputs.try_map(view::<E>)?;
    let saved = saved.into_map(with_rows, std::convert::identity);
    let saved = saved.try_map(view::<E>, view::<f32>)?;
    let saved = Saved { out: &saved.out, lse: &saved.lse, d_out: &saved.d_out, d_lse: saved.d_lse.as_ref() };
    let mut gradients = views.try_map(|_, view| Buffer::<E>::new(view.shape().to_vec()))?.into_gradients();
    {
        let mut written = Gradients {
            query: gradients.query.view_mut()?,
            key: gradients.key.view_mut()?,
            value: gradients.value.view_mut()?,
            additional: match &mut gradients.additional {
                Some([keys, values]) => Some([keys.view_mut()?, values.view_mut()?]),
                None => None,
            },
        };
        call(&views)?.backward_into(params, &saved, written.as_mut())?;
    }
    Ok(gradients.into_map(Buffer::into_tensor))
}

fn call<'a, E: Element>(views: &'a Inputs<TensorView<'_, E>>) -> Result<Call<'a, Cpu, E>, natten::Error> {
    let call = Call::new(&views.query, &views.key, &views.value)?;
    match &views.additional {
        Some([keys, values]) => call.additional(keys, values),
        None => Ok(call),
    }
}

/// What natten can read: numbers of a head side by side. burn has no operation that makes them so, hence a copy here of a tensor
/// whose last axis is transposed, flipped or expanded; any other is the tensor itself.
fn with_rows(tensor: FlexTensor) -> FlexTensor {
    let layout = tensor.layout();
    match (layout.shape().last(), layout.strides().last()) {
        (Some(&extent), Some(&stride)) if extent > 1 && stride != 1 => tensor.to_contiguous(),
        _ => tensor,
    }
}

/// The tensor's own memory.
fn view<E: Element>(role: Role, tensor: &FlexTensor) -> Result<TensorView<'_, E>, Error> {
    let (expected, found) = (E::TYPE, element_type(role, tensor)?);
    if found != expected {
        return Err(natten::Error::ElementMismatch { tensor: role, expected, found }.into());
    }
    let layout = tensor.layout();
    let numbers = bytemuck::try_cast_slice(tensor.bytes()).map_err(|_| Error::Unaligned { tensor: role })?;
    let strided = Layout::strided(layout.shape(), layout.strides()).map_err(natten::Error::from)?;
    Ok(TensorView::with_layout(numbers, layout.start_offset(), strided).map_err(natten::Error::from)?)
}

fn element_type(tensor: Role, found: &FlexTensor) -> Result<ElementType, Error> {
    match TensorMetadata::dtype(found) {
        DType::F16 => Ok(ElementType::F16),
        DType::BF16 => Ok(ElementType::Bf16),
        DType::F32 => Ok(ElementType::F32),
        DType::F64 => Ok(ElementType::F64),
        found => Err(Error::ElementType { tensor, found }),
    }
}

/// A result before it is a tensor of Flex's, which takes the memory over as it is.
struct Buffer<E> {
    shape: Vec<usize>,
    numbers: Vec<E>,
}

impl<E: Element> Buffer<E> {
    fn new(shape: Vec<usize>) -> Result<Self, Error> {
        let len = Layout::contiguous(&shape).map_err(natten::Error::from)?.len();
        // A vector of more bytes would panic.
        if len > isize::MAX as usize / size_of::<E>() {
            return Err(natten::Error::from(TensorError::Overflow).into());
        }
        Ok(Buffer { shape, numbers: vec![E::default(); len] })
    }

    fn view_mut(&mut self) -> Result<TensorViewMut<'_, E>, natten::Error> {
        Ok(TensorViewMut::from_slice(&self.shape, &mut self.numbers)?)
    }

    fn into_tensor(self) -> FlexTensor {
        let dtype = match E::TYPE {
            ElementType::F16 => DType::F16,
            ElementType::Bf16 => DType::BF16,
            ElementType::F32 => DType::F32,
            _ => DType::F64,
        };
        let layout = flex::Layout::contiguous(Shape::from(self.shape));
        FlexTensor::new(Bytes::from_elems(self.numbers), layout, dtype)
    }
}
