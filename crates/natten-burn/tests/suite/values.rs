//! Outputs, log-sum-exps and gradients for every parameter, against the definition and against finite differences.

use burn::tensor::{Bool, DType, Device, Tensor};
use natten_burn::{AttentionParams, Call, MaskParams, attention_with_lse};

use crate::support::{Case, assert_close, axis, dense, listed, random};

/// The saved log-sum-exp is an f32, which is felt in gradients of f64.
const CLOSE: f64 = 2e-6;

/// Query, key and value of a case, and its additional keys and values.
struct Operands<const D: usize> {
    tensors: [Tensor<D>; 3],
    additional: Option<[Tensor<4>; 2]>,
}

impl<const D: usize> Operands<D> {
    fn new(case: &Case, device: &Device) -> Self {
        let Case { batch, heads, heads_kv, head_dim, head_dim_v, additional, .. } = *case;
        let shapes = [(heads, head_dim), (heads_kv, head_dim), (heads_kv, head_dim_v)];
        let mut seed = 0;
        let tensors = shapes.map(|(heads, numbers)| {
            seed += 1;
            random(case.shape(heads, numbers), seed, device, DType::F64).require_grad()
        });
        let extra = |numbers, seed| {
            random([batch, additional, heads_kv, numbers], seed, device, DType::F64).require_grad()
        };
        let additional = (additional > 0).then(|| [extra(head_dim, 8), extra(head_dim_v, 9)]);
        Operands { tensors, additional }
    }

    fn call(&self) -> Call<D> {
        let [query, key, value] = self.tensors.clone();
        let call = Call::new(query, key, value);
        match self.additional.clone() {
            Some([keys, values]) => call.additional(keys, values),
            None => call,
        }
    }
}

/// Output, log-sum-exp and all gradients are those of the definition.
fn check<const D: usize, const LSE: usize>(case: &Case) {
    let device = Device::flex().autodiff();
    let Operands { tensors, additional } = &Operands::<D>::new(case, &device);
    let operands = Operands { tensors: tensors.clone(), additional: additional.clone() };
    let (out, lse) = operands.call().forward_with_lse::<LSE>(case.params()).unwrap();

    let flat = tensors.clone().map(|tensor| {
        let [.., heads, numbers] = tensor.dims()[..] else { unreachable!() };
        tensor.reshape([case.batch, case.tokens(), heads, numbers])
    });
    let (expected, expected_lse) = dense(flat, additional.clone(), case.hidden(&device), case.scale);
    let expected = expected.reshape(out.dims());
    let expected_lse = expected_lse.reshape(lse.dims());
    assert_close(&format!("{case:?}: out"), &out, &expected, 1e-12);
    assert_close(&format!("{case:?}: lse"), &lse.clone().cast(DType::F64), &expected_lse, 1e-6);

    // Any function of both, the same of what was found and of what was expected.
    let weights = random(out.dims(), 21, &device, DType::F64);
    let lse_weights = random(lse.dims(), 22, &device, DType::F64);
    let loss = |out: Tensor<D>, lse: Tensor<LSE>| {
        (out * weights.clone()).sum() + (lse.cast(DType::F64) * lse_weights.clone()).sum()
    };
    let (found, expected) = (loss(out, lse).backward(), loss(expected, expected_lse).backward());
    for (name, tensor) in ["query", "key", "value"].iter().zip(tensors) {
        let (found, expected) = (tensor.grad(&found).unwrap(), tensor.grad(&expected).unwrap());
        assert_close(&format!("{case:?}: gradient of {name}"), &found, &expected, CLOSE);
    }
    for (name, tensor) in ["keys", "values"].iter().zip(additional.iter().flatten()) {
        let (found, expected) = (tensor.grad(&found).unwrap(), tensor.grad(&expected).unwrap());
        assert_close(&format!("{case:?}: gradient of additional {name}"), &found, &expected, CLOSE);
    }
}

#[test]
fn windows_strides_dilations_and_causality_are_those_of_the_definition() {
    for (window, stride, dilation, is_causal) in [
        (1, 1, 1, false),
        (5, 1, 1, false),
        (4, 3, 1, false),
        (3, 1, 3, false),
        (3, 2, 3, false),
        (5, 1, 1, true),
        (4, 2, 2, true),
        (13, 1, 1, false),
    ] {
        check::<4, 3>(&Case::new(&[(13, axis(window, stride, dilation, is_causal))]));
    }
    check::<5, 4>(&Case::new(&[(7, axis(3, 1, 2, false)), (6, axis(4, 2, 1, true))]));
    let volume = [(3, axis(2, 1, 1, true)), (5, axis(3, 3, 1, false)), (4, axis(2, 1, 2, false))];
    check::<6, 5>(&Case { batch: 1, ..Case::new(&volume) });
}

#[test]
fn heads_scales_and_additional_keys_are_those_of_the_definition() {
    let image = Case::new(&[(6, axis(3, 1, 1, false)), (5, axis(3, 1, 1, false))]);
    check::<5, 4>(&Case { heads: 6, ..image.clone() });
    check::<5, 4>(&Case { heads: 3, heads_kv: 1, ..image.clone() });
    check::<5, 4>(&Case { head_dim: 3, head_dim_v: 7, ..image.clone() });
    check::<5, 4>(&Case { scale: Some(-1.5), ..image.clone() });
    check::<5, 4>(&Case { scale: Some(0.0), ..image.clone() });
    check::<5, 4>(&Case { additional: 3, ..image.clone() });
    check::<5, 4>(&Case { additional: 1, heads: 4, head_dim_v: 5, scale: Some(0.7), ..image });
    check::<4, 3>(&Case { additional: 2, ..Case::new(&[(9, axis(3, 1, 1, true))]) });
    let volume = [(2, axis(2, 1, 1, true)), (4, axis(3, 1, 1, false)), (4, axis(3, 1, 1, false))];
    check::<6, 5>(&Case { additional: 2, ..Case::new(&volume) });
}

#[test]
fn gradients_are_what_finite_differences_say() {
    const STEP: f64 = 1e-5;
    let image = Case::new(&[(6, axis(3, 2, 1, false)), (5, axis(2, 1, 2, true))]);
    let case = Case { heads: 4, head_dim_v: 3, additional: 2, scale: Some(0.8), ..image };
    let device = Device::flex().autodiff();
    let operands = Operands::<5>::new(&case, &device);
    let weights = random(case.shape::<5>(case.heads, case.head_dim_v), 21, &device, DType::F64);
    let loss = |operands: &Operands<5>| {
        let out = operands.call().forward(case.params()).unwrap();
        (out * weights.clone()).sum()
    };
    let gradients = loss(&operands).backward();
    // Along a random direction for each operand.
    for which in 0..5u64 {
        let along = |step: f64| {
            let Operands { mut tensors, mut additional } =
                Operands { tensors: operands.tensors.clone(), additional: operands.additional.clone() };
            let pair = additional.as_mut().unwrap();
            match which {
                0..3 => moved(&mut tensors[which as usize], step, which),
                _ => moved(&mut pair[which as usize - 3], step, which),
            }
            listed(&loss(&Operands { tensors, additional }))[0]
        };
        let claimed = match which {
            0..3 => slope(&operands.tensors[which as usize], &gradients, which),
            _ => slope(&operands.additional.as_ref().unwrap()[which as usize - 3], &gradients, which),
        };
        let measured = (along(STEP) - along(-STEP)) / (2.0 * STEP);
        assert!(
            (claimed - measured).abs() < 1e-6 * measured.abs().max(1.0),
            "{which}: {claimed}, {measured}"
        );
        assert!(measured.abs() > 1e-3, "{which}: nothing to see in {measured}");
    }
}

fn direction<const D: usize>(tensor: &Tensor<D>, seed: u64) -> Tensor<D> {
    random(tensor.dims(), 31 + seed, &tensor.device().inner(), DType::F64)
}

fn moved<const D: usize>(tensor: &mut Tensor<D>, step: f64, seed: u64) {
    let to = tensor.clone().inner() + direction(tensor, seed).mul_scalar(step);
    *tensor = Tensor::from_inner(to);
}

fn slope<const D: usize>(tensor: &Tensor<D>, gradients: &burn::tensor::Gradients, seed: u64) -> f64 {
    let gradient = tensor.grad(gradients).unwrap();
    listed(&(gradient * direction(tensor, seed)).sum())[0]
}

#[test]
fn attention_has_both_alignments() {
    let device = Device::flex().autodiff();
    for (queries, keys) in [(5, 5), (3, 7), (1, 6)] {
        let rules = [
            (AttentionParams::new(), None),
            (AttentionParams::new().is_causal(true), None),
            (AttentionParams::new().causal_from_end().scale(0.6), Some(0.6)),
        ];
        for (which, (params, scale)) in rules.into_iter().enumerate() {
            let is_hidden = |q: usize, k: usize| match which {
                0 => false,
                1 => k > q,
                _ => k + queries > q + keys,
            };
            let extents = [(queries, 4, 3), (keys, 2, 3), (keys, 2, 5)];
            let tensors = extents.map(|(tokens, heads, numbers)| {
                random([2, tokens, heads, numbers], tokens as u64, &device, DType::F64).require_grad()
            });
            let pairs = (0..queries).flat_map(|q| (0..keys).map(move |k| is_hidden(q, k)));
            let hidden: Vec<bool> = pairs.collect();
            let hidden = burn::tensor::TensorData::new(hidden, [queries, keys]);
            let hidden = Tensor::<2, Bool>::from_data(hidden, &device);
            let (expected, expected_lse) = dense(tensors.clone(), None, hidden, scale);
            let [query, key, value] = tensors.clone();
            let (out, lse) = attention_with_lse(query, key, value, &params).unwrap();
            assert_close("out", &out, &expected, 1e-12);
            assert_close("lse", &lse, &expected_lse, 1e-6);
            let weights = random(out.dims(), 5, &device, DType::F64);
            let found = (out * weights.clone()).sum().backward();
            let expected = (expected * weights).sum().backward();
            for tensor in &tensors {
                assert_close(
                    "gradient",
                    &tensor.grad(&found).unwrap(),
                    &tensor.grad(&expected).unwrap(),
                    CLOSE,
                );
            }
        }
    }
}

#[test]
fn a_mask_is_made_from_any_parameters() {
    let params = natten_burn::Params::<2>::new([3, 5]).dilation(2);
    assert_eq!(MaskParams::from(&params), MaskParams::from(params.to_dyn()));
}
