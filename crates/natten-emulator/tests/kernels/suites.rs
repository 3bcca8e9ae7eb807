//! The suites that every backend must pass, on emulated devices: at what natten-cuda chooses there, and each kernel by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use natten_core::{Element, Saved, Tensor};
use natten_cuda::ComputeCapability;
use natten_emulator::{Completion, Emulated, Options};
use natten_tests::kernels::{self, Operation, Shipped, shipped};
use natten_tests::suites::{Scope, all, hold, list};
use natten_tests::{OnDevice, Spec, Subject, Watched, in_type, mount};

use crate::vast::Sparse;

pub type Device = Watched<Emulated>;

mount! {
    simt: devices(5, 0), Scope::cuda(false);
    ampere: devices(8, 0), Scope::cuda(true);
    hopper: devices(9, 0), Scope::cuda(true);
    blackwell: devices(10, 0), Scope::cuda(true);
}

/// When asynchronous work completes, and how many multiprocessors there are.
const STATES: [(Completion, u32); 3] =
    [(Completion::Latest, 2), (Completion::Earliest, 3), (Completion::Random, 2)];

/// Devices that differ in when asynchronous work completes, in the order of warps, and in how many multiprocessors share
/// the work: checks take turns on them.
pub fn devices(major: u32, minor: u32) -> Vec<OnDevice<Device>> {
    let device = |(seed, (completion, multiprocessors)): (u64, (Completion, u32))| {
        let device = Emulated::new(major, minor);
        device.set_options(Options { seed, completion, ..Options::default() });
        let name = format!("emulated {major}.{minor} ({completion:?}, {multiprocessors} multiprocessors)");
        let device = Watched::new(device).of_multiprocessors(multiprocessors);
        OnDevice::guarded(&name, device.clone()).with_vast(Arc::new(Sparse(device)))
    };
    (0..).zip(STATES).map(device).collect()
}

/// Devices that are asked for the kernel. What is added up depends on the pass that made parts of it: on Hopper they have places along
/// every axis.
pub fn devices_of(kernel: &Shipped) -> Vec<OnDevice<Device>> {
    let ComputeCapability { major, minor } = kernel.capability;
    let (major, minor) = if kernel.operation == Operation::SumPartials { (9, 0) } else { (major, minor) };
    devices(major, minor).into_iter().map(|device| device.asking_for(kernel)).collect()
}

/// Which kernels a test is about.
type Pick = fn(&Shipped) -> bool;

/// Every kernel is in one of these.
const GROUPS: &[(&str, Pick)] = &[
    ("forward, CUDA cores", |k| k.operation == Operation::Forward && !k.on_tensor_cores),
    ("forward, Ampere, up to 64", |k| is_on(k, 8) && k.head_dim <= 64),
    ("forward, Ampere, longer rows", |k| is_on(k, 8) && k.head_dim > 64),
    ("forward, Hopper, up to 64", |k| is_on(k, 9) && k.head_dim <= 64),
    ("forward, Hopper, longer rows", |k| is_on(k, 9) && k.head_dim > 64),
    ("forward, Blackwell, up to 64", |k| is_on(k, 10) && k.head_dim <= 64),
    ("forward, Blackwell, longer rows", |k| is_on(k, 10) && k.head_dim > 64),
    ("backward of queries", |k| {
        k.operation == Operation::BackwardQuery && !has_backward_groups(k) && !has_longest_rows(k)
    }),
    ("backward of keys", |k| {
        k.operation == Operation::BackwardKey && !has_backward_groups(k) && !has_longest_rows(k)
    }),
    ("backward, longest rows", |k| {
        matches!(k.operation, Operation::BackwardQuery | Operation::BackwardKey) && has_longest_rows(k)
    }),
    ("backward, Ampere, up to 64", |k| is_backward_on(k, 8) && k.head_dim <= 64),
    ("backward, Ampere, longer rows", |k| is_backward_on(k, 8) && k.head_dim > 64),
    ("backward, Blackwell, up to 64", |k| is_backward_on(k, 10) && k.head_dim <= 64),
    ("backward, Blackwell, longer rows", |k| is_backward_on(k, 10) && k.head_dim > 64),
    ("rows", |k| {
        use Operation::{AddRows, CopyRows, Delta, Merge, MergeBackward, SumPartials};
        matches!(k.operation, Delta | SumPartials | Merge | MergeBackward | CopyRows | AddRows)
    }),
];

fn is_on(kernel: &Shipped, major: u32) -> bool {
    kernel.operation == Operation::Forward && kernel.on_tensor_cores && kernel.capability.major == major
}

/// Rows that CUDA cores alone take.
fn has_longest_rows(kernel: &Shipped) -> bool {
    kernel.head_dim > 256
}

fn is_backward_on(kernel: &Shipped, major: u32) -> bool {
    kernel.on_tensor_cores && kernel.capability.major == major && kernel.operation != Operation::Forward
}

/// Of which each pass is in groups by the length of rows.
fn has_backward_groups(kernel: &Shipped) -> bool {
    is_backward_on(kernel, 8) || is_backward_on(kernel, 10)
}

/// What a kernel went through.
struct Trial {
    passed: usize,
    unsupported: usize,
    launches: u64,
}

/// Every suite on one kernel, on problems whose rows are its own.
fn try_kernel(kernel: &Shipped, number: usize) -> Trial {
    let mut subjects = devices_of(kernel);
    // A suite of one check would always run on the first.
    let first = number % subjects.len();
    subjects.rotate_left(first);
    let mut trial = Trial { passed: 0, unsupported: 0, launches: 0 };
    for suite in all::<OnDevice<Device>>(&Scope::kernel(kernel, number)) {
        let tally = hold(&suite, &subjects);
        tally.expect_no_failure();
        for (check, reasons) in &tally.unsupported {
            assert!(kernels::is_against(reasons, kernel), "{check}: nothing of {}:\n{reasons}", kernel.entry);
        }
        trial.passed += tally.passed;
        trial.unsupported += tally.unsupported.len();
    }
    for subject in &subjects {
        trial.launches += subject.device().take_launches().get(kernel.entry).map_or(0, |(count, _)| *count);
    }
    trial
}

fn try_group(name: &str) {
    let (_, pick) = GROUPS.iter().find(|(group, _)| *group == name).expect("a group");
    let mut missed = Vec::new();
    println!("{:<44} passed  unsupported  launches", "kernel");
    for (number, kernel) in shipped().iter().enumerate().filter(|(_, kernel)| pick(kernel)) {
        let Trial { passed, unsupported, launches } = try_kernel(kernel, number);
        println!("{:<44} {passed:>6}  {unsupported:>11}  {launches:>8}", kernel.entry);
        if passed == 0 || launches == 0 {
            missed.push(kernel.entry);
        }
    }
    assert!(missed.is_empty(), "no suite loaded {missed:?}");
}

macro_rules! by_name {
    ($($test:ident: $group:literal;)*) => {
        mod by_name {$(
            #[test]
            fn $test() {
                super::try_group($group);
            }
        )*}

        /// The groups that have a test.
        const TRIED: &[&str] = &[$($group),*];
    };
}

by_name! {
    forward_simt: "forward, CUDA cores";
    forward_sm80_short: "forward, Ampere, up to 64";
    forward_sm80_long: "forward, Ampere, longer rows";
    forward_sm90_short: "forward, Hopper, up to 64";
    forward_sm90_long: "forward, Hopper, longer rows";
    forward_sm100_short: "forward, Blackwell, up to 64";
    forward_sm100_long: "forward, Blackwell, longer rows";
    backward_query: "backward of queries";
    backward_key: "backward of keys";
    backward_longest: "backward, longest rows";
    backward_sm80_short: "backward, Ampere, up to 64";
    backward_sm80_long: "backward, Ampere, longer rows";
    backward_sm100_short: "backward, Blackwell, up to 64";
    backward_sm100_long: "backward, Blackwell, longer rows";
    rows: "rows";
}

/// A kernel that ships is in exactly one group, and every group is tried: what a group's test does not load fails there.
#[test]
fn every_kernel_is_tried_by_name() {
    let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
    for kernel in shipped() {
        let of: Vec<&str> = GROUPS.iter().filter(|(_, pick)| pick(kernel)).map(|(name, _)| *name).collect();
        assert_eq!(of.len(), 1, "{}: {of:?}", kernel.entry);
        *groups.entry(of[0]).or_default() += 1;
    }
    assert_eq!(groups.len(), GROUPS.len(), "empty groups: {groups:?}");
    assert!(GROUPS.iter().all(|(name, _)| TRIED.contains(name)));
    assert_eq!(groups.values().sum::<usize>(), shipped().len());
}

/// Where a sample of checks is enough, the kernels of a family together make every check of what differs between kernels.
#[test]
fn a_sample_leaves_nothing_out() {
    let mut families: BTreeMap<String, [BTreeSet<String>; 2]> = BTreeMap::new();
    for (number, kernel) in shipped().iter().enumerate() {
        let family = format!("{:?} {} {}", kernel.operation, kernel.on_tensor_cores, kernel.capability);
        let [sampled, whole] = families.entry(family).or_default();
        let scope = Scope::kernel(kernel, number);
        sampled.extend(names_of_every(&scope));
        whole.extend(names_of_every(&scope.more(1)));
    }
    let missing =
        families.iter().map(|(family, [sampled, whole])| (family, whole.difference(sampled).collect()));
    let missing: Vec<(_, Vec<_>)> = missing.filter(|(_, checks): &(_, Vec<_>)| !checks.is_empty()).collect();
    assert!(missing.is_empty(), "checks that no kernel's sample has: {missing:?}");
}

/// Checks that each kernel of a family has, without their element types.
fn names_of_every(scope: &Scope) -> BTreeSet<String> {
    let checks = all::<OnDevice<Device>>(scope).into_iter().flat_map(|suite| suite.checks);
    let is_type = |word: &&str| ["f32", "f16", "bf16"].contains(word);
    let name = |name: String| name.split(' ').filter(|word| !is_type(word)).collect::<Vec<_>>().join(" ");
    const EVERY: [&str; 7] = [
        "oracle paths",
        "oracle negative",
        "oracle everything",
        "oracle lines",
        "oracle odd heads",
        "vast",
        "merging",
    ];
    checks
        .map(|check| name(check.name))
        .filter(|name| EVERY.iter().any(|list| name.starts_with(list)))
        .collect()
}

/// Kernels whose ctas stay and take tiles in turn are tried with several ctas, and with more tiles than these have turns: what
/// every one of them is given by name makes more ctas than any device here has multiprocessors, where there are enough.
#[test]
fn ctas_that_stay_take_turns() {
    let most = STATES.iter().map(|&(_, multiprocessors)| multiprocessors).max().expect("some");
    assert!(STATES.iter().all(|&(_, multiprocessors)| multiprocessors > 1));
    for (number, kernel) in shipped().iter().enumerate().filter(|(_, kernel)| kernel.on_tensor_cores) {
        let ComputeCapability { major, minor } = kernel.capability;
        let device = Watched::new(Emulated::new(major, minor)).of_multiprocessors(1 << 20);
        let subject = OnDevice::guarded("emulated", device).asking_for(kernel);
        subject.device().pretend(true);
        let scope = Scope::kernel(kernel, number);
        let ctas = scope
            .every(&list::paths(true))
            .into_iter()
            .map(|given| in_type!(given.element_type, E => take_ctas::<E>(&subject, kernel, &given.spec)));
        let (several, all): (Vec<u32>, Vec<u32>) =
            (ctas.collect::<Vec<_>>().into_iter()).partition(|&ctas| ctas > most);
        assert!(!several.is_empty(), "{}: {several:?} and {all:?} tiles", kernel.entry);
    }
}

/// The ctas that a kernel has in a pass over a problem, which is not run.
fn take_ctas<E: Element>(subject: &OnDevice<Device>, kernel: &Shipped, spec: &Spec) -> u32 {
    let (problem, case) = (spec.problem(E::TYPE), spec.draw(1));
    let inputs = case.rounded::<E>();
    // A problem that the kernel cannot serve has none.
    let _ = if kernel.operation == Operation::Forward {
        subject.attend(&problem, &inputs).map(|_| ())
    } else {
        let out = Tensor::<E>::zeros(&problem.out_shape()).expect("small");
        let lse = Tensor::<f32>::zeros(&problem.lse_shape()).expect("small");
        let saved = Saved { out: &out, lse: &lse, d_out: &out, d_lse: None };
        subject.differentiate(&problem, &inputs, &saved).map(|_| ())
    };
    subject.device().take_launches().get(kernel.entry).map_or(0, |(_, config)| config.grid[0])
}

/// A view that begins at an aligned place does so on the device.
#[test]
fn aligned_problems_reach_aligned_kernels() {
    let subject = &devices(9, 0)[0];
    let case = Spec::na(&[12], &[5]).dims(64, 64).draw(1);
    let inputs = case.rounded::<f32>();
    subject.attend(&case.spec.problem(natten::ElementType::F32), &inputs).expect("taken");
    let ran: Vec<_> = subject.device().take_launches().into_keys().collect();
    assert_eq!(ran, ["natten_forward_simt_f32_d64"]);
}
