//! Project tasks: `cargo xtask kernels` compiles kernels/ to the PTX that natten-kernels ships, `cargo xtask mutate` breaks
//! that on purpose and counts what the suites notice.
//!
//! NVRTC is called through libloading: its eight functions need no binding crate, and the pinned wheel's path is
//! known only here. A plain `cargo build` never runs any of this.

mod assemble;
mod compile;
mod facts;
mod matrix;
mod mutate;
mod nvrtc;
mod pack;
mod sass;
mod score;
mod table;
mod wheels;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask kernels [--check] [--score] [FILTER]

  (none)    compile kernels/ into crates/natten-kernels
  --check   compile, and compare with what is committed instead of writing
  --score   assemble the committed PTX with old and new ptxas; print registers, spills and the main loop's mix
  FILTER    only entries whose name contains it";

/// What can go wrong in a task.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("`{command}` failed:\n{output}")]
    Command { command: String, output: String },
    #[error("NVRTC: {0}")]
    Library(#[from] libloading::Error),
    #[error("NVRTC could not compile {entry}:\n{log}")]
    Compile { entry: String, log: String },
    #[error("the pinned wheel of {what} holds no {path}")]
    Wheel { what: &'static str, path: PathBuf },
    #[error("{count} committed files differ from a fresh compile; run `cargo xtask kernels`")]
    Stale { count: usize },
    #[error("{count} files spill registers, take too many instructions or do not assemble")]
    Score { count: usize },
    #[error("the suites notice too few broken kernels, or did not run")]
    Mutate,
    #[error("{entry}: the compiled text has not one entry with launch bounds and one parameter")]
    Facts { entry: String },
}

/// What the command line asks for.
#[derive(Default)]
struct Request {
    check: bool,
    score: bool,
    filter: String,
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let outcome = match args.next().as_deref() {
        Some("kernels") => parse(args).map(|request| run(&request)),
        Some("mutate") => mutate::parse(args).map(|options| mutate::run(&root(), &options)),
        _ => None,
    };
    let Some(outcome) = outcome else {
        eprintln!("{USAGE}\n\n{}", mutate::USAGE);
        return ExitCode::FAILURE;
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(args: impl Iterator<Item = String>) -> Option<Request> {
    let mut request = Request::default();
    for arg in args {
        match arg.as_str() {
            "--check" => request.check = true,
            "--score" => request.score = true,
            flag if flag.starts_with('-') => return None,
            filter => request.filter = filter.to_owned(),
        }
    }
    Some(request)
}

fn run(request: &Request) -> Result<(), TaskError> {
    let root = root();
    let entries: Vec<_> =
        matrix::entries().into_iter().filter(|entry| entry.name.contains(&request.filter)).collect();
    if request.check || !request.score {
        compile::run(&root, &entries, request.check)?;
    }
    if request.score {
        score::run(&root, &entries)?;
    }
    Ok(())
}

/// The workspace's root: this crate lives in `crates/xtask`.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("the crate lives two folders below the root").to_owned()
}
