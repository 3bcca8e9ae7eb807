//! Golden files: arrays that other implementations made, with the problem as JSON in the metadata.

use std::path::{Path, PathBuf};

use natten::{AxisParams, ElementType, Inputs, KernelSize, Tensor, f16};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::spec::{Case, Mask, Spec};

/// What a file holds.
#[derive(Clone, Debug)]
pub struct Golden {
    /// For messages.
    pub file: String,
    /// Of its operands; results are f32.
    pub element_type: ElementType,
    /// The problem with its operands.
    pub case: Case,
    /// Its output.
    pub out: Tensor<f64>,
    /// Its log-sum-exp.
    pub lse: Tensor<f64>,
    /// Gradients of query, key and value; what is about the forward alone has none.
    pub gradients: Option<[Tensor<f64>; 3]>,
    /// Gradients of additional keys and values; NATTEN's files have none.
    pub additional_gradients: Option<[Tensor<f64>; 2]>,
}

/// The metadata's arguments. `deny_unknown_fields`: an argument not understood must not be dropped.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    token_shape: Vec<usize>,
    kernel_size: Vec<usize>,
    stride: Vec<usize>,
    dilation: Vec<usize>,
    is_causal: Vec<bool>,
    batch: usize,
    heads: usize,
    heads_kv: usize,
    head_dim: usize,
    head_dim_v: Option<usize>,
    additional: usize,
    scale: Option<f32>,
}

impl Arguments {
    fn into_spec(self) -> Spec {
        let axis = |i: usize| AxisParams {
            kernel_size: KernelSize::Tokens(self.kernel_size[i]),
            stride: self.stride[i],
            dilation: self.dilation[i],
            is_causal: self.is_causal[i],
        };
        Spec {
            regions: Vec::new(),
            mask: Mask::Neighborhood {
                axes: (0..self.token_shape.len()).map(axis).collect(),
                token_shape: self.token_shape,
            },
            batch: self.batch,
            heads: self.heads,
            heads_kv: self.heads_kv,
            head_dim: self.head_dim,
            head_dim_v: self.head_dim_v.unwrap_or(self.head_dim),
            additional: self.additional,
            scale: self.scale,
        }
    }
}

/// Where this crate has its golden files: where it was built, or in the working directory of a program that was carried
/// elsewhere.
pub fn folder() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    if built.is_dir() { built } else { PathBuf::from("golden") }
}

/// Every golden file of a folder, sorted by name.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder of golden files");
    let paths = entries.map(|entry| entry.expect("a readable folder").path());
    let mut files: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    files
}

/// Reads one file; every tensor in it must be one that is known.
pub fn read(path: &Path) -> Golden {
    let file = path.file_name().expect("a file").to_string_lossy().into_owned();
    let bytes = std::fs::read(path).expect("a readable file");
    let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a header");
    let problem = &metadata.metadata().as_ref().expect("metadata")["problem"];
    let arguments: Arguments = serde_json::from_str(problem).unwrap_or_else(|e| panic!("{file}: {e}"));
    let tensors = SafeTensors::deserialize(&bytes).expect("a whole file");
    let known = [
        "q", "k", "v", "add_k", "add_v", "d_out", "d_lse", "out", "lse", "d_q", "d_k", "d_v", "d_add_k",
        "d_add_v",
    ];
    for name in tensors.names() {
        assert!(known.contains(&name), "{file}: nobody reads {name}");
    }
    let find = |name: &str| tensors.tensor(name).ok().map(|tensor| to_f64(&tensor));
    let need = |name: &str| find(name).unwrap_or_else(|| panic!("{file}: no {name}"));
    let pair = |a: &str, b: &str| find(a).map(|first| [first, need(b)]);
    let is_half = tensors.tensor("q").is_ok_and(|query| query.dtype() == Dtype::F16);
    Golden {
        element_type: if is_half { ElementType::F16 } else { ElementType::F32 },
        case: Case {
            spec: arguments.into_spec(),
            inputs: Inputs {
                query: need("q"),
                key: need("k"),
                value: need("v"),
                additional: pair("add_k", "add_v"),
            },
            d_out: need("d_out"),
            d_lse: find("d_lse"),
        },
        out: need("out"),
        lse: need("lse"),
        gradients: find("d_q").map(|d_q| [d_q, need("d_k"), need("d_v")]),
        additional_gradients: pair("d_add_k", "d_add_v"),
        file,
    }
}

fn to_f64(tensor: &safetensors::tensor::TensorView<'_>) -> Tensor<f64> {
    let bytes = tensor.data();
    let numbers: Vec<f64> = match tensor.dtype() {
        Dtype::F16 => bytes.chunks_exact(2).map(|b| f64::from(f16::from_le_bytes([b[0], b[1]]))).collect(),
        dtype => {
            assert_eq!(dtype, Dtype::F32, "golden arrays are f32 or f16");
            let of = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            bytes.chunks_exact(4).map(of).collect()
        }
    };
    Tensor::from_vec(tensor.shape(), numbers).expect("as many as the shape holds")
}
