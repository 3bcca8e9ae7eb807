//! `natten-gpu-kit`: what `tests/gpu/run.sh` runs on a machine with a GPU. See README.md beside it.

mod driver;
mod load;
mod maps;
mod record;
#[path = "../truth/mod.rs"]
mod truth;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use driver::Gpu;
use serde_json::{Value, json};

const USAGE: &str = "\
usage: natten-gpu-kit COMMAND [ARGUMENT...]

  device                     the GPU and its driver
  load OUT FOLDER...         every *.ptx below the folders: loads? how long? registers? (OUT/load.json)
  truth OUT                  records what the hardware does (OUT/truth.bin, OUT/truth.json)
  truth-ptx FOLDER           writes the truth kernels' PTX, for an assembler (no GPU needed)

Exit codes: 0 done, 1 something failed, 2 no GPU or wrong arguments.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, rest)) = args.split_first() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if command == "truth-ptx" && rest.len() == 1 {
        return finish(write_truth_ptx(Path::new(&rest[0])).map(|()| true));
    }
    let known = match command.as_str() {
        "device" => rest.is_empty(),
        "load" => rest.len() >= 2,
        "truth" => rest.len() == 1,
        "truth-child" => rest.len() == 2,
        _ => false,
    };
    if !known {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    let gpu = match Gpu::open() {
        Ok(gpu) => gpu,
        Err(absent) => {
            eprintln!("{}", absent.0);
            return ExitCode::from(2);
        }
    };
    finish(run(&gpu, command, rest))
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
fn run(gpu: &Gpu, command: &str, rest: &[String]) -> std::io::Result<bool> {
    let out = rest.first().map_or(PathBuf::new(), PathBuf::from);
    match command {
        "device" => {
            println!("{:#}", describe(gpu));
            Ok(true)
        }
        "load" => {
            let folders: Vec<PathBuf> = rest[1..].iter().map(PathBuf::from).collect();
            let report = load::run(gpu, &folders);
            write(&out, "load.json", &report)?;
            Ok(report["refused"] == 0 && report["loaded"] != 0)
        }
        "truth-child" => {
            let first = rest[1].parse().unwrap_or(usize::MAX);
            record::run_child(gpu, &out, first)?;
            Ok(true)
        }
        _ => {
            let mut report = record::run(gpu, &out)?;
            report["sweep"] = record::sweep(gpu).unwrap_or_else(|failure| json!(failure.text));
            report["device"] = describe(gpu);
            write(&out, "truth.json", &report)?;
            Ok(report["failed"] == 0)
        }
    }
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
