//! The launches of a forward: one, or one for each packed sequence and each part of its values.

use natten_core::Problem;

use super::schedule::{Items, Work, decompose};
use crate::family::{Bid, Launch, Offer, Patch, Query, Refused, patches};
use crate::fill::forward_launches;
use crate::params::ForwardParams;

const ADDRESSES: [Patch; 7] = patches!(
    ForwardParams,
    query: QUERY,
    key: KEY,
    value: VALUE,
    additional_key: ADDITIONAL_KEYS,
    additional_value: ADDITIONAL_VALUES,
    out: OUT,
    lse: LSE,
);

/// Everything for a bid.
pub(super) fn lay_out(bid: &Bid, query: &Query<'_>, problem: &Problem) -> Result<Offer, Refused> {
    let mut offer = Offer { bid: *bid, launches: Vec::new(), workspace_bytes: 0 };
    for launch in forward_launches(bid.kernel, query.views, problem) {
        let (axes, params) = launch?;
        let (decomposition, ctas) = decompose(bid.kernel, &Work::of(problem, &axes, Items::Queries))?;
        let params = ForwardParams { decomposition, ..params };
        let params = bytemuck::bytes_of(&params);
        offer.launches.push(Launch::new(query, bid.kernel, ctas, params, &ADDRESSES));
    }
    Ok(offer)
}
