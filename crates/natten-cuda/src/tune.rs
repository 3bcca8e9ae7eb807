//! The ways to run a forward pass that are worth timing: kernels with their best boxes, in the order of their bids.

use crate::choose::{ask, choose};
use crate::error::CudaError;
use crate::explain::issued;
use crate::family::{Bid, Query, Request};

/// Tiles that issue no more than so many times what is wanted leave CUDA cores far behind: timing them would take long and
/// tell nothing.
const WORTH_WALKING: f64 = 3.0;

/// One way to run a forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// For [`Cuda::with_request`](crate::Cuda::with_request): a kernel, and boxes if it works on tiles.
    pub request: Request,
    /// Threads of a cta.
    pub threads: u32,
    /// Pairs of a query and a key that are computed for each one that is wanted, as planned.
    pub issued_over_useful: f64,
    /// Predicted time, by rates of an H100.
    pub microseconds: f64,
}

/// At most `most` ways: the one that a call takes first, then each kernel's best boxes in turn.
pub(crate) fn tune(query: &Query<'_>, most: usize) -> Result<Vec<Candidate>, CudaError> {
    let candidate = |bid: &Bid| Candidate {
        request: Request { entry: Some(bid.kernel.entry), tiling: bid.tiling, ..Request::default() },
        threads: bid.kernel.threads,
        issued_over_useful: issued(bid, query).first().map_or(1.0, |(_, ratio)| *ratio),
        microseconds: bid.microseconds,
    };
    let mut found = vec![candidate(&choose(query)?.offer.bid)];
    let anything = Request::default();
    let open =
        Query::new(query.pass, query.views, query.properties, &anything).after_trials(query.failed_trial);
    let (mut lists, mut walking) = (Vec::new(), Vec::new());
    // Two at least: a family keeps back what only its limits are against where one way is wanted.
    ask(&open, most.max(2), |_, _, answer| {
        let bids = answer.unwrap_or_default();
        let list: Vec<Candidate> = bids.iter().map(candidate).collect();
        match bids.first() {
            Some(bid) if bid.tiling.is_some() => lists.push(list),
            _ => walking.extend(list),
        }
    });
    let least = lists.iter().filter_map(|list| Some(list.first()?.issued_over_useful)).reduce(f64::min);
    if least.is_none_or(|least| least > WORTH_WALKING) {
        lists.extend(walking.into_iter().map(|candidate| vec![candidate]));
    }
    for rank in 0..lists.iter().map(Vec::len).max().unwrap_or(0) {
        for candidate in lists.iter().filter_map(|list| list.get(rank)) {
            if found.iter().all(|other| other.request != candidate.request) {
                found.push(*candidate);
            }
        }
    }
    found.truncate(most.max(1));
    Ok(found)
}
