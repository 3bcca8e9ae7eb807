//! What ends a run early: each message is one sentence and names what was given.

use std::io;
use std::path::PathBuf;

/// A failure that the user can do something about. The program exits with 2.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The arguments do not parse; the text is clap's, cut to its first paragraph.
    #[error("{0}")]
    Usage(String),
    /// The operator refused the problem or failed.
    #[error(transparent)]
    Natten(#[from] natten::Error),
    /// The problem breaks a rule.
    #[error(transparent)]
    Problem(#[from] natten::ProblemError),
    /// The CPU backend refused its settings.
    #[error(transparent)]
    Cpu(#[from] natten::cpu::CpuError),
    /// Standard output is gone.
    #[error("cannot write to standard output: {0}")]
    Stdout(#[source] io::Error),
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Where to.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl CliError {
    /// Whether the reader of our output went away, as `| head` does: no failure of ours.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, CliError::Stdout(source) if source.kind() == io::ErrorKind::BrokenPipe)
    }
}
