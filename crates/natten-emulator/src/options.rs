//! What a launch is told: its shape and arguments, and how hard the emulator looks for mistakes.

/// The shape and arguments of one kernel launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// CTAs along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a CTA along x, y, z; at most 1024 in all.
    pub block: [u32; 3],
    /// CTAs of a cluster along x, y, z. Only clusters of one CTA run today.
    pub cluster: [u32; 3],
    /// Dynamic shared memory in bytes, on top of what the kernel declares.
    pub shared_bytes: u32,
    /// The kernel arguments, one byte string per `.param`, little endian.
    pub args: Vec<Vec<u8>>,
}

impl Launch {
    /// A launch of `grid` CTAs of `block` threads with no arguments and no dynamic shared memory.
    pub fn new(grid: [u32; 3], block: [u32; 3]) -> Self {
        Self { grid, block, cluster: [1; 3], shared_bytes: 0, args: Vec::new() }
    }

    /// Appends one argument given as its little-endian bytes.
    pub fn arg(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.args.push(bytes.as_ref().to_vec());
        self
    }

    /// Sets the dynamic shared memory in bytes.
    pub fn shared(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }
}

/// When an asynchronous operation takes effect. The hardware promises no order between issue and
/// wait, so a kernel has to be right under all three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Completion {
    /// At once, when it is issued.
    Earliest,
    /// As late as any wait allows, the last issued first.
    #[default]
    Latest,
    /// At points and in an order drawn from the seed.
    Random,
}

/// How a launch is run and what is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Seeds warp order, time slices and [`Completion::Random`]; the same seed gives the same run of each CTA.
    pub seed: u64,
    /// When asynchronous operations take effect.
    pub completion: Completion,
    /// Report accesses that no synchronisation orders.
    pub check_races: bool,
    /// Report reads of memory that nobody wrote, and of registers.
    pub check_initialised: bool,
    /// Run CTAs on the threads of the current rayon pool.
    pub parallel: bool,
    /// Note in the counters which instructions ran.
    pub record_coverage: bool,
    /// Warp instructions of one CTA beyond which a kernel counts as running away.
    pub most_instructions: u64,
}

impl Default for Options {
    /// Every check on, the latest completion, CTAs in parallel, more instructions than any test kernel runs.
    fn default() -> Self {
        Self {
            seed: 0,
            completion: Completion::Latest,
            check_races: true,
            check_initialised: true,
            parallel: true,
            record_coverage: false,
            most_instructions: 2_000_000_000,
        }
    }
}
