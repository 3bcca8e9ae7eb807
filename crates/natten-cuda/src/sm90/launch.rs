//! The family's launches: views into descriptions, descriptions into tensor maps.
#![allow(unsafe_code)]

use natten_core::Problem;

use super::params::ForwardParamsSm90;
use super::{Prepared, Views, boxes_as, prepare_boxes};
use crate::buffer::Raw;
use crate::device::{Device, LaunchConfig, PreparedLaunch, Properties, TensorMap};
use crate::error::{CudaError, DeviceError};
use crate::launch::{Forward, at_token};
use crate::params::Strides;
use crate::select::RejectionReason;
use crate::tiles::Request;
use crate::tma::{MapError, RowView};

/// Runs the forward pass; says why not, and has done nothing, if the copy engine cannot read some tensor.
pub(crate) fn forward<D: Device>(
    device: &D,
    problem: &Problem,
    views: &Forward,
    request: &Request,
) -> Result<Result<(), RejectionReason>, CudaError> {
    let prepared = match prepare_forward(device.properties(), problem, views, request)? {
        Ok(prepared) => prepared,
        Err(reason) => return Ok(Err(reason)),
    };
    // What the driver refuses is left to the other families, like what this crate refuses.
    let Ok(params) = prepared.iter().map(|one| encode(device, one)).collect::<Result<Vec<_>, _>>() else {
        return Ok(Err(RejectionReason::TensorMap(MapError::Refused)));
    };
    for (prepared, params) in prepared.iter().zip(&params) {
        // SAFETY: the addresses come from views, whose borrows (or the contract of their unsafe constructors) keep the
        // memory alive and unaliased while the call queues work on this device's stream; extents and strides come from
        // the same views, checked against the problem before.
        unsafe { start(device, prepared, params)? };
    }
    Ok(Ok(()))
}

/// The launches of a forward pass, or why there are none.
pub(crate) fn prepare_forward(
    properties: &Properties,
    problem: &Problem,
    views: &Forward,
    request: &Request,
) -> Result<Result<Vec<Prepared>, RejectionReason>, CudaError> {
    let mut launches = Vec::new();
    for sequence in problem.sequences().filter(|s| s.axes.iter().all(|axis| axis.query_extent > 0)) {
        let queries = sequence.axes.map(|axis| axis.query_extent);
        let keys = sequence.axes.map(|axis| axis.key_extent);
        let views = Views {
            query: row_view(&views.query, sequence.query_start, queries),
            key: row_view(&views.key, sequence.key_start, keys),
            value: row_view(&views.value, sequence.key_start, keys),
            additional: views.additional.map(|pair| pair.map(|list| list_view(&list))),
            out: place(&views.out, views.out.row_strides(), sequence.query_start),
            lse: views.lse.map_or((0, Strides::default()), |lse| {
                place(&lse, lse.scalar_strides(), sequence.query_start)
            }),
        };
        let multiprocessors = properties.multiprocessors;
        let (kernel, boxes) = match boxes_as(problem, &sequence.axes, request, multiprocessors) {
            Ok(choice) => choice,
            Err(reason) => return Ok(Err(reason)),
        };
        match prepare_boxes(problem, &sequence.axes, &views, (kernel, boxes), multiprocessors)? {
            Ok(prepared) => launches.push(prepared),
            Err(reason) => return Ok(Err(reason)),
        }
    }
    Ok(Ok(launches))
}

fn row_view(view: &Raw, first_token: usize, tokens: [usize; 3]) -> RowView {
    let shape = view.layout.shape();
    let strides = view.row_strides();
    RowView {
        address: at_token(view, &strides, first_token),
        batch: shape[0],
        tokens,
        heads: shape[shape.len() - 2],
        head_dim: shape[shape.len() - 1],
        strides,
    }
}

fn list_view(view: &Raw) -> RowView {
    row_view(view, 0, [1, 1, view.layout.shape()[1]])
}

fn place(view: &Raw, strides: Strides, first_token: usize) -> (u64, Strides) {
    (at_token(view, &strides, first_token), strides)
}

/// Encodes the maps and launches.
///
/// # Safety
/// Every address in `prepared` stands for memory of this device that outlives the launch in stream order, holds all
/// elements that extents and strides reach, and is written by nobody else meanwhile.
///
/// # Errors
/// When the device refuses.
pub unsafe fn run<D: Device>(device: &D, prepared: &Prepared) -> Result<(), CudaError> {
    let params = encode(device, prepared)?;
    // SAFETY: the caller's promise.
    unsafe { start(device, prepared, &params) }
}

/// The parameters with the encoded maps.
fn encode<D: Device>(device: &D, prepared: &Prepared) -> Result<ForwardParamsSm90, DeviceError> {
    let mut params = prepared.params;
    let places = [
        &mut params.query,
        &mut params.key,
        &mut params.value,
        &mut params.additional_key,
        &mut params.additional_value,
    ];
    for (place, spec) in places.into_iter().zip(&prepared.maps) {
        if let Some(spec) = spec {
            let TensorMap(words) = device.tensor_map(spec)?;
            *place = words;
        }
    }
    Ok(params)
}

/// # Safety
/// As [`run`]; and `params` are the encoded ones of `prepared`.
unsafe fn start<D: Device>(
    device: &D,
    prepared: &Prepared,
    params: &ForwardParamsSm90,
) -> Result<(), CudaError> {
    let kernel = prepared.kernel;
    let function = device
        .functions()
        .get_or_load(kernel.entry, || device.load(kernel.ptx, kernel.entry, kernel.shared_bytes))?;
    let config = LaunchConfig {
        shared_bytes: kernel.shared_bytes,
        ..LaunchConfig::new([prepared.grid, 1, 1], kernel.threads())
    };
    let params = [bytemuck::bytes_of(params)];
    // SAFETY: the one parameter is the struct that the header's assertions mirror; addresses are the caller's promise.
    let launch = unsafe { PreparedLaunch::new(&*function, config, &params) };
    Ok(device.launch(&launch)?)
}
