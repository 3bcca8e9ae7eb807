//! Tiny problems through every unsafe block of the crate, for what looks at each access and is slow: Miri above all
//! (docs/testing.md has the commands). Results are held to the reference as everywhere.

mod support;

use natten_core::{
    AxisParams, Backend, BackwardCall, DynParams, Element, ElementType, ForwardCall, Gradients, Inputs,
    KernelSizePolicy, MergeCall, Output, Problem, Saved, Tensor, TensorViewMut, bf16, f16,
};
use natten_cpu::{Cpu, Isa};
use support::{Case, check, forward};

fn each_isa(run: impl Fn(&Cpu)) {
    for isa in Isa::every_available() {
        run(&Cpu::new().isa(isa).unwrap());
    }
}

/// Odd widths, heads that share keys, additional keys; a tile that is not full along either axis.
fn shared_heads() -> Case {
    Case { heads: [2, 1], head_dims: [5, 3], additional: 2, ..Case::new(&[2, 5], &[2, 3]) }
}

#[test]
fn f32_forward_and_backward() {
    each_isa(|cpu| check::<f32>(cpu, &shared_heads(), true));
}

#[test]
fn bf16_forward_and_backward() {
    each_isa(|cpu| check::<bf16>(cpu, &shared_heads(), true));
}

#[test]
fn f16_dilated_and_causal() {
    let case = Case { dilation: vec![2], is_causal: vec![true], head_dims: [4; 2], ..Case::new(&[7], &[2]) };
    each_isa(|cpu| check::<f16>(cpu, &case, true));
}

#[test]
fn packed_sequences() {
    let packed = Some([vec![3, 0, 1], vec![2, 1, 3]]);
    let case = Case { packed, head_dims: [3, 4], ..Case::attention(4, 6, true) };
    each_isa(|cpu| check::<f32>(cpu, &case, true));
}

/// Rows of the output with gaps between them, in another order, the last one ending where the buffer ends.
fn strided_output<E: Element>(cpu: &Cpu) {
    let case = Case { heads: [2, 2], head_dims: [3; 2], ..Case::new(&[5], &[3]) };
    let operands = case.operands::<E>(3);
    let (expected, _) = forward(cpu, operands.problem(), &operands.inputs());
    let untouched = E::from_f32(777.0);
    let mut data = vec![untouched; 52];
    let view = TensorViewMut::strided(&mut data, 44, &[1, 5, 2, 3], &[0, -10, 5, 1]).unwrap();
    let output = Output { out: view, lse: None };
    cpu.forward(ForwardCall::new(operands.problem(), operands.inputs(), output).unwrap()).unwrap();
    for token in 0..5 {
        let row = |head: usize| &data[44 - 10 * token + 5 * head..][..3];
        let wanted: Vec<E> = expected.as_slice()[token * 6..][..6].to_vec();
        assert!(row(0) == &wanted[..3] && row(1) == &wanted[3..], "token {token}");
    }
    let written = data.iter().filter(|&&x| x != untouched).count();
    assert_eq!(written, 5 * 2 * 3);
}

#[test]
fn outputs_of_any_strides() {
    each_isa(strided_output::<f32>);
    each_isa(strided_output::<bf16>);
}

/// Operands that are parts of one buffer, gradients that are parts of another, rows of each between rows of the others.
#[test]
fn parts_of_packed_tensors() {
    each_isa(|cpu| {
        let packed = support::random::<f32>(&[1, 5, 3, 1, 3], 9);
        let part = |i| packed.view().index_axis(2, i).unwrap();
        let inputs = Inputs::new(part(0), part(1), part(2));
        let axes = [AxisParams::new(3)];
        let params = DynParams::new(&axes, None, KernelSizePolicy::Exact);
        let problem = Problem::new(&params, &inputs.map(|view| *view.layout()), ElementType::F32).unwrap();
        let forward = natten_core::reference::forward(&problem, &inputs);
        let (out, lse) = (forward.out.cast::<f32>(), forward.lse.cast::<f32>());
        let d_out = support::random::<f32>(&[1, 5, 1, 3], 10);
        let saved = Saved { out: out.view(), lse: lse.view(), d_out: d_out.view(), d_lse: None };
        let expected = natten_core::reference::backward(&problem, &inputs, &saved);

        let mut gradients = Tensor::<f32>::zeros(&[1, 5, 3, 1, 3]).unwrap();
        let (query, rest) = gradients.view_mut().split_at(2, 1).unwrap();
        let (key, value) = rest.split_at(2, 1).unwrap();
        let [query, key, value] = [query, key, value].map(|part| part.index_axis(2, 0).unwrap());
        let views = Gradients { query, key, value, additional: None };
        cpu.backward(BackwardCall::new(&problem, inputs, saved, views).unwrap()).unwrap();
        for (i, expected) in [expected.query, expected.key, expected.value].iter().enumerate() {
            let found = gradients.view().index_axis(2, i).unwrap().to_tensor();
            support::assert_close_as(&found, expected, 1e-6, "gradients");
        }
    });
}

#[test]
fn merging() {
    let parts = [1, 2].map(|seed| support::random::<f32>(&[1, 3, 1, 2], seed));
    let sums = [3, 4].map(|seed| support::random::<f32>(&[1, 3, 1], seed));
    let partials = natten_core::Partials {
        outs: parts.iter().map(Tensor::view).collect(),
        lses: sums.iter().map(Tensor::view).collect(),
    };
    let mut out = Tensor::<f32>::zeros(&[1, 3, 1, 2]).unwrap();
    let output = Output { out: out.view_mut(), lse: None };
    Cpu::new().merge(MergeCall::new(partials.clone(), output).unwrap()).unwrap();
    support::assert_close_as(&out, &natten_core::reference::merge(&partials).out, 3e-7, "merged out");
}
