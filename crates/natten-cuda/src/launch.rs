//! The one place that launches kernels: parameters from views, grid from the decomposition.
#![allow(unsafe_code)]

use natten_core::Problem;
use natten_core::window::Axis;

use crate::buffer::Raw;
use crate::device::{Device, LaunchConfig};
use crate::error::CudaError;
use crate::params::{self, Divisor, ForwardParams, Geometry, ListStrides, RowCount, Strides, to_i32};
use crate::registry::Kernel;
use crate::schedule::{Items, Work, decompose};
use crate::select::{ForwardKernel, LayoutSummary, select_forward, without_hopper};
use crate::sm90;
use crate::tiles::{self, Request};

/// A kernel with its parameters. That it exists says that it may be launched, so launching itself is safe.
#[derive(Debug)]
pub struct PreparedLaunch<'a, F> {
    function: &'a F,
    config: LaunchConfig,
    params: &'a [&'a [u8]],
}

impl<'a, F> PreparedLaunch<'a, F> {
    /// A launch; each of `params` is the bytes of one kernel parameter.
    ///
    /// # Safety
    /// `params` match the function's parameters in number and size, and every address in them stands for memory of
    /// the function's device that outlives the launch in stream order and holds what the kernel reads and writes.
    pub unsafe fn new(function: &'a F, config: LaunchConfig, params: &'a [&'a [u8]]) -> Self {
        PreparedLaunch { function, config, params }
    }

    /// The kernel.
    pub fn function(&self) -> &F {
        self.function
    }

    /// The shape.
    pub fn config(&self) -> &LaunchConfig {
        &self.config
    }

    /// The parameters' bytes.
    pub fn params(&self) -> &[&[u8]] {
        self.params
    }
}

/// The views of a forward call.
pub(crate) struct Forward {
    pub query: Raw,
    pub key: Raw,
    pub value: Raw,
    pub additional: Option<[Raw; 2]>,
    pub out: Raw,
    pub lse: Option<Raw>,
}

/// Launches the forward kernel: once, or once for each packed sequence.
pub(crate) fn forward<D: Device>(
    device: &D,
    problem: &Problem,
    views: &Forward,
    request: &Request,
) -> Result<(), CudaError> {
    let Forward { query, key, value, additional, out, lse } = views;
    let rows = [*query, *key, *value, *out].into_iter().chain(additional.iter().flatten().copied());
    let layout = summarise(device, rows, lse.iter())?;
    if is_empty(problem) {
        return Ok(());
    }
    let properties = device.properties();
    let choice = match select_forward(problem, layout, properties, request).map_err(CudaError::Unsupported)? {
        ForwardKernel::Registered(choice) => choice,
        ForwardKernel::Hopper(kernel) => {
            match sm90::forward(device, problem, views, &request.on(kernel.entry))? {
                Ok(()) => return Ok(()),
                Err(reason) => without_hopper(reason, problem, layout, properties, request)
                    .map_err(CudaError::Unsupported)?,
            }
        }
    };
    let kernel = choice.kernel;
    let mut base = ForwardParams {
        query_strides: query.row_strides(),
        key_strides: key.row_strides(),
        value_strides: value.row_strides(),
        out_strides: out.row_strides(),
        lse_strides: lse.map(|lse| lse.scalar_strides()).unwrap_or_default(),
        ..ForwardParams::default()
    };
    if let Some([keys, values]) = additional {
        (base.additional_key, base.additional_value) = (keys.address, values.address);
        base.additional_key_strides = list_strides(keys);
        base.additional_value_strides = list_strides(values);
    }
    for sequence in problem.sequences() {
        if sequence.axes.iter().any(|axis| axis.query_extent == 0) {
            continue;
        }
        let (first_query, first_key) = (sequence.query_start, sequence.key_start);
        let base = ForwardParams {
            query: at_token(query, &base.query_strides, first_query),
            key: at_token(key, &base.key_strides, first_key),
            value: at_token(value, &base.value_strides, first_key),
            out: at_token(out, &base.out_strides, first_query),
            lse: lse.map_or(0, |lse| at_token(&lse, &base.lse_strides, first_query)),
            geometry: geometry(problem, &sequence.axes)?,
            ..base
        };
        if let Some(tiling) = choice.tiling {
            let (plan, blocks) = tiles::plan(problem, &sequence.axes, &tiling)?;
            launch(device, kernel, [blocks, 1, 1], bytemuck::bytes_of(&base.on_tiles(plan)))?;
            continue;
        }
        let work = Work {
            items: Items::Queries,
            axes: &sequence.axes,
            heads: problem.heads(),
            heads_sharing: problem.heads_per_kv(),
            batch: problem.batch(),
            row_bytes: problem.head_dim() * problem.element_type().size_bytes(),
        };
        let (decomposition, blocks) = decompose(kernel, &work)?;
        let params = ForwardParams { decomposition, ..base };
        launch(device, kernel, [blocks, 1, 1], bytemuck::bytes_of(&params))?;
    }
    Ok(())
}

/// Whether there is no query at all, so nothing to write on their side.
pub(crate) fn is_empty(problem: &Problem) -> bool {
    problem.batch() == 0 || problem.query_tokens() == 0
}

/// Checks that all views live here, and sums up what selection needs to know. Statistics are read one by one.
pub(crate) fn summarise<'a, D: Device>(
    device: &D,
    rows: impl Iterator<Item = Raw>,
    scalars: impl Iterator<Item = &'a Raw>,
) -> Result<LayoutSummary, CudaError> {
    let mut summary = LayoutSummary { is_aligned: true };
    for view in rows {
        expect_here(device, &view)?;
        summary.is_aligned &= view.is_aligned();
    }
    for view in scalars {
        expect_here(device, view)?;
    }
    Ok(summary)
}

fn expect_here<D: Device>(device: &D, view: &Raw) -> Result<(), CudaError> {
    let (expected, found) = (device.id(), view.device);
    if expected == found { Ok(()) } else { Err(CudaError::WrongDevice { expected, found }) }
}

/// The address of a token along the last token axis.
pub(crate) fn at_token(view: &Raw, strides: &Strides, token: usize) -> u64 {
    let elements = strides.axis[2] * token as i64;
    view.address.wrapping_add_signed(elements * view.element_bytes as i64)
}

/// Strides of additional keys or values.
pub(crate) fn list_strides(view: &Raw) -> ListStrides {
    let strides = view.row_strides();
    ListStrides { batch: strides.batch, token: strides.axis[2], head: strides.head }
}

/// The header's form of the problem, on the given axes.
pub(crate) fn geometry(problem: &Problem, axes: &[Axis; 3]) -> Result<Geometry, CudaError> {
    let [x, y, z] = axes;
    Ok(Geometry {
        axes: [params::Axis::new(x)?, params::Axis::new(y)?, params::Axis::new(z)?],
        heads_per_kv: Divisor::new("heads per key head", problem.heads_per_kv())?,
        head_dim: to_i32("head_dim", problem.head_dim())?,
        head_dim_v: to_i32("head_dim_v", problem.head_dim_v())?,
        additional_keys: to_i32("additional keys", problem.additional_keys())?,
        scale: problem.scale() as f32,
        scale_log2: (problem.scale() * std::f64::consts::LOG2_E) as f32,
    })
}

/// Rows of a view `[batch, tokens.., heads, length]`, and the thread blocks that take them a warp each.
pub(crate) fn row_count(shape: &[usize], kernel: &Kernel) -> Result<(RowCount, u32), CudaError> {
    let (tokens, tail) = shape[1..].split_at(shape.len() - 3);
    let mut axis = [Divisor::new("an axis", 1)?; 3];
    for (divisor, &extent) in axis[3 - tokens.len()..].iter_mut().zip(tokens) {
        *divisor = Divisor::new("an axis", extent)?;
    }
    let rows = shape[..shape.len() - 1].iter().product();
    let count = RowCount {
        heads: Divisor::new("the number of heads", tail[0])?,
        axis,
        rows: to_i32("the number of rows", rows)?,
        length: to_i32("the length of a row", tail[1])?,
    };
    Ok((count, (rows as u32).div_ceil(kernel.threads / 32)))
}

/// Launches a kernel of the registry with its one parameter.
pub(crate) fn launch<D: Device>(
    device: &D,
    kernel: &Kernel,
    grid: [u32; 3],
    params: &[u8],
) -> Result<(), CudaError> {
    let function = device
        .functions()
        .get_or_load(kernel.entry, || device.load(&kernel.ptx(), kernel.entry, kernel.shared_bytes))?;
    let config =
        LaunchConfig { shared_bytes: kernel.shared_bytes, ..LaunchConfig::new(grid, kernel.threads) };
    let params = [params];
    // SAFETY: the registry's test holds every kernel's parameter against the struct that `params` is the bytes of. Its
    // addresses come from views, whose borrows (or the contract of their unsafe constructors) keep the memory alive
    // and unaliased while the call queues work on this device's stream; owned memory is freed in stream order after
    // it. Extents and strides come from the same views, checked against the problem before.
    let prepared = unsafe { PreparedLaunch::new(&*function, config, &params) };
    Ok(device.launch(&prepared)?)
}
