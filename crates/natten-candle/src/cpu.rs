//! Calls on host storage: candle's slices are the operands, results are vectors that candle takes over.

use candle_core::{CpuStorage, Device, Error, Result, Shape, Storage, Tensor, WithDType};
use natten::cpu::Cpu;
use natten::{
    Backend, BackwardCall, Element, ElementType, ForwardCall, Gradients, Inputs, Mask, Output, TensorView,
    TensorViewMut, bf16, f16,
};

use crate::op::{Request, Results, Runs, SavedPlaces, backend_failed};
use crate::place::{Place, element_type};

impl Runs for CpuStorage {
    fn of(storage: &Storage) -> Option<&Self> {
        if let Storage::Cpu(storage) = storage { Some(storage) } else { None }
    }

    fn forward(request: &Request<Self>, with_lse: bool) -> Result<Results<Self>> {
        match element_type(&request.inputs)? {
            ElementType::F16 => forward::<f16>(request, with_lse),
            ElementType::Bf16 => forward::<bf16>(request, with_lse),
            ElementType::F32 => forward::<f32>(request, with_lse),
            ElementType::F64 => forward::<f64>(request, with_lse),
        }
    }

    fn backward(request: &Request<Self>, saved: &SavedPlaces<Self>) -> Result<Self> {
        match element_type(&request.inputs)? {
            ElementType::F16 => backward::<f16>(request, saved),
            ElementType::Bf16 => backward::<bf16>(request, saved),
            ElementType::F32 => backward::<f32>(request, saved),
            ElementType::F64 => backward::<f64>(request, saved),
        }
    }
}

fn forward<E: Element + WithDType>(
    request: &Request<CpuStorage>,
    with_lse: bool,
) -> Result<Results<CpuStorage>> {
    let views = request.inputs.try_map(|_, place| view::<E>(place))?;
    let layouts = views.map(|view| *view.layout());
    let problem = request.mask.problem(&layouts, E::TYPE).map_err(Error::wrap)?;
    let (out_shape, lse_shape) = (problem.out_shape(), problem.lse_shape());
    let mut out = vec![E::default(); out_shape.iter().product()];
    let mut lse = with_lse.then(|| vec![0.0f32; lse_shape.iter().product()]);
    let lse_view = lse.as_deref_mut().map(|lse| TensorViewMut::from_slice(&lse_shape, lse)).transpose();
    let output = Output {
        out: TensorViewMut::from_slice(&out_shape, &mut out).map_err(Error::wrap)?,
        lse: lse_view.map_err(Error::wrap)?,
    };
    let call = ForwardCall::<Cpu, E>::new(&problem, views, output).map_err(Error::wrap)?;
    Cpu::new().forward(call).map_err(|source| backend_failed("cpu", source))?;
    let lse = lse.map(|lse| Tensor::from_vec(lse, &lse_shape[..], &Device::Cpu)).transpose()?;
    Ok(Results { out: E::to_cpu_storage_owned(out), shape: Shape::from(&out_shape[..]), lse })
}

fn backward<E: Element + WithDType>(
    request: &Request<CpuStorage>,
    saved: &SavedPlaces<CpuStorage>,
) -> Result<CpuStorage> {
    let views = request.inputs.try_map(|_, place| view::<E>(place))?;
    let layouts = views.map(|view| *view.layout());
    let problem = request.mask.problem(&layouts, E::TYPE).map_err(Error::wrap)?;
    let saved = saved.try_map(|_, place| view::<E>(place), |_, place| view::<f32>(place))?;
    let mut all = vec![E::default(); layouts.roles().map(|(_, layout)| layout.len()).sum()];
    let gradients =
        if request.is_packed { interleaved(&views, &mut all) } else { in_a_row(&views, &mut all) };
    let gradients = gradients.map_err(Error::wrap)?;
    let call = BackwardCall::<Cpu, E>::new(&problem, views, saved, gradients).map_err(Error::wrap)?;
    Cpu::new().backward(call).map_err(|source| backend_failed("cpu", source))?;
    Ok(E::to_cpu_storage_owned(all))
}

fn view<'a, E: Element + WithDType>(place: &Place<'a, CpuStorage>) -> Result<TensorView<'a, E>> {
    let data = place.storage.as_slice::<E>()?;
    TensorView::with_layout(data, place.offset, place.layout).map_err(Error::wrap)
}

type Views<'a, E> = std::result::Result<Gradients<TensorViewMut<'a, E>>, natten::Error>;

/// Dense gradients, one behind the other in the order of the operator's inputs.
fn in_a_row<'a, E: Element>(inputs: &Inputs<TensorView<'_, E>>, mut rest: &'a mut [E]) -> Views<'a, E> {
    let mut next = |input: &TensorView<'_, E>| {
        let (mine, others) = std::mem::take(&mut rest).split_at_mut(input.layout().len());
        rest = others;
        TensorViewMut::from_slice(input.shape(), mine)
    };
    let Inputs { query, key, value, additional } = inputs;
    let Some([keys, values]) = additional else {
        return Ok(Inputs::new(next(query)?, next(key)?, next(value)?).into_gradients());
    };
    let (query, [key, keys], [value, values]) =
        (next(query)?, [next(key)?, next(keys)?], [next(value)?, next(values)?]);
    Ok(Gradients { query, key, value, additional: Some([keys, values]) })
}

/// The gradients in one dense tensor `[batch, tokens.., 3, heads, head_dim]`.
fn interleaved<'a, E: Element>(inputs: &Inputs<TensorView<'_, E>>, all: &'a mut [E]) -> Views<'a, E> {
    let mut shape = inputs.query.shape().to_vec();
    let axis = shape.len().saturating_sub(2);
    let heads = shape[axis];
    shape[axis] *= 3;
    let (query, rest) = TensorViewMut::from_slice(&shape, all)?.split_at(axis, heads)?;
    let (key, value) = rest.split_at(axis, heads)?;
    Ok(Gradients { query, key, value, additional: None })
}
