//! The launches of a backward: row statistics, then both passes over each class of residues of each sequence, then the pass
//! over additional keys.

use std::collections::HashMap;
use std::mem::{offset_of, size_of};

use natten_core::window::Axis;
use natten_core::{PackedSequence, Problem};

use super::params::BackwardParamsSm90;
use super::pass::{Rows, gradients};
use super::splits::Written;
use super::tiles::Cut;
use super::{Design, cut, of_keys};
use crate::classes::{Class, classes};
use crate::device::TensorMap;
use crate::families::boxes::{Shares, geometry, row_view};
use crate::families::rows::{self, Partials};
use crate::families::simt;
use crate::families::simt::backward::statistics_strides;
use crate::family::{Bid, Launch, MapPatch, Offer, Patch, Query, Refused};
use crate::params::{Divisor, MapSteps, RowCount, Strides, to_i32};
use crate::registry::{Facts, Kernel};
use crate::rejection::{MapError, RejectionReason};
use crate::tma::{RowView, Tile, tensor_map};
use crate::views::Slot;

/// Everything for a bid.
pub(super) fn lay_out(
    design: &Design,
    bid: &Bid,
    query: &Query<'_>,
    problem: &Problem,
) -> Result<Offer, Refused> {
    let of_keys = of_keys(design, query).map_err(Refused::By)?;
    let call =
        Call { query, problem, kernels: [bid.kernel, of_keys], statistics: statistics_strides(problem) };
    let mut offer = Offer { bid: *bid, launches: Vec::new(), workspace_bytes: call.partials_at() };
    if problem.batch() == 0 {
        return Ok(offer);
    }
    offer.launches.push(rows::delta(query, problem, call.statistics)?);
    let mut known: HashMap<([Axis; 3], Rows), Option<Cut>> = HashMap::new();
    for sequence in problem.sequences() {
        let is_empty = |axis: &Axis| axis.query_extent == 0 || axis.key_extent == 0;
        if sequence.axes.iter().any(is_empty) {
            // Tensor maps have no axis of no tokens, and there is little to do.
            offer.launches.extend(simt::backward::of_sequence(query, problem, &sequence)?);
            continue;
        }
        for rows in [Rows::Queries, Rows::Keys] {
            let find = || cut((design, bid.kernel), query, problem, &sequence.axes, rows);
            let cut = known.entry((sequence.axes, rows)).or_insert_with(find);
            let cut = cut.ok_or(Refused::By(RejectionReason::NoKeys))?;
            call.pass(&mut offer, Part { sequence, rows, of_list: false, cut })?;
        }
    }
    if let Some(axes) = list_axes(problem) {
        // The gradients of additional keys: a pass over keys that every query sees.
        let cut = cut((design, bid.kernel), query, problem, &axes, Rows::Keys);
        let cut = cut.ok_or(Refused::By(RejectionReason::NoKeys))?;
        let sequence = PackedSequence { query_start: 0, key_start: 0, axes };
        call.pass(&mut offer, Part { sequence, rows: Rows::Keys, of_list: true, cut })?;
    }
    Ok(offer)
}

/// Axes on which all queries see the additional keys, which lie along the last.
pub(super) fn list_axes(problem: &Problem) -> Option<[Axis; 3]> {
    let keys = problem.additional_keys();
    let axis = |a: usize| {
        let key_extent = if a == 2 { keys } else { 1 };
        let query_extent = problem.axes()[a].query_extent;
        Axis::attention(query_extent, key_extent)
    };
    (keys > 0 && problem.batch() > 0).then(|| [axis(0), axis(1), axis(2)])
}

/// A backward.
struct Call<'a> {
    query: &'a Query<'a>,
    problem: &'a Problem,
    /// Of the pass over queries, and of that over keys.
    kernels: [&'static Kernel; 2],
    statistics: Strides,
}

/// One pass over one mask of a problem: of a sequence, or over the list of additional keys.
struct Part {
    sequence: PackedSequence,
    rows: Rows,
    of_list: bool,
    cut: Cut,
}

impl Call<'_> {
    /// Where partial sums begin in the workspace, in bytes: behind the statistics. One pass after the other uses the place.
    fn partials_at(&self) -> usize {
        let rows = self.problem.batch() * self.problem.query_tokens() * self.problem.heads();
        (rows * 8).next_multiple_of(256)
    }

    /// The launches of a pass, one for each class of residues, and the sums of what its splits leave.
    fn pass(&self, offer: &mut Offer, part: Part) -> Result<(), Refused> {
        let (rows, columns) = self.sides(&part);
        let written = Written::of(self.problem, part.rows, rows.tokens);
        let splits = part.cut.splits;
        let [first, second, end] =
            written.places(self.problem, &splits).map(|place| self.partials_at() + place);
        let mut targets = Vec::with_capacity(2);
        for (i, &slot) in rows.results.iter().enumerate() {
            let length = written.lengths[i];
            targets.push(if splits.is_partial() {
                let strides = dense(written.tokens, written.heads, length);
                let split_stride = written.split_strides(self.problem)[i];
                Target { slot: Slot::WORKSPACE, begin: [first, second][i] as u64, strides, split_stride }
            } else {
                let (begin, strides) =
                    (self.query.views.at_token(slot, rows.start), self.query.views.strides(slot));
                Target { slot, begin, strides, split_stride: 0 }
            });
        }
        for class in classes(&part.sequence.axes, part.rows) {
            offer.launches.push(self.launch(&part, &class, (&rows, &columns), &targets)?);
        }
        if splits.is_partial() {
            offer.workspace_bytes = offer.workspace_bytes.max(end);
            for ((target, &sum), length) in targets.iter().zip(rows.results).zip(written.lengths) {
                let partials = Partials {
                    begin: target.begin as usize,
                    strides: target.strides,
                    split_stride: target.split_stride,
                    splits: to_i32("splits", splits.count)?,
                    rows: RowCount::new(self.problem.batch(), rows.tokens, rows.heads, length)?,
                    sum,
                    start: rows.start,
                };
                offer.launches.push(rows::sum(self.query, self.problem, &partials)?);
            }
        }
        Ok(())
    }
}

/// Where a pass writes a gradient: to its tensor, or partial sums of it in f32 to the workspace.
struct Target {
    slot: Slot,
    /// How many bytes after the slot's beginning.
    begin: u64,
    strides: Strides,
    /// From one split to the next, in elements.
    split_stride: i64,
}

impl Target {
    /// Where a class begins, by its first token.
    fn at(&self, element_bytes: u64, first: [usize; 3]) -> u64 {
        self.strides.at(self.begin, first, element_bytes)
    }
}

/// Strides of rows that lie densely as `[batch, X, Y, Z, heads, length]`.
fn dense([x, y, z]: [usize; 3], heads: usize, length: usize) -> Strides {
    let step = |elements: usize| elements as i64;
    let row = heads * length;
    let axis = [step(z * y * row), step(z * row), step(row)];
    Strides { batch: step(x * y * z * row), axis, head: step(length) }
}

/// The tensors of the queries' side, or of the keys': operands of scores and of their gradients, and what is written.
struct Side {
    of: Rows,
    operands: [Slot; 2],
    results: &'static [Slot],
    start: usize,
    tokens: [usize; 3],
    heads: usize,
}

impl Side {
    /// The first token of a class.
    fn first(&self, class: &Class) -> [usize; 3] {
        match self.of {
            Rows::Queries => class.first_query,
            Rows::Keys => class.first_key,
        }
    }
}

impl Call<'_> {
    /// The launch of a class.
    fn launch(
        &self,
        part: &Part,
        class: &Class,
        (rows, columns): (&Side, &Side),
        targets: &[Target],
    ) -> Result<Launch, Refused> {
        let Call { query, problem, .. } = self;
        let Part { cut, .. } = part;
        let kernel = self.kernels[usize::from(part.rows == Rows::Keys)];
        let (maps, steps) = self
            .maps(part, class, rows, columns)
            .map_err(|reason| Refused::By(RejectionReason::TensorMap(reason)))?;
        let element_bytes = if cut.splits.is_partial() { 4 } else { problem.element_type().size_bytes() };
        let (mut d_row, mut d_row_strides, mut split_strides) = ([0; 2], [Strides::default(); 2], [0; 2]);
        let mut addresses = Vec::with_capacity(3);
        for (i, target) in targets.iter().enumerate() {
            d_row[i] = target.at(element_bytes as u64, rows.first(class));
            (d_row_strides[i], split_strides[i]) = (target.strides, target.split_stride);
            addresses.push(Patch { at: offset_of!(BackwardParamsSm90, d_row) + 8 * i, slot: target.slot });
        }
        addresses.push(Patch { at: offset_of!(BackwardParamsSm90, statistics), slot: Slot::WORKSPACE });
        let of_sequence = self.statistics.at(0, [0, 0, part.sequence.query_start], 8);
        let row_tile = cut.row_tile();
        let parts = cut.splits.count * gradients(kernel, part.rows);
        let shares = Shares::of(
            class,
            part.rows.tiles(class, &row_tile),
            &row_tile,
            problem.batch() * rows.heads * parts,
            query.properties.multiprocessors,
        )?;
        let log2 = |sides: [usize; 3]| sides.map(|side| side.ilog2() as i32);
        let params = BackwardParamsSm90 {
            d_row,
            statistics: self.statistics.at(of_sequence, class.first_query, 8),
            d_row_strides,
            statistics_strides: self.statistics,
            split_strides,
            geometry: geometry(problem, class)?,
            tiles: shares.tiles,
            residues: shares.residues,
            order: shares.order,
            parts: Divisor::new("the parts of an item", parts)?,
            heads: Divisor::new("the number of heads", rows.heads)?,
            items: shares.items,
            splits: to_i32("splits", cut.splits.count)?,
            split_axis: cut.splits.axis as i32,
            row_box_log2: log2(cut.row_box),
            row_side: cut.side as i32,
            column_box_log2: log2(cut.column_box),
            row_steps: [steps[0], steps[1]],
            column_steps: [steps[2], steps[3]],
            additional_steps: [steps[4], steps[5]],
            ..BackwardParamsSm90::default()
        };
        let mut launch = Launch::new(query, kernel, shares.ctas, bytemuck::bytes_of(&params), &addresses);
        launch.maps = maps;
        Ok(launch)
    }

    /// The side of the rows, then that of the columns.
    fn sides(&self, part: &Part) -> (Side, Side) {
        let PackedSequence { query_start, key_start, axes } = part.sequence;
        let queries = Side {
            of: Rows::Queries,
            operands: [Slot::QUERY, Slot::D_OUT],
            results: &[Slot::D_QUERY],
            start: query_start,
            tokens: axes.map(|axis| axis.query_extent),
            heads: self.problem.heads(),
        };
        let (operands, results): (_, &'static [Slot]) = if part.of_list {
            let lists = [Slot::ADDITIONAL_KEYS, Slot::ADDITIONAL_VALUES];
            (lists, &[Slot::D_ADDITIONAL_KEYS, Slot::D_ADDITIONAL_VALUES])
        } else {
            ([Slot::KEY, Slot::VALUE], &[Slot::D_KEY, Slot::D_VALUE])
        };
        let keys = Side {
            of: Rows::Keys,
            operands,
            results,
            start: key_start,
            tokens: axes.map(|axis| axis.key_extent),
            heads: self.problem.heads_kv(),
        };
        match part.rows {
            Rows::Queries => (queries, keys),
            Rows::Keys => (keys, queries),
        }
    }

    /// The tensor maps, and the steps of each of the six that there can be.
    fn maps(
        &self,
        part: &Part,
        class: &Class,
        rows: &Side,
        columns: &Side,
    ) -> Result<(Vec<MapPatch>, [MapSteps; 6]), MapError> {
        let Call { query, problem, .. } = self;
        let cut = &part.cut;
        let tile = |side: [usize; 3]| Tile {
            side,
            dilation: class.axes.map(|axis| axis.dilation),
            residues: class.residues,
            head_dim: self.kernels[0].longest_row(),
        };
        let of_list = Tile {
            side: [1, 1, cut.column_box.iter().product()],
            dilation: [1; 3],
            residues: [1; 3],
            ..tile([1; 3])
        };
        let lengths = [problem.head_dim(), problem.head_dim_v()];
        let of_side = |side: &Side, i: usize, tile: Tile| {
            let place = (side.operands[i], side.start);
            let view = row_view(query, problem.batch(), place, side.tokens, (side.heads, lengths[i]));
            let has_none = class.axes.iter().any(|axis| side.of.extent(axis) == 0);
            // Keys of a residue without queries: no map is of nothing, so one of the tensor's first row stands there, unread.
            match has_none {
                true => {
                    (side.operands[i], RowView { tokens: [1; 3], ..view }, Tile { residues: [1; 3], ..tile })
                }
                false => (side.operands[i], view.from(side.first(class)), tile),
            }
        };
        let list = |i: usize| {
            let slot = [Slot::ADDITIONAL_KEYS, Slot::ADDITIONAL_VALUES][i];
            let tokens = [1, 1, problem.additional_keys()];
            let view = row_view(query, problem.batch(), (slot, 0), tokens, (problem.heads_kv(), lengths[i]));
            (slot, view, of_list)
        };
        let (row_tile, column_tile) = (tile(cut.row_box), tile(cut.column_box));
        let mut sources = vec![
            of_side(rows, 0, row_tile),
            of_side(rows, 1, row_tile),
            of_side(columns, 0, column_tile),
            of_side(columns, 1, column_tile),
        ];
        if part.rows == Rows::Queries && problem.additional_keys() > 0 {
            sources.extend([list(0), list(1)]);
        }
        let (mut maps, mut steps) = (Vec::with_capacity(6), [MapSteps::default(); 6]);
        for (i, (slot, view, tile)) in sources.into_iter().enumerate() {
            let (spec, step) = tensor_map(&view, &tile)?;
            steps[i] = step;
            maps.push(MapPatch { at: i * size_of::<TensorMap>(), slot, spec });
        }
        Ok((maps, steps))
    }
}
