//! Machines without a usable driver get an error value, and with one each kernel is loaded once. The loader reads its path at
//! start, so each case is this test binary run again in another environment, against a stub driver compiled on the spot.
#![cfg(all(feature = "driver", target_os = "linux"))]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use natten_core::{Backend, ForwardCall, Inputs, Output, Params, Problem};
use natten_cuda::driver::Driver;
use natten_cuda::transfer::Transfer;
use natten_cuda::{Cuda, Device, DeviceError};

/// Set in the runs that do what a test of them asks for, which else do nothing.
const CHILD: &str = "NATTEN_TEST_OF_STUB_DRIVER";

#[test]
fn report() {
    if std::env::var_os(CHILD).is_some() {
        match Driver::new(0) {
            Ok(_) => println!("REPORT opened"),
            Err(error) => println!("REPORT {error}"),
        }
    }
}

/// What `test` of this binary prints with `folder` first on the loader's path.
fn run(test: &str, folder: &Path) -> String {
    let program = std::env::current_exe().expect("a test has a path");
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture"]).env(CHILD, "1").env("LD_LIBRARY_PATH", folder);
    let output = command.output().expect("the test binary runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{test} failed:\n{text}\n{output:?}");
    text
}

/// What opening the driver gives.
fn opening_with(folder: &Path) -> String {
    let text = run("report", folder);
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

/// A forward as an engine's adapter makes it: a driver for the call, and no tensor or driver of ours kept after it.
fn call() {
    let cuda = Cuda::new(Driver::new(0).expect("the stub has a device"));
    let tensor = || cuda.allocate::<f32>(&[1, 8, 1, 16]).expect("host memory");
    let (query, key, value, mut out) = (tensor(), tensor(), tensor(), tensor());
    let inputs = Inputs::new(query.view(), key.view(), value.view());
    let layouts = inputs.map(|view| *view.layout());
    let problem =
        Problem::new(&Params::new([3]).to_dyn(), &layouts, natten_core::ElementType::F32).expect("valid");
    let output = Output { out: out.view_mut(), lse: None };
    cuda.forward(ForwardCall::new(&problem, inputs, output).expect("valid"))
        .expect("the stub takes every launch");
}

#[test]
#[allow(unsafe_code)]
fn calls() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    (0..3).for_each(|_| call());
    println!("REPORT called");
    Driver::new(0).and_then(|driver| driver.unload()).expect("the stub never fails");
    println!("REPORT unloaded");
    (0..3).for_each(|_| call());
    println!("REPORT called");
    // SAFETY: the stub is loaded already, and the function is its own.
    unsafe {
        let stub = libloading::Library::new("libcuda.so.1").expect("the stub");
        stub.get::<unsafe extern "C" fn()>("stub_reset").expect("a function of the stub")();
    }
    println!("REPORT reset");
    (0..3).for_each(|_| call());
    println!("REPORT called");
}

/// Bytes by way of page-locked memory, on streams beside the call's.
#[test]
fn copies() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let driver = Driver::new(0).expect("the stub has a device");
    let [from, to] = [(); 2].map(|()| Arc::new(driver.allocate(64).expect("host memory")));
    let bytes: Vec<u8> = (0..64).collect();
    driver.write(&to, &bytes).expect("the stub never fails");
    let beside = driver.beside().expect("the stub has streams");
    let mut pinned = beside.pinned(40).expect("host memory");
    assert_eq!(pinned.as_ref(), [0; 40]);
    pinned.as_mut()[..4].copy_from_slice(&[91, 92, 93, 94]);
    let point = driver.point().expect("the stub has events");
    beside.follow(&point).and_then(|()| beside.await_point(&point)).expect("the stub never fails");
    let landed = beside.upload(pinned, 4, &from, 60).expect("within both").landed();
    beside.copy_on((&from, 61), (&to, 2), 3).expect("within both");
    let back =
        beside.download(&to, 1, 5, landed.expect("the stub never fails")).expect("within both").landed();
    assert_eq!(back.expect("the stub never fails").as_ref()[..5], [1, 92, 93, 94, 5]);
    // What would leave a memory is refused.
    let pinned = || beside.pinned(8).expect("host memory");
    let is_refused = |copy: Result<_, DeviceError>| matches!(copy, Err(DeviceError::Bounds { .. }));
    assert!(is_refused(beside.upload(pinned(), 8, &to, 57).map(drop)));
    assert!(is_refused(beside.upload(pinned(), 9, &to, 0).map(drop)));
    assert!(is_refused(beside.download(&to, usize::MAX, 2, pinned()).map(drop)));
    assert!(is_refused(beside.copy_on((&from, 0), (&to, 60), 5)));
    println!("REPORT copied");
}

#[test]
fn bytes_go_by_way_of_page_locked_memory() {
    let Some(folder) = stub("copies", &["-DDEVICE"]) else { return };
    let text = run("copies", &folder);
    assert!(text.contains("REPORT copied"), "{text}");
    std::fs::remove_dir_all(folder).expect("the stub can be removed");
}

/// A kernel stays loaded for the life of the process, until it is asked to go or its context does; what was loaded in a
/// context that is gone is not unloaded from the one that took its place.
#[test]
fn each_kernel_is_loaded_once() {
    let Some(folder) = stub("device", &["-DDEVICE"]) else { return };
    let text = run("calls", &folder);
    let events = text.lines().filter_map(|line| line.split_once("STUB ").or(line.split_once("REPORT ")));
    let events: Vec<&str> = events.map(|(_, what)| what).collect();
    let expected = ["loads", "called", "unloads", "unloaded", "loads", "called", "reset", "loads", "called"];
    assert_eq!(events, expected, "{text}");
    std::fs::remove_dir_all(folder).expect("the stub can be removed");
}
