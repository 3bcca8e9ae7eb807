//! The best offer of all families, remembered by all that it depends on.

use std::borrow::Cow;
use std::sync::Arc;

use natten_core::window::Axis;
use natten_core::{ElementType, PackedSequence, Problem};
use smallvec::SmallVec;

use crate::capability::ComputeCapability;
use crate::cost::traffic;
use crate::error::CudaError;
use crate::families::FAMILIES;
use crate::family::{Bid, Family, MergeRows, Offer, Pass, Query, Refused, Request, fit, reason_in_table};
use crate::memo::{Memo, hash_of};
use crate::registry::{Kernel, kernels_of};
use crate::rejection::{MapError, Rejection, RejectionReason, Rejections};
use crate::trust::FailedTrial;
use crate::views::Views;

/// What runs a pass.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    /// It.
    pub offer: Arc<Offer>,
    /// Better ones that turned out to be impossible for how the tensors lie.
    pub dropped: Arc<[Rejection]>,
}

static CHOICES: Memo<Key<'static>, Choice> = Memo::new();

/// The offer that is predicted to end first.
///
/// # Errors
/// [`CudaError::Unsupported`] with the reason against each kernel; [`CudaError::TooLarge`].
pub(crate) fn choose(query: &Query<'_>) -> Result<Choice, CudaError> {
    let key = Key::of(query);
    let hash = hash_of(&key);
    if let Some(choice) = CHOICES.get(hash, |kept| *kept == key) {
        return Ok(choice);
    }
    let choice = search(query, Vec::new())?;
    keep(hash, key, &choice);
    Ok(choice)
}

/// Packed batches of many sequences, which hardly ever come again, would fill memory with their launches.
const MOST_LAUNCHES: usize = 64;

fn keep(hash: u64, key: Key<'_>, choice: &Choice) {
    let is_packed = match &key.pass {
        PassKey::Forward(problem) | PassKey::Backward(problem) => !problem.sequences.is_empty(),
        PassKey::Merge(_) | PassKey::MergeBackward(_) => false,
    };
    if !is_packed || choice.offer.launches.len() <= MOST_LAUNCHES {
        let key = Key { views: Cow::Owned(key.views.into_owned()), ..key };
        CHOICES.keep(hash, key, choice.clone());
    }
}

/// The next best, after the driver has refused to map a tensor for this one; from now on the choice for such a call.
///
/// # Errors
/// As [`choose`].
pub(crate) fn choose_another(query: &Query<'_>, refused: &Choice) -> Result<Choice, CudaError> {
    let reason = RejectionReason::TensorMap(MapError::Refused);
    let mut dropped = refused.dropped.to_vec();
    dropped.push(Rejection { kernel: refused.offer.bid.kernel.entry, reason });
    let choice = search(query, dropped)?;
    let key = Key::of(query);
    keep(hash_of(&key), key, &choice);
    Ok(choice)
}

/// A family with what it would run.
type FamilyBid = (&'static dyn Family, Bid);

fn search(query: &Query<'_>, mut dropped: Vec<Rejection>) -> Result<Choice, CudaError> {
    for (family, bid) in ranked(query) {
        if dropped.iter().any(|rejection| rejection.kernel == bid.kernel.entry) {
            continue;
        }
        match family.lay_out(&bid, query) {
            Ok(offer) => return Ok(Choice { offer: Arc::new(offer), dropped: dropped.into() }),
            Err(Refused::By(reason)) => dropped.push(Rejection { kernel: bid.kernel.entry, reason }),
            Err(Refused::Call(error)) => return Err(error),
        }
    }
    let mut rejections = Vec::new();
    ask(query, 1, |_, kernel, answer| {
        let is_same = |rejection: &&Rejection| rejection.kernel == kernel.entry;
        let known = dropped.iter().find(is_same).map(|rejection| rejection.reason);
        if let Some(reason) = known.or(answer.err()) {
            rejections.push(Rejection { kernel: kernel.entry, reason });
        }
    });
    Err(CudaError::Unsupported(Rejections(rejections)))
}

/// Everybody's best bids, best first. No time is shorter than moving the tensors takes; where that makes families equal, the
/// first in their table comes first.
fn ranked(query: &Query<'_>) -> SmallVec<[FamilyBid; 6]> {
    let mut bids: SmallVec<[FamilyBid; 6]> = SmallVec::new();
    ask(query, 1, |family, _, answer| {
        if let Ok(found) = answer {
            bids.extend(found.into_iter().map(|bid| (family, bid)));
        }
    });
    if bids.len() > 1 {
        let least = traffic(&query.pass);
        let place = |family: &dyn Family| FAMILIES.iter().position(|other| other.name() == family.name());
        // A tiling that is asked for comes before kernels that have none.
        let is_other = |bid: &Bid| query.request.tiling.is_some() && bid.tiling.is_none();
        bids.sort_by(|(a_family, a), (b_family, b)| {
            let order = is_other(a).cmp(&is_other(b));
            let order = order.then(a.microseconds.max(least).total_cmp(&b.microseconds.max(least)));
            let order = order.then_with(|| place(*a_family).cmp(&place(*b_family)));
            order.then(a.microseconds.total_cmp(&b.microseconds))
        });
    }
    bids
}

/// Asks every kernel for a pass: its `most` best bids, or the reason against it.
pub(crate) fn ask(
    query: &Query<'_>,
    most: usize,
    mut visit: impl FnMut(&'static dyn Family, &'static Kernel, Result<Vec<Bid>, RejectionReason>),
) {
    let asked = query.asked();
    for &family in FAMILIES {
        let mut able: SmallVec<[&'static Kernel; 8]> = SmallVec::new();
        for kernel in kernels_of(family.name(), query.pass.operation()) {
            let reason = if asked.is_some_and(|entry| entry != kernel.entry) {
                Some(RejectionReason::NotAskedFor)
            } else {
                reason_in_table(kernel, query).or_else(|| family.reason_against(kernel, query))
            };
            match reason {
                Some(reason) => visit(family, kernel, Err(reason)),
                None => able.push(kernel),
            }
        }
        let Some(best) = able.iter().copied().min_by_key(|kernel| fit(kernel, query)) else { continue };
        for kernel in able {
            let answer = if fit(kernel, query) == fit(best, query) {
                family.bids(kernel, query, most)
            } else {
                Err(RejectionReason::Preferred { instead: best.entry })
            };
            visit(family, kernel, answer);
        }
    }
}

/// All that a choice depends on.
#[derive(PartialEq, Eq, Hash)]
struct Key<'a> {
    pass: PassKey,
    views: Cow<'a, Views>,
    capability: ComputeCapability,
    multiprocessors: u32,
    shared_bytes: usize,
    request: Request,
    failed_trial: Option<FailedTrial>,
}

#[derive(PartialEq, Eq, Hash)]
enum PassKey {
    Forward(ProblemKey),
    Backward(ProblemKey),
    Merge(MergeRows),
    MergeBackward(MergeRows),
}

#[derive(PartialEq, Eq, Hash)]
struct ProblemKey {
    axes: [Axis; 3],
    counts: [usize; 6],
    element_type: ElementType,
    scale: u64,
    /// Of packed sequences, where they begin and the masks: those of one alignment may add up to the same totals as those of the other.
    sequences: Vec<(usize, usize, Axis)>,
}

impl ProblemKey {
    fn of(problem: &Problem) -> Self {
        let sequence =
            |PackedSequence { query_start, key_start, axes: [.., axis] }| (query_start, key_start, axis);
        let sequences = problem.sequences().filter(|_| problem.is_packed());
        ProblemKey {
            // Calls along an axis that see the same from elsewhere are one.
            axes: problem.axes().map(|axis| axis.shortened()),
            counts: [
                problem.batch(),
                problem.heads(),
                problem.heads_kv(),
                problem.head_dim(),
                problem.head_dim_v(),
                problem.additional_keys(),
            ],
            element_type: problem.element_type(),
            scale: problem.scale().to_bits(),
            sequences: sequences.map(sequence).collect(),
        }
    }
}

impl<'a> Key<'a> {
    fn of(query: &Query<'a>) -> Self {
        let properties = query.properties;
        Key {
            pass: match query.pass {
                Pass::Forward(problem) => PassKey::Forward(ProblemKey::of(problem)),
                Pass::Backward(problem) => PassKey::Backward(ProblemKey::of(problem)),
                Pass::Merge(rows) => PassKey::Merge(*rows),
                Pass::MergeBackward(rows) => PassKey::MergeBackward(*rows),
            },
            views: Cow::Borrowed(query.views),
            capability: properties.compute_capability,
            multiprocessors: properties.multiprocessors,
            shared_bytes: properties.shared_bytes_per_block,
            request: *query.request,
            failed_trial: query.failed_trial,
        }
    }
}
