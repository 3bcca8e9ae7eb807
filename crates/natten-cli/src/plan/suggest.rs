//! `natten plan --suggest`: strides and dilations near those asked for, and which make every tile count.

use natten::plan::PlanTables;
use natten::{AxisParams, ElementType, KernelSize};
use serde_json::{Value, json};

use super::tiles::{Plan, TileChoice};
use crate::error::CliError;
use crate::output::{Rows, Tone, plain};
use crate::problem_args::{ProblemArgs, times};
use crate::region_args::RegionArgs;

/// Strides tried on an axis besides the one asked for.
const STRIDES: usize = 7;

/// A variation of the problem with its best tiling.
pub struct Suggestion {
    strides: Vec<usize>,
    dilations: Vec<usize>,
    plan: Plan,
    /// Doublings by which strides and dilations differ from those asked for.
    distance: f64,
}

impl Suggestion {
    /// Nothing is computed in vain and no tile needs a mask.
    fn is_perfect(&self) -> bool {
        self.plan.counts.issued == self.plan.counts.scores
            && self.plan.counts.full_tiles == self.plan.counts.key_tiles
    }

    /// For a JSON report.
    pub fn to_json(&self) -> Value {
        json!({
            "stride": self.strides,
            "dilation": self.dilations,
            "is_perfect": self.is_perfect(),
            "issued_over_useful": self.plan.counts.issued_over_useful(),
            "full_tile_share": self.plan.counts.full_share(),
            "predicted_speedup": self.plan.counts.speedup(),
            "q_tile": self.plan.box_text(self.plan.tiling.query_tile),
            "kv_tile": self.plan.box_text(self.plan.tiling.key_tile),
            "kv_start": self.plan.start_name(),
        })
    }
}

/// Variations of the problem: perfect ones first, nearest to what was asked for first; then by what they issue.
pub fn suggestions(
    (args, regions): (&ProblemArgs, &RegionArgs),
    element_type: ElementType,
    choice: &TileChoice,
) -> Result<Vec<Suggestion>, CliError> {
    let asked = args.axes()?;
    let problem = regions.problem(args, &asked, element_type)?;
    let windows: Vec<usize> = problem.axes()[3 - args.rank()..].iter().map(|axis| axis.kernel_size).collect();
    // What suits a neighbour of the problem is among what suits the problem, so few tilings are tried on each.
    let mut tilings: Vec<Plan> = choice.ranked(&problem);
    let square = |plan: &Plan| plan.tiling.query_tile == plan.tiling.key_tile;
    let mut kept = 0;
    tilings.retain(|plan| {
        kept += 1;
        kept <= 24 || square(plan)
    });
    let axes: Vec<Vec<AxisParams>> =
        (0..args.rank()).map(|i| variations(&asked[i], windows[i], args.input_size[i])).collect();
    let mut found = Vec::new();
    for combination in product(&axes) {
        let Ok(varied) = regions.problem(args, &combination, element_type) else { continue };
        let tables = PlanTables::of(&varied);
        let plans = tilings.iter().map(|plan| plan.recount(&tables));
        let Some(plan) = plans.min_by_key(Plan::order) else { continue };
        found.push(Suggestion {
            strides: combination.iter().map(|axis| axis.stride).collect(),
            dilations: combination.iter().map(|axis| axis.dilation).collect(),
            distance: distance(&asked, &combination),
            plan,
        });
    }
    let issued = |s: &Suggestion| s.plan.counts.issued_over_useful();
    found.sort_by(|a, b| {
        let perfect = b.is_perfect().cmp(&a.is_perfect());
        let nearer = a.distance.total_cmp(&b.distance);
        let cheaper = issued(a).total_cmp(&issued(b));
        perfect.then(if a.is_perfect() { nearer } else { cheaper.then(nearer) })
    });
    Ok(found)
}

/// Strides from the powers of two and the divisors of the window, nearest to the one asked for; and the dilation
/// with its neighbours that fit.
fn variations(asked: &AxisParams, window: usize, extent: usize) -> Vec<AxisParams> {
    let is_candidate = |s: &usize| s.is_power_of_two() || window.is_multiple_of(*s) || *s == asked.stride;
    // Windows of millions of tokens have few small divisors and powers of two: enough to choose from.
    let mut strides: Vec<usize> = (1..=window.min(4096)).chain([window]).filter(is_candidate).collect();
    strides.sort_by(|a, b| ratio(*a, asked.stride).total_cmp(&ratio(*b, asked.stride)));
    strides.dedup();
    strides.truncate(STRIDES);
    let dilations = [asked.dilation, asked.dilation + 1];
    let fits = |d: &&usize| window.checked_mul(**d).is_some_and(|reach| reach <= extent);
    let dilations: Vec<usize> = dilations.iter().filter(fits).copied().collect();
    let with = |stride: usize, dilation: usize| AxisParams {
        kernel_size: KernelSize::Tokens(window),
        stride,
        dilation,
        ..*asked
    };
    strides.iter().flat_map(|&s| dilations.iter().map(move |&d| with(s, d))).collect()
}

fn ratio(a: usize, b: usize) -> f64 {
    (a as f64 / b as f64).log2().abs()
}

fn distance(asked: &[AxisParams], varied: &[AxisParams]) -> f64 {
    // Another dilation sees other tokens, another stride only shares what is seen: it is the smaller change.
    let of_axis =
        |(a, b): (&AxisParams, &AxisParams)| ratio(a.stride, b.stride) + 8.0 * ratio(a.dilation, b.dilation);
    asked.iter().zip(varied).map(of_axis).sum()
}

/// Every choice of one entry from each list.
fn product(lists: &[Vec<AxisParams>]) -> Vec<Vec<AxisParams>> {
    lists.iter().fold(vec![Vec::new()], |choices, list| {
        let extended = |choice: &Vec<AxisParams>| {
            let choice = choice.clone();
            list.iter().map(move |axis| [choice.as_slice(), &[*axis]].concat())
        };
        choices.iter().flat_map(extended).collect()
    })
}

/// The suggestions as a table.
pub fn table(suggestions: &[Suggestion]) -> String {
    let mut table = Rows::new(&[
        "stride",
        "dilation",
        "q tile",
        "kv tile",
        "kv start",
        "full",
        "issued/useful",
        "speed-up",
        "",
    ]);
    for suggestion in suggestions {
        let counts = &suggestion.plan.counts;
        table.push([
            plain(times(&suggestion.strides)),
            plain(times(&suggestion.dilations)),
            plain(suggestion.plan.box_text(suggestion.plan.tiling.query_tile)),
            plain(suggestion.plan.box_text(suggestion.plan.tiling.key_tile)),
            plain(suggestion.plan.start_name()),
            plain(format!("{:.0} %", 100.0 * counts.full_share())),
            plain(format!("{:.2}", counts.issued_over_useful())),
            plain(format!("{:.2}", counts.speedup())),
            if suggestion.is_perfect() { ("perfect".to_owned(), Tone::Good) } else { plain("") },
        ]);
    }
    format!(
        "\nstrides and dilations nearby; perfect means no mask and nothing computed in vain\n{}",
        table.render()
    )
}
