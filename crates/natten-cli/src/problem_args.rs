//! The flags that describe a problem, the same for every verb and named as NATTEN's profiler names them.

use clap::{Args, ValueEnum};
use natten::{
    AxisParams, DynParams, ElementType, Inputs, KernelSize, KernelSizePolicy, Layout, Problem, Region,
};
use serde_json::{Value, json};

use crate::error::CliError;

/// Pairs of queries and keys that counts are kept of: far beyond any device, far below overflow.
const MAX_PAIRS: u128 = 1 << 56;

/// An element type by the names of the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DtypeName {
    #[value(alias = "float16", alias = "half", alias = "f16")]
    Fp16,
    #[value(alias = "bfloat16")]
    Bf16,
    #[value(alias = "float32", alias = "float", alias = "f32")]
    Fp32,
    #[value(alias = "float64", alias = "double", alias = "f64")]
    Fp64,
}

impl DtypeName {
    /// The library's name of it.
    pub fn element_type(self) -> ElementType {
        match self {
            DtypeName::Fp16 => ElementType::F16,
            DtypeName::Bf16 => ElementType::Bf16,
            DtypeName::Fp32 => ElementType::F32,
            DtypeName::Fp64 => ElementType::F64,
        }
    }
}

/// The problem. Lists have one entry for each token axis, or one for all.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Problem")]
pub struct ProblemArgs {
    /// Token extents: one for a sequence, two for an image, three for video.
    #[arg(short, long, required = true, num_args = 1.., value_name = "TOKENS")]
    pub input_size: Vec<usize>,
    /// Window in tokens [default: the whole axis].
    #[arg(short, long, num_args = 1.., value_name = "TOKENS")]
    pub window_size: Vec<usize>,
    /// Queries that share one window [default: 1].
    #[arg(short, long, num_args = 1.., value_name = "TOKENS")]
    pub stride: Vec<usize>,
    /// Step between the window's tokens [default: 1].
    #[arg(long, num_args = 1.., value_name = "TOKENS")]
    pub dilation: Vec<usize>,
    /// Hide later tokens; without a value on every axis, else true or false (or 1 and 0).
    #[arg(short, long, num_args = 0.., default_missing_value = "true", value_parser = truth, value_name = "BOOL")]
    pub causal: Vec<bool>,
    /// Batch items.
    #[arg(short, long, default_value_t = 1)]
    pub batch_size: usize,
    /// Heads of the query.
    #[arg(short = 'n', long, default_value_t = 1)]
    pub heads: usize,
    /// Heads of key and value, a divisor of --heads [default: as many].
    #[arg(long)]
    pub heads_kv: Option<usize>,
    /// Components of a query and a key.
    #[arg(short, long, default_value_t = 64)]
    pub dim: usize,
    /// Components of a value [default: as --dim].
    #[arg(long)]
    pub dim_value: Option<usize>,
    /// Keys that every query sees besides its window.
    #[arg(long, default_value_t = 0, value_name = "TOKENS")]
    pub add_kv: usize,
}

/// Python's spelling is taken too.
fn truth(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("true or false is needed".to_owned()),
    }
}

impl ProblemArgs {
    /// Number of token axes.
    pub fn rank(&self) -> usize {
        self.input_size.len()
    }

    /// One entry an axis.
    pub fn per_axis<T: Copy>(
        &self,
        flag: &'static str,
        values: &[T],
        default: &[T],
    ) -> Result<Vec<T>, CliError> {
        match values.len() {
            0 => Ok(default.to_vec()),
            1 => Ok(vec![values[0]; self.rank()]),
            found if found == self.rank() => Ok(values.to_vec()),
            found => Err(CliError::AxisCount { flag, found, axes: self.rank() }),
        }
    }

    /// The parameters of each axis.
    pub fn axes(&self) -> Result<Vec<AxisParams>, CliError> {
        let rank = self.rank();
        if rank > 3 {
            return Err(CliError::Rank { rank });
        }
        let dilation = self.per_axis("dilation", &self.dilation, &vec![1; rank])?;
        let stride = self.per_axis("stride", &self.stride, &vec![1; rank])?;
        let is_causal = self.per_axis("causal", &self.causal, &vec![false; rank])?;
        let window = match self.window_size.is_empty() {
            true => vec![KernelSize::Whole; rank],
            false => {
                let tokens = self.per_axis("window-size", &self.window_size, &[])?;
                tokens.into_iter().map(KernelSize::Tokens).collect()
            }
        };
        Ok((0..rank)
            .map(|i| AxisParams {
                kernel_size: window[i],
                stride: stride[i],
                dilation: dilation[i],
                is_causal: is_causal[i],
            })
            .collect())
    }

    /// The parameters of the call.
    pub fn params(&self) -> Result<DynParams, CliError> {
        Ok(DynParams::new(&self.axes()?, None, KernelSizePolicy::Exact))
    }

    /// The validated problem.
    pub fn problem(&self, element_type: ElementType) -> Result<Problem, CliError> {
        self.problem_of(&self.axes()?, &[], element_type)
    }

    /// The same tensors with other parameters; of each axis the region, if there are any.
    pub fn problem_of(
        &self,
        axes: &[AxisParams],
        regions: &[Region],
        element_type: ElementType,
    ) -> Result<Problem, CliError> {
        self.check_size()?;
        // As many as the whole has at most: that a region leaves it is said of the region.
        let held = |tokens: fn(&Region) -> std::ops::Range<usize>| -> Vec<usize> {
            let of_region = |(axis, &extent): (usize, &usize)| {
                regions.get(axis).map_or(extent, |region| tokens(region).len().min(extent))
            };
            self.input_size.iter().enumerate().map(of_region).collect()
        };
        let (queries, keys) = (held(Region::query_range), held(Region::key_range));
        let heads_kv = self.heads_kv.unwrap_or(self.heads);
        let dim_value = self.dim_value.unwrap_or(self.dim);
        let rows = |tokens: &[usize], heads: usize, width: usize| {
            let shape = [&[self.batch_size], tokens, &[heads, width]].concat();
            Layout::contiguous(&shape).map_err(natten::Error::from)
        };
        let mut inputs = Inputs::new(
            rows(&queries, self.heads, self.dim)?,
            rows(&keys, heads_kv, self.dim)?,
            rows(&keys, heads_kv, dim_value)?,
        );
        if self.add_kv > 0 {
            let of = |width| {
                Layout::contiguous(&[self.batch_size, self.add_kv, heads_kv, width])
                    .map_err(natten::Error::from)
            };
            inputs = inputs.with_additional(of(self.dim)?, of(dim_value)?);
        }
        let params = DynParams::new(axes, None, KernelSizePolicy::Exact);
        let params =
            regions.iter().enumerate().fold(params, |params, (axis, region)| params.region(axis, *region));
        Ok(Problem::new(&params, &inputs, element_type)?)
    }

    /// Counts must fit their integers, with room for tiles that overhang.
    fn check_size(&self) -> Result<(), CliError> {
        if self.batch_size == 0 {
            return Err(CliError::EmptyBatch);
        }
        let tokens =
            self.input_size.iter().try_fold(1u128, |product, &extent| product.checked_mul(extent as u128));
        let factors = [Some(self.batch_size as u128), Some(self.heads as u128), tokens];
        let pairs = factors.into_iter().try_fold(1u128, |product, factor| product.checked_mul(factor?));
        let keys = tokens.and_then(|tokens| tokens.checked_add(self.add_kv as u128));
        let pairs = pairs.and_then(|pairs| pairs.checked_mul(keys?));
        if pairs.is_some_and(|pairs| pairs <= MAX_PAIRS) { Ok(()) } else { Err(CliError::TooLarge) }
    }

    /// The problem for a JSON report.
    pub fn to_json(&self, problem: &Problem) -> Value {
        let axes = &problem.axes()[3 - problem.rank()..];
        let mut report = json!({
            "batch_size": problem.batch(),
            "heads": problem.heads(),
            "heads_kv": problem.heads_kv(),
            "dim": problem.head_dim(),
            "dim_value": problem.head_dim_v(),
            "input_size": self.input_size,
            "window_size": axes.iter().map(|axis| axis.kernel_size).collect::<Vec<_>>(),
            "stride": axes.iter().map(|axis| axis.stride).collect::<Vec<_>>(),
            "dilation": axes.iter().map(|axis| axis.dilation).collect::<Vec<_>>(),
            "causal": axes.iter().map(|axis| axis.is_causal).collect::<Vec<_>>(),
            "add_kv": problem.additional_keys(),
            "dtype": problem.element_type().name(),
        });
        if problem.has_region() {
            let ranges =
                |of: fn(&natten::window::Axis) -> [usize; 2]| axes.iter().map(of).collect::<Vec<_>>();
            report["queries"] =
                json!(ranges(|axis| [axis.query_start, axis.query_start + axis.query_extent]));
            report["keys"] = json!(ranges(|axis| [axis.key_start, axis.key_start + axis.key_extent]));
        }
        report
    }
}

/// `18 x 24 x 24`.
pub fn times(values: &[usize]) -> String {
    values.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}

/// `30 x 48 tokens, window 5 x 7`, and which of them a part has.
pub fn tokens_and_window(axes: &[natten::window::Axis]) -> String {
    let list = |f: fn(&natten::window::Axis) -> String| axes.iter().map(f).collect::<Vec<_>>().join(" x ");
    let mut text = format!("{} tokens, ", list(|axis| axis.extent.to_string()));
    if !axes.iter().all(natten::window::Axis::is_whole) {
        let range = |start: usize, extent: usize| format!("{start}..{}", start + extent);
        let queries = axes.iter().map(|axis| range(axis.query_start, axis.query_extent)).collect::<Vec<_>>();
        let keys = axes.iter().map(|axis| range(axis.key_start, axis.key_extent)).collect::<Vec<_>>();
        text += &format!("queries {}, keys {}, ", queries.join(" x "), keys.join(" x "));
    }
    text + &format!("window {}", list(|axis| axis.kernel_size.to_string()))
}

/// One line that states a problem.
pub fn describe(problem: &Problem) -> String {
    let axes = &problem.axes()[3 - problem.rank()..];
    let list = |f: fn(&natten::window::Axis) -> usize| times(&axes.iter().map(f).collect::<Vec<_>>());
    let mut text = tokens_and_window(axes);
    if axes.iter().any(|axis| axis.stride > 1) {
        text += &format!(", stride {}", list(|a| a.stride));
    }
    if axes.iter().any(|axis| axis.dilation > 1) {
        text += &format!(", dilation {}", list(|a| a.dilation));
    }
    if axes.iter().any(|axis| axis.is_causal) {
        let flags: Vec<&str> =
            axes.iter().map(|axis| if axis.is_causal { "causal" } else { "open" }).collect();
        text += &format!(", {}", flags.join(" x "));
    }
    if problem.additional_keys() > 0 {
        text += &format!(", {} additional keys", problem.additional_keys());
    }
    text += &format!("; batch {}, {} heads", problem.batch(), problem.heads());
    if problem.heads_kv() != problem.heads() {
        text += &format!(" over {}", problem.heads_kv());
    }
    text += &format!(", head_dim {}", problem.head_dim());
    if problem.head_dim_v() != problem.head_dim() {
        text += &format!(" and {}", problem.head_dim_v());
    }
    text + &format!(", {}", problem.element_type())
}
