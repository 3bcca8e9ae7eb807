//! The launches: one for each class of residues of each sequence and each part of its values, with tensor maps of
//! the caller's own layout.

use std::collections::HashMap;
use std::mem::offset_of;
use std::ops::Range;

use natten_core::{ElementType, PackedSequence, Problem};

use super::cost::RatesOf;
use super::order::TileOrder;
use super::params::ForwardParamsSm90;
use super::tiles::{neighbours, query_box};
use super::{bids_on, keys_of};
use crate::classes::{Class, Rows, classes};
use crate::error::CudaError;
use crate::family::{Bid, Launch, MapPatch, Offer, Patch, Query, Refused, patches};
use crate::fill::sequences_with_queries;
use crate::params::{Divisor, Geometry, MapSteps, to_i32};
use crate::parts::value_parts;
use crate::registry::Facts;
use crate::rejection::{MapError, RejectionReason};
use crate::tma::{RowView, Tile, tensor_map};
use crate::views::Slot;

const ADDRESSES: [Patch; 2] = patches!(ForwardParamsSm90, out: OUT, lse: LSE);

/// Everything for a bid of a family with these rates.
pub(in crate::families) fn lay_out(bid: &Bid, query: &Query<'_>, rates: RatesOf) -> Result<Offer, Refused> {
    let mut offer = Offer { bid: *bid, launches: Vec::new(), workspace_bytes: 0 };
    let Some(problem) = query.pass.problem() else { return Ok(offer) };
    let mut known = HashMap::new();
    for sequence in sequences_with_queries(problem) {
        let axes = &sequence.axes;
        if axes.iter().any(|axis| axis.key_extent == 0) {
            return Err(Refused::By(RejectionReason::NoKeys));
        }
        let bid = match known.get(axes) {
            _ if !problem.is_packed() => *bid,
            Some(known) => *known,
            None => {
                let bids = bids_on((bid.kernel, rates), query, problem, axes, 1).map_err(Refused::By)?;
                known.insert(*axes, bids[0]);
                bids[0]
            }
        };
        for values in value_parts(bid.kernel, problem) {
            let part = Part { query, problem, sequence, values, bid };
            for class in classes(axes, Rows::Queries) {
                offer.launches.push(part.launch(&class)?);
            }
        }
    }
    Ok(offer)
}

/// Between which sums of weights a row's reference may stay where it is. bf16 has f32's exponents: the range is what leaves products and sums
/// room on either side. f16 ends at 2^16, and below 2^-14 its numbers are 2^-24 apart: thousands of equal weights that sum up to 2^-4 are
/// still as exact as f16 is.
fn weight_range(ty: ElementType) -> Range<f32> {
    let [least, most] = if ty == ElementType::Bf16 { [-48.0, 48.0] } else { [-4.0, 8.0] };
    f32::exp2(least)..f32::exp2(most)
}

/// One mask of a problem, a part of its values, and how it is cut.
struct Part<'a> {
    query: &'a Query<'a>,
    problem: &'a Problem,
    sequence: PackedSequence,
    values: Range<usize>,
    bid: Bid,
}

impl Part<'_> {
    /// The launch of a class.
    fn launch(&self, class: &Class) -> Result<Launch, Refused> {
        let (query, problem, kernel) = (self.query, self.problem, self.bid.kernel);
        let Some(tiling) = self.bid.tiling else { return Err(Refused::By(RejectionReason::NotAskedFor)) };
        let query_log2 = query_box(kernel, &tiling, self.bid.side).ok_or(RejectionReason::NotAskedFor);
        let query_log2 = query_log2.map_err(Refused::By)?;
        let key_side = |a: usize| Divisor::new("the keys of a tile", tiling.key_tile[a]);
        let query_sides = query_log2.map(|log2| 1 << log2);
        let (mut maps, steps) = self.maps(class, query_sides).map_err(|reason| {
            // Another kernel of the family would read the same tensors the same way; other families do not.
            Refused::By(RejectionReason::TensorMap(reason))
        })?;
        let [query_steps, key_steps, value_steps, additional_key_steps, additional_value_steps] = steps;
        let out = self.out_map(class, query_sides);
        let range = weight_range(problem.element_type());
        let mut params = ForwardParamsSm90 {
            out: self.at(Slot::OUT, (self.sequence.query_start, self.values.start), class.first_query),
            lse: self.at(Slot::LSE, (self.sequence.query_start, 0), class.first_query),
            out_strides: query.views.strides(Slot::OUT),
            lse_strides: query.views.strides(Slot::LSE),
            geometry: geometry(problem, class)?.with_values(&self.values),
            heads: Divisor::new("the number of heads", problem.heads())?,
            query_box_log2: query_log2.map(|log2| log2 as i32),
            query_side: self.bid.side as i32,
            key_sides: [key_side(0)?, key_side(1)?, key_side(2)?],
            query_steps,
            key_steps,
            value_steps,
            additional_key_steps,
            additional_value_steps,
            out_steps: out.as_ref().map_or(MapSteps::default(), |&(_, steps)| steps),
            rows_alone: i32::from(out.is_none()),
            most_weight: range.end,
            least_weight: range.start,
            ..ForwardParamsSm90::default()
        };
        // The kernel turns the queries where the scale is negative, and needs a power of two that is not zero: with the
        // smallest there is, all weights are 1.
        let scale_log2 = &mut params.geometry.scale_log2;
        *scale_log2 = scale_log2.abs().clamp(f32::from_bits(1), f32::MAX);
        let multiprocessors = query.properties.multiprocessors;
        let heads = problem.batch() * problem.heads();
        let sides = &tiling.query_tile;
        let shares = Shares::of(class, Rows::Queries.tiles(class, sides), sides, heads, multiprocessors)?;
        (params.tiles, params.residues) = (shares.tiles, shares.residues);
        (params.order, params.items) = (shares.order, shares.items);
        maps.extend(out.map(|(map, _)| map));
        let mut launch = Launch::new(query, kernel, shares.ctas, bytemuck::bytes_of(&params), &ADDRESSES);
        launch.maps = maps;
        Ok(launch)
    }

    /// How far after its tensor's beginning a class of the sequence begins, at an element of the rows.
    fn at(&self, slot: Slot, (start, element): (usize, usize), first: [usize; 3]) -> u64 {
        let views = self.query.views;
        views.at_element(slot, start, element).wrapping_add(views.at(slot, first))
    }

    /// A tile of tokens with these sides.
    fn tile(&self, class: &Class, side: [usize; 3]) -> Tile {
        Tile {
            side,
            dilation: class.axes.map(|axis| axis.dilation),
            residues: class.residues,
            head_dim: self.bid.kernel.longest_row(),
        }
    }

    /// The map by which the copy engine writes the output, and its steps; none where it cannot, and rows are written one by one.
    fn out_map(&self, class: &Class, query_box: [usize; 3]) -> Option<(MapPatch, MapSteps)> {
        let (problem, slot) = (self.problem, Slot::OUT);
        let PackedSequence { query_start, axes, .. } = self.sequence;
        let tokens = axes.map(|axis| axis.query_extent);
        let place = (problem.heads(), problem.head_dim_v());
        let rows = row_view(self.query, problem.batch(), (slot, query_start), tokens, place);
        let rows = rows.part(&self.values).from(class.first_query);
        let (spec, steps) = tensor_map(&rows, &self.tile(class, query_box)).ok()?;
        Some((MapPatch { at: offset_of!(ForwardParamsSm90, out_map), slot, spec }, steps))
    }

    /// The tensor maps, and the steps of each of the five that there can be.
    fn maps(&self, class: &Class, query_box: [usize; 3]) -> Result<(Vec<MapPatch>, [MapSteps; 5]), MapError> {
        let (problem, kernel) = (self.problem, self.bid.kernel);
        let key_box = self.bid.tiling.map_or([1; 3], |tiling| tiling.key_tile);
        let (query_tile, key_tile) = (self.tile(class, query_box), self.tile(class, key_box));
        let list = Tile { side: [1, 1, keys_of(kernel)], dilation: [1; 3], residues: [1; 3], ..key_tile };
        let PackedSequence { query_start, key_start, axes } = self.sequence;
        let [queries, keys] = [axes.map(|axis| axis.query_extent), axes.map(|axis| axis.key_extent)];
        let (heads, heads_kv) = (problem.heads(), problem.heads_kv());
        let additional = [1, 1, problem.additional_keys()];
        let (dim, dim_v) = (problem.head_dim(), problem.head_dim_v());
        let places = [
            (Slot::QUERY, offset_of!(ForwardParamsSm90, query), query_tile),
            (Slot::KEY, offset_of!(ForwardParamsSm90, key), key_tile),
            (Slot::VALUE, offset_of!(ForwardParamsSm90, value), key_tile),
            (Slot::ADDITIONAL_KEYS, offset_of!(ForwardParamsSm90, additional_key), list),
            (Slot::ADDITIONAL_VALUES, offset_of!(ForwardParamsSm90, additional_value), list),
        ];
        let rows = |slot, start, tokens, heads, row| {
            row_view(self.query, problem.batch(), (slot, start), tokens, (heads, row))
        };
        let rows = [
            rows(Slot::QUERY, query_start, queries, heads, dim).from(class.first_query),
            rows(Slot::KEY, key_start, keys, heads_kv, dim).from(class.first_key),
            rows(Slot::VALUE, key_start, keys, heads_kv, dim_v).part(&self.values).from(class.first_key),
            rows(Slot::ADDITIONAL_KEYS, 0, additional, heads_kv, dim),
            rows(Slot::ADDITIONAL_VALUES, 0, additional, heads_kv, dim_v).part(&self.values),
        ];
        let (mut maps, mut steps) = (Vec::with_capacity(3), [MapSteps::default(); 5]);
        for (i, ((slot, at, tile), rows)) in places.into_iter().zip(rows).enumerate() {
            if self.query.views.has(slot) {
                let (spec, step) = tensor_map(&rows, &tile)?;
                steps[i] = step;
                maps.push(MapPatch { at, slot, spec });
            }
        }
        Ok((maps, steps))
    }
}

/// The kernels' form of a class. Its axes are a round of residues longer than the problem's at most, which others may count.
pub(in crate::families) fn geometry(problem: &Problem, class: &Class) -> Result<Geometry, Refused> {
    Geometry::new(problem, &class.axes).map_err(|error| match error {
        CudaError::TooLarge { value, .. } => Refused::By(RejectionReason::TooManyTokens {
            found: usize::try_from(value).unwrap_or(usize::MAX),
        }),
        error => Refused::Call(error),
    })
}

/// How the tiles of a class are shared out among ctas, which are as many as there are multiprocessors.
pub(in crate::families) struct Shares {
    pub tiles: [Divisor; 3],
    pub residues: [Divisor; 3],
    pub order: TileOrder,
    pub items: i32,
    pub ctas: u32,
}

impl Shares {
    /// Of so many tiles along each axis, with sides of so many tokens, for each of so many heads.
    pub fn of(
        class: &Class,
        tiles: [usize; 3],
        sides: &[usize; 3],
        heads: usize,
        multiprocessors: u32,
    ) -> Result<Self, CudaError> {
        let of_head = tiles.iter().fold(1, |all, &tiles| all * tiles as u128);
        let (items, limit) = (of_head * heads as u128, i32::MAX as u128);
        let most = of_head.max(items);
        if most > limit {
            return Err(CudaError::TooLarge { what: "the number of tiles", value: most, limit });
        }
        let [x, y, z] = tiles;
        let divisor = |tiles| Divisor::new("the tiles of an axis", tiles);
        let residues = |a: usize| Divisor::new("the residues of an axis", class.residues[a]);
        let around = neighbours(class, sides, &tiles, multiprocessors as usize);
        Ok(Shares {
            tiles: [divisor(x)?, divisor(y)?, divisor(z)?],
            residues: [residues(0)?, residues(1)?, residues(2)?],
            order: TileOrder::new(tiles, around)?,
            items: to_i32("the number of tiles", items as usize)?,
            ctas: multiprocessors.min(items as u32).max(1),
        })
    }
}

/// A tensor of a call as the copy engine is told of it, from a token along the last axis on.
pub(in crate::families) fn row_view(
    query: &Query<'_>,
    batch: usize,
    (slot, start): (Slot, usize),
    tokens: [usize; 3],
    (heads, head_dim): (usize, usize),
) -> RowView {
    let (address, strides) = (query.views.at_token(slot, start), query.views.strides(slot));
    RowView { address, batch, tokens, heads, head_dim, strides }
}
