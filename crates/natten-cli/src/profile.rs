//! `natten profile`: times a problem on a backend, beside the machine's limits measured in the same run.

mod cpu;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod gpu;
mod operands;
mod report;
mod sample;
mod timing;

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use natten::cpu::Isa;
#[cfg(feature = "cuda")]
use natten::cuda::{Device, driver::Driver, measure::Peak};
use natten::{ElementType, Problem};
#[cfg(feature = "emulator")]
use natten_emulator::{Emulated, Options};

use crate::error::CliError;
use crate::output;
use crate::plan::BACKWARD_FACTOR;
use crate::problem_args::{DtypeName, ProblemArgs, describe};
use report::Way;
use timing::Budget;

/// Queries and keys whose results are held to the reference.
const SAMPLES: usize = 16;

/// Time a problem, and say how far from the machine's limit it runs.
///
/// Prints the median of repeated runs after a warm-up, useful FLOP/s (on visible pairs alone), issued FLOP/s (the
/// planner's count of what vectors or tiles compute), and their share of what arithmetic alone reaches, measured right
/// before and after: multiply-adds on a CPU, products of matrices on a GPU's tensor cores. A sample of the results is
/// held to the f64 reference.
///
/// Example: natten profile -i 64 64 -w 13 -d 64 -n 8 --backprop
#[derive(Args)]
pub struct ProfileArgs {
    #[command(flatten)]
    problem: ProblemArgs,
    /// Element type [default: fp32 on the CPU, fp16 on a GPU].
    #[arg(long, ignore_case = true, value_enum)]
    dtype: Option<DtypeName>,
    /// What computes; auto takes the best there is.
    #[arg(long, ignore_case = true, value_enum, default_value_t = ProfileBackend::Auto)]
    backend: ProfileBackend,
    /// Which GPU to use.
    #[cfg(feature = "cuda")]
    #[arg(long, default_value_t = 0, value_name = "ORDINAL")]
    gpu: usize,
    /// Compute capability to emulate.
    #[cfg(feature = "emulator")]
    #[arg(long, hide = true, default_value = "8.0", value_parser = crate::compute::capability)]
    capability: (u32, u32),
    /// Instructions to use on the CPU [default: the best there are].
    #[arg(long)]
    isa: Option<Isa>,
    /// Threads to use on the CPU [default: one for each core].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=natten::cpu::MAX_THREADS as i64))]
    threads: Option<u16>,
    /// Time the backward pass too.
    #[arg(long)]
    backprop: bool,
    /// Also time this on the same tensors.
    #[arg(long, ignore_case = true, value_enum)]
    compare: Option<Comparison>,
    /// Most runs before the timed ones.
    #[arg(long, default_value_t = 10)]
    warmup_steps: usize,
    /// Most timed runs.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Time for warm-up and for timed runs, each; slow problems run less often.
    #[arg(long, default_value_t = 2.0, value_parser = seconds, value_name = "SECONDS")]
    budget: f64,
    /// Time the candidates first, and take the fastest: on a GPU kernels and their best tiles, on the CPU instruction
    /// sets.
    #[arg(long)]
    optimize: bool,
    /// List the candidates and stop.
    #[arg(long)]
    dry_run: bool,
    /// Most candidates to list or time; 0 means all.
    #[arg(long, default_value_t = 10)]
    max_configs: usize,
    /// Print JSON, one object a pass.
    #[arg(long)]
    json: bool,
}

/// Backends that can be timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProfileBackend {
    /// A GPU if there is one with kernels for the element type, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda,
    /// GPU kernels, interpreted: times mean nothing, all else does. For tests.
    #[cfg(feature = "emulator")]
    #[value(hide = true)]
    Emulator,
}

/// What to run beside the problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Comparison {
    /// Full attention over the same tokens.
    Dense,
}

fn seconds(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && (0.0..=3600.0).contains(value));
    value.ok_or_else(|| "seconds between 0 and 3600 are needed".to_owned())
}

/// What is asked for.
struct Job<'a> {
    args: &'a ProfileArgs,
    problem: &'a Problem,
}

impl Job<'_> {
    fn budget(&self) -> Budget {
        let ProfileArgs { warmup_steps, repeats, budget, .. } = *self.args;
        Budget { warmup: warmup_steps, runs: repeats as usize, seconds: budget }
    }

    fn most_candidates(&self) -> usize {
        if self.args.max_configs == 0 { usize::MAX } else { self.args.max_configs }
    }

    /// Operations of full attention over the same tokens.
    fn dense_flops(&self) -> f64 {
        let problem = self.problem;
        let tokens = problem.query_tokens() as f64;
        let pairs = tokens * tokens * (problem.batch() * problem.heads()) as f64;
        pairs * 2.0 * (problem.head_dim() + problem.head_dim_v()) as f64
    }
}

/// Where to run.
enum Place {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(Driver),
    #[cfg(feature = "emulator")]
    Emulator(Emulated),
}

impl Place {
    fn new(args: &ProfileArgs) -> Result<Self, CliError> {
        let takes_cpu_flags = matches!(args.backend, ProfileBackend::Auto | ProfileBackend::Cpu);
        if !takes_cpu_flags && (args.isa.is_some() || args.threads.is_some()) {
            return Err(CliError::CpuFlags);
        }
        match args.backend {
            ProfileBackend::Cpu => Ok(Place::Cpu),
            ProfileBackend::Auto => Ok(Self::best(args)),
            #[cfg(feature = "cuda")]
            ProfileBackend::Cuda => Ok(Place::Cuda(Driver::new(args.gpu)?)),
            #[cfg(feature = "emulator")]
            ProfileBackend::Emulator => {
                let (major, minor) = args.capability;
                let device = Emulated::new(major, minor);
                // Kernels are checked by tests of their own; here only what is around them is tried.
                device.set_options(Options {
                    check_races: false,
                    check_initialised: false,
                    ..Options::default()
                });
                Ok(Place::Emulator(device))
            }
        }
    }

    #[cfg(feature = "cuda")]
    fn best(args: &ProfileArgs) -> Self {
        let element_type = args.dtype.unwrap_or(DtypeName::Fp16).element_type();
        let wants_cpu = args.isa.is_some() || args.threads.is_some();
        match Driver::new(args.gpu) {
            Ok(driver)
                if !wants_cpu && Peak::of(element_type, driver.properties().compute_capability).is_some() =>
            {
                Place::Cuda(driver)
            }
            _ => Place::Cpu,
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn best(_: &ProfileArgs) -> Self {
        Place::Cpu
    }

    fn default_dtype(&self) -> DtypeName {
        if matches!(self, Place::Cpu) { DtypeName::Fp32 } else { DtypeName::Fp16 }
    }
}

/// Runs the verb.
pub fn run(args: &ProfileArgs) -> Result<ExitCode, CliError> {
    // A problem that breaks a rule is told before a device is looked for.
    let default = args.dtype.unwrap_or(DtypeName::Fp16).element_type();
    args.problem.problem(default)?;
    let place = Place::new(args)?;
    let element_type = args.dtype.unwrap_or(place.default_dtype()).element_type();
    let problem = args.problem.problem(element_type)?;
    let job = Job { args, problem: &problem };
    let is_right = match element_type {
        ElementType::F16 => job.run::<natten::f16>(place),
        ElementType::Bf16 => job.run::<natten::bf16>(place),
        ElementType::F64 => job.run::<f64>(place),
        _ => job.run::<f32>(place),
    }?;
    Ok(if is_right { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

impl Job<'_> {
    /// Lists or times; false if a result was wrong.
    fn run<E: natten::Element>(&self, place: Place) -> Result<bool, CliError> {
        if self.args.dry_run {
            let (backend, ways) = match place {
                Place::Cpu => ("cpu", cpu::ways(self)?),
                #[cfg(feature = "cuda")]
                Place::Cuda(driver) => ("cuda", gpu::ways::<E, _>(self, driver)?),
                #[cfg(feature = "emulator")]
                Place::Emulator(device) => ("emulator", gpu::ways::<E, _>(self, device)?),
            };
            return self.list(backend, &ways).map(|()| true);
        }
        match place {
            Place::Cpu => cpu::run::<E>(self),
            #[cfg(feature = "cuda")]
            Place::Cuda(driver) => gpu::run::<E, _>(self, "cuda", driver),
            #[cfg(feature = "emulator")]
            Place::Emulator(device) => gpu::run::<E, _>(self, "emulator", device),
        }
    }

    fn list(&self, backend: &str, ways: &[Way]) -> Result<(), CliError> {
        if self.args.json {
            return ways.iter().try_for_each(|way| output::emit_json(&way.json(backend, self.problem)));
        }
        let mut text = format!("problem  {}\n", describe(self.problem));
        ways.iter().for_each(|way| text += &format!("{}\n", way.text()));
        output::emit(&text)
    }
}
