//! The launches of a backward: row statistics, then both passes over each class of residues of each sequence.

use std::collections::HashMap;
use std::mem::{offset_of, size_of};

use natten_core::window::Axis;
use natten_core::{PackedSequence, Problem};

use super::params::BackwardParamsSm90;
use super::pass::Rows;
use super::tiles::{COLUMNS, Cut};
use super::{cut, of_keys};
use crate::classes::{Class, classes};
use crate::device::TensorMap;
use crate::families::sm90::launch::{Shares, row_view, written_forwards};
use crate::families::{rows, simt};
use crate::family::{Bid, Launch, MapPatch, Offer, Patch, Query, Refused};
use crate::params::{Divisor, Geometry, MapSteps, Strides};
use crate::registry::{Facts, Kernel};
use crate::rejection::{MapError, RejectionReason};
use crate::tma::{Tile, tensor_map};
use crate::views::Slot;

/// Everything for a bid.
pub(super) fn lay_out(bid: &Bid, query: &Query<'_>, problem: &Problem) -> Result<Offer, Refused> {
    let workspace_bytes = simt::backward::Workspace::of(problem).end;
    let mut launches = Vec::new();
    if problem.batch() > 0 {
        let statistics = simt::backward::statistics_strides(problem);
        launches.push(rows::delta(query, problem, statistics)?);
        let mut known: HashMap<([Axis; 3], Rows), Option<Cut>> = HashMap::new();
        for sequence in problem.sequences() {
            let axes = sequence.axes;
            if axes.iter().any(|axis| axis.key_extent == 0) {
                return Err(Refused::By(RejectionReason::NoKeys));
            }
            if axes.iter().any(|axis| axis.query_extent == 0) {
                return Err(Refused::By(RejectionReason::NoQueries));
            }
            let of_keys = of_keys(query).map_err(Refused::By)?;
            for (kernel, rows) in [(bid.kernel, Rows::Queries), (of_keys, Rows::Keys)] {
                let cut =
                    known.entry((axes, rows)).or_insert_with(|| cut(kernel, query, problem, &axes, rows));
                let cut = cut.ok_or(Refused::By(RejectionReason::NoKeys))?;
                let pass = Part { query, problem, kernel, sequence, rows, cut, statistics };
                let (written, _) = pass.sides();
                written_forwards(query, problem, (written.tokens, written.heads), written.results)?;
                for class in classes(&axes) {
                    launches.push(pass.launch(&class)?);
                }
            }
        }
        launches.extend(simt::backward::additional(query, problem)?);
    }
    Ok(Offer { bid: *bid, launches, workspace_bytes })
}

/// One pass over one mask of a problem.
struct Part<'a> {
    query: &'a Query<'a>,
    problem: &'a Problem,
    kernel: &'static Kernel,
    sequence: PackedSequence,
    rows: Rows,
    cut: Cut,
    statistics: Strides,
}

/// The tensors of the queries' side, or of the keys': operands of scores and of their gradients, and what is written.
struct Side {
    operands: [Slot; 2],
    results: &'static [Slot],
    start: usize,
    tokens: [usize; 3],
    heads: usize,
}

impl Part<'_> {
    /// The launch of a class.
    fn launch(&self, class: &Class) -> Result<Launch, Refused> {
        let Part { query, problem, kernel, cut, .. } = self;
        let (rows, columns) = self.sides();
        let (maps, steps) = self
            .maps(class, &rows, &columns)
            .map_err(|reason| Refused::By(RejectionReason::TensorMap(reason)))?;
        let at = |slot: Slot| {
            let start = query.views.at_token(slot, rows.start);
            start.wrapping_add(query.views.at(slot, class.first))
        };
        let (mut d_row, mut d_row_strides, mut addresses) = ([0; 2], [Strides::default(); 2], Vec::new());
        for (i, &slot) in rows.results.iter().enumerate() {
            (d_row[i], d_row_strides[i]) = (at(slot), query.views.strides(slot));
            addresses.push(Patch { at: offset_of!(BackwardParamsSm90, d_row) + 8 * i, slot });
        }
        addresses.push(Patch { at: offset_of!(BackwardParamsSm90, statistics), slot: Slot::WORKSPACE });
        let of_sequence = self.statistics.at(0, [0, 0, self.sequence.query_start], 8);
        let row_tile = cut.row_tile();
        let shares = Shares::of(
            class,
            self.rows.tiles(class, &row_tile),
            &row_tile,
            problem.batch() * rows.heads,
            query.properties.multiprocessors,
        )?;
        let log2 = |sides: [usize; 3]| sides.map(|side| side.ilog2() as i32);
        let params = BackwardParamsSm90 {
            d_row,
            statistics: self.statistics.at(of_sequence, class.first, 8),
            d_row_strides,
            statistics_strides: self.statistics,
            geometry: Geometry::new(problem, &class.axes)?,
            tiles: shares.tiles,
            residues: shares.residues,
            neighbours: shares.neighbours,
            heads: Divisor::new("the number of heads", rows.heads)?,
            items: shares.items,
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
    fn sides(&self) -> (Side, Side) {
        let PackedSequence { query_start, key_start, axes } = self.sequence;
        let queries = Side {
            operands: [Slot::QUERY, Slot::D_OUT],
            results: &[Slot::D_QUERY],
            start: query_start,
            tokens: axes.map(|axis| axis.query_extent),
            heads: self.problem.heads(),
        };
        let keys = Side {
            operands: [Slot::KEY, Slot::VALUE],
            results: &[Slot::D_KEY, Slot::D_VALUE],
            start: key_start,
            tokens: axes.map(|axis| axis.key_extent),
            heads: self.problem.heads_kv(),
        };
        match self.rows {
            Rows::Queries => (queries, keys),
            Rows::Keys => (keys, queries),
        }
    }

    /// The tensor maps, and the steps of each of the six that there can be.
    fn maps(
        &self,
        class: &Class,
        rows: &Side,
        columns: &Side,
    ) -> Result<(Vec<MapPatch>, [MapSteps; 6]), MapError> {
        let Part { query, problem, cut, .. } = self;
        let tile = |side: [usize; 3]| Tile {
            side,
            dilation: class.axes.map(|axis| axis.dilation),
            residues: class.residues,
            head_dim: self.kernel.longest_row(),
        };
        let of_list = Tile { side: [1, 1, COLUMNS], dilation: [1; 3], residues: [1; 3], ..tile([1; 3]) };
        let lengths = [problem.head_dim(), problem.head_dim_v()];
        let of_side = |side: &Side, i: usize, tile: Tile| {
            let place = (side.operands[i], side.start);
            let view = row_view(query, problem.batch(), place, side.tokens, (side.heads, lengths[i]));
            (side.operands[i], view.from(class.first), tile)
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
        if self.rows == Rows::Queries && problem.additional_keys() > 0 {
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
