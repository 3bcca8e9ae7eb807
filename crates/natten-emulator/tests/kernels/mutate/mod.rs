//! Would the suites notice a broken kernel? Every kernel family, its kernels broken by operator, one edit at a time.
//!
//! A first run of a kernel's checks records which instructions each of them executes and how long it takes. An edit runs
//! only those that execute its instruction, the cheapest first, until one notices. What none notices is a hole, unless its
//! reason is one of [`reasons`]. Told what to do by [`options::VARIABLE`]; `cargo xtask mutate` sets that.

mod again;
mod options;
mod reasons;
mod report;
mod trial;

use std::time::{Duration, Instant};

use natten_emulator::mutate::{Edit, sample};
use natten_tests::kernels::{Operation, Shipped, shipped};
use rayon::prelude::*;

use options::Options;
use report::{Progress, Report};
use trial::Trial;

/// Kernels that share their source.
struct Family {
    name: &'static str,
    holds: fn(&Shipped) -> bool,
}

const FAMILIES: &[Family] = &[
    Family { name: "simt-forward", holds: |k| is(k, Operation::Forward, 0) },
    Family { name: "sm80-forward", holds: |k| is(k, Operation::Forward, 8) },
    Family { name: "sm90-forward", holds: |k| is(k, Operation::Forward, 9) },
    Family { name: "sm100-forward", holds: |k| is(k, Operation::Forward, 10) },
    Family { name: "simt-query", holds: |k| is(k, Operation::BackwardQuery, 0) },
    Family { name: "simt-key", holds: |k| is(k, Operation::BackwardKey, 0) },
    Family { name: "sm80-backward", holds: |k| is_backward(k, 8) },
    Family { name: "sm90-backward", holds: |k| is_backward(k, 9) },
    Family { name: "sm100-backward", holds: |k| is_backward(k, 10) },
    Family { name: "rows", holds: is_of_rows },
];

fn is(kernel: &Shipped, operation: Operation, major: u32) -> bool {
    let of_major = if kernel.on_tensor_cores { kernel.capability.major } else { 0 };
    kernel.operation == operation && of_major == major
}

fn is_backward(kernel: &Shipped, major: u32) -> bool {
    is(kernel, Operation::BackwardQuery, major) || is(kernel, Operation::BackwardKey, major)
}

fn is_of_rows(kernel: &Shipped) -> bool {
    use Operation::{Delta, Merge, MergeBackward, SumPartials};
    matches!(kernel.operation, Delta | SumPartials | Merge | MergeBackward)
}

/// One kernel with the share of a family's edits that falls to it.
struct Unit {
    family: &'static str,
    seed: u64,
    /// Its place among all that ship, which decides what problems it gets.
    number: usize,
    edits: Chosen,
}

/// Which of a kernel's edits are made.
enum Chosen {
    /// So many, drawn by the seed.
    Sample(usize),
    /// Those that these lines tell of.
    Again(Vec<again::Hole>),
}

impl Unit {
    fn count(&self) -> usize {
        match &self.edits {
            Chosen::Sample(count) => *count,
            Chosen::Again(holes) => holes.len(),
        }
    }

    fn choose(&self, edits: Vec<Edit>) -> Vec<Edit> {
        match &self.edits {
            Chosen::Sample(count) => sample(edits, *count, options::mixed(self.seed, self.number as u64)),
            Chosen::Again(holes) => {
                edits.into_iter().filter(|edit| holes.iter().any(|hole| hole.is(edit))).collect()
            }
        }
    }
}

/// What the options ask for: of each family and seed some of its kernels, drawn by the seed.
fn units(options: &Options) -> Vec<Unit> {
    let mut units = Vec::new();
    for &seed in &options.seeds {
        for family in FAMILIES.iter().filter(|family| options.takes_family(family.name)) {
            let all = (0..shipped().len()).filter(|&at| (family.holds)(&shipped()[at]));
            let mut numbers: Vec<usize> =
                all.filter(|&at| options.takes_kernel(shipped()[at].entry)).collect();
            numbers.sort_by_key(|&number| options::mixed(seed, number as u64));
            numbers.truncate(options.kernels);
            let count = numbers.len();
            let share = |nth: usize| options.edits * (nth + 1) / count - options.edits * nth / count;
            let of =
                |(nth, number)| Unit { family: family.name, seed, number, edits: Chosen::Sample(share(nth)) };
            units.extend(numbers.into_iter().enumerate().map(of));
        }
    }
    units
}

/// Breaks one kernel by each of its edits in turn.
fn run(unit: &Unit, options: &Options, until: Option<Instant>, progress: &Progress) -> Vec<Report> {
    let kernel = &shipped()[unit.number];
    let is_over = || until.is_some_and(|until| Instant::now() > until);
    if is_over() {
        return Vec::new();
    }
    let trial = Trial::new(kernel, unit.number, options);
    let edits = unit.choose(trial.edits());
    let judged = |edit: Edit| {
        if is_over() {
            return None;
        }
        let start = Instant::now();
        let verdict = trial.judge(&edit);
        let (family, seed, kernel, time) = (unit.family, unit.seed, kernel.entry, start.elapsed());
        let report = Report { family, seed, kernel, edit, verdict, time };
        progress.step(&report);
        Some(report)
    };
    edits.into_par_iter().with_max_len(1).filter_map(judged).collect()
}

/// All units on a pool of threads, reports in their order.
fn run_all(options: &Options) -> Vec<Report> {
    trial::silence_broken_kernels();
    let units = match &options.again {
        Some(lines) => again::units(lines, options),
        None => units(options),
    };
    let progress = Progress::new(units.iter().map(Unit::count).sum(), options.out.as_deref());
    let until = options.minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(60.0 * minutes));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build().expect("threads");
    let each = |unit: &Unit| run(unit, options, until, &progress);
    pool.install(|| units.par_iter().with_max_len(1).map(each).collect::<Vec<_>>()).concat()
}

/// Runs what [`options::VARIABLE`] says; fails where a family's rate is below what that asks for.
#[test]
#[ignore = "a run of its own: cargo xtask mutate"]
fn suites_notice_broken_kernels() {
    let options = Options::from_environment();
    let reports = run_all(&options);
    let rates = report::summary(&reports);
    let low: Vec<_> = rates.iter().filter(|(_, rate)| *rate < options.least).collect();
    assert!(low.is_empty(), "below {} %: {low:?}", options.least);
}
