//! Merging partial results and its gradient: a warp for each row, one launch.

use natten_core::{Element, ElementType, MergeBackwardCall, MergeCall, Output, Partials};

use crate::backend::Cuda;
use crate::buffer::Raw;
use crate::device::Device;
use crate::error::CudaError;
use crate::launch::{launch, row_count, summarise};
use crate::params::{
    Branch, GradientBranch, MERGE_BRANCHES, MergeBackwardParams, MergeParams, RowCount, Strides,
};
use crate::registry::{Kernel, Operation};
use crate::select::select_rows;

/// The views of a merge.
pub(crate) struct Merge {
    partials: Partials<Raw, Raw>,
    output: Output<Raw, Raw>,
}

impl Merge {
    pub fn of<E: Element, D: Device>(call: &MergeCall<'_, Cuda<D>, E>) -> Self {
        Merge {
            partials: call.partials().map(Raw::from, Raw::from),
            output: call.output().map(Raw::from, Raw::from),
        }
    }
}

/// The views of a merge's gradient.
pub(crate) struct Gradient {
    partials: Partials<Raw, Raw>,
    merged: Output<Raw, Raw>,
    gradients: Partials<Raw, Raw>,
}

impl Gradient {
    pub fn of<E: Element, D: Device>(call: &MergeBackwardCall<'_, Cuda<D>, E>) -> Self {
        Gradient {
            partials: call.partials().map(Raw::from, Raw::from),
            merged: call.merged().map(Raw::from, Raw::from),
            gradients: call.gradients().map(Raw::from, Raw::from),
        }
    }
}

/// Launches the merge.
pub(crate) fn forward<D: Device>(
    device: &D,
    element_type: ElementType,
    views: &Merge,
) -> Result<(), CudaError> {
    let Merge { partials, output: Output { out, lse } } = views;
    expect_few(partials)?;
    let rows = partials.outs.iter().chain([out]);
    let scalars = partials.lses.iter().chain(lse);
    let Some(launched) = prepare(device, Operation::Merge, element_type, rows, scalars)? else {
        return Ok(());
    };
    let mut params = MergeParams {
        out: out.address,
        lse: address(lse),
        out_strides: out.row_strides(),
        lse_strides: scalar_strides(lse),
        count: launched.count,
        branches: partials.outs.len() as i32,
        ..MergeParams::default()
    };
    for (branch, (out, lse)) in params.branch.iter_mut().zip(partials.outs.iter().zip(&partials.lses)) {
        *branch = Branch {
            out: out.address,
            lse: lse.address,
            out_strides: out.row_strides(),
            lse_strides: lse.scalar_strides(),
        };
    }
    launch(device, launched.kernel, [launched.blocks, 1, 1], bytemuck::bytes_of(&params))
}

/// Launches the merge's gradient.
pub(crate) fn backward<D: Device>(
    device: &D,
    element_type: ElementType,
    views: &Gradient,
) -> Result<(), CudaError> {
    let Gradient { partials, merged, gradients } = views;
    expect_few(partials)?;
    let rows = partials.outs.iter().chain(&gradients.outs).chain([&merged.out]);
    let scalars = partials.lses.iter().chain(&gradients.lses).chain(&merged.lse);
    let Some(launched) = prepare(device, Operation::MergeBackward, element_type, rows, scalars)? else {
        return Ok(());
    };
    let mut params = MergeBackwardParams {
        grad_out: merged.out.address,
        grad_lse: address(&merged.lse),
        grad_out_strides: merged.out.row_strides(),
        grad_lse_strides: scalar_strides(&merged.lse),
        count: launched.count,
        branches: partials.outs.len() as i32,
        ..MergeBackwardParams::default()
    };
    let outs = partials.outs.iter().zip(&gradients.outs);
    let lses = partials.lses.iter().zip(&gradients.lses);
    for (branch, ((out, grad_out), (lse, grad_lse))) in params.branch.iter_mut().zip(outs.zip(lses)) {
        *branch = GradientBranch {
            out: out.address,
            lse: lse.address,
            grad_out: grad_out.address,
            grad_lse: grad_lse.address,
            out_strides: out.row_strides(),
            lse_strides: lse.scalar_strides(),
            grad_out_strides: grad_out.row_strides(),
            grad_lse_strides: grad_lse.scalar_strides(),
        };
    }
    launch(device, launched.kernel, [launched.blocks, 1, 1], bytemuck::bytes_of(&params))
}

/// A kernel and how many blocks of it take all rows.
struct Prepared {
    kernel: &'static Kernel,
    count: RowCount,
    blocks: u32,
}

/// The kernel of an operation on these rows, or nothing where there are none. The first row tensor is a partial result, and
/// all have its shape.
fn prepare<'a, D: Device>(
    device: &D,
    operation: Operation,
    element_type: ElementType,
    rows: impl Iterator<Item = &'a Raw>,
    scalars: impl Iterator<Item = &'a Raw>,
) -> Result<Option<Prepared>, CudaError> {
    let mut rows = rows.copied().peekable();
    let Some(first) = rows.peek().map(|first| first.layout) else { return Ok(None) };
    let layout = summarise(device, rows, scalars)?;
    if first.is_empty() {
        return Ok(None);
    }
    let (shape, capability) = (first.shape(), device.properties().compute_capability);
    let kernel = select_rows(operation, element_type, shape[shape.len() - 1], layout, capability)
        .map_err(CudaError::Unsupported)?;
    let (count, blocks) = row_count(shape, kernel)?;
    Ok(Some(Prepared { kernel, count, blocks }))
}

/// A kernel's parameter has room for so many partial results.
fn expect_few(partials: &Partials<Raw, Raw>) -> Result<(), CudaError> {
    let (found, limit) = (partials.outs.len(), MERGE_BRANCHES);
    if found > limit { Err(CudaError::MergeCount { found, limit }) } else { Ok(()) }
}

fn address(view: &Option<Raw>) -> u64 {
    view.as_ref().map_or(0, |view| view.address)
}

fn scalar_strides(view: &Option<Raw>) -> Strides {
    view.as_ref().map(Raw::scalar_strides).unwrap_or_default()
}
