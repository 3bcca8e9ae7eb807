//! One kernel on trial: its checks, what each executes and costs, and the verdict on an edit.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use natten_emulator::mutate::Edit;
use natten_emulator::{Coverage, Emulated, Module, Options};
use natten_tests::OnDevice;
use natten_tests::kernels::Shipped;
use natten_tests::suites::{Check, Outcome, Scope, all};

use super::reasons;
use super::report::{Evidence, Results, Survivor, Verdict};
use crate::suites::{Device, devices};

/// A check that runs the kernel.
struct Recorded {
    check: Check<OnDevice<Device>>,
    /// The subject that it runs on.
    subject: usize,
    coverage: Coverage,
    /// Of all that it reads back from the device.
    digest: u64,
    /// Warp instructions of the whole check, in the largest of its kernels.
    instructions: u64,
    time: Duration,
}

pub struct Trial {
    entry: &'static str,
    module: Module,
    subjects: Vec<OnDevice<Device>>,
    /// The cheapest first.
    checks: Vec<Recorded>,
}

impl Trial {
    /// Runs every check of the suites on the kernel as it is, and keeps those that launch it.
    pub fn new(kernel: &Shipped, number: usize, golden: Option<&Path>) -> Self {
        let text = natten_cuda::registry::by_name(kernel.entry).expect("a shipped kernel").ptx();
        let module = Module::parse(&text).expect("a kernel that parses");
        let (major, minor) = (kernel.capability.major, kernel.capability.minor);
        let subjects: Vec<_> =
            devices(major, minor).into_iter().map(|device| device.asking_for(kernel)).collect();
        let mut scope = Scope::kernel(kernel, number);
        if let Some(folder) = golden {
            scope = scope.golden_in(folder);
        }
        for subject in &subjects {
            let options = emulated(subject).options();
            let options = Options { parallel: false, record_coverage: true, ..options };
            emulated(subject).set_options(options);
        }
        let mut checks = Vec::new();
        for suite in all::<OnDevice<Device>>(&scope) {
            for (nth, check) in suite.checks.into_iter().enumerate() {
                let subject = nth % subjects.len();
                checks.extend(record(kernel.entry, check, subject, &subjects));
            }
        }
        checks.sort_by_key(|check| check.time);
        Trial { entry: kernel.entry, module, subjects, checks }
    }

    /// Every edit of the kernel.
    pub fn edits(&self) -> Vec<Edit> {
        self.module.edits(self.entry)
    }

    /// Runs the checks that execute the edited instruction until one notices.
    pub fn judge(&self, edit: &Edit, family: &str) -> Verdict {
        let runs = |check: &&Recorded| match edit.is_of_guard() {
            true => check.coverage.reached(edit.instruction),
            false => check.coverage.executed(edit.instruction),
        };
        let checks: Vec<&Recorded> = self.checks.iter().filter(runs).collect();
        if checks.is_empty() {
            return Verdict::Unreached;
        }
        let module = Arc::new(self.module.edited(self.entry, edit));
        for (tried, recorded) in checks.iter().enumerate() {
            if let Some(how) = self.notices(recorded, &module) {
                return Verdict::Noticed { check: recorded.check.name.clone(), how, tried: tried + 1 };
            }
        }
        let evidence = self.evidence(edit, &checks, &module);
        let reason = reasons::of(edit, family, &evidence);
        Verdict::Survived(Survivor { evidence, reason })
    }

    /// What the checks that an edit survived tell about it.
    fn evidence(&self, edit: &Edit, checks: &[&Recorded], module: &Arc<Module>) -> Evidence {
        let same_bits = |recorded: &&&Recorded| {
            let device = emulated(&self.subjects[recorded.subject]);
            device.take_digest();
            self.notices(recorded, module);
            device.take_digest() == recorded.digest
        };
        let with_same_bits = checks.iter().filter(same_bits).count();
        let beside = self.module.beside(self.entry, edit).map(|(module, difference)| {
            let module = Arc::new(module);
            checks.iter().for_each(|recorded| drop(self.notices(recorded, &module)));
            Results { runs: difference.runs(), differ: difference.differs(), widest: difference.widest() }
        });
        Evidence { checks: checks.len(), with_same_bits, beside }
    }

    /// What the check says of the broken kernel, or nothing.
    fn notices(&self, recorded: &Recorded, module: &Arc<Module>) -> Option<String> {
        let subject = &self.subjects[recorded.subject];
        let device = emulated(subject);
        let most_instructions = 4 * recorded.instructions + 100_000;
        let options = device.options();
        device.set_options(Options { most_instructions, record_coverage: false, ..options });
        device.launch_instead(self.entry, Some(Arc::clone(module)));
        let outcome = recorded.check.run(subject);
        device.launch_instead(self.entry, None);
        match outcome {
            Outcome::Failed(how) => Some(how),
            Outcome::Passed | Outcome::Unsupported(_) => None,
        }
    }
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
    device.take_counters();
    device.take_digest();
    let start = Instant::now();
    let outcome = check.run(&subjects[subject]);
    let time = start.elapsed();
    let (mut counters, digest) = (device.take_counters(), device.take_digest());
    let instructions = counters.values().map(|counters| counters.warp_instructions()).max().unwrap_or(0);
    let coverage = counters.remove(entry)?.coverage;
    assert!(!matches!(outcome, Outcome::Failed(_)), "{entry} as it ships: {outcome:?}");
    Some(Recorded { check, subject, coverage, digest, instructions, time })
}
