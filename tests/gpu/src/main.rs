//! `natten-gpu-kit`: what `tests/gpu/run.sh` runs on a machine with a GPU. See README.md beside it.

mod bench;
mod calls;
mod driver;
mod load;
mod maps;
mod once;
mod out_of_core;
mod problems;
mod record;
mod suite;
#[path = "../truth/mod.rs"]
mod truth;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use driver::Gpu;
use natten_core::ElementType;
use natten_cuda::driver::Driver;
use natten_cuda::{ComputeCapability, Device};
use natten_emulator::Emulated;
use serde_json::{Value, json};

const TYPES: [ElementType; 3] = [ElementType::F32, ElementType::F16, ElementType::Bf16];

const USAGE: &str = "\
usage: natten-gpu-kit COMMAND [ARGUMENT...]

  device                     the GPU and its driver
  load OUT [FOLDER...]       every kernel that ships, and every *.ptx below the folders: loads? how long? registers?
                             (OUT/load.json)
  suite OUT GOLDEN [OPTION=VALUE...]
                             every backend's suites against the f64 reference, as each architecture the GPU can pass for,
                             and each kernel by name (OUT/suite.json); options: filter=TEXT every=N threads=N seconds=N capabilities=9.0,8.0
                             emulator=1 (on the emulator: no GPU needed) sample=1 (what there is no time for is no failure)
  bench OUT [OPTION=VALUE...]
                             times problems.json (OUT/bench.json); options: filter=TEXT,TEXT seconds=N matmul=TFLOPS
                             capabilities=9.0,8.0 types=bf16,f16 head_dims=64,128 passes=forward ways=N (of each
                             forward the N ways that the tuner ranks first, in turns, with their boxes)
  once PROBLEM [OPTION=VALUE...]
                             runs a problem of problems.json once, for a profiler; options: head_dim=N type=bf16
                             capability=9.0 backward=1
  out-of-core OUT PROBLEM    times a bf16 problem from host memory and back, beside the same in memory and the bus
                             (OUT/out_of_core.json); options: head_dim=N shares=4,8 (buffers of a 4th, an 8th of all)
  truth OUT                  records what the hardware does (OUT/truth.bin, OUT/truth.json)
  truth-merge OLD NEW INTO   one record of two: NEW's outputs, OLD's where NEW has none (no GPU needed)
  truth-ptx FOLDER           writes the truth kernels' PTX, for an assembler (no GPU needed)

Exit codes: 0 done, 1 something failed, 2 no GPU or wrong arguments.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, rest)) = args.split_first() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let (options, places): (Vec<&String>, Vec<&String>) = rest.iter().partition(|arg| arg.contains('='));
    let options = Options(options.iter().filter_map(|option| option.split_once('=')).collect());
    let places: Vec<PathBuf> = places.iter().map(PathBuf::from).collect();
    let known = match command.as_str() {
        "device" => places.is_empty(),
        "load" => !places.is_empty(),
        "suite" | "truth-child" | "out-of-core" => places.len() == 2,
        "bench" | "once" | "truth" | "truth-ptx" => places.len() == 1,
        "truth-merge" => places.len() == 3,
        _ => false,
    };
    if !known {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    if command == "truth-ptx" {
        return finish(write_truth_ptx(&places[0]).map(|()| true));
    }
    if command == "truth-merge" {
        let merged = record::merge(&places[0], &places[1]);
        return finish(merged.and_then(|file| std::fs::write(&places[2], file)).map(|()| true));
    }
    if command == "suite" && options.get("emulator").is_some() {
        return finish(suite_on(&Emulated::new(9, 0), "emulated", &places, &options));
    }
    let gpu = match Gpu::open() {
        Ok(gpu) => gpu,
        Err(absent) => {
            eprintln!("{}", absent.0);
            return ExitCode::from(2);
        }
    };
    finish(run(&gpu, command, &places, &options))
}

/// `name=value` arguments.
struct Options<'a>(Vec<(&'a str, &'a str)>);

impl Options<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.get(name).and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    /// Several values with commas between; nothing if one of them is none.
    fn list<T>(&self, name: &str, one: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
        self.get(name).and_then(|list| list.split(',').map(one).collect())
    }

    /// Capabilities as `9.0,8.0`.
    fn capabilities(&self, name: &str) -> Option<Vec<ComputeCapability>> {
        self.list(name, |text| {
            let (major, minor) = text.split_once('.')?;
            Some(ComputeCapability { major: major.parse().ok()?, minor: minor.parse().ok()? })
        })
    }
}

fn finish(outcome: std::io::Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all went well.
fn run(gpu: &Gpu, command: &str, places: &[PathBuf], options: &Options) -> std::io::Result<bool> {
    let failed = |error: &dyn std::fmt::Display| std::io::Error::other(error.to_string());
    let driver = || Driver::new(0).map_err(|error| failed(&error));
    match command {
        "device" => {
            println!("{:#}", describe(gpu));
            Ok(true)
        }
        "load" => {
            let report = load::run(gpu, &places[1..]);
            write(&places[0], "load.json", &report)?;
            Ok(report["refused"] == 0 && report["loaded"] != 0)
        }
        "suite" => suite_on(&driver()?, "suite", places, options),
        "bench" => {
            let filters =
                options.get("filter").unwrap_or_default().split(',').filter(|text| !text.is_empty());
            let request = bench::Request {
                filters: filters.map(str::to_owned).collect(),
                seconds: options.number("seconds", 500),
                matmul_tflops: options.get("matmul").and_then(|rate| rate.parse().ok()),
                capabilities: options.capabilities("capabilities"),
                types: options.list("types", |name| TYPES.into_iter().find(|ty| ty.name() == name)),
                head_dims: options.list("head_dims", |text| text.parse().ok()),
                forward_only: options.get("passes") == Some("forward"),
                ways: options.number("ways", 1) as usize,
            };
            let mut report = bench::run(gpu, &driver()?, &request).map_err(|failure| failed(&failure))?;
            report["device"] = describe(gpu);
            write(&places[0], "bench.json", &report)?;
            Ok(true)
        }
        "once" => {
            let type_name = options.get("type").unwrap_or("bf16");
            let element_type = TYPES.into_iter().find(|ty| ty.name() == type_name);
            let own = natten_cuda::Device::properties(&driver()?).compute_capability;
            let target = once::Target {
                problem: places[0].to_string_lossy().into_owned(),
                head_dim: options.number("head_dim", 64) as usize,
                capability: options.capabilities("capability").map_or(own, |list| list[0]),
                element_type: element_type.ok_or_else(|| failed(&format!("no type {type_name}")))?,
                backward: options.get("backward").is_some(),
            };
            let launches = once::once(gpu, &driver()?, &target).map_err(|failure| failed(&failure))?;
            println!("{:?}", launches.keys().collect::<Vec<_>>());
            Ok(true)
        }
        "out-of-core" => {
            let (problem, head_dim) = (places[1].to_string_lossy(), options.number("head_dim", 64) as usize);
            let shares = options.list("shares", |text| text.parse().ok()).unwrap_or_else(|| vec![4, 8]);
            let report = out_of_core::run(&driver()?, &problem, head_dim, &shares);
            write(&places[0], "out_of_core.json", &report.map_err(std::io::Error::other)?)?;
            Ok(true)
        }
        "truth-child" => {
            let first = places[1].to_string_lossy().parse().unwrap_or(usize::MAX);
            record::run_child(gpu, &places[0], first)?;
            Ok(true)
        }
        _ => {
            std::fs::create_dir_all(&places[0])?;
            let mut report = record::run(gpu, &places[0])?;
            report["sweep"] = record::sweep(gpu).unwrap_or_else(|failure| json!(failure.text));
            report["device"] = describe(gpu);
            write(&places[0], "truth.json", &report)?;
            Ok(report["failed"] == 0)
        }
    }
}

/// Runs the suite as each architecture asked for, or as those whose families differ.
fn suite_on<D: Device>(
    device: &D,
    name: &str,
    places: &[PathBuf],
    options: &Options,
) -> std::io::Result<bool> {
    let own = device.properties().compute_capability;
    let older = [(8, 0), (5, 0)].map(|(major, minor)| ComputeCapability { major, minor });
    let all = [own].into_iter().chain(older.into_iter().filter(|&older| older < own)).collect();
    let request = suite::Request {
        golden: places[1].clone(),
        filter: options.get("filter").unwrap_or_default().to_owned(),
        every: options.number("every", 1) as usize,
        threads: options.number("threads", std::thread::available_parallelism().map_or(1, |n| n.get()) as u64)
            as usize,
        seconds: options.number("seconds", 240),
    };
    let report = suite::run(device, &options.capabilities("capabilities").unwrap_or(all), &request);
    write(&places[0], &format!("{name}.json"), &report)?;
    let is_sample = options.get("sample").is_some();
    let passed = |run: &Value| run["failed"] == 0 && (is_sample || run["not_run"] == 0);
    Ok(report.as_array().is_some_and(|runs| runs.iter().all(passed)))
}

fn describe(gpu: &Gpu) -> Value {
    let (major, minor) = gpu.compute_capability;
    json!({
        "name": gpu.name,
        "compute_capability": format!("{major}.{minor}"),
        "cuda_of_driver": gpu.cuda,
        "multiprocessors": gpu.multiprocessors,
        "l2_bytes": gpu.l2_bytes,
    })
}

fn write(folder: &Path, name: &str, report: &Value) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join(name), format!("{report:#}\n"))
}

fn write_truth_ptx(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for case in truth::all() {
        std::fs::write(folder.join(format!("{}.ptx", case.name)), case.ptx)?;
    }
    Ok(())
}
