//! Where a tensor's numbers lie changes nothing about the result.

use burn::tensor::{DType, Device, Tensor, TensorData};
use natten_burn::{Params, attention, na1d, na2d};

use crate::support::{assert_close, listed, numbers, random};

/// A tensor with the same numbers whose memory is in order.
fn in_order<const D: usize>(tensor: &Tensor<D>) -> Tensor<D> {
    let data = TensorData::new(listed(tensor), tensor.dims());
    Tensor::<D>::from_data(data, (&tensor.device().inner(), DType::F64)).cast(tensor.dtype())
}

/// The same call on the tensors as they are and in order, to the last bit.
#[track_caller]
fn check(tensors: [Tensor<5>; 3]) {
    let params = Params::new([3, 5]).dilation([1, 1]);
    let ordered = tensors.each_ref().map(in_order);
    let [query, key, value] = tensors;
    let found = na2d(query, key, value, &params).unwrap();
    let [query, key, value] = ordered;
    let expected = na2d(query, key, value, &params).unwrap();
    assert_eq!(found.to_data(), expected.to_data());
}

fn image(shape: [usize; 5], seed: u64) -> Tensor<5> {
    random(shape, seed, &Device::flex(), DType::F32)
}

#[test]
fn heads_before_tokens_are_read_as_they_are() {
    // [batch, heads, X, Y, numbers] and back.
    check([1, 2, 3].map(|seed| image([2, 3, 6, 5, 8], seed).permute([0, 2, 3, 1, 4])));
    check([1, 2, 3].map(|seed| image([2, 5, 6, 3, 8], seed).swap_dims(1, 2)));
}

#[test]
fn parts_of_a_tensor_are_read_as_they_are() {
    let qkv = image([2, 6, 5, 9, 8], 1);
    check([0, 3, 6].map(|first| qkv.clone().narrow(3, first, 3)));
    let wide = image([3, 8, 9, 2, 12], 2);
    check([0, 1, 4].map(|first| wide.clone().slice([1..3, 1..7, 2..7, 0..2, first..first + 8])));
}

#[test]
fn every_other_stride_too() {
    // Turned around, repeated, and with a last axis that has to be copied: transposed, turned around, repeated.
    check([1, 2, 3].map(|seed| image([2, 6, 5, 2, 8], seed).flip([1, 3])));
    check([1, 2, 3].map(|seed| image([1, 6, 5, 1, 8], seed).expand([2, 6, 5, 4, 8])));
    check([1, 2, 3].map(|seed| image([2, 6, 5, 8, 2], seed).swap_dims(3, 4)));
    check([1, 2, 3].map(|seed| image([2, 6, 5, 2, 8], seed).flip([4])));
    check([1, 2, 3].map(|seed| image([2, 6, 5, 2, 1], seed).expand([2, 6, 5, 2, 8])));
}

#[test]
fn gradients_reach_what_a_part_was_taken_from() {
    let device = Device::flex().autodiff();
    let params = Params::new(5).is_causal(true);
    let qkv = random([2, 9, 6, 4], 1, &device, DType::F64).require_grad();
    let [query, key, value] = [0, 2, 4].map(|first| qkv.clone().narrow(2, first, 2));
    let apart = [&query, &key, &value].map(|tensor| {
        let tensor = in_order(tensor);
        Tensor::<4>::from_inner(tensor).require_grad()
    });
    let weights = random([2, 9, 2, 4], 2, &device, DType::F64);
    let found = (na1d(query, key, value, &params).unwrap() * weights.clone()).sum().backward();
    let [query, key, value] = apart.clone();
    let expected = (na1d(query, key, value, &params).unwrap() * weights).sum().backward();
    let expected = Tensor::cat(apart.iter().map(|tensor| tensor.grad(&expected).unwrap()).collect(), 2);
    assert_close("gradient of qkv", &qkv.grad(&found).unwrap(), &expected, 0.0);
}

#[test]
fn a_gradient_that_is_one_number_repeated_is_the_same_as_many() {
    let device = Device::flex().autodiff();
    let params = Params::new([3, 3]);
    let tensors = [1, 2, 3].map(|seed| random([2, 4, 5, 2, 4], seed, &device, DType::F32).require_grad());
    let gradients = |ones: Option<Tensor<5>>| {
        let [query, key, value] = tensors.clone();
        let out = na2d(query, key, value, &params).unwrap();
        let out = if let Some(ones) = ones { out * ones } else { out };
        let gradients = out.sum().backward();
        tensors.each_ref().map(|tensor| tensor.grad(&gradients).unwrap().into_data())
    };
    let ones = TensorData::new(vec![1f32; 2 * 4 * 5 * 2 * 4], [2, 4, 5, 2, 4]);
    assert_eq!(gradients(None), gradients(Some(Tensor::from_data(ones, &device))));
}

#[test]
fn a_batch_of_none_gives_none() {
    let device = Device::flex().autodiff();
    let empty = || Tensor::<5>::zeros([0, 4, 4, 2, 8], &device).require_grad();
    let query = empty();
    let out = na2d(query.clone(), empty(), empty(), &Params::new(3)).unwrap();
    assert_eq!(out.dims(), [0, 4, 4, 2, 8]);
    let gradients = out.sum().backward();
    assert_eq!(query.grad(&gradients).unwrap().dims(), [0, 4, 4, 2, 8]);
}

#[test]
fn the_layouts_of_the_documents_are_one_call_apart() {
    let device = Device::flex();
    // [batch, heads, tokens, numbers], as burn's own attention has it.
    let by_head = [1, 2, 3].map(|seed| random::<4>([2, 3, 7, 4], seed, &device, DType::F32));
    let [query, key, value] = by_head.clone();
    let options = burn::tensor::ops::AttentionModuleOptions::default();
    let expected = burn::tensor::module::attention(query, key, value, None, None, options);
    let [query, key, value] = by_head.map(|tensor| tensor.swap_dims(1, 2));
    let out = attention(query, key, value, &Default::default()).unwrap().swap_dims(1, 2);
    assert_close("burn's attention", &out, &expected, 1e-6);
    assert_eq!(numbers(3, 1), numbers(3, 1));
}
