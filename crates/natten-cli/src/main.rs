//! The program `natten`: plan, profile, verify and picture neighborhood attention from the shell.
#![forbid(unsafe_code)]

mod cli;
mod compute;
mod device;
mod devices;
mod error;
mod files;
mod golden;
mod machine;
mod names;
mod output;
mod plan;
mod problem_args;
mod profile;
mod region_args;
mod verify;
mod viz;

use std::process::ExitCode;

fn main() -> ExitCode {
    let (is_verbose, done) = match cli::parse() {
        Ok(cli) => (cli.verbose, cli.run()),
        Err(error) => (false, Err(error)),
    };
    match done {
        Ok(code) => code,
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", names::escaped(&error.to_string()));
            if let Some(details) = error.details().filter(|_| is_verbose) {
                eprint!("{details}");
            }
            ExitCode::from(2)
        }
    }
}
