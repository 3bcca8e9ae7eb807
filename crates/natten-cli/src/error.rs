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
    /// No GPU, or it failed.
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    #[error(transparent)]
    Device(#[from] natten::cuda::DeviceError),
    /// The CUDA backend failed, other than for want of a kernel.
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    #[error(transparent)]
    Cuda(natten::cuda::CudaError),
    /// No GPU kernel serves the problem.
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    #[error("no kernel of this GPU serves the problem: {} (--verbose lists all {})", .0.sentence(), .0.0.len())]
    NoKernel(natten::cuda::Rejections),
    /// More token axes than there are windows for.
    #[error(
        "{rank} token extents, a sequence has 1, an image 2 and video 3; what must not see each other goes to --batch-size"
    )]
    Rank {
        /// Extents given.
        rank: usize,
    },
    /// A list has neither one entry nor one for each axis.
    #[error("--{flag} has {found} entries for {axes} token axes")]
    AxisCount {
        /// The flag, without dashes.
        flag: &'static str,
        /// Entries given.
        found: usize,
        /// Token axes.
        axes: usize,
    },
    /// Settings of another backend.
    #[error("--isa and --threads are for the CPU, not for --backend cuda")]
    CpuFlags,
    /// Nothing to count or to time.
    #[error("--batch-size is 0, which leaves nothing to do")]
    EmptyBatch,
    /// A part of a whole in which nobody asks for anything.
    #[error("--queries names no token, which leaves nothing to do")]
    NoQueries,
    /// A page that shows what it cannot change.
    #[error("the page to play with shows whole axes: a picture of --queries and --keys is .svg or .png")]
    RegionPage,
    /// Counts of the problem would overflow.
    #[error("the problem has more than 2^56 pairs of a query and a key, which is beyond planning")]
    TooLarge,
    /// A tile with no tokens, or far too many.
    #[error("--{flag} must hold 1 to 65536 tokens")]
    Tile {
        /// The flag, without dashes.
        flag: &'static str,
    },
    /// No device's limits are known for the element type.
    #[error("no limits are known for {element_type} on the devices asked for")]
    NoLimits {
        /// The element type.
        element_type: natten::ElementType,
    },
    /// The tensors do not fit the machine.
    #[error("the problem needs {needed} for its tensors, {available} are available")]
    Memory {
        /// What the tensors take, with its unit.
        needed: String,
        /// What the system says is free, with its unit.
        available: String,
    },
    /// A query outside the tokens.
    #[error("axis {axis}: query {query} is outside the token extent {extent}")]
    QueryOutside {
        /// The token axis.
        axis: usize,
        /// Coordinate asked for.
        query: usize,
        /// Tokens along the axis.
        extent: usize,
    },
    /// A query that the part does not have.
    #[error("axis {axis}: query {query} is not among the queries {start}..{end}")]
    QueryNotHeld {
        /// The token axis.
        axis: usize,
        /// Coordinate asked for.
        query: usize,
        /// First query of the part.
        start: usize,
        /// Where they end.
        end: usize,
    },
    /// A picture that nobody could look at.
    #[error("axis {axis}: a picture shows up to {max} tokens, not {extent}")]
    PictureExtent {
        /// The token axis.
        axis: usize,
        /// Tokens along the axis.
        extent: usize,
        /// Most tokens drawn.
        max: usize,
    },
    /// A picture format that is not written.
    #[error("cannot tell what to write to {}: its name must end in .svg, .png or .html", path.display())]
    PictureFormat {
        /// The file asked for.
        path: PathBuf,
    },
    /// Encoding a picture failed.
    #[error("cannot encode the picture: {0}")]
    Encode(#[from] image::ImageError),
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

#[cfg(any(feature = "cuda", feature = "emulator"))]
impl From<natten::cuda::CudaError> for CliError {
    fn from(error: natten::cuda::CudaError) -> Self {
        match error {
            natten::cuda::CudaError::Unsupported(rejections) => CliError::NoKernel(rejections),
            error => CliError::Cuda(error),
        }
    }
}

impl CliError {
    /// What is behind the sentence, a line each, for whoever asks with `--verbose`.
    pub fn details(&self) -> Option<String> {
        match self {
            #[cfg(any(feature = "cuda", feature = "emulator"))]
            CliError::NoKernel(rejections) => Some(rejections.to_string()),
            _ => None,
        }
    }

    /// Whether the reader of our output went away, as `| head` does: no failure of ours.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, CliError::Stdout(source) if source.kind() == io::ErrorKind::BrokenPipe)
    }
}
