//! The launches of a backward: row statistics, then a pass over queries, a pass over keys, and one over additional keys.
//!
//! No atomics anywhere: every gradient is summed by one lane group in a fixed order, so results repeat bit for bit.

use natten_core::window::Axis;
use natten_core::{PackedSequence, Problem};

use super::schedule::{Items, Work, decompose, splits};
use crate::error::CudaError;
use crate::families::rows::{self, Partials};
use crate::family::{Bid, Launch, Offer, Patch, Query, Refused, best_fit, patches};
use crate::params::{BackwardParams, Geometry, RowCount, Strides, to_i32};
use crate::registry::{Kernel, Operation};
use crate::views::Slot;

const ADDRESSES: [Patch; 10] = patches!(
    BackwardParams,
    query: QUERY,
    key: KEY,
    value: VALUE,
    additional_key: ADDITIONAL_KEYS,
    additional_value: ADDITIONAL_VALUES,
    d_out: D_OUT,
    statistics: WORKSPACE,
    d_query: D_QUERY,
    d_key: D_KEY,
    d_value: D_VALUE,
);

/// Of the pass over additional keys, whose partial gradients go to the workspace.
const ADDITIONAL_ADDRESSES: [Patch; 10] = patches!(
    BackwardParams,
    query: QUERY,
    key: ADDITIONAL_KEYS,
    value: ADDITIONAL_VALUES,
    additional_key: ADDITIONAL_KEYS,
    additional_value: ADDITIONAL_VALUES,
    d_out: D_OUT,
    statistics: WORKSPACE,
    d_query: D_QUERY,
    d_key: WORKSPACE,
    d_value: WORKSPACE,
);

/// Where the parts of the workspace begin, in bytes. Statistics are first.
pub(crate) struct Workspace {
    partial_keys: usize,
    partial_values: usize,
    /// How long it is.
    pub end: usize,
}

impl Workspace {
    /// Of a backward.
    pub fn of(problem: &Problem) -> Self {
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

/// The kernel for a pass.
pub(super) fn kernel(operation: Operation, query: &Query<'_>) -> Result<&'static Kernel, Refused> {
    best_fit("simt", operation, query).map_err(Refused::By)
}

/// One backward call with all that its launches share.
struct Call<'a> {
    query: &'a Query<'a>,
    problem: &'a Problem,
    of_queries: &'static Kernel,
    of_keys: &'static Kernel,
    base: BackwardParams,
    launches: Vec<Launch>,
}

/// Everything for a bid.
pub(super) fn lay_out(bid: &Bid, query: &Query<'_>, problem: &Problem) -> Result<Offer, Refused> {
    let mut call = Call::new(bid.kernel, query, problem)?;
    if problem.batch() > 0 {
        if problem.query_tokens() > 0 {
            call.launches.push(rows::delta(query, problem, call.base.statistics_strides)?);
        }
        problem.sequences().try_for_each(|sequence| call.passes(&sequence))?;
        call.launches.extend(additional(query, problem)?);
    }
    Ok(Offer { bid: *bid, launches: call.launches, workspace_bytes: Workspace::of(problem).end })
}

/// Both passes of one sequence, for families that leave it: one that has no queries or no keys.
pub(crate) fn of_sequence(
    query: &Query<'_>,
    problem: &Problem,
    sequence: &PackedSequence,
) -> Result<Vec<Launch>, Refused> {
    let mut call = Call::new(kernel(Operation::BackwardQuery, query)?, query, problem)?;
    call.passes(sequence)?;
    Ok(call.launches)
}

fn base_params(query: &Query<'_>, problem: &Problem) -> BackwardParams {
    let views = query.views;
    BackwardParams {
        query_strides: views.strides(Slot::QUERY),
        key_strides: views.strides(Slot::KEY),
        value_strides: views.strides(Slot::VALUE),
        d_out_strides: views.strides(Slot::D_OUT),
        statistics_strides: statistics_strides(problem),
        d_query_strides: views.strides(Slot::D_QUERY),
        d_key_strides: views.strides(Slot::D_KEY),
        d_value_strides: views.strides(Slot::D_VALUE),
        additional_key_strides: views.list_strides(Slot::ADDITIONAL_KEYS),
        additional_value_strides: views.list_strides(Slot::ADDITIONAL_VALUES),
        ..BackwardParams::default()
    }
}

/// Of the rows' statistics, in pairs: dense `[batch, X, Y, Z, heads]`.
pub(crate) fn statistics_strides(problem: &Problem) -> Strides {
    let ([x, y, z], heads) = (problem.axes().map(|axis| axis.query_extent), problem.heads());
    let step = |elements: usize| elements as i64;
    let axis = [step(heads * z * y), step(heads * z), step(heads)];
    Strides { batch: step(heads * z * y * x), axis, head: 1 }
}

impl<'a> Call<'a> {
    fn new(of_queries: &'static Kernel, query: &'a Query<'a>, problem: &'a Problem) -> Result<Self, Refused> {
        let of_keys = kernel(Operation::BackwardKey, query)?;
        let (base, launches) = (base_params(query, problem), Vec::with_capacity(4));
        Ok(Call { query, problem, of_queries, of_keys, base, launches })
    }

    /// The passes over the queries and over the keys of a sequence.
    fn passes(&mut self, sequence: &PackedSequence) -> Result<(), Refused> {
        let views = self.query.views;
        let base = &mut self.base;
        base.query = views.at_token(Slot::QUERY, sequence.query_start);
        base.d_out = views.at_token(Slot::D_OUT, sequence.query_start);
        base.d_query = views.at_token(Slot::D_QUERY, sequence.query_start);
        base.statistics = base.statistics_strides.at(0, [0, 0, sequence.query_start], 8);
        base.key = views.at_token(Slot::KEY, sequence.key_start);
        base.value = views.at_token(Slot::VALUE, sequence.key_start);
        base.d_key = views.at_token(Slot::D_KEY, sequence.key_start);
        base.d_value = views.at_token(Slot::D_VALUE, sequence.key_start);
        if sequence.axes.iter().all(|axis| axis.query_extent > 0) {
            self.pass(self.of_queries, Items::Queries, &sequence.axes)?;
        }
        if sequence.axes.iter().all(|axis| axis.key_extent > 0) {
            self.pass(self.of_keys, Items::Keys, &sequence.axes)?;
        }
        Ok(())
    }

    /// A pass over the items of one mask, with the places that `base` holds.
    fn pass(&mut self, kernel: &'static Kernel, items: Items, axes: &[Axis; 3]) -> Result<(), Refused> {
        let (decomposition, ctas) = decompose(kernel, &Work::of(self.problem, axes, items))?;
        let geometry = Geometry::new(self.problem, axes)?;
        let params = BackwardParams { geometry, decomposition, ..self.base };
        let params = bytemuck::bytes_of(&params);
        self.launches.push(Launch::new(self.query, kernel, ctas, params, &ADDRESSES));
        Ok(())
    }
}

/// The gradients of additional keys and values, for every family. Every query sees every one of them: the pass over keys on
/// axes that say so, split over the queries.
pub(crate) fn additional(query: &Query<'_>, problem: &Problem) -> Result<Vec<Launch>, Refused> {
    let key_count = problem.additional_keys();
    if key_count == 0 || problem.batch() == 0 {
        return Ok(Vec::new());
    }
    let of_keys_kernel = kernel(Operation::BackwardKey, query)?;
    let axes: [Axis; 3] = std::array::from_fn(|a| {
        let key_extent = if a == 2 { key_count } else { 1 };
        let query_extent = problem.axes()[a].query_extent;
        Axis::attention(query_extent, key_extent)
    });
    let (rows_per_split, split_count) = splits(problem.axes(), key_count);
    let (decomposition, ctas) = decompose(of_keys_kernel, &Work::of(problem, &axes, Items::Keys))?;
    let workspace = Workspace::of(problem);
    let partial_rows = (problem.batch() * key_count * problem.heads_kv()) as i64;
    let partials = |begin: usize, length: usize, sum: Slot| {
        let (row, heads) = (length as i64, problem.heads_kv() as i64);
        let strides = Strides { batch: key_count as i64 * heads * row, axis: [0, 0, heads * row], head: row };
        let split_stride = partial_rows * row;
        let rows = RowCount::new(problem.batch(), [1, 1, key_count], problem.heads_kv(), length)?;
        Ok::<_, CudaError>(Partials {
            begin,
            strides,
            split_stride,
            splits: split_count as i32,
            rows,
            sum,
            start: 0,
        })
    };
    let of_keys = partials(workspace.partial_keys, problem.head_dim(), Slot::D_ADDITIONAL_KEYS)?;
    let of_values = partials(workspace.partial_values, problem.head_dim_v(), Slot::D_ADDITIONAL_VALUES)?;
    let params = BackwardParams {
        query: 0,
        d_out: 0,
        statistics: 0,
        key: 0,
        value: 0,
        key_strides: query.views.strides(Slot::ADDITIONAL_KEYS),
        value_strides: query.views.strides(Slot::ADDITIONAL_VALUES),
        d_key: of_keys.begin as u64,
        d_value: of_values.begin as u64,
        d_key_strides: of_keys.strides,
        d_value_strides: of_values.strides,
        partial_key_stride: of_keys.split_stride,
        partial_value_stride: of_values.split_stride,
        geometry: Geometry::new(problem, &axes)?,
        decomposition,
        rows_per_split: to_i32("rows of queries in a split", rows_per_split)?,
        ..base_params(query, problem)
    };
    let params = bytemuck::bytes_of(&params);
    let mut launch = Launch::new(query, of_keys_kernel, ctas, params, &ADDITIONAL_ADDRESSES);
    launch.grid[1] = split_count as u32;
    let mut launches = vec![launch];
    for partials in [of_keys, of_values] {
        launches.push(rows::sum(query, problem, &partials)?);
    }
    Ok(launches)
}
