//! The same functions on device tensors: an emulated GPU stands in for a real one, all checks on.

use natten::cuda::Cuda;
use natten::{
    AttentionParams, Call, Error, Params, Role, Saved, Tensor, attention, merge_attentions,
    merge_attentions_backward, merge_attentions_into, na1d_backward, na2d, na2d_backward, na2d_into,
    na2d_with_lse, na3d,
};
use natten_emulator::Emulated;
use natten_tests::{Rng, assert_close};

type Gpu = Cuda<Emulated>;

fn gpu() -> Gpu {
    Cuda::new(Emulated::new(8, 0))
}

fn draw(rng: &mut Rng, shape: &[usize]) -> Tensor<f32> {
    Tensor::from_fn(shape, |_| rng.normal() as f32).expect("small")
}

fn upload(gpu: &Gpu, tensor: &Tensor<f32>) -> natten::cuda::CudaTensor<f32, Emulated> {
    gpu.upload(&tensor.view()).expect("an emulated GPU has memory")
}

/// The tolerance that `natten verify` states for f32; the numbers here are of the order of 1.
const BOUND: f64 = 2e-5;

#[test]
fn one_name_for_host_and_device() {
    let (gpu, mut rng) = (gpu(), Rng::new(1));
    let host = [(); 3].map(|()| draw(&mut rng, &[2, 5, 7, 2, 16]));
    let [q, k, v] = host.each_ref().map(|tensor| upload(&gpu, tensor));
    let params = Params::new([2, 3]).dilation([2, 2]).is_causal([true, false]);
    let (out, lse) = na2d_with_lse(&q, &k, &v, &params).expect("every GPU serves this");
    let (host_out, host_lse) = na2d_with_lse(&host[0], &host[1], &host[2], &params).expect("valid");
    assert_close("device against host", &gpu.download(&out).expect("ran"), &host_out, BOUND);
    assert_close("device against host", &gpu.download(&lse).expect("ran"), &host_lse, BOUND);

    // Owned and borrowed operands mix, and the output may be the caller's.
    let view = gpu.bind(k.view());
    let mut into = upload(&gpu, &Tensor::zeros(q.shape()).expect("small"));
    na2d_into(&q, &view, &v, &params, &mut into).expect("every GPU serves this");
    assert_eq!(gpu.download(&into).expect("ran"), gpu.download(&out).expect("ran"));

    // Heads first in memory, without a copy.
    let heads_first = draw(&mut rng, &[1, 2, 6, 4, 4, 8]);
    let moved = upload(&gpu, &heads_first);
    let (mut device_view, mut host_view) = (moved.view(), heads_first.view());
    for axis in 1..4 {
        device_view = device_view.swap_axes(axis, axis + 1).expect("six axes");
        host_view = host_view.swap_axes(axis, axis + 1).expect("six axes");
    }
    let bound = gpu.bind(device_view);
    let params = Params::new([3, 3, 1]);
    let on_device = na3d(&bound, &bound, &bound, &params).expect("every GPU serves this");
    let on_host = na3d(&host_view, &host_view, &host_view, &params).expect("valid");
    assert_close("device against host", &gpu.download(&on_device).expect("ran"), &on_host, BOUND);
}

#[test]
fn gradients_and_merging_on_the_device() {
    let (gpu, mut rng) = (gpu(), Rng::new(2));
    let host = [(); 4].map(|()| draw(&mut rng, &[1, 12, 2, 8]));
    let d_lse = draw(&mut rng, &[1, 12, 2]);
    let [q, k, v, d_out] = host.each_ref().map(|tensor| upload(&gpu, tensor));
    let params = Params::<1>::new(5).stride(2);
    let run = Call::new(&q, &k, &v).expect("together").forward_with_lse(&params).expect("served");
    let saved = Saved { out: &run.0, lse: &run.1, d_out: &d_out, d_lse: Some(&upload(&gpu, &d_lse)) };
    let gradients = na1d_backward(&q, &k, &v, &params, &saved).expect("served");
    let (out, lse) =
        Call::new(&host[0], &host[1], &host[2]).expect("host").forward_with_lse(&params).expect("valid");
    let saved = Saved { out: &out, lse: &lse, d_out: &host[3], d_lse: Some(&d_lse) };
    let expected = na1d_backward(&host[0], &host[1], &host[2], &params, &saved).expect("valid");
    for (found, expected) in [
        (&gradients.query, &expected.query),
        (&gradients.key, &expected.key),
        (&gradients.value, &expected.value),
    ] {
        assert_close("device against host", &gpu.download(found).expect("ran"), expected, BOUND);
    }

    let other = attention(&q, &k, &v, &AttentionParams::new()).expect("served");
    let (merged, _) = merge_attentions(&[&run.0, &other], &[&run.1, &run.1]).expect("served");
    let host_other = gpu.download(&other).expect("ran");
    let (expected, _) = merge_attentions(&[&out, &host_other], &[&lse, &lse]).expect("valid");
    assert_close("device against host", &gpu.download(&merged).expect("ran"), &expected, BOUND);
    let mut into = Tensor::from_fn(out.shape(), |_| f32::NAN).expect("small");
    let mut into_lse = Tensor::from_fn(lse.shape(), |_| f32::NAN).expect("small");
    merge_attentions_into(&[&out, &host_other], &[&lse, &lse], &mut into, &mut into_lse).expect("valid");
    assert_eq!(into, expected);
    let wrong = merge_attentions_into(&[&out, &host_other], &[&lse, &lse], &mut into_lse.clone(), &mut into);
    assert_eq!(wrong.expect_err("the wrong way round").to_string(), "out has 3 axes, expected 4");
}

/// Rows that are not contiguous are copied on the device, in a gradient of attention and of a merge; any other operand is refused.
#[test]
fn a_gradient_of_any_strides() {
    let (gpu, mut rng) = (gpu(), Rng::new(3));
    let host = [(); 3].map(|()| draw(&mut rng, &[1, 6, 5, 2, 8]));
    let [q, k, v] = host.each_ref().map(|tensor| upload(&gpu, tensor));
    let params = Params::new(3);
    let (out, lse) = na2d_with_lse(&q, &k, &v, &params).expect("served");
    // Heads last in memory.
    let turned = draw(&mut rng, &[1, 6, 5, 8, 2]);
    let on_device = upload(&gpu, &turned);
    let rows_first = turned.view().swap_axes(3, 4).expect("five axes");
    let d_out = gpu.bind(on_device.view().swap_axes(3, 4).expect("five axes"));
    let found =
        na2d_backward(&q, &k, &v, &params, &Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None });
    let dense = upload(&gpu, &rows_first.to_tensor());
    let saved = Saved { out: &out, lse: &lse, d_out: &dense, d_lse: None };
    let expected = na2d_backward(&q, &k, &v, &params, &saved).expect("served");
    let found = found.expect("served");
    for (found, expected) in
        [(&found.query, &expected.query), (&found.key, &expected.key), (&found.value, &expected.value)]
    {
        assert_eq!(gpu.download(found).expect("ran"), gpu.download(expected).expect("ran"));
    }

    let (of_out, of_lse) = (gpu.bind(out.view()), gpu.bind(lse.view()));
    let merged = |d_out| merge_attentions_backward(&[&of_out; 2], &[&of_lse; 2], d_out, None);
    let (found, expected) =
        (merged(&d_out).expect("served"), merged(&gpu.bind(dense.view())).expect("served"));
    assert_eq!(gpu.download(&found[1].0).expect("ran"), gpu.download(&expected[1].0).expect("ran"));

    let error = na2d(&d_out, &k, &v, &params).expect_err("a query").to_string();
    assert!(error.contains("query") && error.contains("contiguous"), "{error}");
    let wrong = gpu.bind(on_device.view());
    let saved = Saved { out: &out, lse: &lse, d_out: &wrong, d_lse: None };
    let error = na2d_backward(&q, &k, &v, &params, &saved).expect_err("another shape").to_string();
    assert!(error.contains("d_out"), "{error}");
}

#[test]
fn operands_of_two_devices_are_refused_by_name() {
    let (here, there, mut rng) = (gpu(), gpu(), Rng::new(3));
    let host = draw(&mut rng, &[1, 4, 4, 1, 8]);
    let (q, k) = (upload(&here, &host), upload(&there, &host));
    let params = Params::new([3, 3]);
    let expect = |result: Result<(), Error>, role: Role| {
        let Err(Error::DeviceMismatch { tensor, expected, found }) = result else {
            panic!("two devices met: {result:?}");
        };
        assert_eq!(tensor, role);
        assert_ne!(expected, found);
    };
    expect(na2d(&q, &k, &q, &params).map(drop), Role::Key);
    expect(na2d(&q, &q, &k, &params).map(drop), Role::Value);
    let mut out = upload(&there, &host);
    expect(na2d_into(&q, &q, &q, &params, &mut out), Role::Out);
    let call = || Call::new(&q, &q, &q).expect("together");
    expect(call().on(there.clone()).map(drop), Role::Query);
    let (out, lse) = call().forward_with_lse(&params).expect("served");
    let (there_out, there_lse) =
        Call::new(&k, &k, &k).expect("together").forward_with_lse(&params).expect("served");
    let backward = |saved| call().backward(&params, &saved).map(drop);
    expect(backward(Saved { out: &there_out, lse: &lse, d_out: &out, d_lse: None }), Role::Out);
    expect(backward(Saved { out: &out, lse: &there_lse, d_out: &out, d_lse: None }), Role::Lse);
    expect(backward(Saved { out: &out, lse: &lse, d_out: &there_out, d_lse: None }), Role::DOut);
    expect(backward(Saved { out: &out, lse: &lse, d_out: &out, d_lse: Some(&there_lse) }), Role::DLse);
    expect(merge_attentions(&[&out, &there_out], &[&lse, &lse]).map(drop), Role::Out);
    expect(merge_attentions(&[&out, &out], &[&lse, &there_lse]).map(drop), Role::Lse);
}
