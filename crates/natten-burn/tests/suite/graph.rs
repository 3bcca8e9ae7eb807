//! The operator's place in burn's graph of gradients.

use burn::tensor::{DType, Device, Tensor};
use natten_burn::{Call, Params, Region, na1d, na1d_with_lse};

use crate::support::{assert_close, listed, random};

fn params() -> Params<1> {
    Params::new(5).dilation(2)
}

fn operands(device: &Device) -> [Tensor<4>; 3] {
    [1, 2, 3].map(|seed| random([2, 11, 2, 4], seed, device, DType::F64))
}

/// Gradients of the sum of squares of the output.
fn gradients(tensors: &[Tensor<4>; 3]) -> [Option<Tensor<4>>; 3] {
    let [query, key, value] = tensors.clone();
    let out = na1d(query, key, value, &params()).unwrap();
    let gradients = (out.clone() * out).sum().backward();
    tensors.each_ref().map(|tensor| tensor.grad(&gradients))
}

#[test]
fn what_is_not_tracked_is_a_constant() {
    let device = Device::flex().autodiff();
    let all = gradients(&operands(&device).map(Tensor::require_grad)).map(Option::unwrap);
    for which in 0..3 {
        // Beside tensors of the same device that are not tracked, and of the device without gradients.
        for beside in [&device, &Device::flex()] {
            let mut tensors = operands(beside);
            tensors[which] = operands(&device)[which].clone().require_grad();
            for (i, gradient) in gradients(&tensors).iter().enumerate() {
                match gradient {
                    Some(gradient) => assert_close("alone", gradient, &all[i], 0.0),
                    None => assert_ne!(i, which, "a gradient was lost"),
                }
                assert!(i == which || gradient.is_none(), "{i} was not tracked");
            }
        }
    }
}

/// Queries and keys that are a part of the whole, cut out of its tensors: values, and through them gradients of the whole's operands.
#[test]
fn a_part_has_what_the_whole_has_there() {
    let device = Device::flex().autodiff();
    let tensors = operands(&device).map(Tensor::require_grad);
    let results = |region: Option<Region>| {
        let params = region.map_or(params(), |region| params().region(0, region));
        let [query, key, value] = tensors.clone();
        let [query, key, value] = match region {
            Some(_) => [query.narrow(1, 6, 3), key.narrow(1, 1, 10), value.narrow(1, 1, 10)],
            None => [query, key, value],
        };
        let (out, lse) = na1d_with_lse(query, key, value, &params).unwrap();
        let (out, lse) =
            if region.is_some() { (out, lse) } else { (out.narrow(1, 6, 3), lse.narrow(1, 6, 3)) };
        let gradients = (out.clone() * out.clone()).sum().backward();
        (out, lse, tensors.each_ref().map(|tensor| tensor.grad(&gradients).unwrap()))
    };
    let (out, lse, found) = results(Some(Region::of(11).queries(6..9).keys(1..11)));
    let (of_whole, lse_of_whole, expected) = results(None);
    assert_close("output", &out, &of_whole, 1e-12);
    assert_close("log-sum-exp", &lse, &lse_of_whole, 1e-6);
    for (found, expected) in found.iter().zip(&expected) {
        // The log-sum-exp that gradients start from is f32.
        assert_close("gradient", found, expected, 2e-6);
    }
}

#[test]
fn without_tracked_operands_there_is_no_graph() {
    for device in [Device::flex(), Device::flex().autodiff()] {
        let [query, key, value] = operands(&device);
        let (out, lse) = na1d_with_lse(query, key, value, &params()).unwrap();
        assert!(!out.is_tracked() && !lse.is_tracked());
        assert_eq!(out.device(), device);
        assert_eq!(lse.device(), device);
    }
    // Values are the same with a graph and without.
    let [query, key, value] = operands(&Device::flex());
    let plain = na1d(query, key, value, &params()).unwrap();
    let [query, key, value] = operands(&Device::flex().autodiff()).map(Tensor::require_grad);
    let tracked = na1d(query, key, value, &params()).unwrap();
    assert!(tracked.is_tracked());
    assert_eq!(plain.into_data(), tracked.into_data());
}

#[test]
fn one_tensor_in_every_place_gets_all_of_its_gradient() {
    let device = Device::flex().autodiff();
    let x = random([2, 11, 2, 4], 1, &device, DType::F64);
    let apart = [(); 3].map(|()| x.clone().detach().require_grad());
    let [query, key, value] = gradients(&apart).map(Option::unwrap);
    let x = x.require_grad();
    let [found, ..] = gradients(&[x.clone(), x.clone(), x]);
    assert_close("sum", &found.unwrap(), &(query + key + value), 1e-12);
}

/// The gradients of additional keys, of a tensor in front of the operator, through the output alone, the log-sum-exp alone, or both.
fn through(uses_out: bool, uses_lse: bool, device: &Device) -> [Tensor<4>; 2] {
    let source = random([2, 11, 2, 4], 1, device, DType::F64).require_grad();
    let registers = random([2, 3, 2, 4], 2, device, DType::F64).require_grad();
    // Operations that a strategy of checkpointing may run again.
    let x = (source.clone() * 0.7).tanh() + 0.1;
    let call =
        Call::new(x.clone(), x.clone() * 1.1, x).additional(registers.clone(), registers.clone() * 2.0);
    let (out, lse) = call.forward_with_lse::<3>(&params()).unwrap();
    let lse = lse.cast(DType::F64);
    let loss = match (uses_out, uses_lse) {
        (true, false) => (out.clone() * out).sum(),
        (false, true) => (lse.clone() * lse).sum(),
        _ => (out.clone() * out).sum() + (lse.clone() * lse).sum(),
    };
    let gradients = loss.backward();
    [source.grad(&gradients).unwrap(), registers.grad(&gradients).unwrap()]
}

#[test]
fn both_outputs_have_gradients_and_they_add() {
    let device = Device::flex().autodiff();
    let pairs = through(true, false, &device).into_iter().zip(through(false, true, &device));
    for ((out, lse), both) in pairs.zip(through(true, true, &device)) {
        assert!(listed(&lse).iter().any(|x| x.abs() > 1e-3));
        assert_close("both", &both, &(out + lse), 1e-12);
    }
}

#[test]
fn checkpointing_changes_no_gradient() {
    let device = Device::flex().autodiff();
    let expected = through(true, true, &device);
    let found = through(true, true, &device.gradient_checkpointing());
    for (found, expected) in found.iter().zip(&expected) {
        assert_close("checkpointed", found, expected, 0.0);
    }
}

#[test]
fn a_gradient_is_no_part_of_a_graph() {
    let device = Device::flex().autodiff();
    let [query, ..] = gradients(&operands(&device).map(Tensor::require_grad));
    // burn differentiates once: what comes out of a backward is a plain tensor.
    assert!(!query.unwrap().device().is_autodiff());
}

#[test]
fn the_output_may_be_changed_in_place_and_operands_dropped() {
    let device = Device::flex().autodiff();
    let tensors = operands(&device).map(Tensor::require_grad);
    let expected = gradients(&tensors).map(Option::unwrap);
    let [query, key, value] = tensors.clone().map(|tensor| tensor * 1.0);
    let out = na1d(query, key, value, &params()).unwrap();
    let squares = out.clone() * out.clone();
    // Nobody else holds these any more, so burn may reuse their memory.
    let _ = (out + 3.0).exp();
    let gradients = squares.sum().backward();
    for (tensor, expected) in tensors.iter().zip(&expected) {
        assert_close("in place", &tensor.grad(&gradients).unwrap(), expected, 0.0);
    }
}
