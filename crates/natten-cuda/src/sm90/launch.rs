//! The family's launches: views into descriptions, descriptions into tensor maps.
#![allow(unsafe_code)]

use natten_core::Problem;

use super::{CAPABILITY, KERNELS, Prepared, Views, pays, prepare_as};
use crate::buffer::Raw;
use crate::device::{Device, LaunchConfig, PreparedLaunch, Properties, TensorMap};
use crate::error::CudaError;
use crate::launch::{Forward, at_token};
use crate::params::Strides;
use crate::select::RejectionReason;
use crate::tiles::Request;
use crate::tma::RowView;

/// Runs the forward pass if this family serves it and pays, or is asked for; else says why not.
pub(crate) fn try_forward<D: Device>(
    device: &D,
    problem: &Problem,
    views: &Forward,
    request: &Request,
) -> Result<Result<(), RejectionReason>, CudaError> {
    let launches = match prepare_forward(device.properties(), problem, views, request)? {
        Ok(launches) => launches,
        Err(reason) => return Ok(Err(reason)),
    };
    for prepared in &launches {
        // SAFETY: the addresses come from views, whose borrows (or the contract of their unsafe constructors) keep the
        // memory alive and unaliased while the call queues work on this device's stream; extents and strides come from
        // the same views, checked against the problem before.
        unsafe { run(device, prepared)? };
    }
    Ok(Ok(()))
}

/// The launches of a forward pass if this family serves it and pays, or is asked for; else the reason why not.
pub(crate) fn prepare_forward(
    properties: &Properties,
    problem: &Problem,
    views: &Forward,
    request: &Request,
) -> Result<Result<Vec<Prepared>, RejectionReason>, CudaError> {
    let found = properties.compute_capability;
    if found != CAPABILITY {
        return Ok(Err(RejectionReason::OnlyOn { only: CAPABILITY, found }));
    }
    if request.entry.is_some_and(|entry| KERNELS.iter().all(|k| k.entry != entry)) {
        return Ok(Err(RejectionReason::NotAskedFor));
    }
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
        match prepare_as(problem, &sequence.axes, &views, request, properties.multiprocessors)? {
            Ok(prepared) => launches.extend(prepared),
            Err(reason) => return Ok(Err(reason)),
        }
    }
    if request.entry.is_none() && !pays(problem, &launches) {
        return Ok(Err(RejectionReason::SmallWindow));
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
    let Prepared { kernel, grid, maps, .. } = prepared;
    let mut params = prepared.params;
    let places = [
        &mut params.query,
        &mut params.key,
        &mut params.value,
        &mut params.additional_key,
        &mut params.additional_value,
    ];
    for (place, spec) in places.into_iter().zip(maps) {
        if let Some(spec) = spec {
            let TensorMap(words) = device.tensor_map(spec)?;
            *place = words;
        }
    }
    let function = device
        .functions()
        .get_or_load(kernel.entry, || device.load(kernel.ptx, kernel.entry, kernel.shared_bytes))?;
    let config = LaunchConfig {
        shared_bytes: kernel.shared_bytes,
        ..LaunchConfig::new([*grid, 1, 1], kernel.threads())
    };
    let params = [bytemuck::bytes_of(&params)];
    // SAFETY: the one parameter is the struct that the header's assertions mirror; addresses are the caller's promise.
    let launch = unsafe { PreparedLaunch::new(&*function, config, &params) };
    Ok(device.launch(&launch)?)
}
