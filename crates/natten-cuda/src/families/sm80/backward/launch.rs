//! The launches of a backward: row statistics, then a pass over the queries and one over the keys of each sequence, then one
//! over the additional keys. Where ctas share a box of keys, their partial sums are added up in order.

use std::mem::offset_of;

use natten_core::Problem;
use natten_core::window::Axis;

use super::params::BackwardTileParams;
use super::tiles::{Cut, Split};
use super::{additional_axes, of_keys};
use crate::families::rows::{self, Partials};
use crate::families::simt::backward::statistics_strides;
use crate::family::{Bid, Launch, Offer, Patch, Query, Refused};
use crate::params::{Divisor, Geometry, RowCount, Strides, to_i32};
use crate::registry::Kernel;
use crate::views::Slot;

/// Everything for a bid.
pub(super) fn lay_out(bid: &Bid, query: &Query<'_>, problem: &Problem) -> Result<Offer, Refused> {
    let mut call = Call { query, problem, launches: Vec::new(), workspace: 0 };
    if let Some(tiling) = bid.tiling.filter(|_| problem.batch() > 0) {
        // Pairs in f32 for every query, at the workspace's beginning.
        call.reserve(problem.batch() * problem.query_tokens() * problem.heads() * 2);
        if problem.query_tokens() > 0 {
            call.launches.push(rows::delta(query, problem, statistics_strides(problem))?);
        }
        let (of_keys, cut) = of_keys(query, problem.axes()).map_err(Refused::By)?;
        for sequence in problem.sequences() {
            let starts = [sequence.query_start, sequence.key_start];
            let whole = Split { count: 1, axis: 0 };
            let tiles = [tiling.query_tile, tiling.key_tile];
            call.pass(&Pass {
                kernel: bid.kernel,
                axes: sequence.axes,
                starts,
                rows: &QUERIES,
                tiles,
                split: whole,
            })?;
            // Of packed sequences each is a launch of its own, which leaves the next ones to fill the device.
            let heads = problem.batch() * problem.heads_kv();
            let split = if problem.is_packed() { whole } else { cut.split(heads) };
            let tiles = [cut.keys, cut.queries];
            call.pass(&Pass { kernel: of_keys, axes: sequence.axes, starts, rows: &KEYS, tiles, split })?;
        }
        if problem.additional_keys() > 0 {
            call.additional()?;
        }
    }
    Ok(Offer { bid: *bid, launches: call.launches, workspace_bytes: call.workspace })
}

/// The tensors of a pass's rows: operands of scores and of their gradients, and the gradients of both.
struct Side {
    of_queries: bool,
    operands: [Slot; 2],
    results: &'static [Slot],
}

static QUERIES: Side =
    Side { of_queries: true, operands: [Slot::QUERY, Slot::D_OUT], results: &[Slot::D_QUERY] };
static KEYS: Side =
    Side { of_queries: false, operands: [Slot::KEY, Slot::VALUE], results: &[Slot::D_KEY, Slot::D_VALUE] };
static ADDITIONAL: Side = Side {
    of_queries: false,
    operands: [Slot::ADDITIONAL_KEYS, Slot::ADDITIONAL_VALUES],
    results: &[Slot::D_ADDITIONAL_KEYS, Slot::D_ADDITIONAL_VALUES],
};

/// One pass over one mask, and how it is cut.
struct Pass {
    kernel: &'static Kernel,
    axes: [Axis; 3],
    /// First query and first key along the last axis.
    starts: [usize; 2],
    rows: &'static Side,
    /// Of rows and of columns.
    tiles: [[usize; 3]; 2],
    split: Split,
}

impl Pass {
    fn columns(&self) -> &'static Side {
        if self.rows.of_queries { &KEYS } else { &QUERIES }
    }

    /// Where the tensors of a side begin.
    fn start(&self, side: &Side) -> usize {
        self.starts[usize::from(!side.of_queries)]
    }

    fn extents(&self) -> [usize; 3] {
        self.axes.map(|axis| if self.rows.of_queries { axis.query_extent } else { axis.key_extent })
    }
}

/// One backward call as far as it has been laid out.
struct Call<'a> {
    query: &'a Query<'a>,
    problem: &'a Problem,
    launches: Vec<Launch>,
    /// Bytes in use.
    workspace: usize,
}

impl Call<'_> {
    /// Where so many f32 begin in the workspace.
    fn reserve(&mut self, elements: usize) -> usize {
        let begin = self.workspace;
        self.workspace += (elements * 4).next_multiple_of(256);
        begin
    }

    /// The gradients of additional keys and values: a pass over keys that every query sees.
    fn additional(&mut self) -> Result<(), Refused> {
        let axes = additional_axes(self.problem);
        let (kernel, cut): (_, Cut) = of_keys(self.query, &axes).map_err(Refused::By)?;
        let split = cut.split(self.problem.batch() * self.problem.heads_kv());
        let tiles = [cut.keys, cut.queries];
        self.pass(&Pass { kernel, axes, starts: [0; 2], rows: &ADDITIONAL, tiles, split })
    }

    /// A pass, unless there are no rows.
    fn pass(&mut self, pass: &Pass) -> Result<(), Refused> {
        if pass.extents().contains(&0) {
            return Ok(());
        }
        let (query, problem) = (self.query, self.problem);
        let (mut params, ctas) = params(query, problem, pass)?;
        let mut addresses = addresses(pass);
        let sums: Vec<Partials> = if pass.split.count > 1 {
            let results = pass.rows.results.iter();
            results.map(|&slot| self.partials(pass, slot)).collect::<Result<_, _>>()?
        } else {
            Vec::new()
        };
        for (i, &slot) in pass.rows.results.iter().enumerate() {
            let (slot, at, strides) = match sums.get(i) {
                Some(sum) => (Slot::WORKSPACE, sum.begin as u64, sum.strides),
                None => (slot, query.views.at_token(slot, pass.start(pass.rows)), query.views.strides(slot)),
            };
            (params.d_row[i], params.d_row_strides[i]) = (at, strides);
            params.partial_strides[i] = sums.get(i).map_or(0, |sum| sum.split_stride);
            addresses.push(Patch { at: offset_of!(BackwardTileParams, d_row) + 8 * i, slot });
        }
        let params = params.longest_axis_last();
        let mut launch = Launch::new(query, pass.kernel, ctas, bytemuck::bytes_of(&params), &addresses);
        launch.grid[1] = pass.split.count as u32;
        self.launches.push(launch);
        for sum in &sums {
            self.launches.push(rows::sum(query, problem, sum)?);
        }
        Ok(())
    }

    /// Room for the partial sums of a gradient: dense `[split, batch, X, Y, Z, heads, row]`.
    fn partials(&mut self, pass: &Pass, sum: Slot) -> Result<Partials, Refused> {
        let problem = self.problem;
        let [x, y, z] = pass.extents();
        let is_of_values = matches!(sum, Slot::D_VALUE | Slot::D_ADDITIONAL_VALUES);
        let length = if is_of_values { problem.head_dim_v() } else { problem.head_dim() };
        let token = problem.heads_kv() * length;
        let item = x * y * z * token;
        let axis = [y * z * token, z * token, token].map(|step| step as i64);
        let strides = Strides { batch: item as i64, axis, head: length as i64 };
        let of_split = problem.batch() * item;
        let rows = RowCount::new(problem.batch(), [x, y, z], problem.heads_kv(), length)?;
        Ok(Partials {
            begin: self.reserve(of_split * pass.split.count),
            strides,
            split_stride: of_split as i64,
            splits: pass.split.count as i32,
            rows,
            sum,
            start: 0,
        })
    }
}

/// What a kernel is told but for where results go, and its ctas.
fn params(query: &Query<'_>, problem: &Problem, pass: &Pass) -> Result<(BackwardTileParams, u32), Refused> {
    let (rows, columns, views) = (pass.rows, pass.columns(), query.views);
    let heads = if rows.of_queries { problem.heads() } else { problem.heads_kv() };
    let statistics_strides = statistics_strides(problem);
    let lists = [Slot::ADDITIONAL_KEYS, Slot::ADDITIONAL_VALUES];
    let log2 = |sides: [usize; 3]| sides.map(|side| side.ilog2() as i32);
    let mut params = BackwardTileParams {
        row: rows.operands.map(|slot| views.at_token(slot, pass.start(rows))),
        column: columns.operands.map(|slot| views.at_token(slot, pass.start(columns))),
        statistics: statistics_strides.at(0, [0, 0, pass.starts[0]], 8),
        row_strides: rows.operands.map(|slot| views.strides(slot)),
        column_strides: columns.operands.map(|slot| views.strides(slot)),
        statistics_strides,
        additional_strides: lists.map(|slot| views.list_strides(slot)),
        geometry: Geometry::new(problem, &pass.axes)?,
        heads: Divisor::new("the number of heads", heads)?,
        row_log2: log2(pass.tiles[0]),
        column_log2: log2(pass.tiles[1]),
        splits: to_i32("splits", pass.split.count)?,
        split_axis: pass.split.axis as i32,
        ..BackwardTileParams::default()
    };
    let mut ctas = (problem.batch() * heads) as u128;
    for (a, extent) in pass.extents().into_iter().enumerate() {
        let dilation = pass.axes[a].dilation;
        let boxes = extent.div_ceil(dilation).div_ceil(pass.tiles[0][a]);
        params.tiles[a] = Divisor::new("the tiles of an axis", dilation * boxes)?;
        ctas *= u128::from(params.tiles[a].value);
    }
    let ctas = to_i32("the number of ctas", usize::try_from(ctas).unwrap_or(usize::MAX))?;
    Ok((params, ctas as u32))
}

/// Where the operands' addresses go.
fn addresses(pass: &Pass) -> Vec<Patch> {
    let mut addresses = vec![Patch { at: offset_of!(BackwardTileParams, statistics), slot: Slot::WORKSPACE }];
    let mut add = |field: usize, slots: [Slot; 2]| {
        addresses.extend((0..2).map(|i| Patch { at: field + 8 * i, slot: slots[i] }));
    };
    add(offset_of!(BackwardTileParams, row), pass.rows.operands);
    add(offset_of!(BackwardTileParams, column), pass.columns().operands);
    if pass.rows.of_queries {
        add(offset_of!(BackwardTileParams, additional), ADDITIONAL.operands);
    }
    addresses
}
