//! Problems with random operands, the backend's results on them, and the comparison with the reference.
//!
//! Tolerance: a few units of the element type relative to the largest entry, chosen by hand and stated below: a quick
//! check inside the crate. The measured rule, twice the error of a naive implementation, is held by the shared suites of
//! the workspace, which run every instruction path too.
#![allow(dead_code, reason = "each test file uses its part")]

use natten_core::{
    AttentionParams, AxisParams, Backend, BackwardCall, DynParams, Element, ElementType, ForwardCall,
    Gradients, Inputs, KernelSizePolicy, Layout, Output, Problem, Saved, Sequences, Tensor, TensorView,
    reference,
};
use natten_cpu::Cpu;

/// A problem to be run.
#[derive(Clone, Debug)]
pub struct Case {
    pub batch: usize,
    pub tokens: Vec<usize>,
    pub heads: [usize; 2],
    pub head_dims: [usize; 2],
    pub kernel_size: Vec<usize>,
    pub stride: Vec<usize>,
    pub dilation: Vec<usize>,
    pub is_causal: Vec<bool>,
    pub scale: Option<f32>,
    pub additional: usize,
    /// Plain attention with this many keys; `tokens` are the queries.
    pub attention: Option<usize>,
    /// Packed attention with these lengths.
    pub packed: Option<[Vec<usize>; 2]>,
}

impl Case {
    pub fn new(tokens: &[usize], kernel_size: &[usize]) -> Self {
        let rank = tokens.len();
        Case {
            batch: 1,
            tokens: tokens.into(),
            heads: [1, 1],
            head_dims: [8, 8],
            kernel_size: kernel_size.into(),
            stride: vec![1; rank],
            dilation: vec![1; rank],
            is_causal: vec![false; rank],
            scale: None,
            additional: 0,
            attention: None,
            packed: None,
        }
    }

    pub fn attention(queries: usize, keys: usize, causal: bool) -> Self {
        Case { attention: Some(keys), is_causal: vec![causal], ..Case::new(&[queries], &[1]) }
    }

    fn shape(&self, keys: bool, value: bool) -> Vec<usize> {
        let mut shape = vec![self.batch];
        match self.attention {
            Some(n) if keys => shape.push(n),
            _ => shape.extend(&self.tokens),
        }
        shape.extend([self.heads[usize::from(keys)], self.head_dims[usize::from(value)]]);
        shape
    }

    pub fn operands<E: Element>(&self, seed: u64) -> Operands<E> {
        let tensor = |shape: &[usize], n| random::<E>(shape, seed * 16 + n);
        let kv = |value: usize| vec![self.batch, self.additional, self.heads[1], self.head_dims[value]];
        let query = tensor(&self.shape(false, false), 1);
        let key = tensor(&self.shape(true, false), 2);
        let value = tensor(&self.shape(true, true), 3);
        let additional = (self.additional > 0).then(|| [tensor(&kv(0), 4), tensor(&kv(1), 5)]);
        let d_out = tensor(&self.shape(false, true), 6);
        let mut operands = Operands { query, key, value, additional, d_out, problem: None };
        operands.problem = Some(self.problem(&operands.inputs().map(|view| *view.layout()), E::TYPE));
        operands
    }

    fn problem(&self, inputs: &Inputs<Layout>, element: ElementType) -> Problem {
        if self.attention.is_some() {
            let mut params = AttentionParams::new().is_causal(self.is_causal[0]);
            if let Some(scale) = self.scale {
                params = params.scale(scale);
            }
            if let Some([queries, keys]) = &self.packed {
                let sequences = Sequences::from_lengths(queries, keys).unwrap();
                return Problem::packed_attention(&params, &sequences, inputs, element).unwrap();
            }
            return Problem::attention(&params, inputs, element).unwrap();
        }
        let axes: Vec<AxisParams> = (0..self.tokens.len())
            .map(|a| AxisParams {
                stride: self.stride[a],
                dilation: self.dilation[a],
                is_causal: self.is_causal[a],
                ..AxisParams::new(self.kernel_size[a])
            })
            .collect();
        let params = DynParams::new(&axes, self.scale, KernelSizePolicy::Exact);
        Problem::new(&params, inputs, element).unwrap()
    }
}

pub struct Operands<E> {
    pub query: Tensor<E>,
    pub key: Tensor<E>,
    pub value: Tensor<E>,
    pub additional: Option<[Tensor<E>; 2]>,
    pub d_out: Tensor<E>,
    pub problem: Option<Problem>,
}

impl<E: Element> Operands<E> {
    pub fn inputs(&self) -> Inputs<TensorView<'_, E>> {
        Inputs {
            query: self.query.view(),
            key: self.key.view(),
            value: self.value.view(),
            additional: self.additional.as_ref().map(|pair| pair.each_ref().map(Tensor::view)),
        }
    }

    pub fn problem(&self) -> &Problem {
        self.problem.as_ref().unwrap()
    }
}

/// Roughly normal numbers.
pub fn random<E: Element>(shape: &[usize], seed: u64) -> Tensor<E> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    Tensor::from_fn(shape, |_| {
        let sum: f32 = (0..3)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .sum();
        E::from_f32(sum)
    })
    .unwrap()
}

/// Forward results; poisoned before, so that what is not written shows.
pub fn forward<E: Element>(
    cpu: &Cpu,
    problem: &Problem,
    inputs: &Inputs<TensorView<'_, E>>,
) -> (Tensor<E>, Tensor<f32>) {
    let mut out = Tensor::from_fn(&problem.out_shape(), |_| E::from_f32(777.0)).unwrap();
    let mut lse = Tensor::from_fn(&problem.lse_shape(), |_| 777.0).unwrap();
    let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
    cpu.forward(ForwardCall::new(problem, *inputs, output).unwrap()).unwrap();
    (out, lse)
}

/// Gradients; poisoned before.
pub fn backward<E: Element>(
    cpu: &Cpu,
    problem: &Problem,
    inputs: &Inputs<TensorView<'_, E>>,
    saved: &Saved<TensorView<'_, E>, TensorView<'_, f32>>,
) -> Gradients<Tensor<E>> {
    let poisoned = |view: &TensorView<'_, E>| Tensor::from_fn(view.shape(), |_| E::from_f32(777.0)).unwrap();
    let mut grads = Gradients {
        query: poisoned(&inputs.query),
        key: poisoned(&inputs.key),
        value: poisoned(&inputs.value),
        additional: inputs.additional.as_ref().map(|pair| pair.each_ref().map(poisoned)),
    };
    let views = Gradients {
        query: grads.query.view_mut(),
        key: grads.key.view_mut(),
        value: grads.value.view_mut(),
        additional: grads.additional.as_mut().map(|pair| pair.each_mut().map(Tensor::view_mut)),
    };
    cpu.backward(BackwardCall::new(problem, *inputs, *saved, views).unwrap()).unwrap();
    grads
}

/// Largest error allowed, relative to the largest entry.
fn tolerance(element: ElementType, gradient: bool) -> f64 {
    let unit = match element {
        ElementType::F32 => 2f64.powi(-24) * 32.0,
        ElementType::F16 => 2f64.powi(-11) * 2.0,
        _ => 2f64.powi(-8) * 2.0,
    };
    if gradient { 4.0 * unit } else { unit }
}

/// Panics where `found` is further from `expected` than [`tolerance`] allows.
pub fn assert_close<E: Element>(found: &Tensor<E>, expected: &Tensor<f64>, gradient: bool, what: &str) {
    assert_close_as(found, expected, tolerance(E::TYPE, gradient), what);
}

pub fn assert_close_as<E: Element>(found: &Tensor<E>, expected: &Tensor<f64>, tolerance: f64, what: &str) {
    assert_eq!(found.shape(), expected.shape());
    let finite = expected.as_slice().iter().filter(|x| x.is_finite());
    let largest = finite.fold(0f64, |largest, x| largest.max(x.abs()));
    for (i, (found, &expected)) in found.as_slice().iter().zip(expected.as_slice()).enumerate() {
        let found = found.to_f64();
        if expected.is_nan() || expected.is_infinite() {
            assert!(
                found == expected || (found.is_nan() && expected.is_nan()),
                "{what}: entry {i} is {found}, expected {expected}"
            );
        } else {
            let error = (found - expected).abs() / largest.max(1e-30);
            assert!(
                error <= tolerance || (found == expected),
                "{what}: entry {i} is {found}, expected {expected} (error {error:.1e} of the largest, {tolerance:.1e} allowed)"
            );
        }
    }
}

/// Runs a case forward, and backward if asked, against the reference.
pub fn check<E: Element>(cpu: &Cpu, case: &Case, with_backward: bool) {
    let what = format!("{} {} {case:?}", cpu.chosen_isa().unwrap(), E::TYPE);
    let operands = case.operands::<E>(7);
    let (problem, inputs) = (operands.problem(), operands.inputs());
    let (out, lse) = forward(cpu, problem, &inputs);
    let expected = reference::forward(problem, &inputs);
    assert_close(&out, &expected.out, false, &format!("out of {what}"));
    // The log-sum-exp is f32 whatever the elements, but of scores of that type.
    assert_close_as(&lse, &expected.lse, 4e-6, &format!("lse of {what}"));
    if !with_backward {
        return;
    }
    let d_lse = random::<f32>(&problem.lse_shape(), 99);
    let saved =
        Saved { out: out.view(), lse: lse.view(), d_out: operands.d_out.view(), d_lse: Some(d_lse.view()) };
    let grads = backward(cpu, problem, &inputs, &saved);
    let expected = reference::backward(problem, &inputs, &saved);
    assert_close(&grads.query, &expected.query, true, &format!("d_query of {what}"));
    assert_close(&grads.key, &expected.key, true, &format!("d_key of {what}"));
    assert_close(&grads.value, &expected.value, true, &format!("d_value of {what}"));
    if let (Some(found), Some(expected)) = (&grads.additional, &expected.additional) {
        assert_close(&found[0], &expected[0], true, &format!("d_additional_keys of {what}"));
        assert_close(&found[1], &expected[1], true, &format!("d_additional_values of {what}"));
    }
}
