//! Breaks kernels on purpose, by operator, and asks the suites. The work is a test of natten-emulator, which knows both; this
//! starts it with what it is asked for.

use std::path::Path;
use std::process::Command;

use crate::TaskError;

pub(crate) const USAGE: &str = "\
usage: cargo xtask mutate [OPTION..]

  --sample           what CI runs: a few edits of each family, and the rate that they must reach
  --family NAME,..   only families whose name contains one of these: simt-forward, sm80-forward, sm90-forward, sm100-forward,
                     simt-query, simt-key, sm80-backward, sm90-backward, sm100-backward, rows
  --kernel NAME      only kernels whose name contains this
  --edits N          edits of each family and seed (60)
  --kernels N        kernels of a family that they are spread over, drawn by the seed (6)
  --seed N,..        seeds (1,2,3)
  --problems N       so many times the problems that a kernel gets in a short run of the suites (4)
  --threads N        threads (all)
  --minutes N        begin no edit after so long
  --out FILE         write a line of JSON for each edit
  --again FILE       only the edits that were holes in the lines of an earlier run's --out
  --least PERCENT    fail where a family's rate is lower";

/// The test, and the variable that holds its options: see `tests/kernels/mutate` of natten-emulator.
const TEST: &str = "mutate::suites_notice_broken_kernels";
const VARIABLE: &str = "NATTEN_MUTATE";

/// One seed, so that the rate is always the same.
/// Blackwell's kernels are not among them: a check of theirs takes the emulator seconds, and no survivor has been given a reason yet.
const SAMPLE: &str = "--family simt,sm80,sm90,rows --seed 1 --edits 12 --kernels 1 --problems 1 --least 60";

/// The options as the test takes them; `None` where they are no options.
pub(crate) fn parse(args: impl Iterator<Item = String>) -> Option<String> {
    const VALUED: [&str; 11] = [
        "--family",
        "--kernel",
        "--edits",
        "--kernels",
        "--seed",
        "--problems",
        "--threads",
        "--minutes",
        "--out",
        "--least",
        "--again",
    ];
    let mut args = args;
    let mut line = String::new();
    while let Some(arg) = args.next() {
        if arg == "--sample" {
            line.push_str(SAMPLE);
        } else if VALUED.contains(&arg.as_str()) {
            let value = args.next()?;
            // A test runs in the folder of its crate.
            let value = if matches!(arg.as_str(), "--out" | "--again") { absolute(&value) } else { value };
            line.push_str(&format!("{arg} {value}"));
        } else {
            return None;
        }
        line.push(' ');
    }
    Some(line)
}

fn absolute(path: &str) -> String {
    std::path::absolute(path).map_or_else(|_| path.to_owned(), |path| path.display().to_string())
}

/// Builds and runs it; what it prints goes through.
pub(crate) fn run(root: &Path, options: &str) -> Result<(), TaskError> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command.current_dir(root).env(VARIABLE, options);
    command.args(["test", "--quiet", "--package", "natten-emulator", "--test", "kernels", "--"]);
    command.args(["--ignored", "--exact", TEST, "--nocapture"]);
    let status = command.status().map_err(|source| TaskError::File { path: "cargo".into(), source })?;
    if status.success() { Ok(()) } else { Err(TaskError::Mutate) }
}
