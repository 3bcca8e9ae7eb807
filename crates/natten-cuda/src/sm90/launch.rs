//! The family's launches: views into descriptions, descriptions into tensor maps.
#![allow(unsafe_code)]

use natten_core::Problem;

use super::params::ForwardParamsSm90;
use super::{Launch, Prepared, Views, boxes_as, prepare_boxes};
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
    let Ok(encoded) = prepared.iter().map(|one| encode(device, one)).collect::<Result<Vec<_>, _>>() else {
        return Ok(Err(RejectionReason::TensorMap(MapError::Refused)));
    };
    for (prepared, encoded) in prepared.iter().zip(&encoded) {
        // SAFETY: the addresses come from views, whose borrows (or the contract of their unsafe constructors) keep the
        // memory alive and unaliased while the call queues work on this device's stream; extents and strides come from
        // the same views, checked against the problem before.
        unsafe { start(device, prepared, encoded)? };
    }
    Ok(Ok(()))
}

/// The launches of a forward pass, sequence by sequence, or why there are none.
pub(crate) fn prepare_forward(
    properties: &Properties,
    problem: &Problem,
    views: &Forward,
    request: &Request,
) -> Result<Result<Vec<Prepared>, RejectionReason>, CudaError> {
    let mut sequences = Vec::new();
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
            Ok(prepared) => sequences.push(prepared),
            Err(reason) => return Ok(Err(reason)),
        }
    }
    Ok(Ok(sequences))
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

/// Encodes all maps, then launches.
///
/// # Safety
/// Every address in `prepared` stands for memory of this device that outlives the launch in stream order, holds all
/// elements that extents and strides reach, and is written by nobody else meanwhile.
///
/// # Errors
/// When the device refuses.
pub unsafe fn run<D: Device>(device: &D, prepared: &Prepared) -> Result<(), CudaError> {
    let encoded = encode(device, prepared)?;
    // SAFETY: the caller's promise.
    unsafe { start(device, prepared, &encoded) }
}

/// Each launch's parameters with the encoded maps.
fn encode<D: Device>(device: &D, prepared: &Prepared) -> Result<Vec<ForwardParamsSm90>, DeviceError> {
    prepared.launches.iter().map(|launch| encode_one(device, launch)).collect()
}

fn encode_one<D: Device>(device: &D, launch: &Launch) -> Result<ForwardParamsSm90, DeviceError> {
    let mut params = launch.params;
    let places = [
        &mut params.query,
        &mut params.key,
        &mut params.value,
        &mut params.additional_key,
        &mut params.additional_value,
    ];
    for (place, spec) in places.into_iter().zip(&launch.maps) {
        if let Some(spec) = spec {
            let TensorMap(words) = device.tensor_map(spec)?;
            *place = words;
        }
    }
    Ok(params)
}

/// # Safety
/// As [`run`]; and `encoded` are the launches' parameters.
unsafe fn start<D: Device>(
    device: &D,
    prepared: &Prepared,
    encoded: &[ForwardParamsSm90],
) -> Result<(), CudaError> {
    let kernel = prepared.kernel;
    let function = device
        .functions()
        .get_or_load(kernel.entry, || device.load(&kernel.ptx(), kernel.entry, kernel.shared_bytes))?;
    for (launch, params) in prepared.launches.iter().zip(encoded) {
        let config = LaunchConfig {
            shared_bytes: kernel.shared_bytes,
            ..LaunchConfig::new([launch.grid, 1, 1], kernel.threads)
        };
        let params = [bytemuck::bytes_of(params)];
        // SAFETY: the one parameter is the struct that the header's assertions mirror; addresses are the caller's promise.
        let prepared = unsafe { PreparedLaunch::new(&*function, config, &params) };
        device.launch(&prepared)?;
    }
    Ok(())
}
