//! Groups of lanes that walk over the windows of neighbouring items on CUDA cores: every element type, layout and device.

pub(crate) mod backward;
mod cost;
mod forward;
mod schedule;

use natten_core::Problem;
use natten_core::plan::KeyStart;

use crate::family::{Bid, Family, Offer, Pass, Query, Refused};
use crate::parts;
use crate::registry::{Kernel, Operation};
use crate::rejection::RejectionReason;
use schedule::{Items, Work, blocks};

/// The family.
pub(crate) struct Simt;

impl Family for Simt {
    fn name(&self) -> &'static str {
        "simt"
    }

    fn reason_against(&self, _kernel: &'static Kernel, _query: &Query<'_>) -> Option<RejectionReason> {
        None
    }

    fn bids(
        &self,
        kernel: &'static Kernel,
        query: &Query<'_>,
        _most: usize,
    ) -> Result<Vec<Bid>, RejectionReason> {
        let microseconds = cost::predict(kernel, query);
        Ok(vec![Bid { kernel, tiling: None, side: 0, microseconds }])
    }

    fn lay_out(&self, bid: &Bid, query: &Query<'_>) -> Result<Offer, Refused> {
        match query.pass {
            Pass::Forward(problem) => forward::lay_out(bid, query, problem),
            Pass::Backward(problem) => backward::lay_out(bid, query, problem),
            Pass::Merge(_) | Pass::MergeBackward(_) => {
                Ok(Offer { bid: *bid, launches: Vec::new(), workspace_bytes: 0 })
            }
        }
    }

    #[cfg(test)]
    fn parameter_bytes(&self, operation: crate::registry::Operation) -> usize {
        match operation {
            Operation::Forward => size_of::<crate::params::ForwardParams>(),
            _ => size_of::<crate::params::BackwardParams>(),
        }
    }

    fn issued_over_useful(&self, bid: &Bid, query: &Query<'_>) -> Vec<(&'static Kernel, f64)> {
        let issued = |kernel, problem, items| (kernel, walked_over_useful(kernel, query, problem, items));
        match query.pass {
            Pass::Forward(problem) => {
                let (kernel, of_part) = issued(bid.kernel, problem, Items::Queries);
                vec![(kernel, of_part * parts::count(kernel, problem))]
            }
            Pass::Backward(problem) => {
                let of_keys = backward::kernel(Operation::BackwardKey, query).ok();
                let of_keys = of_keys.map(|kernel| issued(kernel, problem, Items::Keys));
                [issued(bid.kernel, problem, Items::Queries)].into_iter().chain(of_keys).collect()
            }
            Pass::Merge(_) | Pass::MergeBackward(_) => Vec::new(),
        }
    }
}

/// A lane group walks the union of its items' windows.
fn walked_over_useful(kernel: &Kernel, query: &Query<'_>, problem: &Problem, items: Items) -> f64 {
    let work = Work::of(problem, problem.axes(), items);
    // The queries that see a block of keys lie as those that a block of queries sees.
    let query_tile = blocks(kernel, &work).map(|log2| 1 << log2);
    let counts = query.tables(problem).query_tile(query_tile, KeyStart::Dynamic).counts([1; 3]);
    counts.issued_over_useful().max(1.0)
}
