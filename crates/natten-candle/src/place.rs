//! Where the operands of a call lie in candle's storage. Nothing is moved: a place is a storage, a layout and an offset.

use candle_core::backend::BackendStorage;
use candle_core::{DType, Error, Layout as CandleLayout, Result, Shape, Tensor, bail};
use natten::{ElementType, Inputs, Layout, Role};

use crate::MaskParams;
use crate::op::Request;

/// A tensor of a call inside a storage. The offset and the strides count elements.
pub(crate) struct Place<'a, S> {
    pub storage: &'a S,
    pub layout: Layout,
    pub offset: usize,
}

impl<'a, S: BackendStorage> Place<'a, S> {
    pub fn of(storage: &'a S, layout: &CandleLayout) -> Result<Self> {
        Self::new(storage, layout.dims(), layout.stride(), layout.start_offset())
    }

    fn new(storage: &'a S, shape: &[usize], strides: &[usize], offset: usize) -> Result<Self> {
        let layout = Layout::with_unsigned_strides(shape, strides).map_err(Error::wrap)?;
        Ok(Place { storage, layout, offset })
    }

    fn element_type(&self, role: Role) -> Result<ElementType> {
        match self.storage.dtype() {
            DType::F16 => Ok(ElementType::F16),
            DType::BF16 => Ok(ElementType::Bf16),
            DType::F32 => Ok(ElementType::F32),
            DType::F64 => Ok(ElementType::F64),
            other => bail!("{role} holds {}, expected f16, bf16, f32 or f64", other.as_str()),
        }
    }
}

/// The element type that all operands share.
pub(crate) fn element_type<S: BackendStorage>(inputs: &Inputs<Place<'_, S>>) -> Result<ElementType> {
    let expected = inputs.query.element_type(Role::Query)?;
    for (tensor, place) in inputs.roles() {
        let found = place.element_type(tensor)?;
        if found != expected {
            return Err(Error::wrap(natten::Error::ElementMismatch { tensor, expected, found }));
        }
    }
    Ok(expected)
}

/// A gradient for each input of an operator, as candle has them.
pub(crate) type GradientsOf3 = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

/// How the operands of a call come as the three inputs that an operator of candle's has.
#[derive(Clone, Debug)]
pub(crate) enum Arrangement {
    /// Query, key and value.
    Apart,
    /// The query; the keys and after them the additional ones in one run of numbers; the values likewise.
    Joined { keys: [Shape; 2], values: [Shape; 2] },
    /// `[batch, tokens.., 3, heads, head_dim]`, three times the same tensor.
    Packed,
}

impl Arrangement {
    /// The call that an operator's inputs make.
    pub fn request<'a, S: BackendStorage>(
        &self,
        [query, key, value]: [(&'a S, &CandleLayout); 3],
        mask: MaskParams,
    ) -> Result<Request<'a, S>> {
        let whole = |(storage, layout)| Place::of(storage, layout);
        let inputs = match self {
            Arrangement::Apart => Inputs::new(whole(query)?, whole(key)?, whole(value)?),
            Arrangement::Joined { keys, values } => {
                let ([key, keys], [value, values]) = (split(key, keys)?, split(value, values)?);
                Inputs::new(whole(query)?, key, value).with_additional(keys, values)
            }
            Arrangement::Packed => Inputs::new(third(query, 0)?, third(query, 1)?, third(query, 2)?),
        };
        Ok(Request { inputs, mask, is_packed: self.is_packed() })
    }

    /// The gradients of an operator's inputs, out of the run of numbers that holds them all.
    pub fn gradients(&self, all: &Tensor, inputs: [&Tensor; 3]) -> Result<GradientsOf3> {
        if self.is_packed() {
            return Ok((Some(all.reshape(inputs[0].shape())?), None, None));
        }
        let mut start = 0;
        let mut next = |input: &Tensor| {
            let part = all.narrow(0, start, input.elem_count())?.reshape(input.shape());
            start += input.elem_count();
            part.map(Some)
        };
        Ok((next(inputs[0])?, next(inputs[1])?, next(inputs[2])?))
    }

    fn is_packed(&self) -> bool {
        matches!(self, Arrangement::Packed)
    }
}

/// Two dense tensors one after the other.
fn split<'a, S: BackendStorage>(
    (storage, layout): (&'a S, &CandleLayout),
    [first, second]: &[Shape; 2],
) -> Result<[Place<'a, S>; 2]> {
    let offset = layout.start_offset();
    let dense =
        |shape: &Shape, offset| Place::of(storage, &CandleLayout::contiguous_with_offset(shape, offset));
    Ok([dense(first, offset)?, dense(second, offset + first.elem_count())?])
}

/// The query, key or value of a packed tensor.
fn third<'a, S: BackendStorage>(
    (storage, layout): (&'a S, &CandleLayout),
    index: usize,
) -> Result<Place<'a, S>> {
    let ([shape @ .., 3, heads, dim], [strides @ .., step, of_heads, of_dim]) =
        (layout.dims(), layout.stride())
    else {
        bail!("qkv has shape {:?}, expected [batch, tokens.., 3, heads, head_dim]", layout.dims());
    };
    let shape = [shape, &[*heads, *dim]].concat();
    let strides = [strides, &[*of_heads, *of_dim]].concat();
    Place::new(storage, &shape, &strides, layout.start_offset() + index * step)
}
