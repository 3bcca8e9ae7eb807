//! What a run is told, in a variable: a test's command line belongs to the test runner.

use std::path::PathBuf;

/// The variable, which holds options as a command line would.
pub const VARIABLE: &str = "NATTEN_MUTATE";

/// See `cargo xtask mutate --help`.
#[derive(Clone, Debug)]
pub struct Options {
    /// Families whose name contains one of these; all if there are none.
    pub families: Vec<String>,
    /// Kernels whose name contains this.
    pub kernel: String,
    /// Edits of each family and seed.
    pub edits: usize,
    /// Kernels that these are spread over.
    pub kernels: usize,
    pub seeds: Vec<u64>,
    /// So many times the problems of each list that a kernel gets in a short run of the suites.
    pub problems: usize,
    pub threads: usize,
    /// No edit is begun after so long.
    pub minutes: Option<f64>,
    /// Where a line for each edit goes.
    pub out: Option<PathBuf>,
    /// Golden files, if not in their place in the tree.
    pub golden: Option<PathBuf>,
    /// The rate in per cent that each family must reach.
    pub least: f64,
    /// Lines of an earlier run: what was a hole there is judged again, and nothing else.
    pub again: Option<PathBuf>,
}

impl Options {
    /// # Panics
    /// When the variable holds something else than options.
    pub fn from_environment() -> Self {
        let line = std::env::var(VARIABLE).unwrap_or_default();
        Self::parse(&line)
    }

    fn parse(line: &str) -> Self {
        let mut options = Options {
            families: Vec::new(),
            kernel: String::new(),
            edits: 60,
            kernels: 6,
            seeds: vec![1, 2, 3],
            problems: 4,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            minutes: None,
            out: None,
            golden: None,
            least: 0.0,
            again: None,
        };
        let mut words = line.split_whitespace();
        while let Some(name) = words.next() {
            let value = words.next().unwrap_or_else(|| panic!("{VARIABLE}: {name} without a value"));
            let number = || value.parse::<f64>().unwrap_or_else(|_| panic!("{VARIABLE}: {name} {value}"));
            match name {
                "--family" => options.families = value.split(',').map(str::to_owned).collect(),
                "--kernel" => options.kernel = value.to_owned(),
                "--edits" => options.edits = number() as usize,
                "--kernels" => options.kernels = number() as usize,
                "--seed" => {
                    let seeds = value.split(',').map(|seed| seed.parse().expect("a seed is a number"));
                    options.seeds = seeds.collect();
                }
                "--problems" => options.problems = number() as usize,
                "--threads" => options.threads = number() as usize,
                "--minutes" => options.minutes = Some(number()),
                "--out" => options.out = Some(value.into()),
                "--golden" => options.golden = Some(value.into()),
                "--least" => options.least = number(),
                "--again" => options.again = Some(value.into()),
                _ => panic!("{VARIABLE}: {name} is no option"),
            }
        }
        options
    }

    pub fn takes_family(&self, name: &str) -> bool {
        self.families.is_empty() || self.families.iter().any(|family| name.contains(family.as_str()))
    }

    pub fn takes_kernel(&self, entry: &str) -> bool {
        entry.contains(&self.kernel)
    }
}

/// A number drawn by two others.
pub fn mixed(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_mul(0xd1b5_4a32_d192_ed03);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
