//! Modules: names and shapes of NATTEN's state dicts, and what their forward is.

mod support;

use std::collections::HashMap;

use candle_core::{DType, Device, IndexOp, Module, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use natten_candle::{
    NeighborhoodAttention, NeighborhoodAttention1d, NeighborhoodAttention2d, NeighborhoodAttention3d, Params,
    na2d,
};
use support::{assert_close, random};

const DIM: usize = 24;
const HEADS: usize = 3;

fn state_dict() -> Result<HashMap<String, Tensor>> {
    let tensor = |shape: &[usize], seed| random(shape.to_vec(), seed)?.to_dtype(DType::F32);
    Ok(HashMap::from([
        ("attn.qkv.weight".into(), tensor(&[3 * DIM, DIM], 1)?),
        ("attn.qkv.bias".into(), tensor(&[3 * DIM], 2)?),
        ("attn.proj.weight".into(), tensor(&[DIM, DIM], 3)?),
        ("attn.proj.bias".into(), tensor(&[DIM], 4)?),
    ]))
}

#[test]
fn parameters_have_nattens_names_and_shapes() -> Result<()> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    NeighborhoodAttention3d::new(DIM, HEADS, Params::new(3), vb.pp("attn"))?;
    let data = vars.data().lock().expect("nobody panicked");
    let mut found: Vec<_> = data.iter().map(|(name, var)| (name.clone(), var.dims().to_vec())).collect();
    let expected = state_dict()?;
    let mut expected: Vec<_> = expected.iter().map(|(name, t)| (name.clone(), t.dims().to_vec())).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    Ok(())
}

#[test]
fn a_state_dict_in_a_file_gives_the_same_layer() -> Result<()> {
    let path = std::env::temp_dir().join(format!("natten-candle-{}.safetensors", std::process::id()));
    candle_core::safetensors::save(&state_dict()?, &path)?;
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu);
    std::fs::remove_file(&path)?;
    let vb = VarBuilder::from_tensors(tensors?, DType::F32, &Device::Cpu);
    let params = Params::new([3, 5]).dilation([2, 1]).scale(0.5);
    let layer = NeighborhoodAttention2d::new(DIM, HEADS, params, vb.pp("attn"))?;
    let x = random(vec![2, 6, 7, DIM], 5)?.to_dtype(DType::F32)?;
    let found = layer.forward(&x)?;

    // As NATTEN writes it: rows of qkv are q, k and v, each of `heads` heads.
    let state = state_dict()?;
    let rows = x.reshape((2 * 6 * 7, DIM))?;
    let qkv = rows.matmul(&state["attn.qkv.weight"].t()?)?.broadcast_add(&state["attn.qkv.bias"])?;
    let qkv = qkv.reshape((2, 6, 7, 3, HEADS, DIM / HEADS))?.permute((3, 0, 1, 2, 4, 5))?;
    let out = na2d(&qkv.i(0)?, &qkv.i(1)?, &qkv.i(2)?, &params)?.reshape((2 * 6 * 7, DIM))?;
    let out = out.matmul(&state["attn.proj.weight"].t()?)?.broadcast_add(&state["attn.proj.bias"])?;
    assert_close(&found, &out.reshape((2, 6, 7, DIM))?, 1e-5, "module");
    Ok(())
}

#[test]
fn every_parameter_and_the_input_have_gradients() -> Result<()> {
    for has_bias in [true, false] {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
        let layer = NeighborhoodAttention1d::with_qkv_bias(DIM, HEADS, Params::new(3), has_bias, vb)?;
        let x = candle_core::Var::from_tensor(&random(vec![1, 6, DIM], 5)?.to_dtype(DType::F32)?)?;
        let gradients = layer.forward(&x)?.sqr()?.sum_all()?.backward()?;
        assert_eq!(vars.all_vars().len(), if has_bias { 4 } else { 3 });
        for var in vars.all_vars().iter().chain([&x]) {
            let size = gradients.get(var).expect("a gradient").abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(size > 0.0 && size.is_finite());
        }
    }
    Ok(())
}

#[test]
fn wrong_extents_are_errors() -> Result<()> {
    let vb = VarBuilder::from_tensors(state_dict()?, DType::F32, &Device::Cpu).pp("attn");
    let error =
        |result: Result<NeighborhoodAttention<2>>| result.map(drop).expect_err("an error").to_string();
    for heads in [0, 5] {
        let found = error(NeighborhoodAttention::new(DIM, heads, Params::new(3), vb.clone()));
        assert!(found.contains(&format!("dim = 24 is not a multiple of heads = {heads}")), "{found}");
    }
    let found = error(NeighborhoodAttention::new(2 * DIM, HEADS, Params::new(3), vb.clone()));
    assert!(found.contains("shape mismatch"), "{found}");
    let layer = NeighborhoodAttention::<2>::new(DIM, HEADS, Params::new(3), vb)?;
    for shape in [&[1, 6, DIM][..], &[1, 6, 6, 2 * DIM], &[1, 2, 6, 6, DIM], &[DIM], &[]] {
        let x = Tensor::zeros(shape, DType::F32, &Device::Cpu)?;
        let found = layer.forward(&x).map(drop).expect_err("an error").to_string();
        assert!(found.contains("2 token axes and 24 channels"), "{found}");
    }
    let small = Tensor::zeros((1, 6, 2, DIM), DType::F32, &Device::Cpu)?;
    let found = layer.forward(&small).map(drop).expect_err("an error").to_string();
    assert!(found.contains("axis 1: kernel_size 3 x dilation 1 exceeds the token extent 2"), "{found}");
    Ok(())
}
