//! Golden cases: a problem, its inputs and the results that it must give, in one safetensors file.
//!
//! The metadata key `problem` holds the arguments as JSON ([`Arguments`]); `q`, `k`, `v`, `out` and `lse` are always
//! there, `add_k`, `add_v`, `d_lse` and the gradients `d_q`, `d_k`, `d_v`, `d_add_k`, `d_add_v` may be, `d_out` must be
//! where a gradient is. An argument or a tensor of another name is a mistake: not read, it would not be checked either.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use natten::{
    AxisParams, DynParams, Element, ElementType, Inputs, KernelSize, KernelSizePolicy, Layout, Problem,
    Tensor, TensorError,
};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;

use crate::names::nearest;

/// Why a file holds no golden case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GoldenError {
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    #[error("it is {kind}, no regular file")]
    NotRegular { kind: &'static str },
    #[error("no safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    #[error("the metadata has no key \"problem\"{}", listed(.found))]
    NoProblem { found: Vec<String> },
    #[error("the problem has no argument \"{found}\", the nearest is \"{nearest}\"")]
    UnknownArgument { found: String, nearest: &'static str },
    #[error("no tensor is called \"{found}\", the nearest is \"{nearest}\"")]
    UnknownTensor { found: String, nearest: &'static str },
    #[error("the metadata key \"problem\" does not parse: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{name} has {found} entries for {rank} token axes")]
    Rank { name: &'static str, found: usize, rank: usize },
    #[error("tensor {name} is missing")]
    Missing { name: &'static str },
    #[error("tensor d_out is missing, {gradient} is a gradient of it")]
    NoDOut { gradient: &'static str },
    #[error("tensor {name} has shape {found:?}, the problem asks for {expected:?}")]
    Shape { name: &'static str, found: Vec<usize>, expected: Vec<usize> },
    #[error("tensor {name} holds {found:?}, readable are F64, F32, F16 and BF16")]
    ElementType { name: &'static str, found: Dtype },
    #[error("tensor {name} holds {found}, q holds {expected}")]
    MixedTypes { name: &'static str, found: ElementType, expected: ElementType },
    #[error("no .safetensors file in this folder")]
    EmptyFolder,
    #[error(transparent)]
    Problem(#[from] natten::ProblemError),
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// The keys that were found instead.
fn listed(keys: &[String]) -> String {
    if keys.is_empty() { String::new() } else { format!(", but \"{}\"", keys.join("\", \"")) }
}

/// The operator's arguments, as the file states them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    pub token_shape: Vec<usize>,
    pub kernel_size: Vec<usize>,
    pub stride: Vec<usize>,
    pub dilation: Vec<usize>,
    pub is_causal: Vec<bool>,
    pub batch: usize,
    pub heads: usize,
    pub heads_kv: usize,
    pub head_dim: usize,
    pub head_dim_v: Option<usize>,
    #[serde(default)]
    pub additional: usize,
    /// `None` is the default, `head_dim^-1/2`.
    pub scale: Option<f32>,
}

impl Arguments {
    /// The fields.
    const NAMES: [&str; 12] = [
        "token_shape",
        "kernel_size",
        "stride",
        "dilation",
        "is_causal",
        "batch",
        "heads",
        "heads_kv",
        "head_dim",
        "head_dim_v",
        "additional",
        "scale",
    ];

    /// Reads them, and checks that they make a problem.
    fn parse(text: &str) -> Result<Self, GoldenError> {
        let keys: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)?;
        if let Some(found) = keys.into_iter().map(|(key, _)| key).find(|key| !Self::NAMES.contains(&&**key)) {
            let nearest = nearest(&found, &Self::NAMES);
            return Err(GoldenError::UnknownArgument { found, nearest });
        }
        let arguments: Arguments = serde_json::from_str(text)?;
        arguments.check_ranks()?;
        arguments.problem()?;
        Ok(arguments)
    }

    /// The problem of tensors in these shapes, or the rule that they break. Rules do not depend on the element type.
    fn problem(&self) -> Result<Problem, GoldenError> {
        let layout = |name| Layout::contiguous(&self.shape_of(name));
        let mut inputs = Inputs::new(layout("q")?, layout("k")?, layout("v")?);
        if self.additional > 0 {
            inputs = inputs.with_additional(layout("add_k")?, layout("add_v")?);
        }
        Ok(Problem::new(&self.params(), &inputs, ElementType::F32)?)
    }

    fn check_ranks(&self) -> Result<(), GoldenError> {
        let rank = self.token_shape.len();
        let lists = [
            ("kernel_size", self.kernel_size.len()),
            ("stride", self.stride.len()),
            ("dilation", self.dilation.len()),
            ("is_causal", self.is_causal.len()),
        ];
        match lists.into_iter().find(|&(_, found)| found != rank) {
            Some((name, found)) => Err(GoldenError::Rank { name, found, rank }),
            None => Ok(()),
        }
    }

    /// The parameters of the call.
    pub fn params(&self) -> DynParams {
        let axis = |i: usize| AxisParams {
            kernel_size: KernelSize::Tokens(self.kernel_size[i]),
            stride: self.stride[i],
            dilation: self.dilation[i],
            is_causal: self.is_causal[i],
        };
        let axes: Vec<AxisParams> = (0..self.token_shape.len()).map(axis).collect();
        DynParams::new(&axes, self.scale, KernelSizePolicy::Exact)
    }

    /// The shape that a tensor of the file must have.
    fn shape_of(&self, name: &str) -> Vec<usize> {
        let head_dim_v = self.head_dim_v.unwrap_or(self.head_dim);
        let rows = |heads: usize, last: &[usize]| {
            [&[self.batch], self.token_shape.as_slice(), &[heads], last].concat()
        };
        let additional = |width: usize| vec![self.batch, self.additional, self.heads_kv, width];
        match name {
            "q" | "d_q" => rows(self.heads, &[self.head_dim]),
            "k" | "d_k" => rows(self.heads_kv, &[self.head_dim]),
            "v" | "d_v" => rows(self.heads_kv, &[head_dim_v]),
            "out" | "d_out" => rows(self.heads, &[head_dim_v]),
            "add_k" | "d_add_k" => additional(self.head_dim),
            "add_v" | "d_add_v" => additional(head_dim_v),
            _ => rows(self.heads, &[]),
        }
    }

    /// One line that says what the case exercises.
    pub fn describe(&self) -> String {
        let list = |values: &[usize]| values.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let mut text = format!("{} k{}", list(&self.token_shape), list(&self.kernel_size));
        for (letter, values) in [("s", &self.stride), ("d", &self.dilation)] {
            if values.iter().any(|&value| value != 1) {
                text += &format!(" {letter}{}", list(values));
            }
        }
        if self.is_causal.contains(&true) {
            let flags: String = self.is_causal.iter().map(|&c| if c { 'c' } else { '-' }).collect();
            text += &format!(" {flags}");
        }
        if self.additional > 0 {
            text += &format!(" +{}", self.additional);
        }
        text
    }
}

/// A tensor of the file with its values widened, which is exact.
#[derive(Clone, Debug)]
pub struct Values {
    pub element_type: ElementType,
    pub tensor: Tensor<f64>,
}

impl Values {
    /// In another element type; exact when it is the one of the file.
    pub fn cast<E: Element>(&self) -> Tensor<E> {
        self.tensor.cast()
    }
}

/// The results that a file may hold, in the order in which they are shown.
pub const RESULTS: [&str; 7] = ["out", "lse", "d_q", "d_k", "d_v", "d_add_k", "d_add_v"];

/// What else it may hold.
const OPERANDS: [&str; 7] = ["q", "k", "v", "add_k", "add_v", "d_out", "d_lse"];

/// One golden case.
#[derive(Clone, Debug)]
pub struct Golden {
    pub arguments: Arguments,
    /// Of the inputs.
    pub element_type: ElementType,
    tensors: BTreeMap<&'static str, Values>,
}

impl Golden {
    /// Reads and checks a file: all that is needed is there, in the shapes that the problem asks for.
    pub fn read(path: &Path) -> Result<Self, GoldenError> {
        // Before it is opened: that alone waits for the other end of a pipe.
        match kind_of(&std::fs::metadata(path)?.file_type()) {
            None => Self::parse(&std::fs::read(path)?),
            Some(kind) => Err(GoldenError::NotRegular { kind }),
        }
    }

    /// The case in a file's bytes, which may be anything.
    pub fn parse(bytes: &[u8]) -> Result<Self, GoldenError> {
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let keys = metadata.metadata().clone().unwrap_or_default();
        let Some(problem) = keys.get("problem") else {
            let mut found: Vec<String> = keys.into_keys().collect();
            found.sort();
            return Err(GoldenError::NoProblem { found });
        };
        let arguments = Arguments::parse(problem)?;
        let file = SafeTensors::deserialize(bytes)?;
        expect_known(&file)?;
        let mut golden = Golden { arguments, element_type: ElementType::F32, tensors: BTreeMap::new() };
        for name in ["q", "k", "v", "out", "lse"] {
            golden.load(&file, name)?;
        }
        let has_additional = golden.arguments.additional > 0;
        for name in ["add_k", "add_v"] {
            if has_additional || file.tensor(name).is_ok() {
                golden.load(&file, name)?;
            }
        }
        for name in ["d_out", "d_lse", "d_q", "d_k", "d_v", "d_add_k", "d_add_v"] {
            if file.tensor(name).is_ok() {
                golden.load(&file, name)?;
            }
        }
        if let (Some(gradient), None) = (golden.gradient(), golden.get("d_out")) {
            return Err(GoldenError::NoDOut { gradient });
        }
        golden.element_type = golden.tensors["q"].element_type;
        golden.check_types()?;
        Ok(golden)
    }

    fn load(&mut self, file: &SafeTensors<'_>, name: &'static str) -> Result<(), GoldenError> {
        let view = file.tensor(name).map_err(|_| GoldenError::Missing { name })?;
        let expected = self.arguments.shape_of(name);
        if view.shape() != expected {
            return Err(GoldenError::Shape { name, found: view.shape().to_vec(), expected });
        }
        self.tensors.insert(name, widen(name, &view)?);
        Ok(())
    }

    /// What goes in must be of one type; results may be wider.
    fn check_types(&self) -> Result<(), GoldenError> {
        for name in ["k", "v", "d_out", "add_k", "add_v"] {
            let Some(values) = self.tensors.get(name) else { continue };
            let (found, expected) = (values.element_type, self.element_type);
            if found != expected {
                return Err(GoldenError::MixedTypes { name, found, expected });
            }
        }
        Ok(())
    }

    /// A tensor of the file.
    pub fn get(&self, name: &str) -> Option<&Values> {
        self.tensors.get(name)
    }

    /// A tensor that every golden case has, or that was checked to be there.
    pub fn require(&self, name: &'static str) -> Result<&Values, GoldenError> {
        self.tensors.get(name).ok_or(GoldenError::Missing { name })
    }

    /// Whether some gradient is there to compare with.
    pub fn has_gradients(&self) -> bool {
        self.gradient().is_some()
    }

    /// The first gradient that is there.
    fn gradient(&self) -> Option<&'static str> {
        RESULTS[2..].iter().copied().find(|name| self.tensors.contains_key(name))
    }
}

fn expect_known(file: &SafeTensors<'_>) -> Result<(), GoldenError> {
    let known: Vec<&'static str> = OPERANDS.into_iter().chain(RESULTS).collect();
    match file.names().into_iter().filter(|name| !known.contains(name)).min() {
        None => Ok(()),
        Some(found) => {
            Err(GoldenError::UnknownTensor { found: found.to_owned(), nearest: nearest(found, &known) })
        }
    }
}

/// What a file is that is no regular one.
#[cfg(unix)]
fn kind_of(file: &std::fs::FileType) -> Option<&'static str> {
    use std::os::unix::fs::FileTypeExt;
    let kinds = [
        (file.is_dir(), "a folder"),
        (file.is_fifo(), "a FIFO"),
        (file.is_char_device(), "a character device"),
        (file.is_block_device(), "a block device"),
        (file.is_socket(), "a socket"),
        (!file.is_file(), "of an unknown kind"),
    ];
    kinds.into_iter().find(|(is_it, _)| *is_it).map(|(_, kind)| kind)
}

#[cfg(not(unix))]
fn kind_of(file: &std::fs::FileType) -> Option<&'static str> {
    if file.is_dir() { Some("a folder") } else { (!file.is_file()).then_some("of an unknown kind") }
}

fn widen(name: &'static str, view: &TensorView<'_>) -> Result<Values, GoldenError> {
    let bytes = view.data();
    let f32_at = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let (element_type, values): (ElementType, Vec<f64>) = match view.dtype() {
        Dtype::F64 => {
            let read = |b: &[u8]| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
            (ElementType::F64, bytes.chunks_exact(8).map(read).collect())
        }
        Dtype::F32 => (ElementType::F32, bytes.chunks_exact(4).map(f32_at).collect()),
        Dtype::F16 => {
            let read = |b: &[u8]| natten::f16::from_le_bytes([b[0], b[1]]).to_f64();
            (ElementType::F16, bytes.chunks_exact(2).map(read).collect())
        }
        Dtype::BF16 => {
            let read = |b: &[u8]| natten::bf16::from_le_bytes([b[0], b[1]]).to_f64();
            (ElementType::Bf16, bytes.chunks_exact(2).map(read).collect())
        }
        found => return Err(GoldenError::ElementType { name, found }),
    };
    Ok(Values { element_type, tensor: Tensor::from_vec(view.shape(), values)? })
}

/// The files that a path stands for: itself, or every `.safetensors` file below a folder, sorted.
pub fn files_of(path: &Path) -> Result<Vec<PathBuf>, GoldenError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            // Not followed through links, which may lead back.
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|extension| extension == "safetensors") {
                files.push(entry.path());
            }
        }
    }
    if files.is_empty() {
        return Err(GoldenError::EmptyFolder);
    }
    files.sort();
    Ok(files)
}
