//! Calls that are wrong: natten's sentence arrives through candle's error, and nothing panics.

mod support;

use candle_core::{DType, Device, Result, Tensor};
use natten_candle::{
    AttentionParams, Call, Params, attention, na1d, na2d, na3d, neighborhood_attention,
    neighborhood_attention_qkv,
};

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("zeros")
}

fn assert_says(result: Result<Tensor>, sentence: &str) {
    let error = result.map(drop).expect_err(sentence);
    assert!(error.to_string().contains(sentence), "{error}\nexpected: {sentence}");
}

#[test]
fn shapes_and_ranks() {
    let x = zeros(&[1, 6, 2, 8]);
    let params = Params::<1>::new(3);
    assert_says(na1d(&x, &zeros(&[1, 6, 2, 4]), &x, &params), "key: head_dim has extent 4, expected 8");
    assert_says(na1d(&x, &x, &zeros(&[1, 5, 2, 8]), &params), "value: token axis 0 has extent 5, expected 6");
    assert_says(na1d(&x, &x, &zeros(&[2, 6, 2, 8]), &params), "value: batch has extent 2, expected 1");
    assert_says(na1d(&x, &x, &zeros(&[1, 6, 1, 8]), &params), "value: heads has extent 1, expected 2");
    let three = zeros(&[1, 6, 3, 8]);
    assert_says(na1d(&x, &three, &three, &params), "heads = 2 is not a multiple of heads_kv = 3");
    assert_says(na1d(&x, &zeros(&[6, 2, 8]), &x, &params), "key has 3 axes, expected 4");
    assert_says(na2d(&x, &x, &x, &Params::new(3)), "query has 4 axes, expected 5");
    assert_says(na3d(&x, &x, &x, &Params::new(3)), "query has 4 axes, expected 6");
    assert_says(neighborhood_attention(&x, &x, &x, Params::<2>::new(3)), "query has 4 axes, expected 5");
    assert_says(attention(&zeros(&[8]), &x, &x, &AttentionParams::new()), "query has 1 axes, expected 4");
    let scalar = Tensor::zeros((), DType::F32, &Device::Cpu).expect("a scalar");
    assert_says(na1d(&scalar, &scalar, &scalar, &params), "0 axes");
    assert_says(na1d(&zeros(&[1; 7]), &x, &x, &params), "7 axes");
    let empty = zeros(&[1, 0, 2, 8]);
    assert_says(na1d(&empty, &empty, &empty, &params), "token axis 0 has extent 0");
}

#[test]
fn parameters() {
    let x = zeros(&[1, 8, 2, 8]);
    let says = |params: Params<1>, sentence| assert_says(na1d(&x, &x, &x, &params), sentence);
    says(Params::new(9), "axis 0: kernel_size 9 x dilation 1 exceeds the token extent 8");
    says(Params::new(3).dilation(3), "axis 0: kernel_size 3 x dilation 3 exceeds the token extent 8");
    says(Params::new(0), "axis 0: kernel_size is 0");
    says(Params::new(3).stride(4), "axis 0: stride 4 exceeds kernel_size 3");
    says(Params::new(3).scale(f32::NAN), "scale is NaN");
}

#[test]
fn element_types() {
    let x = zeros(&[1, 6, 2, 8]);
    let half = x.to_dtype(DType::F16).expect("halves");
    let params = Params::<1>::new(3);
    assert_says(na1d(&x, &half, &x, &params), "key holds f16, query f32");
    assert_says(na1d(&half, &half, &x, &params), "value holds f32, query f16");
    let bytes = x.to_dtype(DType::U8).expect("bytes");
    assert_says(na1d(&bytes, &bytes, &bytes, &params), "query holds u8, expected f16, bf16, f32 or f64");
    assert_says(na1d(&x, &bytes, &x, &params), "key holds u8");
}

#[test]
fn rows_that_are_not_contiguous() {
    let x = zeros(&[1, 6, 2, 8]);
    let transposed = zeros(&[1, 6, 8, 2]).transpose(2, 3).expect("a transposed view");
    let params = Params::<1>::new(3);
    assert_says(na1d(&transposed, &x, &x, &params), "query: the last axis has stride 2");
    assert_says(na1d(&x, &x, &transposed, &params), "value: the last axis has stride 2");
    let contiguous = transposed.contiguous().expect("a copy");
    assert!(na1d(&contiguous, &x, &x, &params).is_ok());
}

#[test]
fn packed_tensors_and_additional_keys() {
    let params = Params::<1>::new(3);
    for shape in [&[1, 6, 2, 2, 8][..], &[3, 2], &[1, 6, 24], &[8]] {
        let sentence = "expected [batch, tokens.., 3, heads, head_dim]";
        assert_says(neighborhood_attention_qkv(&zeros(shape), params), sentence);
    }
    assert_says(neighborhood_attention_qkv(&zeros(&[3, 2, 8]), params), "query has 2 axes, expected 4");
    assert_says(neighborhood_attention_qkv(&zeros(&[1, 2, 3, 2, 8]), params), "kernel_size 3 x dilation 1");
    let x = zeros(&[1, 6, 2, 8]);
    let call =
        |keys: &Tensor, values: &Tensor| Call::new(&x, &x, &x).additional(keys, values).forward(&params);
    assert_says(call(&zeros(&[1, 4, 2, 6]), &zeros(&[1, 4, 2, 8])), "additional_keys: head_dim has extent 6");
    assert_says(call(&zeros(&[1, 4, 2, 8]), &zeros(&[1, 3, 2, 8])), "additional_values");
    assert_says(call(&zeros(&[4, 2, 8]), &zeros(&[4, 2, 8])), "additional_keys has 3 axes");
    assert!(call(&zeros(&[1, 0, 2, 8]), &zeros(&[1, 0, 2, 8])).is_ok());
}
