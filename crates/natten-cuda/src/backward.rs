//! The backward call: row statistics, then a pass over queries, a pass over keys, and one over additional keys.
//!
//! No atomics anywhere: every gradient is summed by one lane group in a fixed order, so results repeat bit for bit.

use natten_core::window::Axis;
use natten_core::{Layout, Problem};

use crate::buffer::Raw;
use crate::device::Device;
use crate::error::CudaError;
use crate::launch::{at_token, geometry, is_empty, launch, list_strides, row_count, summarise};
use crate::params::{BackwardParams, DeltaParams, Strides, SumParams, to_i32};
use crate::registry::{Kernel, Operation};
use crate::schedule::{Items, Work, decompose, splits};
use crate::select::{LayoutSummary, select};

/// The views of a backward call.
pub(crate) struct Backward {
    pub query: Raw,
    pub key: Raw,
    pub value: Raw,
    pub additional: Option<[Raw; 2]>,
    pub out: Raw,
    pub lse: Raw,
    pub grad_out: Raw,
    pub grad_lse: Option<Raw>,
    pub grad_query: Raw,
    pub grad_key: Raw,
    pub grad_value: Raw,
    pub grad_additional: Option<[Raw; 2]>,
}

/// Where the parts of the workspace begin, in bytes.
struct Workspace {
    partial_keys: usize,
    partial_values: usize,
    end: usize,
}

impl Workspace {
    fn of(problem: &Problem) -> Self {
        let rows = problem.batch() * problem.query_tokens() * problem.heads();
        let (_, splits) = splits(problem.axes(), problem.additional_keys());
        let additional_rows = problem.batch() * problem.additional_keys() * problem.heads_kv() * splits;
        let align = |bytes: usize| bytes.next_multiple_of(256);
        let partial_keys = align(rows * 8);
        let partial_values = partial_keys + align(additional_rows * problem.head_dim() * 4);
        let end = partial_values + align(additional_rows * problem.head_dim_v() * 4);
        Workspace { partial_keys, partial_values, end }
    }
}

/// Bytes of scratch memory that a backward call needs, 256-byte aligned.
pub(crate) fn workspace_bytes(problem: &Problem) -> usize {
    Workspace::of(problem).end
}

/// One backward call with all that its passes share.
struct Call<'a, D: Device> {
    device: &'a D,
    problem: &'a Problem,
    views: &'a Backward,
    layout: LayoutSummary,
    workspace: u64,
    base: BackwardParams,
}

/// Launches all passes. `workspace` has [`workspace_bytes`].
pub(crate) fn backward<D: Device>(
    device: &D,
    problem: &Problem,
    views: &Backward,
    workspace: u64,
) -> Result<(), CudaError> {
    let rows = [views.query, views.key, views.value, views.out, views.grad_out];
    let grads = [views.grad_query, views.grad_key, views.grad_value];
    let additional = views.additional.iter().chain(&views.grad_additional).flatten().copied();
    let layout = summarise(
        device,
        rows.into_iter().chain(grads).chain(additional),
        views.grad_lse.iter().chain([&views.lse]),
    )?;
    if problem.batch() == 0 {
        return Ok(());
    }
    let mut call =
        Call { device, problem, views, layout, workspace, base: base_params(problem, views, workspace) };
    if !is_empty(problem) {
        call.statistics()?;
    }
    for sequence in problem.sequences() {
        call.base.query = at_token(&views.query, &call.base.query_strides, sequence.query_start);
        call.base.grad_out = at_token(&views.grad_out, &call.base.grad_out_strides, sequence.query_start);
        call.base.grad_query =
            at_token(&views.grad_query, &call.base.grad_query_strides, sequence.query_start);
        let statistics_bytes = call.base.statistics_strides.axis[2] * 8;
        call.base.statistics = workspace.wrapping_add_signed(statistics_bytes * sequence.query_start as i64);
        call.base.key = at_token(&views.key, &call.base.key_strides, sequence.key_start);
        call.base.value = at_token(&views.value, &call.base.value_strides, sequence.key_start);
        call.base.grad_key = at_token(&views.grad_key, &call.base.grad_key_strides, sequence.key_start);
        call.base.grad_value = at_token(&views.grad_value, &call.base.grad_value_strides, sequence.key_start);
        if sequence.axes.iter().all(|axis| axis.query_extent > 0) {
            call.pass(Operation::BackwardQuery, &sequence.axes)?;
        }
        if sequence.axes.iter().all(|axis| axis.key_extent > 0) {
            call.pass(Operation::BackwardKey, &sequence.axes)?;
        }
    }
    if problem.additional_keys() > 0 { call.additional() } else { Ok(()) }
}

fn base_params(problem: &Problem, views: &Backward, workspace: u64) -> BackwardParams {
    let mut base = BackwardParams {
        statistics: workspace,
        query_strides: views.query.row_strides(),
        key_strides: views.key.row_strides(),
        value_strides: views.value.row_strides(),
        grad_out_strides: views.grad_out.row_strides(),
        statistics_strides: dense_strides(problem.axes().map(|axis| axis.query_extent), problem.heads()),
        grad_query_strides: views.grad_query.row_strides(),
        grad_key_strides: views.grad_key.row_strides(),
        grad_value_strides: views.grad_value.row_strides(),
        ..BackwardParams::default()
    };
    if let Some([keys, values]) = &views.additional {
        (base.additional_key, base.additional_value) = (keys.address, values.address);
        base.additional_key_strides = list_strides(keys);
        base.additional_value_strides = list_strides(values);
    }
    base
}

/// Strides of a dense `[batch, X, Y, Z, heads]`.
fn dense_strides([x, y, z]: [usize; 3], heads: usize) -> Strides {
    let step = |elements: usize| elements as i64;
    let axis = [step(heads * z * y), step(heads * z), step(heads)];
    Strides { batch: step(heads * z * y * x), axis, head: 1 }
}

impl<D: Device> Call<'_, D> {
    fn kernel(&self, operation: Operation) -> Result<&'static Kernel, CudaError> {
        let capability = self.device.properties().compute_capability;
        select(self.problem, operation, self.layout, capability).map_err(CudaError::Unsupported)
    }

    fn statistics(&self) -> Result<(), CudaError> {
        let kernel = self.kernel(Operation::Delta)?;
        let views = self.views;
        let (count, blocks) = row_count(views.out.layout.shape(), kernel)?;
        let params = DeltaParams {
            out: views.out.address,
            grad_out: views.grad_out.address,
            lse: views.lse.address,
            grad_lse: views.grad_lse.map_or(0, |view| view.address),
            statistics: self.workspace,
            out_strides: views.out.row_strides(),
            grad_out_strides: views.grad_out.row_strides(),
            lse_strides: views.lse.scalar_strides(),
            grad_lse_strides: views.grad_lse.map(|view| view.scalar_strides()).unwrap_or_default(),
            statistics_strides: self.base.statistics_strides,
            count,
        };
        launch(self.device, kernel, [blocks, 1, 1], bytemuck::bytes_of(&params))
    }

    /// A pass over the items of one mask, with the addresses that `base` holds.
    fn pass(&self, operation: Operation, axes: &[Axis; 3]) -> Result<(), CudaError> {
        let kernel = self.kernel(operation)?;
        let of_queries = operation == Operation::BackwardQuery;
        let work = Work {
            items: if of_queries { Items::Queries } else { Items::Keys },
            heads: if of_queries { self.problem.heads() } else { self.problem.heads_kv() },
            heads_sharing: if of_queries { self.problem.heads_per_kv() } else { 1 },
            ..self.work(axes)
        };
        let (decomposition, blocks) = decompose(kernel, &work)?;
        let params = BackwardParams { geometry: geometry(self.problem, axes)?, decomposition, ..self.base };
        launch(self.device, kernel, [blocks, 1, 1], bytemuck::bytes_of(&params))
    }

    fn work<'b>(&self, axes: &'b [Axis; 3]) -> Work<'b> {
        let problem = self.problem;
        Work {
            items: Items::Keys,
            axes,
            heads: problem.heads_kv(),
            heads_sharing: 1,
            batch: problem.batch(),
            row_bytes: problem.head_dim() * problem.element_type().size_bytes(),
        }
    }

    /// Every query sees every additional key: the pass over keys on axes that say so, split over the queries.
    fn additional(&self) -> Result<(), CudaError> {
        let (problem, views) = (self.problem, self.views);
        let (Some([keys, values]), Some(grads)) = (&views.additional, &views.grad_additional) else {
            return Ok(());
        };
        let kernel = self.kernel(Operation::BackwardKey)?;
        let key_count = problem.additional_keys();
        let axes: [Axis; 3] = std::array::from_fn(|a| {
            let key_extent = if a == 2 { key_count } else { 1 };
            let query_extent = problem.axes()[a].query_extent;
            Axis { query_extent, key_extent, kernel_size: key_extent, ..Axis::UNIT }
        });
        let (rows_per_split, split_count) = splits(problem.axes(), key_count);
        let (decomposition, blocks) = decompose(kernel, &self.work(&axes))?;
        let workspace = Workspace::of(problem);
        let partial_rows = (problem.batch() * key_count * problem.heads_kv()) as i64;
        let partial = |head_dim: usize| {
            let (row, heads) = (head_dim as i64, problem.heads_kv() as i64);
            let axis = [0, 0, heads * row];
            (Strides { batch: key_count as i64 * heads * row, axis, head: row }, partial_rows * row)
        };
        let (key_strides, key_split) = partial(problem.head_dim());
        let (value_strides, value_split) = partial(problem.head_dim_v());
        let params = BackwardParams {
            query: views.query.address,
            grad_out: views.grad_out.address,
            statistics: self.workspace,
            key: keys.address,
            value: values.address,
            key_strides: keys.row_strides(),
            value_strides: values.row_strides(),
            grad_key: self.workspace + workspace.partial_keys as u64,
            grad_value: self.workspace + workspace.partial_values as u64,
            grad_key_strides: key_strides,
            grad_value_strides: value_strides,
            partial_key_stride: key_split,
            partial_value_stride: value_split,
            geometry: geometry(problem, &axes)?,
            decomposition,
            rows_per_split: to_i32("rows of queries in a split", rows_per_split)?,
            ..self.base
        };
        launch(self.device, kernel, [blocks, split_count as u32, 1], bytemuck::bytes_of(&params))?;
        let sources =
            [(params.grad_key, key_strides, key_split), (params.grad_value, value_strides, value_split)];
        for (sum, (partial, partial_strides, split_stride)) in grads.iter().zip(sources) {
            let kernel = self.kernel(Operation::SumPartials)?;
            let (count, blocks) = row_count(sum.layout.shape(), kernel)?;
            let sum_strides = sum.row_strides();
            let splits = split_count as i32;
            let (sum, padding) = (sum.address, 0);
            let params = SumParams {
                partial,
                sum,
                split_stride,
                partial_strides,
                sum_strides,
                count,
                splits,
                padding,
            };
            launch(self.device, kernel, [blocks, 1, 1], bytemuck::bytes_of(&params))?;
        }
        Ok(())
    }
}

/// Shape of the workspace as a tensor of f32.
pub(crate) fn workspace_layout(problem: &Problem) -> Result<Layout, CudaError> {
    Ok(Layout::contiguous(&[workspace_bytes(problem).max(4) / 4])?)
}
