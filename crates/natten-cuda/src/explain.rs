//! What a call would run, told without running it: the kernel, its boxes, what it issues, and why not the others.

use natten_core::plan::Tiling;

use crate::choose::{ask, choose};
use crate::cost::traffic;
use crate::device::Properties;
use crate::error::CudaError;
use crate::families::FAMILIES;
use crate::family::{Bid, Family, Query, reason_in_table, reason_on};
use crate::registry::{Kernel, kernels, kernels_of};
use crate::rejection::{Rejection, RejectionReason, Rejections};

/// The kernel that a pass runs on.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Its entry.
    pub kernel: &'static str,
    /// Threads of a cta.
    pub threads: u32,
    /// Boxes of queries and keys, for a kernel on tiles; of a whole cta.
    pub tiling: Option<Tiling>,
    /// Pairs of a query and a key that are computed for each one that is wanted, as planned.
    pub issued_over_useful: f64,
    /// Predicted time of the whole call, by rates of an H100.
    pub microseconds: f64,
    /// The reasons against the others.
    pub rejections: Rejections,
}

/// A decision for each kernel of the choice that computes pairs of a query and a key.
pub(crate) fn explain(query: &Query<'_>) -> Result<Vec<Decision>, CudaError> {
    let choice = choose(query)?;
    let bid = &choice.offer.bid;
    let least = traffic(&query.pass);
    let decision = |(kernel, issued_over_useful): (&'static Kernel, f64)| {
        let is_lead = kernel.entry == bid.kernel.entry;
        let mut rejections = Vec::new();
        if is_lead {
            rejections.extend_from_slice(&choice.dropped);
            against_others(query, bid, &mut rejections);
        } else {
            against_kernels(query, kernel, &mut rejections);
        }
        Decision {
            kernel: kernel.entry,
            threads: kernel.threads,
            tiling: bid.tiling.filter(|_| is_lead),
            issued_over_useful,
            microseconds: bid.microseconds.max(least),
            rejections: Rejections(rejections),
        }
    };
    Ok(issued(bid, query).into_iter().map(decision).collect())
}

/// Pairs that the kernels of a bid compute for each one that is wanted; 1 where none is.
pub(crate) fn issued(bid: &Bid, query: &Query<'_>) -> Vec<(&'static Kernel, f64)> {
    let family = FAMILIES.iter().find(|family| family.name() == bid.kernel.family);
    let issued = family.map(|family| family.issued_over_useful(bid, query)).unwrap_or_default();
    issued.into_iter().map(|(kernel, ratio)| (kernel, if ratio.is_finite() { ratio } else { 1.0 })).collect()
}

/// Adds the reasons against all kernels but the one that leads the choice and those that have one.
fn against_others(query: &Query<'_>, chosen: &Bid, rejections: &mut Vec<Rejection>) {
    let least = traffic(&query.pass);
    let nanoseconds = |bid: &Bid| (bid.microseconds.max(least) * 1e3) as u64;
    let than = chosen.kernel.entry;
    let dropped = rejections.len();
    ask(query, 1, |family: &dyn Family, kernel, answer| {
        let is_known = rejections[..dropped].iter().any(|rejection| rejection.kernel == kernel.entry);
        if kernel.entry == than || is_known {
            return;
        }
        let reason = match answer {
            Err(reason) => reason,
            Ok(_) if family.name() == chosen.kernel.family => RejectionReason::Slower { than },
            Ok(bids) => match bids.first() {
                Some(bid) => RejectionReason::PredictedSlower {
                    than,
                    nanoseconds: nanoseconds(chosen),
                    own_nanoseconds: nanoseconds(bid),
                },
                None => RejectionReason::NotAskedFor,
            },
        };
        rejections.push(Rejection { kernel: kernel.entry, reason });
    });
}

/// Adds the reasons against all kernels of an operation but the chosen one.
fn against_kernels(query: &Query<'_>, chosen: &'static Kernel, rejections: &mut Vec<Rejection>) {
    let of_operation = |family: &&dyn Family| kernels_of(family.name(), chosen.operation);
    for kernel in FAMILIES.iter().flat_map(of_operation).filter(|kernel| kernel.entry != chosen.entry) {
        let preferred = RejectionReason::Preferred { instead: chosen.entry };
        let reason = reason_in_table(kernel, query).unwrap_or(preferred);
        rejections.push(Rejection { kernel: kernel.entry, reason });
    }
}

/// Every kernel of the operator, with the reason why the device cannot run it, if there is one.
pub fn kernels_on(
    properties: &Properties,
) -> impl Iterator<Item = (&'static str, Option<RejectionReason>)> + use<> {
    let properties = properties.clone();
    kernels().map(move |kernel| (kernel.entry, reason_on(kernel, &properties)))
}
