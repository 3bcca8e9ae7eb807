//! Calls on CUDA storage: candle's device memory is borrowed, on the stream of candle's device. Nothing here waits.
//!
//! cudarc orders streams by events that each borrow of a buffer records when it ends, so borrows end after the launch.
#![allow(unsafe_code)]

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, Error, Result, Shape, Storage, Tensor, bail};
use natten::cuda::driver::Driver;
use natten::cuda::{Cuda, CudaView, CudaViewMut};
use natten::{
    Backend, BackwardCall, Element, ElementType, ForwardCall, Gradients, Inputs, Layout, Mask, Output, Saved,
    bf16, f16,
};

use crate::op::{Request, Results, Runs, SavedPlaces, backend_failed};
use crate::place::{Place, element_type};

impl Runs for CudaStorage {
    fn of(storage: &Storage) -> Option<&Self> {
        if let Storage::Cuda(storage) = storage { Some(storage) } else { None }
    }

    fn forward(request: &Request<Self>, with_lse: bool) -> Result<Results<Self>> {
        match element_type(&request.inputs)? {
            ElementType::F16 => forward::<f16>(request, with_lse),
            ElementType::Bf16 => forward::<bf16>(request, with_lse),
            ElementType::F32 => forward::<f32>(request, with_lse),
            ElementType::F64 => no_f64(),
        }
    }

    fn backward(request: &Request<Self>, saved: &SavedPlaces<Self>) -> Result<Self> {
        match element_type(&request.inputs)? {
            ElementType::F16 => backward::<f16>(request, saved),
            ElementType::Bf16 => backward::<bf16>(request, saved),
            ElementType::F32 => backward::<f32>(request, saved),
            ElementType::F64 => no_f64(),
        }
    }
}

fn no_f64<T>() -> Result<T> {
    bail!(
        "neighborhood attention of f64 runs on the CPU only: to_device(&Device::Cpu), or to_dtype(DType::F32)"
    )
}

/// Candle's device, and the borrows of its buffers that a call holds until its work is queued.
struct Borrows<'a> {
    cuda: Cuda<Driver>,
    stream: &'a Arc<CudaStream>,
    held: Vec<SyncOnDrop<'a>>,
}

impl<'a> Borrows<'a> {
    fn new(stream: &'a Arc<CudaStream>) -> Result<Self> {
        let driver = Driver::of_stream(stream).map_err(|source| backend_failed("cuda", source))?;
        Ok(Borrows { cuda: Cuda::new(driver), stream, held: Vec::with_capacity(12) })
    }

    fn read<E: Element + CudaDType>(&mut self, place: &Place<'a, CudaStorage>) -> Result<CudaView<'a, E>> {
        let (address, held) = E::as_cuda_slice(place.storage)?.device_ptr(self.stream);
        self.held.push(held);
        let address = address + (place.offset * size_of::<E>()) as u64;
        // SAFETY: candle's layout stays inside its storage, which is borrowed for 'a and ordered by the borrow held.
        Ok(unsafe { self.cuda.view_of_raw(address, place.layout) })
    }

    fn write<E: Element>(&mut self, memory: &'a mut CudaSlice<E>, layout: Layout) -> CudaViewMut<'a, E> {
        let (address, held) = memory.device_ptr_mut(self.stream);
        self.held.push(held);
        // SAFETY: a dense layout of at most the memory's length, which is borrowed for 'a and ordered by the borrow held.
        unsafe { self.cuda.view_mut_of_raw(address, layout) }
    }
}

/// Memory from candle, in the order of its stream, whose content nobody reads before a kernel has written it.
fn allocate<E: DeviceRepr>(device: &CudaDevice, shape: &[usize]) -> Result<CudaSlice<E>> {
    let len = shape.iter().product::<usize>().max(1);
    // SAFETY: plain numbers; the call that it is for writes every element.
    unsafe { device.alloc::<E>(len) }
}

fn forward<E: Element + CudaDType + DeviceRepr>(
    request: &Request<CudaStorage>,
    with_lse: bool,
) -> Result<Results<CudaStorage>> {
    let Request { inputs, mask, .. } = request;
    let device = inputs.query.storage.device();
    let problem = mask.problem(&inputs.map(|place| place.layout), E::TYPE).map_err(Error::wrap)?;
    let (out_shape, lse_shape) = (problem.out_shape(), problem.lse_shape());
    let mut out = allocate::<E>(device, &out_shape)?;
    let mut lse = with_lse.then(|| allocate::<f32>(device, &lse_shape)).transpose()?;
    let stream = device.cuda_stream();
    let mut borrows = Borrows::new(&stream)?;
    let views = inputs.try_map(|_, place| borrows.read::<E>(place))?;
    let out_view = borrows.write(&mut out, dense(&out_shape)?);
    let lse_layout = dense(&lse_shape)?;
    let lse_view = lse.as_mut().map(|lse| borrows.write(lse, lse_layout));
    let call = ForwardCall::new(&problem, views, Output { out: out_view, lse: lse_view });
    let done = borrows.cuda.forward::<E>(call.map_err(Error::wrap)?);
    done.map_err(|source| backend_failed("cuda", source))?;
    drop(borrows);
    let lse = lse.map(|lse| {
        let lse = Storage::Cuda(CudaStorage::wrap_cuda_slice(lse, device.clone()));
        Tensor::from_storage(lse, &lse_shape[..], BackpropOp::none(), false)
    });
    let out = CudaStorage::wrap_cuda_slice(out, device.clone());
    Ok(Results { out, shape: Shape::from(&out_shape[..]), lse })
}

fn backward<E: Element + CudaDType + DeviceRepr>(
    request: &Request<CudaStorage>,
    saved: &SavedPlaces<CudaStorage>,
) -> Result<CudaStorage> {
    let Request { inputs, mask, is_packed } = request;
    let device = inputs.query.storage.device();
    let layouts = inputs.map(|place| place.layout);
    let problem = mask.problem(&layouts, E::TYPE).map_err(Error::wrap)?;
    let len: usize = layouts.roles().map(|(_, layout)| layout.len()).sum();
    let mut all = allocate::<E>(device, &[len])?;
    let stream = device.cuda_stream();
    let mut borrows = Borrows::new(&stream)?;
    let views = inputs.try_map(|_, place| borrows.read::<E>(place))?;
    let saved = Saved {
        out: borrows.read::<E>(&saved.out)?,
        lse: borrows.read::<f32>(&saved.lse)?,
        d_out: borrows.read::<E>(&saved.d_out)?,
        d_lse: saved.d_lse.as_ref().map(|d_lse| borrows.read::<f32>(d_lse)).transpose()?,
    };
    let first = borrows.write(&mut all, dense(&[len.max(1)])?).address();
    let gradients = gradient_places(&layouts, *is_packed)?;
    // SAFETY: the parts do not overlap, lie inside the memory that `borrows` holds, and name each element once.
    let part = |(layout, offset): (Layout, usize)| unsafe {
        borrows.cuda.view_mut_of_raw(first + (offset * size_of::<E>()) as u64, layout)
    };
    let call = BackwardCall::new(&problem, views, saved, gradients.into_map(part)).map_err(Error::wrap)?;
    let failed = |source| backend_failed("cuda", source);
    let workspace_len = borrows.cuda.backward_workspace_len_for::<E>(&call).map_err(failed)?.max(1);
    let mut workspace = allocate::<f32>(device, &[workspace_len])?;
    let mut of_workspace = Borrows::new(&stream)?;
    let mut workspace = of_workspace.write(&mut workspace, dense(&[workspace_len])?);
    borrows.cuda.backward_with::<E>(call, &mut workspace).map_err(failed)?;
    drop((borrows, of_workspace));
    Ok(CudaStorage::wrap_cuda_slice(all, device.clone()))
}

fn dense(shape: &[usize]) -> Result<Layout> {
    Layout::contiguous(shape).map_err(Error::wrap)
}

/// Where each gradient lies in one run of numbers, and from which element on.
fn gradient_places(inputs: &Inputs<Layout>, is_packed: bool) -> Result<Gradients<(Layout, usize)>> {
    let mut start = 0;
    let mut next = |input: &Layout| {
        if !is_packed {
            let place = (dense(input.shape())?, start);
            start += input.len();
            return Ok(place);
        }
        let (mut shape, axis) = (input.shape().to_vec(), input.rank().saturating_sub(2));
        let heads = shape[axis];
        shape[axis] *= 3;
        let (layout, step) = dense(&shape)?.narrowed(axis, start..start + heads).map_err(Error::wrap)?;
        start += heads;
        Ok::<_, Error>((layout, step as usize))
    };
    let Inputs { query, key, value, additional } = inputs;
    let Some([keys, values]) = additional else {
        return Ok(Inputs::new(next(query)?, next(key)?, next(value)?).into_gradients());
    };
    let (query, [key, keys], [value, values]) =
        (next(query)?, [next(key)?, next(keys)?], [next(value)?, next(values)?]);
    Ok(Gradients { query, key, value, additional: Some([keys, values]) })
}
