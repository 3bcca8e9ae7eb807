//! Parts of one packed tensor as operands, and gradients into parts of another, in safe code, on the CPU and on a device.

use natten::cuda::{Cuda, CudaTensor};
use natten::dynamic::{self, AnyViewMutOn, AnyViewOn};
use natten::{
    Call, Gradients, Inputs, Layout, Output, Params, Problem, Saved, Tensor, TensorView, bf16, na2d_backward,
    na2d_with_lse,
};
use natten_emulator::Emulated;

const PACKED: [usize; 6] = [1, 4, 6, 3, 2, 8];
const SHAPE: [usize; 5] = [1, 4, 6, 2, 8];

fn params() -> Params<2> {
    Params::new([3, 3]).dilation([1, 2]).is_causal([true, false])
}

fn packed() -> Tensor<f32> {
    Tensor::from_fn(&PACKED, |i| ((i * 37 % 101) as f32 - 50.0) / 40.0).unwrap()
}

fn d_out() -> Tensor<f32> {
    Tensor::from_fn(&SHAPE, |i| ((i * 13 % 17) as f32 - 8.0) / 9.0).unwrap()
}

/// The third `i` of a packed tensor: views of `[batch, X, Y, heads, head_dim]`.
fn third<E: natten::InputElement>(packed: &Tensor<E>, i: usize) -> TensorView<'_, E> {
    packed.view().index_axis(3, i).unwrap()
}

/// Outputs and gradients of dense copies, the gradients packed again.
fn expected() -> (Tensor<f32>, Tensor<f32>, Tensor<f32>) {
    let packed = packed();
    let [q, k, v] = [0, 1, 2].map(|i| third(&packed, i).to_tensor());
    let (out, lse) = na2d_with_lse(&q, &k, &v, &params()).unwrap();
    let saved = Saved { out: &out, lse: &lse, d_out: &d_out(), d_lse: None };
    let Gradients { query, key, value, .. } = na2d_backward(&q, &k, &v, &params(), &saved).unwrap();
    let thirds = [query, key, value];
    let gradients = Tensor::from_fn(&PACKED, |i| {
        let (token, third, rest) = (i / 48, i / 16 % 3, i % 16);
        thirds[third].as_slice()[token * 16 + rest]
    });
    (out, lse, gradients.unwrap())
}

#[test]
fn packed_on_the_host() {
    let packed = packed();
    let [q, k, v] = [0, 1, 2].map(|i| third(&packed, i));
    let (expected_out, expected_lse, expected_gradients) = expected();
    let call = Call::new(&q, &k, &v).unwrap();
    let (out, lse) = call.forward_with_lse(&params()).unwrap();
    assert_eq!((&out, &lse), (&expected_out, &expected_lse));

    let mut gradients = Tensor::zeros(&PACKED).unwrap();
    let (query, rest) = gradients.view_mut().split_at(3, 1).unwrap();
    let (key, value) = rest.split_at(3, 1).unwrap();
    let mut thirds = [query, key, value].map(|third| third.index_axis(3, 0).unwrap());
    let [query, key, value] = thirds.each_mut();
    let saved = Saved { out: &out, lse: &lse, d_out: &d_out(), d_lse: None };
    call.backward_into(&params(), &saved, Gradients { query, key, value, additional: None }).unwrap();
    assert_eq!(gradients, expected_gradients);
}

#[test]
fn packed_on_a_device() {
    let cuda = Cuda::new(Emulated::new(8, 0));
    let upload = |tensor: &Tensor<f32>| cuda.upload(&tensor.view()).unwrap();
    let (packed, d_out) = (upload(&packed()), upload(&d_out()));
    let [q, k, v] = [0, 1, 2].map(|i| cuda.bind(packed.view().index_axis(3, i).unwrap()));
    let call = Call::new(&q, &k, &v).unwrap();
    let (out, lse) = call.forward_with_lse(&params()).unwrap();

    let mut gradients: CudaTensor<f32, Emulated> = upload(&Tensor::zeros(&PACKED).unwrap());
    let (query, rest) = gradients.view_mut().split_at(3, 1).unwrap();
    let (key, value) = rest.split_at(3, 1).unwrap();
    let mut thirds = [query, key, value].map(|third| cuda.bind(third.index_axis(3, 0).unwrap()));
    let [query, key, value] = thirds.each_mut();
    let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None };
    call.backward_into(&params(), &saved, Gradients { query, key, value, additional: None }).unwrap();

    let (expected_out, expected_lse, expected_gradients) = expected();
    let close = |found: &CudaTensor<f32, Emulated>, expected: &Tensor<f32>| {
        let found = cuda.download(found).unwrap();
        let pairs = found.as_slice().iter().zip(expected.as_slice());
        pairs.for_each(|(found, expected)| {
            assert!((found - expected).abs() < 1e-5, "{found}, not {expected}")
        });
    };
    close(&out, &expected_out);
    close(&lse, &expected_lse);
    close(&gradients, &expected_gradients);
}

/// Owned tensors and views in one call, the gradient of the output being one row that is broadcast.
#[test]
fn owned_and_borrowed_mix() {
    let x = Tensor::from_fn(&SHAPE, |i| i as f32 * 0.01).unwrap();
    let (out, lse) = na2d_with_lse(&x, &x.view(), &x, &params()).unwrap();
    let row = [0.5f32; 8];
    let broadcast = TensorView::strided(&row, 0, &SHAPE, &[0, 0, 0, 0, 1]).unwrap();
    let saved = Saved { out: &out, lse: &lse, d_out: &broadcast, d_lse: None };
    let found = na2d_backward(&x, &x, &x, &params(), &saved).unwrap();
    let dense = broadcast.to_tensor();
    let saved = Saved { out: &out, lse: &lse, d_out: &dense, d_lse: None };
    let expected = na2d_backward(&x, &x, &x, &params(), &saved).unwrap();
    assert_eq!((found.query, found.key, found.value), (expected.query, expected.key, expected.value));
}

/// The element type a value, the results in the caller's memory, on any backend.
#[test]
fn dynamic_into_the_callers_tensors() {
    let x = Tensor::from_fn(&SHAPE, |i| bf16::from_f32((i % 11) as f32 * 0.1)).unwrap();
    let dense = Call::new(&x, &x, &x).unwrap();
    let (expected, expected_lse) = dense.forward_with_lse(&params()).unwrap();
    let problem: Problem = dense.problem(&params()).unwrap();

    let cpu = natten::cpu::Cpu::default();
    let inputs = Inputs::new(x.view(), x.view(), x.view()).map(|view| AnyViewOn::Bf16(*view));
    let mut out = Tensor::<bf16>::zeros(&problem.out_shape()).unwrap();
    let mut lse = Tensor::<f32>::zeros(&problem.lse_shape()).unwrap();
    let output = Output { out: AnyViewMutOn::from(&mut out), lse: Some(lse.view_mut()) };
    dynamic::forward_into_on(&cpu, &inputs, &params(), output).unwrap();
    assert_eq!((&out, &lse), (&expected, &expected_lse));

    let mut wrong = Tensor::<f32>::zeros(&problem.out_shape()).unwrap();
    let output = Output { out: AnyViewMutOn::from(&mut wrong), lse: None };
    let error = dynamic::forward_into_on(&cpu, &inputs, &params(), output).unwrap_err();
    assert_eq!(error.to_string(), "out holds f32, query bf16");

    let saved = Saved { out: out.view(), lse: lse.view(), d_out: x.view(), d_lse: None };
    let saved = saved.map(|out| AnyViewOn::Bf16(*out), |lse| *lse);
    let expected = dynamic::backward_on(&cpu, &inputs, &params(), &saved).unwrap();
    let mut found = inputs.map(|_| Tensor::<bf16>::zeros(&SHAPE).unwrap()).into_gradients();
    let views = found.map_mut(AnyViewMutOn::from);
    dynamic::backward_into_on(&cpu, &inputs, &params(), &saved, views).unwrap();
    expected.zip(found).into_map(|(expected, found)| assert!(expected == found.into()));
}

/// Strides as engines have them that know no negative ones.
#[test]
fn unsigned_strides() {
    let packed = packed();
    let layout = Layout::with_unsigned_strides(&SHAPE, &[1152, 288, 48, 8, 1]).unwrap();
    let key = TensorView::with_layout(packed.as_slice(), 16, layout).unwrap();
    assert_eq!(key.to_tensor(), third(&packed, 1).to_tensor());
}
