//! The pinned toolchain: wheels unpacked under `.kernels-env/`, which git ignores.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::TaskError;

/// A pip requirement, each in a folder of its own since several would install over each other.
struct Wheel {
    folder: &'static str,
    requirement: &'static str,
}

const NVRTC: Wheel = Wheel { folder: "nvrtc-12.9", requirement: "nvidia-cuda-nvrtc-cu12==12.9.86" };
const DISASSEMBLER: Wheel = Wheel { folder: "nvdisasm-13.5", requirement: "nvidia-cuda-nvdisasm==13.5.37" };
const ASSEMBLERS: [(&str, Wheel); 3] = [
    ("11.8", Wheel { folder: "ptxas-11.8", requirement: "nvidia-cuda-nvcc-cu11==11.8.89" }),
    ("12.9", Wheel { folder: "ptxas-12.9", requirement: "nvidia-cuda-nvcc-cu12==12.9.86" }),
    ("13.0", Wheel { folder: "ptxas-13.0", requirement: "nvidia-cuda-nvcc==13.0.88" }),
];

/// The folder that holds `libnvrtc.so.12` and its builtins.
pub(crate) fn nvrtc(root: &Path) -> Result<PathBuf, TaskError> {
    let folder = install(root, &NVRTC)?;
    expect("NVRTC", folder.join("nvidia/cuda_nvrtc/lib"))
}

/// The disassembler.
pub(crate) fn nvdisasm(root: &Path) -> Result<PathBuf, TaskError> {
    let folder = install(root, &DISASSEMBLER)?;
    expect("nvdisasm", folder.join("nvidia/cu13/bin/nvdisasm"))
}

/// The assembler of a CUDA release.
pub(crate) fn ptxas(root: &Path, release: &str) -> Result<PathBuf, TaskError> {
    let (_, wheel) =
        ASSEMBLERS.iter().find(|(name, _)| *name == release).expect("the matrix names pinned releases only");
    let folder = install(root, wheel)?;
    let old = folder.join("nvidia/cuda_nvcc/bin/ptxas");
    if old.exists() { Ok(old) } else { expect("ptxas", folder.join("nvidia/cu13/bin/ptxas")) }
}

fn expect(what: &'static str, path: PathBuf) -> Result<PathBuf, TaskError> {
    if path.exists() { Ok(path) } else { Err(TaskError::Wheel { what, path }) }
}

/// Installs a wheel unless its folder is complete; returns the folder.
fn install(root: &Path, wheel: &Wheel) -> Result<PathBuf, TaskError> {
    let env = root.join(".kernels-env");
    let folder = env.join(wheel.folder);
    let done = folder.join(".complete");
    if done.exists() {
        return Ok(folder);
    }
    let python = env.join("venv/bin/python");
    if !python.exists() {
        call(Command::new("python3").args(["-m", "venv"]).arg(env.join("venv")))?;
    }
    eprintln!("installing {}", wheel.requirement);
    call(
        Command::new(python)
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"])
            .arg(&folder)
            .arg(wheel.requirement),
    )?;
    std::fs::write(&done, wheel.requirement).map_err(|source| TaskError::File { path: done, source })?;
    Ok(folder)
}

/// Runs a command to its end; its output is an error's text if it fails.
pub(crate) fn call(command: &mut Command) -> Result<String, TaskError> {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .map_err(|source| TaskError::File { path: PathBuf::from(command.get_program()), source })?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(text) } else { Err(TaskError::Command { command: shown, output: text }) }
}
