//! One kernel on trial: its checks, what each executes and costs, and the verdict on an edit.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use natten_cuda::registry::{Kernel, by_name};
use natten_emulator::mutate::Edit;
use natten_emulator::{Counters, Coverage, Emulated, Module, Options};
use natten_tests::OnDevice;
use natten_tests::kernels::Shipped;
use natten_tests::suites::{Check, Outcome, Scope, all};

use super::report::{Evidence, Results, Survivor, Verdict};
use super::{options as run, reasons};
use crate::suites::{Device, devices_of};
use crate::tile_plans::{on_tiles, work_is_planned};

/// What a kernel must pass.
enum Test {
    Suite(Check<OnDevice<Device>>),
    /// It does no more work than was planned.
    Plan(&'static Kernel),
}

impl Test {
    fn name(&self) -> &str {
        match self {
            Test::Suite(check) => &check.name,
            Test::Plan(_) => "work is what the plan says",
        }
    }

    /// What it says against the kernel, or nothing.
    fn run(&self, subject: &OnDevice<Device>) -> Option<String> {
        match self {
            Test::Suite(check) => match check.run(subject) {
                Outcome::Failed(how) => Some(how),
                Outcome::Passed | Outcome::Unsupported(_) => None,
            },
            Test::Plan(kernel) => {
                let planned = AssertUnwindSafe(|| work_is_planned(emulated(subject), kernel));
                match catch_unwind(planned) {
                    Ok(outcome) => outcome.err(),
                    Err(_) => Some("panicked".to_owned()),
                }
            }
        }
    }
}

/// A test that runs the kernel.
struct Recorded {
    test: Test,
    /// The subject that it runs on.
    subject: usize,
    coverage: Coverage,
    /// Of all that it reads back from the device.
    digest: u64,
    /// Warp instructions of the whole check, in the largest of its kernels.
    instructions: u64,
    time: Duration,
}

thread_local! {
    /// Whether this thread runs a broken kernel.
    static IS_BROKEN: Cell<bool> = const { Cell::new(false) };
}

/// What a broken kernel makes a check say is its verdict, and not printed. All other panics are.
pub fn silence_broken_kernels() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !IS_BROKEN.get() {
            print(panic);
        }
    }));
}

/// Checks that an edit runs which is proven to change nothing: if one of them notices it the proof is wrong.
const CHECKS_OF_PROOFS: usize = 6;

pub struct Trial {
    kernel: Shipped,
    module: Module,
    /// The cheapest first.
    checks: Vec<Recorded>,
}

impl Trial {
    /// Runs every check of the suites on the kernel as it is, and keeps those that launch it.
    pub fn new(kernel: &Shipped, number: usize, run: &run::Options) -> Self {
        let text = by_name(kernel.entry).expect("a shipped kernel").ptx();
        let module = Module::parse(&text).expect("a kernel that parses");
        let subjects = subjects(kernel, true);
        let mut scope = Scope::kernel(kernel, number).more(run.problems);
        if let Some(folder) = &run.golden {
            scope = scope.golden_in(folder);
        }
        let mut checks = Vec::new();
        for suite in all::<OnDevice<Device>>(&scope) {
            for (nth, check) in suite.checks.into_iter().enumerate() {
                let subject = nth % subjects.len();
                checks.extend(record(kernel.entry, check, subject, &subjects));
            }
        }
        checks.extend(record_plan(kernel, 0, &subjects));
        checks.sort_by_key(|check| check.time);
        Trial { kernel: *kernel, module, checks }
    }

    /// Every edit of the kernel.
    pub fn edits(&self) -> Vec<Edit> {
        self.module.edits(self.kernel.entry)
    }

    /// Runs the checks that execute the edited instruction until one notices.
    ///
    /// # Panics
    /// When a check notices an edit that is proven to change nothing.
    pub fn judge(&self, edit: &Edit) -> Verdict {
        let runs = |check: &&Recorded| match edit.is_of_guard() {
            true => check.coverage.reached(edit.instruction),
            false => check.coverage.executed(edit.instruction),
        };
        let mut checks: Vec<&Recorded> = self.checks.iter().filter(runs).collect();
        let entry = self.kernel.entry;
        let proof = self.module.proof(entry, edit);
        if proof.is_some() {
            checks.truncate(CHECKS_OF_PROOFS);
        }
        let broken = Broken {
            entry,
            subjects: subjects(&self.kernel, false),
            module: Arc::new(self.module.edited(entry, edit)),
        };
        let mut with_same_bits = 0;
        for (tried, recorded) in checks.iter().enumerate() {
            let device = emulated(&broken.subjects[recorded.subject]);
            device.take_digest();
            if let Some(how) = broken.notices(recorded) {
                assert!(proof.is_none(), "{entry}: {edit:?} is not what {proof:?} says: {how}");
                return Verdict::Noticed { check: recorded.test.name().to_owned(), how, tried: tried + 1 };
            }
            with_same_bits += usize::from(device.take_digest() == recorded.digest);
        }
        let is_measured = proof.is_none() && !checks.is_empty();
        let beside = is_measured.then(|| self.beside(edit, &checks, broken.subjects)).flatten();
        let evidence = Evidence { checks: checks.len(), with_same_bits, beside, proof };
        let reason = reasons::of(edit, entry, &evidence);
        Verdict::Survived(Survivor { evidence, reason })
    }

    /// The checks once more, with the edited instruction run beside the original.
    fn beside(&self, edit: &Edit, checks: &[&Recorded], subjects: Vec<OnDevice<Device>>) -> Option<Results> {
        let entry = self.kernel.entry;
        let (module, difference) = self.module.beside(entry, edit)?;
        let both = Broken { entry, subjects, module: Arc::new(module) };
        checks.iter().for_each(|recorded| drop(both.notices(recorded)));
        Some(Results { runs: difference.runs(), differ: difference.differs(), widest: difference.widest() })
    }
}

/// Devices that run a broken kernel in place of the one that ships.
struct Broken {
    entry: &'static str,
    subjects: Vec<OnDevice<Device>>,
    module: Arc<Module>,
}

impl Broken {
    /// What the check says of it, or nothing.
    fn notices(&self, recorded: &Recorded) -> Option<String> {
        let subject = &self.subjects[recorded.subject];
        let device = emulated(subject);
        let most_instructions = 4 * recorded.instructions + 100_000;
        let options = device.options();
        device.set_options(Options { most_instructions, ..options });
        device.launch_instead(self.entry, Some(Arc::clone(&self.module)));
        IS_BROKEN.set(true);
        let how = recorded.test.run(subject);
        IS_BROKEN.set(false);
        device.launch_instead(self.entry, None);
        how
    }
}

/// Devices that are asked for the kernel.
fn subjects(kernel: &Shipped, record_coverage: bool) -> Vec<OnDevice<Device>> {
    let asked = devices_of(kernel);
    for subject in &asked {
        let options = emulated(subject).options();
        emulated(subject).set_options(Options { parallel: false, record_coverage, ..options });
    }
    asked
}

fn emulated(subject: &OnDevice<Device>) -> &Emulated {
    subject.device().inner()
}

/// Runs a check on the kernel as it is; nothing if it does not launch it.
fn record(
    entry: &'static str,
    check: Check<OnDevice<Device>>,
    subject: usize,
    subjects: &[OnDevice<Device>],
) -> Option<Recorded> {
    let device = emulated(&subjects[subject]);
    let test = Test::Suite(check);
    device.take_counters();
    device.take_digest();
    let start = Instant::now();
    let how = test.run(&subjects[subject]);
    let time = start.elapsed();
    assert!(how.is_none(), "{entry} as it ships: {how:?}");
    let (mut counters, digest) = (device.take_counters(), device.take_digest());
    let instructions = counters.values().map(Counters::warp_instructions).max().unwrap_or(0);
    let coverage = counters.remove(entry)?.coverage;
    Some(Recorded { test, subject, coverage, digest, instructions, time })
}

/// The same of the plan, for kernels that are held to one.
fn record_plan(kernel: &Shipped, subject: usize, subjects: &[OnDevice<Device>]) -> Option<Recorded> {
    let kernel = on_tiles().find(|planned| planned.entry == kernel.entry)?;
    let device = emulated(&subjects[subject]);
    device.take_digest();
    let start = Instant::now();
    let counters = work_is_planned(device, kernel).expect("the kernel as it ships");
    let (time, digest, instructions) = (start.elapsed(), device.take_digest(), counters.warp_instructions());
    let (test, coverage) = (Test::Plan(kernel), counters.coverage);
    Some(Recorded { test, subject, coverage, digest, instructions, time })
}
