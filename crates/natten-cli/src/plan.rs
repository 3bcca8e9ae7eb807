//! `natten plan`: the simulator. Counts tiles exactly and predicts what a problem costs, without running it.

mod expected;
mod suggest;
mod tiles;

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use natten::{ElementType, Problem};
use serde_json::{Value, json};

use crate::device::{Arch, DeviceName, Limits};
use crate::error::CliError;
use crate::output::{self, Rows, Significant, Tone, plain};
use crate::problem_args::{DtypeName, ProblemArgs, describe};
use crate::region_args::RegionArgs;

use expected::{ExpectedBackward, Foreseen};
pub use tiles::{Plan, TileChoice};

/// A backward does so many times the arithmetic of a forward: five products of matrices to two.
pub const BACKWARD_FACTOR: f64 = 2.5;

/// Predict what a problem costs, without running it.
///
/// Counts exactly, for boxes of queries and keys worked on together (tiles): how many key tiles a query tile visits,
/// how many of them need no mask, and how much arithmetic is done beyond what was asked for. From these and the
/// makers' stated limits follow predicted times; no kernel reaches the limits, so read them as ratios. Beside them
/// stands the kernel that a forward would run, and the time that its cost model expects.
///
/// Example: natten plan -i 30 48 80 -w 18 24 24 -s 16 8 8 -d 128 -n 24
#[derive(Args)]
pub struct PlanArgs {
    #[command(flatten)]
    problem: ProblemArgs,
    #[command(flatten)]
    regions: RegionArgs,
    /// Element type.
    #[arg(long, ignore_case = true, value_enum, default_value_t = DtypeName::Fp16)]
    dtype: DtypeName,
    /// Count the backward pass too.
    #[arg(long)]
    backprop: bool,
    /// Architecture, which decides how many queries and keys a tile has.
    #[arg(long, ignore_case = true, value_enum, default_value_t = Arch::Sm90)]
    arch: Arch,
    #[command(flatten)]
    tiles: TileFlags,
    /// Devices to predict times for [default: all GPUs]; `cpu` measures the arithmetic of this machine.
    #[arg(long, ignore_case = true, value_enum, value_delimiter = ',', value_name = "DEVICE")]
    on: Vec<DeviceName>,
    /// Sweep strides and dilations near these and show which are perfectly block-sparse.
    #[arg(long)]
    suggest: bool,
    /// Most tilings or suggestions to list; 0 means all.
    #[arg(long, default_value_t = 10)]
    max_configs: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Tiles that are fixed rather than chosen.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Tiles")]
pub struct TileFlags {
    /// Box of queries worked on together [default: the best].
    #[arg(long, num_args = 1..=3, value_name = "TOKENS")]
    pub q_tile: Vec<usize>,
    /// Box of keys visited at once [default: the best].
    #[arg(long, num_args = 1..=3, value_name = "TOKENS")]
    pub kv_tile: Vec<usize>,
    /// Where the first key tile of a query tile begins [default: the better].
    #[arg(long, ignore_case = true, value_enum)]
    pub kv_start: Option<StartName>,
}

/// Where key tiles begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StartName {
    /// At multiples of the tile.
    Aligned,
    /// At the first key that the query tile sees.
    Dynamic,
}

/// Runs the verb.
pub fn run(args: &PlanArgs) -> Result<ExitCode, CliError> {
    let element_type = args.dtype.element_type();
    let problem = args.regions.problem(&args.problem, &args.problem.axes()?, element_type)?;
    let choice = TileChoice::new(&args.tiles, problem.rank(), args.arch.tile_tokens())?;
    let plans = choice.ranked(&problem);
    let Some(chosen) = plans.first() else { return Err(CliError::Tile { flag: "q-tile" }) };
    let best =
        choice.is_fixed().then(|| choice.freed().ranked(&problem)).and_then(|plans| plans.first().copied());
    let work = Work::of(&problem, args.backprop);
    let backward = if args.backprop { ExpectedBackward::of(&problem, args.arch.device()) } else { None };
    let devices: Vec<Foreseen> = devices(&args.on, element_type)?
        .into_iter()
        .map(|limits| Foreseen::on(limits, &problem, args.backprop))
        .collect();
    let suggestions = match args.suggest {
        true => suggest::suggestions((&args.problem, &args.regions), element_type, &choice)?,
        false => Vec::new(),
    };
    let most = if args.max_configs == 0 { usize::MAX } else { args.max_configs };
    let shown = &suggestions[..suggestions.len().min(most)];
    if args.json {
        let mut report = chosen.to_json(&problem);
        report["problem"] = args.problem.to_json(&problem);
        report["arch"] = json!(args.arch.name());
        report["flops"] = work.to_json(chosen, backward.as_ref());
        if args.backprop {
            report["backward"] = backward.map_or(Value::Null, |backward| backward.to_json());
        }
        report["predicted"] =
            devices.iter().map(|device| work.predicted_json(problem.rank(), chosen, device)).collect();
        report["candidates"] = plans.iter().take(most).map(|plan| plan.to_json(&problem)).collect();
        report["best"] = best.map_or(Value::Null, |best| best.to_json(&problem));
        if args.suggest {
            report["suggestions"] = shown.iter().map(suggest::Suggestion::to_json).collect();
        }
        output::emit_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = work.text(&problem);
    text += &tile_table(&problem, &plans[..plans.len().min(most)], args.arch);
    if let Some(best) = &best {
        text += &format!(
            "free to choose, the best boxes are {} / {} {}: issued/useful {:.2}\n",
            best.box_text(best.tiling.query_tile),
            best.box_text(best.tiling.key_tile),
            best.start_name(),
            best.counts.issued_over_useful()
        );
    }
    text += &time_table(&work, chosen, &devices);
    text += &expected::backward_table(&devices);
    if args.suggest {
        text += &suggest::table(shown);
    }
    output::emit(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The limits of the devices asked for.
fn devices(names: &[DeviceName], element_type: ElementType) -> Result<Vec<Limits>, CliError> {
    let names = if names.is_empty() { &DeviceName::GPUS[..] } else { names };
    let limits = |&name: &DeviceName| match name {
        DeviceName::Cpu => Some(Limits {
            device: name,
            name: "this CPU",
            flops: crate::machine::peak_flops(element_type),
            // Its memory is not measured: what fits the caches is not bounded by it.
            bandwidth_bytes: f64::INFINITY,
        }),
        name => Limits::stated(name, element_type),
    };
    let found: Vec<Limits> = names.iter().filter_map(limits).collect();
    if found.is_empty() { Err(CliError::NoLimits { element_type }) } else { Ok(found) }
}

/// Operations and bytes of a problem, whatever its tiles.
struct Work {
    /// Forward passes that the passes asked for amount to: 1, or 3.5 with the backward.
    passes: f64,
    dense_flops: f64,
    useful_flops: f64,
    /// Those of the forward.
    forward_flops: f64,
    /// Each tensor read or written once.
    memory_bytes: f64,
}

impl Work {
    fn of(problem: &Problem, has_backward: bool) -> Self {
        let passes = if has_backward { 1.0 + BACKWARD_FACTOR } else { 1.0 };
        let keys = problem.key_tokens() + problem.additional_keys();
        let batch = problem.batch() as f64;
        let pairs = problem.query_tokens() as f64 * keys as f64 * batch * problem.heads() as f64;
        let width = (problem.head_dim() + problem.head_dim_v()) as f64;
        let size = problem.element_type().size_bytes() as f64;
        let queries = batch * (problem.query_tokens() * problem.heads()) as f64;
        let keys = batch * (keys * problem.heads_kv()) as f64;
        // Forward: query and out, key and value, lse. The backward reads these and d_out, and writes gradients.
        let forward = (queries + keys) * width * size + queries * 4.0;
        let d_out = queries * problem.head_dim_v() as f64 * size;
        let gradients = (queries * problem.head_dim() as f64 + keys * width) * size;
        let backward = if has_backward { forward + d_out + gradients } else { 0.0 };
        Work {
            passes,
            dense_flops: passes * pairs * 2.0 * width,
            useful_flops: passes * problem.useful_flops(),
            forward_flops: problem.useful_flops(),
            memory_bytes: forward + backward,
        }
    }

    /// On the plan's tiles; a backward on those of its own kernels, where there are any to ask.
    fn issued_flops(&self, plan: &Plan, backward: Option<&ExpectedBackward>) -> f64 {
        let ratio = plan.counts.issued_over_useful();
        let of_backward = backward.map_or(ratio, |backward| backward.issued_over_useful);
        self.forward_flops * ratio + (self.useful_flops - self.forward_flops) * of_backward
    }

    fn text(&self, problem: &Problem) -> String {
        let Work { dense_flops, useful_flops, .. } = *self;
        let pass = if self.passes > 1.0 { "forward and backward" } else { "forward" };
        format!(
            "problem  {}\nwork     {pass}: {} dense, {} useful; {:.2} times fewer, {:.1} % sparse\nmemory   {} at least\n",
            describe(problem),
            output::with_prefix(dense_flops, "FLOP"),
            output::with_prefix(useful_flops, "FLOP"),
            dense_flops / useful_flops,
            100.0 * (1.0 - useful_flops / dense_flops),
            output::with_prefix(self.memory_bytes, "B"),
        )
    }

    fn to_json(&self, plan: &Plan, backward: Option<&ExpectedBackward>) -> Value {
        json!({
            "dense": self.dense_flops,
            "useful": self.useful_flops,
            "issued": self.issued_flops(plan, backward),
            "sparsity": 1.0 - self.useful_flops / self.dense_flops,
            "memory_bytes": self.memory_bytes,
        })
    }

    /// Seconds of the plan and of dense attention, and what bounds the plan.
    fn predict(&self, plan: &Plan, device: &Foreseen) -> (f64, f64, &'static str) {
        let (limits, issued) = (&device.limits, self.issued_flops(plan, device.backward.as_ref()));
        (
            limits.seconds(issued, self.memory_bytes),
            limits.seconds(self.dense_flops, self.memory_bytes),
            limits.bound(issued, self.memory_bytes),
        )
    }

    fn predicted_json(&self, rank: usize, plan: &Plan, device: &Foreseen) -> Value {
        let (seconds, dense_seconds, bound) = self.predict(plan, device);
        let mut line = json!({
            "device": device.limits.name,
            "seconds": seconds,
            "dense_seconds": dense_seconds,
            "speedup": dense_seconds / seconds,
            "bound": bound,
            "expected_forward": device.forward.map(|forward| forward.to_json(rank)),
        });
        if self.passes > 1.0 {
            line["expected_backward"] = json!(device.backward.as_ref().map(ExpectedBackward::to_json));
        }
        line
    }
}

fn tile_table(problem: &Problem, plans: &[Plan], arch: Arch) -> String {
    let mut table = Rows::new(&[
        "q tile",
        "kv tile",
        "kv start",
        "kv tiles, mean",
        "worst",
        "full",
        "issued/useful",
        "speed-up",
        "worst tile's",
        "kv loaded",
    ]);
    for plan in plans {
        let counts = &plan.counts;
        let ratio = counts.issued_over_useful();
        table.push([
            plain(plan.box_text(plan.tiling.query_tile)),
            plain(plan.box_text(plan.tiling.key_tile)),
            plain(plan.start_name()),
            plain(format!("{:.1}", counts.mean())),
            plain(counts.worst.to_string()),
            plain(format!("{:.0} %", 100.0 * counts.full_share())),
            (format!("{ratio:.2}"), tone(ratio)),
            plain(format!("{:.2}", counts.speedup())),
            plain(format!("{:.2}", plan.worst_speedup(problem))),
            plain(output::with_prefix(plan.loaded_bytes(problem), "B")),
        ]);
    }
    format!(
        "\ntiles on {}, best first; speed-ups over dense attention are predicted\n{}",
        arch.name(),
        table.render()
    )
}

/// Green for perfect block sparsity, yellow where more is wasted than used.
fn tone(issued_over_useful: f64) -> Tone {
    match issued_over_useful {
        ratio if ratio < 1.005 => Tone::Good,
        ratio if ratio > 2.0 => Tone::Warn,
        _ => Tone::Plain,
    }
}

fn time_table(work: &Work, plan: &Plan, devices: &[Foreseen]) -> String {
    let header =
        ["device", "dense", "the first tiling", "speed-up", "bound by", "expected forward", "its kernel"];
    let mut table = Rows::new(&header);
    for device in devices {
        let (seconds, dense_seconds, bound) = work.predict(plan, device);
        let expected = device.forward;
        let expected_seconds = expected.and_then(|expected| expected.seconds);
        table.push([
            plain(device.limits.name),
            plain(output::duration(dense_seconds)),
            plain(output::duration(seconds)),
            plain(format!("{:.3}", Significant(dense_seconds / seconds))),
            plain(bound),
            plain(expected_seconds.map_or("-".to_owned(), output::duration)),
            plain(expected.map_or("-", |expected| expected.kernel)),
        ]);
    }
    format!(
        "\ntimes at the limits stated by the makers, predicted; and the forward that the kernels' cost models expect\n{}",
        table.render()
    )
}
