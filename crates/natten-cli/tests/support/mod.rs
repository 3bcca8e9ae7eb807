//! What the tests share: the built program, folders of their own, and golden cases made from the reference.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use natten::{DynParams, Inputs, Problem, Saved, Tensor, TensorView, reference};
use safetensors::tensor::{Dtype, TensorView as RawTensor};
use serde_json::{Value, json};

/// Runs the program.
pub fn natten<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_natten")).args(args).output().expect("the program starts")
}

/// Splits a command line at blanks and runs it.
pub fn run(line: &str) -> Output {
    natten(&line.split_whitespace().collect::<Vec<_>>())
}

/// Standard output of a run that must succeed.
pub fn succeed(line: &str) -> String {
    let output = run(line);
    assert!(output.status.success(), "{line}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Asserts exit code 2 with one sentence on standard error, and returns it.
pub fn refuse(line: &str) -> String {
    let output = run(line);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{line}: {message}");
    assert!(message.starts_with("error: ") && message.trim_end().lines().count() == 1, "{line}: {message:?}");
    assert!(!message.contains("panicked"), "{line}: {message}");
    message
}

/// Says that a test cannot run here, unless everything must. Written past the test harness, which would swallow it.
pub fn skip(reason: &str) {
    use std::io::Write;
    assert!(std::env::var_os("NATTEN_NO_SKIP").is_none(), "NATTEN_NO_SKIP is set, but {reason}");
    writeln!(std::io::stderr(), "SKIP: {reason}").expect("standard error is open");
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the program writes UTF-8")
}

/// Every line as JSON.
pub fn json_lines(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// An empty folder for one test.
pub fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("a folder for the test");
    path
}

/// A golden case under construction: arguments, and tensors as shape, type and bytes.
#[derive(Clone)]
pub struct Case {
    pub arguments: Value,
    pub tensors: HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

/// Numbers in -1 to 1 that differ from tensor to tensor.
fn noise(shape: &[usize], seed: usize) -> Tensor<f64> {
    Tensor::from_fn(shape, |i| {
        // Rounded so that bf16 holds it exactly.
        (((i + 31 * seed) as f64 * 0.7312).sin() * 64.0).round() / 64.0
    })
    .expect("a small shape")
}

impl Case {
    /// A problem with its results from the reference.
    pub fn solved(arguments: Value, dtype: Dtype) -> Self {
        let list = |name: &str| -> Vec<usize> {
            let values = arguments[name].as_array().expect(name);
            values.iter().map(|value| value.as_u64().expect(name) as usize).collect()
        };
        let number = |name: &str| arguments[name].as_u64().map(|value| value as usize);
        let tokens = list("token_shape");
        let (heads, heads_kv) = (number("heads").unwrap(), number("heads_kv").unwrap());
        let head_dim = number("head_dim").unwrap();
        let head_dim_v = number("head_dim_v").unwrap_or(head_dim);
        let batch = number("batch").unwrap();
        let rows = |heads: usize, width: usize| [&[batch], tokens.as_slice(), &[heads, width]].concat();
        let mut inputs = Inputs::new(
            noise(&rows(heads, head_dim), 1),
            noise(&rows(heads_kv, head_dim), 2),
            noise(&rows(heads_kv, head_dim_v), 3),
        );
        let additional = number("additional").unwrap();
        if additional > 0 {
            let shape = |width| [batch, additional, heads_kv, width];
            inputs = inputs.with_additional(noise(&shape(head_dim), 4), noise(&shape(head_dim_v), 5));
        }
        let params = params_of(&arguments);
        let views = views(&inputs);
        let problem = Problem::new(&params, &views.map(|v| *v.layout()), natten::ElementType::F64).unwrap();
        let forward = reference::forward(&problem, &views);
        let d_out = noise(&problem.out_shape(), 6);
        let d_lse = noise(&problem.lse_shape(), 7);
        let saved = Saved {
            out: forward.out.view(),
            lse: forward.lse.view(),
            d_out: d_out.view(),
            d_lse: Some(d_lse.view()),
        };
        let gradients = reference::backward(&problem, &views, &saved);
        let mut case = Case { arguments, tensors: HashMap::new() };
        for (name, tensor) in [("q", &inputs.query), ("k", &inputs.key), ("v", &inputs.value)] {
            case.put(name, dtype, tensor);
        }
        case.put("d_out", dtype, &d_out);
        let results = [
            ("d_lse", &d_lse),
            ("out", &forward.out),
            ("lse", &forward.lse),
            ("d_q", &gradients.query),
            ("d_k", &gradients.key),
            ("d_v", &gradients.value),
        ];
        let wide = if dtype == Dtype::F64 { Dtype::F64 } else { Dtype::F32 };
        results.iter().for_each(|(name, tensor)| case.put(name, wide, tensor));
        if let (Some([k, v]), Some([d_k, d_v])) = (&inputs.additional, &gradients.additional) {
            case.put("add_k", dtype, k);
            case.put("add_v", dtype, v);
            case.put("d_add_k", wide, d_k);
            case.put("d_add_v", wide, d_v);
        }
        case
    }

    /// Sets a tensor.
    pub fn put(&mut self, name: &str, dtype: Dtype, tensor: &Tensor<f64>) {
        let bytes = tensor.as_slice().iter().flat_map(|&value| encode(dtype, value)).collect();
        self.tensors.insert(name.to_owned(), (dtype, tensor.shape().to_vec(), bytes));
    }

    /// Overwrites one element of an f32 tensor.
    pub fn poke(&mut self, name: &str, index: usize, value: f32) {
        let (_, _, bytes) = self.tensors.get_mut(name).expect(name);
        bytes[4 * index..4 * index + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// The file's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_with(Some(HashMap::from([("problem".to_owned(), self.arguments.to_string())])))
    }

    /// The file's bytes with metadata of the test's own.
    pub fn bytes_with(&self, metadata: Option<HashMap<String, String>>) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, RawTensor::new(*dtype, shape.clone(), bytes).expect("bytes fit the shape"))
        });
        safetensors::serialize(views, metadata).expect("a small file")
    }
}

fn encode(dtype: Dtype, value: f64) -> Vec<u8> {
    match dtype {
        Dtype::F64 => value.to_le_bytes().to_vec(),
        Dtype::F16 => natten::f16::from_f64(value).to_le_bytes().to_vec(),
        Dtype::BF16 => natten::bf16::from_f64(value).to_le_bytes().to_vec(),
        Dtype::I32 => (value as i32).to_le_bytes().to_vec(),
        _ => (value as f32).to_le_bytes().to_vec(),
    }
}

fn params_of(arguments: &Value) -> DynParams {
    let axis = |i: usize| natten::AxisParams {
        kernel_size: natten::KernelSize::Tokens(arguments["kernel_size"][i].as_u64().unwrap() as usize),
        stride: arguments["stride"][i].as_u64().unwrap() as usize,
        dilation: arguments["dilation"][i].as_u64().unwrap() as usize,
        is_causal: arguments["is_causal"][i].as_bool().unwrap(),
    };
    let rank = arguments["token_shape"].as_array().unwrap().len();
    let axes: Vec<_> = (0..rank).map(axis).collect();
    DynParams::new(&axes, arguments["scale"].as_f64().map(|scale| scale as f32), Default::default())
}

fn views(inputs: &Inputs<Tensor<f64>>) -> Inputs<TensorView<'_, f64>> {
    Inputs {
        query: inputs.query.view(),
        key: inputs.key.view(),
        value: inputs.value.view(),
        additional: inputs.additional.as_ref().map(|pair| pair.each_ref().map(|tensor| tensor.view())),
    }
}

/// Two heads over one, a stride, a causal axis, additional keys and another `head_dim_v`.
pub fn arguments() -> Value {
    json!({
        "token_shape": [5, 6], "kernel_size": [3, 2], "stride": [2, 1], "dilation": [1, 3],
        "is_causal": [false, true], "batch": 2, "heads": 2, "heads_kv": 1, "head_dim": 5, "head_dim_v": 3,
        "additional": 2, "scale": null,
    })
}
