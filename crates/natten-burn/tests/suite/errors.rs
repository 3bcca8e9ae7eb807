//! What is wrong is said in natten's words, or in this crate's, and nothing panics.

use burn::tensor::{DType, Device, Tensor};
use natten_burn::{
    AxisParams, Call, DynParams, Error, KernelSizePolicy, Params, attention, na1d, na2d,
    neighborhood_attention,
};

fn zeros<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::zeros(shape, &Device::flex())
}

#[track_caller]
fn says<T: std::fmt::Debug>(result: Result<T, Error>, sentence: &str) {
    assert_eq!(result.unwrap_err().to_string(), sentence);
}

#[test]
fn a_broken_rule_is_named_with_its_values() {
    let x = || zeros([1, 6, 6, 2, 8]);
    says(
        na2d(x(), x(), x(), &Params::new([7, 3])),
        "axis 0: kernel_size 7 x dilation 1 exceeds the token extent 6",
    );
    says(na2d(x(), x(), x(), &Params::new(3).stride([1, 4])), "axis 1: stride 4 exceeds kernel_size 3");
    says(na2d(x(), x(), x(), &Params::new(3).scale(f32::NAN)), "scale is NaN, it must be finite");
    says(
        na2d(x(), x(), zeros([1, 6, 5, 2, 8]), &Params::new(3)),
        "value: token axis 1 has extent 5, expected 6",
    );
    says(na2d(x(), zeros([2, 6, 6, 2, 8]), x(), &Params::new(3)), "key: batch has extent 2, expected 1");
    let narrow = || zeros([1, 6, 6, 3, 8]);
    says(na2d(x(), narrow(), narrow(), &Params::new(3)), "heads = 2 is not a multiple of heads_kv = 3");
    let empty = || zeros([1, 0, 6, 2, 8]);
    says(na2d(empty(), empty(), empty(), &Params::new(3)), "query: token axis 0 has extent 0");
}

#[test]
fn a_wrong_rank_is_named() {
    let params = DynParams::new(&[AxisParams::new(3); 2], None, KernelSizePolicy::Exact);
    let x = || zeros([1, 6, 2, 8]);
    says(neighborhood_attention(x(), x(), x(), params), "query has 4 axes, expected 5");
    let x = || zeros([1, 1, 1, 1, 1, 2, 8]);
    says(neighborhood_attention(x(), x(), x(), params), "7 axes, a tensor has 1 to 6");
    let none = DynParams::new(&[], None, KernelSizePolicy::Exact);
    let x = || zeros([1, 2, 8]);
    says(neighborhood_attention(x(), x(), x(), none), "0 token axes, expected 1, 2 or 3");
    let x = || zeros([1, 6, 6, 2, 8]);
    says(
        Call::new(x(), x(), x()).forward(&Default::default() as &natten_burn::AttentionParams),
        "query has 5 axes, expected 4",
    );
}

#[test]
fn additional_keys_must_fit() {
    let x = || zeros([2, 6, 2, 8]);
    let call = || Call::new(x(), x(), x());
    says(
        call().additional(zeros([1, 3, 2, 8]), zeros([1, 3, 2, 8])).forward(&Params::<1>::new(3)),
        "additional_keys: batch has extent 1, expected 2",
    );
    says(
        call().additional(zeros([2, 3, 2, 8]), zeros([2, 4, 2, 8])).forward(&Params::<1>::new(3)),
        "additional_values: token axis 0 has extent 4, expected 3",
    );
}

#[test]
fn element_types_must_be_one_of_natten_s() {
    let x = || zeros([1, 6, 2, 8]);
    says(na1d(x(), x().cast(DType::F16), x(), &Params::new(3)), "key holds f16, query f32");
    let scheme = burn::tensor::quantization::QuantScheme::default();
    let quantized =
        Tensor::<2>::ones([8, 32], &Device::flex()).quantize_dynamic(&scheme).reshape([1, 8, 1, 32]);
    let found = attention(quantized.clone(), quantized.clone(), quantized, &Default::default());
    assert!(matches!(found, Err(Error::ElementType { .. })), "{found:?}");
}

#[test]
fn ways_to_checkpoint_do_not_mix() {
    let on = |device: Device| Tensor::<4>::zeros([1, 6, 2, 8], &device).require_grad();
    let device = Device::flex().autodiff();
    let found =
        na1d(on(device.clone()), on(device.clone()), on(device.gradient_checkpointing()), &Params::new(3));
    says(found, "value checkpoints gradients as Balanced, tensors before it as Disabled");
}

#[test]
fn another_backend_is_refused_and_told_the_way_out() {
    let device = Device::capture();
    let captured = device.capture_scope(|scope| {
        let there = || Tensor::<4>::zeros([1, 6, 2, 8], &device);
        let here = || zeros([1, 6, 2, 8]);
        let params = Params::new(3);
        for (found, role) in [
            (na1d(there(), there(), there(), &params), "query"),
            (na1d(here(), here(), there(), &params), "value"),
            (
                Call::new(here(), here(), here()).additional(there(), here()).forward(&params),
                "additional_keys",
            ),
        ] {
            let sentence = found.unwrap_err().to_string();
            let way_out = "natten-burn runs on Flex (the CPU): move it with `to_device(&Device::flex())`";
            assert!(sentence.starts_with(&format!("{role} lives on burn's Capture")), "{sentence}");
            assert!(sentence.contains(way_out), "{sentence}");
        }
        scope.complete([], [])
    });
    captured.unwrap();
}
