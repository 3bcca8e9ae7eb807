//! The command line: verbs, and what all of them share.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::devices::DevicesArgs;
use crate::error::CliError;
use crate::plan::PlanArgs;
use crate::profile::ProfileArgs;
use crate::verify::VerifyArgs;
use crate::viz::VizArgs;

/// Neighborhood attention: plan it, time it, check it, look at it.
#[derive(Parser)]
#[command(name = "natten", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// Where no kernel serves a problem, list every one with what is against it.
    #[arg(long, global = true)]
    pub verbose: bool,
}

#[derive(Subcommand)]
enum Verb {
    Plan(PlanArgs),
    Profile(ProfileArgs),
    Verify(VerifyArgs),
    Viz(VizArgs),
    Devices(DevicesArgs),
    /// Print a completion script for a shell.
    ///
    /// For example `natten completions bash > ~/.local/share/bash-completion/completions/natten`.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Reads the arguments. Help and version end the program, with success if they could be printed.
pub fn parse() -> Result<Cli, CliError> {
    let error = match Cli::try_parse() {
        Ok(cli) => return Ok(cli),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // Flushed here: what fails while the program ends is told to nobody.
            error.print().and_then(|()| io::stdout().flush()).map_err(CliError::Stdout)?;
            std::process::exit(error.exit_code())
        }
        _ => Err(CliError::Usage(first_paragraph(&error.to_string()))),
    }
}

/// Clap's message without its usage and hints: one sentence, on one line.
fn first_paragraph(message: &str) -> String {
    let paragraph = message.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Cli {
    /// Runs the verb.
    pub fn run(self) -> Result<ExitCode, CliError> {
        match self.verb {
            Verb::Plan(args) => crate::plan::run(&args),
            Verb::Profile(args) => crate::profile::run(&args),
            Verb::Devices(args) => crate::devices::run(&args),
            Verb::Viz(args) => crate::viz::run(&args),
            Verb::Verify(args) => crate::verify::run(&args, self.verbose),
            Verb::Completions { shell } => completions(shell),
        }
    }
}

fn completions(shell: Shell) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "natten", &mut script);
    crate::output::emit(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn messages_fit_one_line() {
        let message = "error: the following were not provided:\n  <FILE>...\n\nUsage: natten";
        assert_eq!(first_paragraph(message), "the following were not provided: <FILE>...");
    }
}
