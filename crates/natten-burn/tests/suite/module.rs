//! The module: its names and shapes, what it computes, and weights of PyTorch's.

use burn::module::Module;
use burn::store::{ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore};
use burn::tensor::{DType, Device, Tensor, TensorData};
use natten_burn::{ConfigError, Error, NeighborhoodAttentionConfig, Params, na2d};

use crate::support::{assert_close, listed, random};

fn config() -> NeighborhoodAttentionConfig {
    NeighborhoodAttentionConfig::new(12, 3, vec![3, 4]).with_dilation(Some(vec![2, 1]))
}

/// The bytes of a safetensors file with the weights that PyTorch would save.
fn state_dict() -> (Vec<u8>, [Vec<f32>; 4]) {
    let extents: [(&str, &[usize]); 4] =
        [("qkv.weight", &[36, 12]), ("qkv.bias", &[36]), ("proj.weight", &[12, 12]), ("proj.bias", &[12])];
    let mut seed = 0;
    let numbers = extents.map(|(_, shape)| {
        seed += 1;
        let numbers = crate::support::numbers(shape.iter().product(), seed);
        numbers.into_iter().map(|x| x as f32 * 0.5).collect::<Vec<_>>()
    });
    let mut header = Vec::new();
    let mut data = Vec::new();
    for ((name, shape), numbers) in extents.iter().zip(&numbers) {
        let begin = data.len();
        data.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
        let end = data.len();
        header
            .push(format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#));
    }
    let header = format!("{{{}}}", header.join(","));
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    (file, numbers)
}

/// Rows times the transpose of `[outputs, inputs]`, plus a bias: PyTorch's linear layer.
fn linear(rows: &[f64], weight: &[f32], bias: &[f32]) -> Vec<f64> {
    let inputs = weight.len() / bias.len();
    let dot =
        |row: &[f64], weight: &[f32]| row.iter().zip(weight).map(|(x, &w)| x * f64::from(w)).sum::<f64>();
    let outputs = |row: &[f64]| -> Vec<f64> {
        weight.chunks(inputs).zip(bias).map(|(weight, &bias)| dot(row, weight) + f64::from(bias)).collect()
    };
    rows.chunks(inputs).flat_map(outputs).collect()
}

#[test]
fn weights_of_pytorch_s_give_what_pytorch_s_module_gives() {
    let device = Device::flex();
    let mut layer = config().init(&device).unwrap();
    let (file, [qkv_weight, qkv_bias, proj_weight, proj_bias]) = state_dict();
    let mut store = SafetensorsStore::from_bytes(Some(file)).with_from_adapter(PyTorchToBurnAdapter);
    let applied = layer.load_from(&mut store).unwrap();
    assert!(applied.errors.is_empty() && applied.unused.is_empty(), "{applied:?}");
    assert_eq!(applied.applied.len(), 4, "{applied:?}");

    let x = random::<4>([2, 7, 5, 12], 9, &device, DType::F32);
    let qkv = linear(&listed(&x), &qkv_weight, &qkv_bias);
    // [tokens, 3, heads, head_dim], as NATTEN reshapes it.
    let part = |part: usize| {
        let numbers: Vec<f64> = qkv.chunks(36).flat_map(|token| token[12 * part..][..12].to_vec()).collect();
        Tensor::<5>::from_data(TensorData::new(numbers, [2, 7, 5, 3, 4]), (&device, DType::F64))
    };
    let out = na2d(part(0), part(1), part(2), &Params::new([3, 4]).dilation([2, 1])).unwrap();
    let expected = linear(&listed(&out), &proj_weight, &proj_bias);
    let expected = Tensor::<4>::from_data(TensorData::new(expected, [2, 7, 5, 12]), (&device, DType::F64));
    assert_close("module", &layer.forward(x).unwrap().cast(DType::F64), &expected, 1e-5);
}

#[test]
fn parameters_are_named_and_shaped() {
    let device = Device::flex();
    let named = |config: NeighborhoodAttentionConfig| {
        let layer = config.init(&device).unwrap();
        let mut found: Vec<_> = layer
            .collect(None, None, false)
            .iter()
            .map(|tensor| (tensor.name.to_string(), tensor.shape.to_vec()))
            .filter(|(name, _)| !name.starts_with("proj_drop"))
            .collect();
        found.sort();
        (found, layer.num_params())
    };
    let weights = |names: &[(&str, &[usize])]| -> Vec<(String, Vec<usize>)> {
        names.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
    };
    let all: [(&str, &[usize]); 4] =
        [("proj.bias", &[12]), ("proj.weight", &[12, 12]), ("qkv.bias", &[36]), ("qkv.weight", &[12, 36])];
    assert_eq!(named(config()), (weights(&all), 12 * 36 + 36 + 12 * 12 + 12));
    let without = [all[0], all[1], all[3]];
    assert_eq!(named(config().with_qkv_bias(false)).0, weights(&without));
}

#[test]
fn every_rank_has_gradients_of_every_parameter() {
    let device = Device::flex().autodiff();
    fn check<const D: usize>(config: NeighborhoodAttentionConfig, shape: [usize; D], device: &Device) {
        let layer = config.with_proj_drop(0.5).init(device).unwrap();
        let x = random(shape, 1, device, DType::F32).require_grad();
        let out = layer.forward(x.clone()).unwrap();
        assert_eq!(out.dims(), shape);
        let gradients = (out.clone() * out).sum().backward();
        assert_eq!(x.grad(&gradients).unwrap().dims(), shape);
        for weight in [&layer.qkv.weight, &layer.proj.weight] {
            let gradient = listed(&weight.val().grad(&gradients).unwrap());
            assert!(gradient.iter().any(|x| *x != 0.0) && gradient.iter().all(|x| x.is_finite()));
        }
    }
    check(NeighborhoodAttentionConfig::new(8, 2, vec![5]), [2, 9, 8], &device);
    check(NeighborhoodAttentionConfig::new(8, 2, vec![3, 3]), [2, 5, 4, 8], &device);
    let video = NeighborhoodAttentionConfig::new(8, 2, vec![2, 3, 3])
        .with_is_causal(Some(vec![true, false, false]))
        .with_stride(Some(vec![1, 2, 1]))
        .with_qk_scale(Some(0.3));
    check(video, [1, 3, 4, 5, 8], &device);
}

#[test]
fn a_wrong_configuration_or_input_is_named() {
    let device = Device::flex();
    let says = |config: NeighborhoodAttentionConfig, expected: ConfigError| match config.init(&device) {
        Err(Error::Config(found)) => assert_eq!(found, expected),
        other => panic!("{other:?}"),
    };
    says(
        NeighborhoodAttentionConfig::new(12, 5, vec![3]),
        ConfigError::Heads { embed_dim: 12, num_heads: 5 },
    );
    says(
        NeighborhoodAttentionConfig::new(12, 0, vec![3]),
        ConfigError::Heads { embed_dim: 12, num_heads: 0 },
    );
    says(NeighborhoodAttentionConfig::new(12, 3, vec![]), ConfigError::Rank { found: 0 });
    says(NeighborhoodAttentionConfig::new(12, 3, vec![3; 4]), ConfigError::Rank { found: 4 });
    let stride = config().with_stride(Some(vec![1]));
    says(stride, ConfigError::Entries { field: "stride", expected: 2, found: 1 });
    says(config().with_proj_drop(1.0), ConfigError::Dropout { proj_drop: 1.0 });

    let layer = config().init(&device).unwrap();
    let found = layer.forward(Tensor::<3>::zeros([1, 7, 12], &device)).unwrap_err().to_string();
    assert_eq!(found, "the input is [1, 7, 12], expected [batch, 2 token axes, 12]");
    let found = layer.forward(Tensor::<4>::zeros([1, 7, 7, 11], &device)).unwrap_err().to_string();
    assert_eq!(found, "the input is [1, 7, 7, 11], expected [batch, 2 token axes, 12]");
    let found = layer.forward(Tensor::<4>::zeros([1, 5, 7, 12], &device)).unwrap_err().to_string();
    assert_eq!(found, "axis 0: kernel_size 3 x dilation 2 exceeds the token extent 5");
}
