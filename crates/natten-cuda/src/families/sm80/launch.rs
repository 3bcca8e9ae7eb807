//! The launches of a forward on tiles: one, or one for each packed sequence and each part of its values.

use natten_core::Problem;
use natten_core::plan::Tiling;
use natten_core::window::Axis;

use crate::error::CudaError;
use crate::family::{Bid, Launch, Offer, Patch, Query, Refused, patches};
use crate::fill::forward_launches;
use crate::params::{Divisor, TileForwardParams, TilePlan, to_i32};

const ADDRESSES: [Patch; 7] = patches!(
    TileForwardParams,
    query: QUERY,
    key: KEY,
    value: VALUE,
    additional_key: ADDITIONAL_KEYS,
    additional_value: ADDITIONAL_VALUES,
    out: OUT,
    lse: LSE,
);

/// Everything for a bid.
pub(super) fn lay_out(bid: &Bid, query: &Query<'_>) -> Result<Offer, Refused> {
    let mut offer = Offer { bid: *bid, launches: Vec::new(), workspace_bytes: 0 };
    let Some((problem, tiling)) = query.pass.problem().zip(bid.tiling) else { return Ok(offer) };
    for launch in forward_launches(bid.kernel, query.views, problem) {
        let (axes, params) = launch?;
        let (plan, ctas) = plan(problem, &axes, &tiling)?;
        let params = params.on_tiles(plan);
        let params = bytemuck::bytes_of(&params);
        offer.launches.push(Launch::new(query, bid.kernel, ctas, params, &ADDRESSES));
    }
    Ok(offer)
}

/// The kernel's form of a tiling, and its ctas.
fn plan(problem: &Problem, axes: &[Axis; 3], tiling: &Tiling) -> Result<(TilePlan, u32), CudaError> {
    let mut plan = TilePlan {
        heads: Divisor::new("the number of heads", problem.heads())?,
        query_log2: tiling.query_tile.map(|side| side.ilog2() as i32),
        key_log2: tiling.key_tile.map(|side| side.ilog2() as i32),
        ..TilePlan::default()
    };
    let mut total = (problem.batch() * problem.heads()) as u128;
    for (a, axis) in axes.iter().enumerate() {
        let boxes = axis.query_extent.div_ceil(axis.dilation).div_ceil(tiling.query_tile[a]);
        plan.tiles[a] = Divisor::new("the tiles of an axis", axis.dilation * boxes)?;
        total *= u128::from(plan.tiles[a].value);
    }
    let ctas = to_i32("the number of ctas", usize::try_from(total).unwrap_or(usize::MAX))?;
    Ok((plan, ctas as u32))
}
