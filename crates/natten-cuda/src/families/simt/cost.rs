//! What walking over windows costs, in microseconds of one multiprocessor of an H100.

use crate::cost::{LAUNCH, waves};
use crate::family::{Pass, Query};
use crate::parts;
use crate::registry::{Facts, Kernel};

/// A score, for each 16 elements of a row.
const SCORE: f64 = 0.6e-3;
/// A query, likewise: finding its window, its row, its result.
const ITEM: f64 = 20e-3;
/// The passes of a backward compute three and four products for each score, a forward two, and wait less for each.
const BACKWARD: f64 = 2.5;

/// The predicted time. The two rates were fitted to the times in docs/performance.md, section 6: of 20 problems nearly all
/// come within an eighth of the prediction; C1, which does not fill the device, took 1.4 times as long, N1 of head_dim 8 0.84
/// times. The factor of a backward is between those of f32 on L0 (2.4) and C3 (2.7).
pub(super) fn predict(kernel: &Kernel, query: &Query<'_>) -> f64 {
    let (problem, launches, passes) = match query.pass {
        Pass::Forward(problem) => (problem, parts::count(kernel, problem), 1.0),
        Pass::Backward(problem) => (problem, 1.0, BACKWARD),
        Pass::Merge(_) | Pass::MergeBackward(_) => return LAUNCH,
    };
    let [lanes, items] = kernel.walk();
    let of_cta = (kernel.threads as usize / lanes * items) as f64;
    let tokens = problem.axes().iter().map(|axis| axis.query_extent as f64).product::<f64>();
    let rows = problem.batch() as f64 * tokens * problem.heads() as f64;
    let shares = (kernel.longest_row() as f64 / 16.0).max(1.0);
    let row = shares * (SCORE * problem.scores() as f64 / rows.max(1.0) + ITEM);
    let multiprocessors = f64::from(query.properties.multiprocessors.max(1));
    launches * (LAUNCH + passes * waves((rows / of_cta).ceil(), multiprocessors) * of_cta * row)
}
