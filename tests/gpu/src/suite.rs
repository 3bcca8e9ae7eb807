//! The suite on a device: the problems of natten-tests in every element type against the f64 reference, its golden files,
//! operands anywhere in memory, merges, and sizes around the tiles of the tensor-core kernels.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use natten_core::{Element, ElementType, Output, Partials, Saved, Tensor, bf16, f16, reference};
use natten_cuda::registry::{Facts, Operation, kernels};
use natten_cuda::{ComputeCapability, Device, sm90};
use natten_tests::compare::largest;
use natten_tests::suites::list;
use natten_tests::suites::oracle::{Arrangements, Expected};
use natten_tests::{Arrangement, Rng, Spec, Subject, assert_close, golden};
use serde_json::{Value, json};

use crate::subject::OnDevice;
use crate::watched::Watched;

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

/// One check: its name and what it does on a subject.
struct Check<D: Device> {
    name: String,
    /// The problem, for the report of a failure.
    what: String,
    run: Body<D>,
}

type Body<D> = Box<dyn Fn(&OnDevice<D>) + Send + Sync>;

/// Runs the suite on a device posing for each capability; reports one object each.
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
    let watched = Watched::posing(device.clone(), capability);
    let subject = OnDevice::new(&format!("cuda {capability}"), watched.clone());
    let checks: Vec<Check<Watched<D>>> = checks(&request.golden)
        .into_iter()
        .filter(|check| check.name.contains(&request.filter))
        .step_by(request.every.max(1))
        .collect();
    let (next, dead) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failures = Mutex::new(Vec::new());
    let counts = [const { AtomicUsize::new(0) }; 3];
    std::thread::scope(|scope| {
        for _ in 0..request.threads.max(1) {
            scope.spawn(|| {
                while let Some(check) = checks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if dead.load(Ordering::Relaxed) || start.elapsed().as_secs() >= request.seconds {
                        return;
                    }
                    let outcome = catch_unwind(AssertUnwindSafe(|| (check.run)(&subject)));
                    let message = outcome.err().map(|payload| text(payload.as_ref()));
                    let kind = match &message {
                        None => 0,
                        Some(message) if message.starts_with("unsupported") => 2,
                        Some(_) => 1,
                    };
                    counts[kind].fetch_add(1, Ordering::Relaxed);
                    if let Some(message) = message.filter(|_| kind == 1) {
                        // A fault on the device breaks the context: what follows would only repeat it.
                        if watched.synchronize().is_err() {
                            dead.store(true, Ordering::Relaxed);
                        }
                        let mut failures = failures.lock().unwrap_or_else(|e| e.into_inner());
                        failures.push(json!({ "check": check.name, "what": check.what, "message": message }));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(|e| e.into_inner());
    let [passed, failed, unsupported] = counts.map(|count| count.into_inner());
    for failure in failures.iter().take(12) {
        let message = failure["message"].as_str().unwrap_or_default();
        let short: String = message.chars().take(300).collect();
        let text = |key: &str| failure[key].as_str().unwrap_or_default().to_owned();
        println!("FAILED as {capability}: {}: {short}\n  {}", text("check"), text("what"));
    }
    let kernels: Vec<&str> = watched.take_launches().into_keys().collect();
    let is_dead = dead.into_inner();
    let not_run = checks.len() - passed - failed - unsupported;
    println!(
        "as {capability}: {passed} passed, {failed} failed, {unsupported} unsupported, {not_run} not run, of {}; {} kernels ran; {:.0} s{}",
        checks.len(),
        kernels.len(),
        start.elapsed().as_secs_f64(),
        if is_dead { "; THE DEVICE FAULTED" } else { "" }
    );
    json!({
        "capability": capability.to_string(), "checks": checks.len(), "passed": passed, "failed": failed,
        "unsupported": unsupported, "not_run": not_run, "faulted": is_dead, "kernels": kernels, "failures": failures,
    })
}

fn text(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "panicked without words".to_owned())
}

fn checks<D: Device>(folder: &Path) -> Vec<Check<D>> {
    let mut checks = Vec::new();
    let lists = [
        ("windows", list::windows()),
        ("shapes", list::shapes()),
        ("attention", list::attention()),
        ("empty", list::empty()),
        ("drawn", list::random(4, 60)),
        ("tiles", tiles()),
    ];
    for (suite, specs) in &lists {
        for (i, spec) in specs.iter().enumerate() {
            let seed = 9000 + i as u64;
            checks.push(against_reference::<f32, D>(suite, i, spec, seed));
            checks.push(against_reference::<f16, D>(suite, i, spec, seed));
            checks.push(against_reference::<bf16, D>(suite, i, spec, seed));
        }
    }
    for (i, spec) in arranged().into_iter().enumerate() {
        for arrangement in Arrangement::ALL {
            let (case, name) = (spec.draw(70 + i as u64), format!("arranged {i} {arrangement:?}"));
            checks.push(Check {
                name,
                what: format!("{spec:?}"),
                run: Box::new(move |subject| {
                    let expected = Expected::<bf16>::of(&case);
                    expected.check_forward(subject, Arrangements::all(arrangement));
                    expected.check_backward(subject, Arrangements::all(arrangement));
                }),
            });
        }
    }
    for (count, seed) in [(2, 1), (3, 2), (12, 3)] {
        checks.push(Check {
            name: format!("merge {count}"),
            what: String::new(),
            run: Box::new(move |s| merge(s, count, seed)),
        });
    }
    checks.extend(every_kernel_on_tiles());
    checks.extend(golden_files(folder).into_iter().map(golden_check));
    checks
}

fn against_reference<E: Element, D: Device>(suite: &str, i: usize, spec: &Spec, seed: u64) -> Check<D> {
    let case = spec.draw(seed);
    Check {
        name: format!("{suite} {i} {}", E::TYPE),
        what: format!("{spec:?}"),
        run: Box::new(move |subject| {
            let expected = Expected::<E>::of(&case);
            expected.check_forward(subject, Arrangements::all(Arrangement::Contiguous));
            expected.check_backward(subject, Arrangements::all(Arrangement::Contiguous));
        }),
    }
}

/// Around the tiles of the tensor-core kernels: one token less, as many, one more, several boxes, ragged residues.
fn tiles() -> Vec<Spec> {
    let mut list = Vec::new();
    for (extent, window) in [(63, 32), (64, 64), (65, 33), (127, 64), (128, 17), (129, 128), (200, 100)] {
        for head_dim in [32, 64, 128] {
            list.push(Spec::na(&[extent], &[window]).dims(head_dim, head_dim).heads(2, 1));
        }
    }
    for (shape, window, stride) in [
        ([17, 31], [7, 9], [1, 1]),
        ([24, 24], [16, 16], [16, 16]),
        ([33, 20], [12, 13], [4, 8]),
        ([9, 40], [9, 11], [1, 5]),
    ] {
        for head_dim in [64, 128] {
            list.push(Spec::na(&shape, &window).stride(&stride).dims(head_dim, head_dim).heads(3, 3));
            list.push(
                Spec::na(&shape, &window).stride(&stride).dims(head_dim, head_dim).causal(&[false, true]),
            );
        }
    }
    list.extend([
        Spec::na(&[5, 12, 17], &[3, 7, 9]).dims(128, 128).heads(2, 2),
        Spec::na(&[6, 11, 13], &[3, 5, 5]).dims(64, 64).dilation(&[2, 2, 2]).heads(2, 1),
        Spec::na(&[8, 10, 10], &[8, 5, 7]).dims(64, 64).stride(&[4, 5, 2]).causal(&[true, false, false]),
        Spec::na(&[30, 30], &[9, 9]).dilation(&[3, 3]).dims(72, 40).heads(2, 2),
        Spec::na(&[70], &[30]).dims(96, 80).heads(4, 2).additional(70),
        Spec::na(&[12, 14], &[5, 6]).dims(256, 256),
        Spec::attention(130, 200, false).dims(64, 64).heads(2, 1),
        Spec::attention(200, 130, true).dims(128, 128).heads(2, 2),
        Spec::packed(&[70, 1, 64], &[65, 130, 64], true).dims(64, 64).heads(2, 1),
    ]);
    list
}

fn arranged() -> [Spec; 4] {
    [
        Spec::na(&[4, 5], &[3, 2]).heads(2, 1).dims(40, 40).batch(2).causal(&[true, false]),
        Spec::na(&[3, 4, 5], &[2, 3, 3]).heads(2, 2).dims(16, 24).batch(2).additional(2),
        Spec::na(&[14, 11], &[7, 5]).heads(4, 2).dims(64, 64).batch(2),
        Spec::na(&[5, 9, 10], &[3, 5, 5]).heads(2, 2).dims(128, 128).stride(&[1, 2, 2]),
    ]
}

/// Each forward kernel on tiles by its name, since selection would leave some to larger problems.
fn every_kernel_on_tiles<D: Device>() -> Vec<Check<D>> {
    let tiled = kernels().filter(|k| k.operation == Operation::Forward && k.tile().is_some());
    let tiled = tiled.map(|k| (k.entry, k.element_type(), k.longest_row()));
    let hopper = sm90::kernels().map(|k| (k.entry, k.element_type(), k.longest_row()));
    let mut checks = Vec::new();
    for (entry, ty, dim) in tiled.chain(hopper) {
        let specs = [
            Spec::na(&[150], &[71]).dims(dim, dim).heads(2, 1),
            Spec::na(&[18, 29], &[7, 10]).dims(dim, dim).stride(&[2, 3]).causal(&[false, true]).additional(5),
            Spec::na(&[6, 14, 17], &[3, 5, 9])
                .dims(dim - 8, dim - 8)
                .dilation(&[1, 2, 1])
                .heads(2, 2)
                .batch(2),
            // Residues that differ in length: one Hopper launch for each length, two and eight.
            Spec::na(&[200], &[40]).dims(dim, dim).dilation(&[3]).stride(&[7]).heads(2, 1).additional(9),
            Spec::na(&[7, 11, 22], &[2, 3, 5])
                .dims(dim, dim - 8)
                .dilation(&[2, 3, 4])
                .causal(&[false, true, false])
                .heads(2, 1)
                .batch(2),
        ];
        for (i, spec) in specs.into_iter().enumerate() {
            let case = spec.draw(300 + i as u64);
            let what = format!("{spec:?}");
            let run: Body<D> = Box::new(move |subject| {
                let order = if i == 4 { Arrangement::HeadsFirst } else { Arrangement::Contiguous };
                let (subject, at) = (subject.asking_for(entry), Arrangements::all(order));
                match ty {
                    ElementType::F16 => Expected::<f16>::of(&case).check_forward(&subject, at),
                    ElementType::Bf16 => Expected::<bf16>::of(&case).check_forward(&subject, at),
                    _ => Expected::<f32>::of(&case).check_forward(&subject, at),
                }
            });
            checks.push(Check { name: format!("by name {entry} {i}"), what, run });
        }
    }
    checks
}

/// Random partial results, merged: a few roundings of f32 against the reference.
fn merge<D: Device>(subject: &OnDevice<D>, count: usize, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut normal = |shape: &[usize], factor: f64| -> Tensor<f32> {
        Tensor::from_fn(shape, |_| factor * rng.normal()).map(|t: Tensor<f64>| t.cast()).expect("small")
    };
    let (shape, lse_shape) = ([2, 3, 4, 2, 16], [2, 3, 4, 2]);
    let outs: Vec<_> = (0..count).map(|_| normal(&shape, 1.0)).collect();
    let lses: Vec<_> = (0..count).map(|_| normal(&lse_shape, 3.0)).collect();
    let partials = Partials {
        outs: outs.iter().map(Tensor::view).collect(),
        lses: lses.iter().map(Tensor::view).collect(),
    };
    let expected = reference::merge(&partials);
    let mut out = Tensor::<f32>::zeros(&shape).expect("small");
    let mut lse = Tensor::<f32>::zeros(&lse_shape).expect("small");
    subject.merge(&partials, Output { out: out.view_mut(), lse: Some(lse.view_mut()) });
    assert_close("merged out", &out, &expected.out, 2e-6 * largest(&expected.out).max(1.0));
    assert_close("merged lse", &lse, &expected.lse, 2e-6 * largest(&expected.lse).max(1.0));
}

fn golden_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    files
}

/// As the golden suite on the CPU: f32 made by f32.
fn golden_check<D: Device>(path: PathBuf) -> Check<D> {
    let name = format!("golden {}", path.file_stem().unwrap_or_default().to_string_lossy());
    let run = move |subject: &OnDevice<D>| {
        let golden = golden::read(&path);
        let problem = golden.case.spec.problem(ElementType::F32);
        let inputs = golden.case.rounded::<f32>();
        let (out, lse) = subject.attend(&problem, &inputs);
        assert_close("out", &out, &golden.out, 2e-5);
        assert_close("lse", &lse, &golden.lse, 2e-5);
        let d_out: Tensor<f32> = golden.case.d_out.cast();
        let d_lse: Option<Tensor<f32>> = golden.case.d_lse.as_ref().map(Tensor::cast);
        let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: d_lse.as_ref() };
        let found = subject.differentiate(&problem, &inputs, &saved);
        let [d_q, d_k, d_v] = &golden.gradients;
        for (what, found, wanted) in
            [("d_q", &found.query, d_q), ("d_k", &found.key, d_k), ("d_v", &found.value, d_v)]
        {
            assert_close(what, found, wanted, 1e-4 * largest(wanted).max(1.0));
        }
        for (found, wanted) in
            found.additional.iter().flatten().zip(golden.additional_gradients.iter().flatten())
        {
            assert_close("additional gradient", found, wanted, 1e-4 * largest(wanted).max(1.0));
        }
    };
    Check { name, what: String::new(), run: Box::new(run) }
}
