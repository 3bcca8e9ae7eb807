//! The suites of natten-tests on a device, real or emulated: as each architecture it can pass for, and each kernel by name.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use natten_cuda::{ComputeCapability, Device};
use natten_tests::kernels::{Shipped, shipped};
use natten_tests::suites::{Check, Outcome, Scope, all};
use natten_tests::{OnDevice, Watched};
use serde_json::{Value, json};

/// What to run.
pub struct Request {
    /// Golden files.
    pub golden: PathBuf,
    /// Only checks whose name contains this.
    pub filter: String,
    /// Only every so many of them.
    pub every: usize,
    /// Threads that prepare and check.
    pub threads: usize,
    /// Seconds after which no new check starts.
    pub seconds: u64,
}

/// A check with the subject that it is for.
struct Job<D: Device> {
    name: String,
    check: Check<OnDevice<Watched<D>>>,
    subject: usize,
}

/// Runs the suites on a device posing for each capability; reports one object each.
pub fn run<D: Device>(device: &D, capabilities: &[ComputeCapability], request: &Request) -> Value {
    // The messages of failed checks are kept; nobody needs them twice.
    std::panic::set_hook(Box::new(|_| {}));
    let start = Instant::now();
    let reports: Vec<Value> =
        capabilities.iter().map(|&capability| run_as(device, capability, request, start)).collect();
    let _ = std::panic::take_hook();
    json!(reports)
}

fn run_as<D: Device>(device: &D, capability: ComputeCapability, request: &Request, start: Instant) -> Value {
    let named: Vec<(usize, &Shipped)> =
        shipped().iter().enumerate().filter(|(_, kernel)| kernel.capability == capability).collect();
    let subject = |name: &str| OnDevice::new(name, Watched::posing(device.clone(), capability));
    let mut subjects = vec![subject(&format!("cuda {capability}"))];
    subjects.extend(named.iter().map(|(_, kernel)| subject("cuda").asking_for(kernel)));
    let jobs = jobs(&named, request);
    let (next, dead) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failures = Mutex::new(Vec::new());
    let counts = [const { AtomicUsize::new(0) }; 3];
    std::thread::scope(|scope| {
        for _ in 0..request.threads.max(1) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if dead.load(Ordering::Relaxed) || start.elapsed().as_secs() >= request.seconds {
                        return;
                    }
                    let subject = &subjects[job.subject];
                    let (kind, message) = match job.check.run(subject) {
                        Outcome::Passed => (0, None),
                        Outcome::Failed(message) => (1, Some(message)),
                        Outcome::Unsupported(_) => (2, None),
                    };
                    counts[kind].fetch_add(1, Ordering::Relaxed);
                    if let Some(message) = message {
                        // A fault on the device breaks the context: what follows would only repeat it.
                        if subject.device().synchronize().is_err() {
                            dead.store(true, Ordering::Relaxed);
                        }
                        let failure =
                            json!({ "check": job.name, "what": job.check.what, "message": message });
                        failures.lock().unwrap_or_else(|e| e.into_inner()).push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(|e| e.into_inner());
    let [passed, failed, unsupported] = counts.map(|count| count.into_inner());
    tell_failures(capability, &failures);
    let launches: Vec<BTreeMap<&str, u64>> = subjects.iter().map(launches).collect();
    let not_run = jobs.len() - passed - failed - unsupported;
    // Each by its name, where all of them were to run.
    let is_whole = request.filter.is_empty() && request.every <= 1 && not_run == 0;
    let loaded = |&(i, (_, kernel)): &(usize, &(usize, &Shipped))| launches[i + 1].contains_key(kernel.entry);
    let missed: Vec<&str> = named
        .iter()
        .enumerate()
        .filter(|one| is_whole && !loaded(one))
        .map(|(_, (_, kernel))| kernel.entry)
        .collect();
    let mut kernels: Vec<&str> = launches.iter().flat_map(|one| one.keys().copied()).collect();
    kernels.sort_unstable();
    kernels.dedup();
    let is_dead = dead.into_inner();
    println!(
        "as {capability}: {passed} passed, {failed} failed, {unsupported} unsupported, {not_run} not run, of {}; {} kernels ran; {:.0} s{}",
        jobs.len(),
        kernels.len(),
        start.elapsed().as_secs_f64(),
        if is_dead { "; THE DEVICE FAULTED" } else { "" }
    );
    if !missed.is_empty() {
        println!("  NOT LOADED by any check of their own: {missed:?}");
    }
    json!({
        "capability": capability.to_string(), "checks": jobs.len(), "passed": passed, "failed": failed + missed.len(),
        "unsupported": unsupported, "not_run": not_run, "faulted": is_dead, "kernels": kernels, "failures": failures,
        "not_loaded": missed,
    })
}

fn jobs<D: Device>(named: &[(usize, &Shipped)], request: &Request) -> Vec<Job<D>> {
    let mut jobs = Vec::new();
    let mut add = |scope: &Scope, subject: usize, prefix: &str| {
        for check in all(scope).into_iter().flat_map(|suite| suite.checks) {
            jobs.push(Job { name: format!("{prefix}{}", check.name), check, subject });
        }
    };
    add(&Scope::gpu().golden_in(&request.golden), 0, "");
    for (i, (number, kernel)) in named.iter().enumerate() {
        add(&Scope::kernel(kernel, *number).wide(), i + 1, &format!("by name {} ", kernel.entry));
    }
    jobs.into_iter().filter(|job| job.name.contains(&request.filter)).step_by(request.every.max(1)).collect()
}

fn launches<D: Device>(subject: &OnDevice<Watched<D>>) -> BTreeMap<&'static str, u64> {
    subject.device().take_launches().into_iter().map(|(entry, (count, _))| (entry, count)).collect()
}

fn tell_failures(capability: ComputeCapability, failures: &[Value]) {
    for failure in failures.iter().take(12) {
        let text = |key: &str| failure[key].as_str().unwrap_or_default().to_owned();
        let short: String = text("message").chars().take(300).collect();
        println!("FAILED as {capability}: {}: {short}\n  {}", text("check"), text("what"));
    }
}
