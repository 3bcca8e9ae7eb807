//! What must hold of any problem: windows, partitions, equivalent formulations, symmetries.

use natten::window::Axis;
use natten::{Call, Element, ElementType, Inputs, Problem, Tensor, TensorView, reference};
use natten_tests::compare::same_bits;
use natten_tests::{Mask, Spec, assert_close};
use proptest::prelude::*;

/// f64 sums of a few hundred terms of order one.
const EXACT: f64 = 1e-12;

/// Attends in f64, by the reference.
fn attend(problem: &Problem, inputs: &Inputs<TensorView<'_, f64>>) -> reference::Forward {
    reference::forward(problem, inputs)
}

fn attend_spec(spec: &Spec, inputs: &Inputs<Tensor<f64>>) -> reference::Forward {
    attend(&spec.problem(ElementType::F64), &inputs.map(Tensor::view))
}

fn reshaped<E: Element>(tensor: &Tensor<E>, shape: &[usize]) -> Tensor<E> {
    Tensor::from_vec(shape, tensor.as_slice().to_vec()).expect("as many elements")
}

/// A valid axis: extent, window, stride, dilation, causality.
fn axis(most: usize) -> impl Strategy<Value = [usize; 5]> {
    (1..=most, 0.0..1.0f64, 0.0..1.0f64, 0.0..1.0f64, any::<bool>()).prop_map(|(extent, k, s, d, causal)| {
        let upto = |part: f64, most: usize| 1 + ((part * most as f64) as usize).min(most - 1);
        let kernel = upto(k, extent);
        [extent, kernel, upto(s, kernel), upto(d, extent / kernel), usize::from(causal)]
    })
}

/// Neighborhood attention over one to three drawn axes.
fn neighborhood() -> impl Strategy<Value = Spec> {
    let axes = prop_oneof![
        prop::collection::vec(axis(30), 1),
        prop::collection::vec(axis(8), 2),
        prop::collection::vec(axis(5), 3)
    ];
    (axes, 1..3usize, 1..3usize, 1..6usize).prop_map(|(axes, heads_kv, rep, dim)| {
        let column = |i: usize| axes.iter().map(|axis| axis[i]).collect::<Vec<usize>>();
        let causal: Vec<bool> = axes.iter().map(|axis| axis[4] == 1).collect();
        Spec::na(&column(0), &column(1))
            .stride(&column(2))
            .dilation(&column(3))
            .causal(&causal)
            .heads(heads_kv * rep, heads_kv)
            .dims(dim, dim + 1)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Windows lie inside the axis, hold the query, have the size asked for, and never move back.
    #[test]
    fn windows_have_their_size_and_bounds([extent, w, s, d, causal] in axis(500)) {
        let is_causal = causal == 1;
        let axis = Axis { query_extent: extent, key_extent: extent, kernel_size: w, stride: s, dilation: d, is_causal };
        let mut tokens = 0;
        for g in 0..d {
            let residue = axis.residue(g);
            tokens += residue.query_len;
            let mut last = 0..0;
            for i in 0..residue.query_len {
                let window = residue.window(i);
                prop_assert!(window.contains(&i) && window.end <= residue.key_len);
                prop_assert!(window.start >= last.start && window.end >= last.end);
                if is_causal {
                    prop_assert!(window.end == i + 1 && window.len() <= w);
                    prop_assert!(window.start == 0 || window.len() > w - s);
                } else {
                    prop_assert_eq!(window.len(), w);
                }
                last = window;
            }
        }
        prop_assert_eq!(tokens, extent);
    }

    #[test]
    fn whole_windows_are_plain_attention(shape in prop::collection::vec(1..6usize, 1..=3), s in 1..6usize, seed: u64) {
        let stride: Vec<usize> = shape.iter().map(|&extent| s.min(extent)).collect();
        let spec = Spec::na(&shape, &shape).stride(&stride).heads(4, 2).dims(3, 5).batch(2);
        let inputs = spec.draw(seed).inputs;
        let windows = attend_spec(&spec, &inputs);
        let tokens: usize = shape.iter().product();
        let flat = |t: &Tensor<f64>, heads: usize, dim: usize| reshaped(t, &[2, tokens, heads, dim]);
        let flat = Inputs::new(flat(&inputs.query, 4, 3), flat(&inputs.key, 2, 3), flat(&inputs.value, 2, 5));
        let dense = attend_spec(&Spec::attention(tokens, tokens, false).heads(4, 2).dims(3, 5).batch(2), &flat);
        assert_close("out", &windows.out, &reshaped(&dense.out, windows.out.shape()), EXACT);
        assert_close("lse", &windows.lse, &reshaped(&dense.lse, windows.lse.shape()), EXACT);
    }

    /// `stride == kernel_size` on an axis that it divides: each block attends to itself.
    #[test]
    fn stride_equal_to_window_is_blocked_attention(w in 1..7usize, blocks in 1..5usize, causal: bool, seed: u64) {
        let tokens = w * blocks;
        let spec = Spec::na(&[tokens], &[w]).stride(&[w]).causal(&[causal]).dims(4, 3);
        let inputs = spec.draw(seed).inputs;
        let windows = attend_spec(&spec, &inputs);
        let lengths = vec![w; blocks];
        let packed = attend_spec(&Spec::packed(&lengths, &lengths, causal).dims(4, 3), &inputs);
        assert_close("out", &windows.out, &packed.out, EXACT);
        assert_close("lse", &windows.lse, &packed.lse, EXACT);
    }

    /// Dilation is the undilated operator on each residue, which is a view with strides `dilation` times as long.
    #[test]
    fn dilation_groups_are_independent(spec in neighborhood(), seed: u64) {
        let Mask::Neighborhood { token_shape, axes } = &spec.mask else { unreachable!() };
        let inputs = spec.draw(seed).inputs;
        let whole = attend_spec(&spec, &inputs);
        let dilation: Vec<usize> = axes.iter().map(|axis| axis.dilation).collect();
        for group in 0..dilation.iter().product::<usize>() {
            let mut rest = group;
            let residues: Vec<usize> =
                dilation.iter().map(|d| (rest % d, rest /= d).0).collect();
            let part = |t| residue_view(t, &residues, &dilation);
            let views = inputs.map(part);
            let mut own = axes.clone();
            own.iter_mut().for_each(|axis| axis.dilation = 1);
            let shape: Vec<usize> = views.query.shape()[1..=token_shape.len()].to_vec();
            let own = Spec { mask: Mask::Neighborhood { token_shape: shape, axes: own }, ..spec.clone() };
            let found = attend(&own.problem(ElementType::F64), &views);
            let expected = residue_view(&whole.out, &residues, &dilation).to_tensor();
            assert!(same_bits(&found.out, &expected), "{spec:?}, residue {residues:?}");
        }
    }

    /// Weights sum to one.
    #[test]
    fn constant_values_come_back(spec in neighborhood(), seed: u64, additional in 0..3usize) {
        let spec = spec.additional(additional);
        let mut inputs = spec.draw(seed).inputs;
        let constant = |t: &Tensor<f64>| Tensor::from_fn(t.shape(), |_| -2.5).expect("its shape");
        inputs.value = constant(&inputs.value);
        if let Some([_, values]) = &mut inputs.additional {
            *values = constant(values);
        }
        let out = attend_spec(&spec, &inputs).out;
        assert_close("out", &out, &constant(&out), EXACT);
        let single = inputs.map(|t| t.cast::<f32>());
        let cpu = Call::new(&single.query, &single.key, &single.value).expect("one device");
        let cpu = match &single.additional {
            Some([keys, values]) => cpu.additional(keys, values).expect("one device"),
            None => cpu,
        };
        // Each of at most a thousand weights, and their sum, errs by a few roundings.
        assert_close("cpu", &cpu.forward(&spec).expect("valid"), &out, 2.5 * 16.0 * f64::from(f32::EPSILON));
    }

    /// In plain attention additional keys are just more keys.
    #[test]
    fn additional_keys_are_more_keys(queries in 1..9usize, keys in 0..9usize, extra in 1..7usize, seed: u64) {
        let spec = Spec::attention(queries, keys, false).heads(4, 2).dims(5, 3).additional(extra);
        let inputs = spec.draw(seed).inputs;
        let apart = attend_spec(&spec, &inputs);
        let [more_keys, more_values] = inputs.additional.as_ref().expect("some");
        let join = |a: &Tensor<f64>, b: &Tensor<f64>| {
            let shape = [1, keys + extra, 2, a.shape()[3]];
            Tensor::from_vec(&shape, [a.as_slice(), b.as_slice()].concat()).expect("one after the other")
        };
        let joined = Inputs::new(inputs.query.clone(), join(&inputs.key, more_keys), join(&inputs.value, more_values));
        let together = attend_spec(&Spec::attention(queries, keys + extra, false).heads(4, 2).dims(5, 3), &joined);
        assert_close("out", &apart.out, &together.out, EXACT);
        assert_close("lse", &apart.lse, &together.lse, EXACT);
    }

    /// Heads know nothing of each other: permuted ones give permuted results. Here, reversed by a negative stride.
    #[test]
    fn heads_commute_with_permutation(spec in neighborhood(), seed: u64) {
        let inputs = spec.draw(seed).inputs;
        let forward = attend_spec(&spec, &inputs).out;
        let reversed = inputs.map(heads_reversed);
        let found = attend(&spec.problem(ElementType::F64), &reversed).out;
        assert!(same_bits(&found, &heads_reversed(&forward).to_tensor()), "{spec:?}");
    }

    /// Changing what lies after a token of a causal first axis changes nothing up to it.
    #[test]
    fn a_causal_axis_ignores_the_future(spec in neighborhood(), seed: u64, cut in 0.0..1.0f64) {
        let Mask::Neighborhood { token_shape, mut axes } = spec.mask.clone() else { unreachable!() };
        axes[0].is_causal = true;
        let frames = token_shape[0];
        let spec = Spec { mask: Mask::Neighborhood { token_shape, axes }, ..spec };
        let inputs = spec.draw(seed).inputs;
        let kept = 1 + (cut * frames as f64) as usize;
        let mut changed = inputs.clone();
        for tensor in [&mut changed.query, &mut changed.key, &mut changed.value] {
            let frame = tensor.as_slice().len() / frames;
            tensor.as_mut_slice()[(kept.min(frames)) * frame..].fill(f64::NAN);
        }
        let (out, other) = (attend_spec(&spec, &inputs).out, attend_spec(&spec, &changed).out);
        let upto = kept.min(frames) * (out.as_slice().len() / frames);
        prop_assert_eq!(&out.as_slice()[..upto], &other.as_slice()[..upto]);
    }

    /// The scale is a factor on the scores: twice the scale is twice the query.
    #[test]
    fn scale_multiplies_the_query(spec in neighborhood(), seed: u64) {
        let inputs = spec.draw(seed).inputs;
        let mut doubled = inputs.clone();
        doubled.query.as_mut_slice().iter_mut().for_each(|x| *x *= 2.0);
        let found = attend_spec(&spec.clone().scale(0.5), &doubled);
        let expected = attend_spec(&spec.scale(1.0), &inputs);
        assert!(same_bits(&found.out, &expected.out));
    }
}

/// The tokens `residue, residue + dilation, ..` along each token axis, without a copy.
fn residue_view<'a>(tensor: &'a Tensor<f64>, residues: &[usize], dilation: &[usize]) -> TensorView<'a, f64> {
    let (mut shape, mut strides) = (tensor.shape().to_vec(), tensor.view().layout().strides().to_vec());
    let is_list_of_rows = shape.len() == 4 && residues.len() > 1;
    assert!(!is_list_of_rows, "additional keys have no residues");
    let mut offset = 0;
    for (axis, (&g, &d)) in residues.iter().zip(dilation).enumerate() {
        offset += g * strides[axis + 1] as usize;
        shape[axis + 1] = (shape[axis + 1] - g).div_ceil(d);
        strides[axis + 1] *= d as isize;
    }
    TensorView::strided(tensor.as_slice(), offset, &shape, &strides).expect("a part of it")
}

/// The heads from last to first, without a copy.
fn heads_reversed(tensor: &Tensor<f64>) -> TensorView<'_, f64> {
    let mut strides = tensor.view().layout().strides().to_vec();
    let heads = strides.len() - 2;
    let offset = (tensor.shape()[heads] - 1) * strides[heads] as usize;
    strides[heads] = -strides[heads];
    TensorView::strided(tensor.as_slice(), offset, tensor.shape(), &strides).expect("the same elements")
}
