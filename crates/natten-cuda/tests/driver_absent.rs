//! Machines without a usable driver get an error value. The loader reads its path at start, so each case is this test
//! binary run again in another environment, against a stub driver compiled on the spot.
#![cfg(all(feature = "driver", target_os = "linux"))]

use std::path::{Path, PathBuf};
use std::process::Command;

use natten_cuda::driver::Driver;

/// Set in the runs that only report what opening the driver gives.
const REPORT: &str = "NATTEN_TEST_REPORT_DRIVER";

#[test]
fn report() {
    if std::env::var_os(REPORT).is_some() {
        match Driver::new(0) {
            Ok(_) => println!("REPORT opened"),
            Err(error) => println!("REPORT {error}"),
        }
    }
}

/// What opening the driver gives with `folder` first on the loader's path.
fn opening_with(folder: &Path) -> String {
    let program = std::env::current_exe().expect("a test has a path");
    let mut command = Command::new(program);
    command.args(["--exact", "report", "--nocapture"]).env(REPORT, "1").env("LD_LIBRARY_PATH", folder);
    let output = command.output().expect("the test binary runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "opening the driver panicked:\n{text}\n{output:?}");
    let report = text.lines().find_map(|line| line.split_once("REPORT ")).expect("the child reports");
    report.1.to_owned()
}

/// Compiles the stub into a folder of its own; `None`, loudly, without a C compiler.
fn stub(name: &str, flags: &[&str]) -> Option<PathBuf> {
    let folder = std::env::temp_dir().join(format!("natten-stub-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the temporary folder is writable");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stub/libcuda.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-w", source, "-o"]).arg(folder.join("libcuda.so.1")).args(flags);
    match compiler.status() {
        Ok(status) => {
            assert!(status.success(), "the stub compiles");
            Some(folder)
        }
        Err(error) => {
            println!("SKIPPED: no C compiler to build the stub driver ({error})");
            None
        }
    }
}

#[test]
fn no_device_is_an_error() {
    let Some(folder) = stub("no-device", &[]) else { return };
    let report = opening_with(&folder);
    assert!(report.contains("CUDA error 100 (no device)"), "{report}");
    std::fs::remove_dir_all(folder).expect("the stub can be removed");
}

#[test]
fn a_broken_driver_is_an_error() {
    let Some(folder) = stub("broken", &["-DBROKEN"]) else { return };
    let report = opening_with(&folder);
    assert!(report.contains("the CUDA driver has no function cuCtxGetCurrent"), "{report}");
    std::fs::remove_dir_all(folder).expect("the stub can be removed");
}

#[test]
fn no_driver_is_an_error() {
    // Whether this machine has a driver or not, it must not panic.
    let report = opening_with(Path::new("/nonexistent"));
    assert!(!report.is_empty(), "{report}");
    if report != "opened" {
        println!("no driver here: {report}");
    }
}
