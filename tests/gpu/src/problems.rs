//! The problems of problems.json, as `natten_core` problems.

use natten_core::{AxisParams, DynParams, ElementType, Inputs, KernelSizePolicy, Layout, Problem};
use serde_json::Value;

/// One line of problems.json.
#[derive(Clone, Debug)]
pub struct Timed {
    /// Short name.
    pub name: String,
    /// Token extents.
    pub tokens: Vec<usize>,
    /// Windows.
    pub axes: Vec<AxisParams>,
    /// Heads of all operands.
    pub heads: usize,
    /// Components of a head, tried one after another.
    pub head_dims: Vec<usize>,
    /// Element types, of which only the first is tried at later head dimensions.
    pub types: Vec<ElementType>,
    /// All of them at all head dimensions.
    pub every_type: bool,
    /// `None` is the default.
    pub scale: Option<f32>,
    /// Head dimensions at which the backward is timed too.
    pub backward: Vec<usize>,
}

/// All of them.
///
/// # Errors
/// When the file, which is part of the program, is malformed.
pub fn problems() -> Result<Vec<Timed>, String> {
    let file: Value = serde_json::from_str(include_str!("../problems.json")).map_err(|e| e.to_string())?;
    let list = file["problems"].as_array().ok_or("problems.json has no list")?;
    list.iter().map(|line| read(line).ok_or_else(|| format!("problems.json: {line}"))).collect()
}

fn read(line: &Value) -> Option<Timed> {
    let numbers = |key: &str| -> Option<Vec<usize>> {
        line[key].as_array()?.iter().map(|v| v.as_u64().map(|v| v as usize)).collect()
    };
    let tokens = numbers("tokens")?;
    let dilation = numbers("dilation").unwrap_or_else(|| vec![1; tokens.len()]);
    let (windows, stride) = (numbers("kernel_size")?, numbers("stride")?);
    let axis =
        |i: usize| AxisParams { stride: stride[i], dilation: dilation[i], ..AxisParams::new(windows[i]) };
    let types = line["types"].as_array()?.iter().map(|name| match name.as_str()? {
        "bf16" => Some(ElementType::Bf16),
        "f16" => Some(ElementType::F16),
        "f32" => Some(ElementType::F32),
        _ => None,
    });
    Some(Timed {
        name: line["name"].as_str()?.to_owned(),
        axes: (0..tokens.len()).map(axis).collect(),
        tokens,
        heads: line["heads"].as_u64()? as usize,
        head_dims: numbers("head_dims")?,
        types: types.collect::<Option<_>>()?,
        scale: line["scale"].as_f64().map(|scale| scale as f32),
        every_type: line["every_type"].as_bool().unwrap_or(false),
        backward: numbers("backward")?,
    })
}

impl Timed {
    /// Shape of every operand.
    pub fn shape(&self, head_dim: usize) -> Vec<usize> {
        let mut shape = vec![1];
        shape.extend(&self.tokens);
        shape.extend([self.heads, head_dim]);
        shape
    }

    /// The validated problem, over contiguous operands.
    ///
    /// # Errors
    /// In words.
    pub fn problem(&self, head_dim: usize, element_type: ElementType) -> Result<Problem, String> {
        let layout = Layout::contiguous(&self.shape(head_dim)).map_err(|e| e.to_string())?;
        let params = DynParams::new(&self.axes, self.scale, KernelSizePolicy::Exact);
        Problem::new(&params, &Inputs::new(layout, layout, layout), element_type).map_err(|e| e.to_string())
    }

    /// Elements of one operand.
    pub fn elements(&self, head_dim: usize) -> usize {
        self.shape(head_dim).iter().product()
    }
}
