//! Merging partial results over disjoint keys: the algebra, the facade, and the gradients.

use natten::{
    AttentionParams, Element, ElementType, Gradients, Partials, Saved, Tensor, TensorView,
    attention_backward, attention_with_lse, merge_attentions, merge_attentions_backward, reference,
};
use natten_tests::{Rng, Spec, assert_close};

/// Branches of random outputs and log-sum-exps `[2, 3, 4, 2, 5]`; every seventh row of each saw no key.
fn branches<E: Element>(count: usize, seed: u64) -> (Vec<Tensor<E>>, Vec<Tensor<f32>>) {
    let mut rng = Rng::new(seed);
    let mut normal =
        |shape: &[usize], factor: f64| Tensor::from_fn(shape, |_| factor * rng.normal()).expect("small");
    let (shape, lse_shape) = ([2, 3, 4, 2, 5], [2, 3, 4, 2]);
    let mut outs = Vec::new();
    let mut lses = Vec::new();
    for branch in 0..count {
        let (mut out, mut lse): (Tensor<E>, Tensor<f32>) =
            (normal(&shape, 1.0).cast(), normal(&lse_shape, 4.0).cast());
        for row in (branch..48).step_by(7) {
            lse.as_mut_slice()[row] = f32::NEG_INFINITY;
            out.as_mut_slice()[row * 5..][..5].fill(E::from_f64(0.0));
        }
        outs.push(out);
        lses.push(lse);
    }
    (outs, lses)
}

fn views<'a, E: Element>(tensors: &'a [Tensor<E>]) -> Vec<TensorView<'a, E>> {
    tensors.iter().map(Tensor::view).collect()
}

fn both<'a>(
    outs: &'a [Tensor<f64>],
    lses: &'a [Tensor<f64>],
) -> Partials<TensorView<'a, f64>, TensorView<'a, f64>> {
    Partials { outs: views(outs), lses: views(lses) }
}

/// Attention over all keys, its keys cut at `cuts`; every part a view, none a copy.
fn cut_keys(tensor: &Tensor<f32>, cuts: &[usize]) -> Vec<Tensor<f32>> {
    let shape = tensor.shape();
    let row = shape[2] * shape[3];
    let part = |range: &[usize]| {
        let items = tensor.as_slice().chunks(shape[1] * row);
        let data = items.flat_map(|item| item[range[0] * row..range[1] * row].to_vec()).collect();
        Tensor::from_vec(&[shape[0], range[1] - range[0], shape[2], shape[3]], data).expect("a slice of it")
    };
    cuts.windows(2).map(part).collect()
}

#[test]
fn parts_of_the_keys_merge_to_the_whole_with_its_gradients() -> Result<(), natten::Error> {
    let spec = Spec::attention(6, 11, false).heads(4, 2).dims(8, 5).batch(2);
    let case = spec.draw(3);
    let inputs = case.rounded::<f32>();
    let (q, k, v) = (&inputs.query, &inputs.key, &inputs.value);
    let params = AttentionParams::new();
    let (whole, whole_lse) = attention_with_lse(q, k, v, &params)?;
    let d_out: Tensor<f32> = case.d_out.cast();
    let d_lse: Tensor<f32> = case.d_lse.as_ref().expect("drawn").cast();
    let saved = Saved { out: &whole, lse: &whole_lse, d_out: &d_out, d_lse: Some(&d_lse) };
    let expected = attention_backward(q, k, v, &params, &saved)?;

    let cuts = [0, 4, 4, 10, 11];
    let (keys, values) = (cut_keys(k, &cuts), cut_keys(v, &cuts));
    let mut outs = Vec::new();
    let mut lses = Vec::new();
    for (k, v) in keys.iter().zip(&values) {
        let (out, lse) = attention_with_lse(q, k, v, &params)?;
        outs.push(out);
        lses.push(lse);
    }
    let (outs, lses): (Vec<_>, Vec<_>) = (outs.iter().collect(), lses.iter().collect());
    let (out, lse) = merge_attentions(&outs, &lses)?;
    assert_close("out", &out, &whole, 1e-6);
    assert_close("lse", &lse, &whole_lse, 1e-6);

    // Each branch's backward from the merged results; the query's gradients add up.
    let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: Some(&d_lse) };
    let branch = |k, v| attention_backward(q, k, v, &params, &saved);
    let direct = keys.iter().zip(&values).map(|(k, v)| branch(k, v)).collect::<Result<Vec<_>, _>>()?;
    compare_branches("from merged results", &direct, &expected, &cuts);

    // The same through the merge's own gradient.
    let per_branch = merge_attentions_backward(&outs, &lses, &d_out, Some(&d_lse))?;
    let mut through = Vec::new();
    for (i, (d_out, d_lse)) in per_branch.iter().enumerate() {
        let saved = Saved { out: outs[i], lse: lses[i], d_out, d_lse: Some(d_lse) };
        through.push(attention_backward(q, &keys[i], &values[i], &params, &saved)?);
    }
    compare_branches("through the merge", &through, &expected, &cuts);
    Ok(())
}

fn compare_branches(
    what: &str,
    branches: &[Gradients<Tensor<f32>>],
    whole: &Gradients<Tensor<f32>>,
    cuts: &[usize],
) {
    // Gradients of order one from a few dozen f32 terms.
    let tolerance = 4e-6;
    let mut query = Tensor::<f32>::zeros(whole.query.shape()).expect("its shape");
    for branch in branches {
        query.as_mut_slice().iter_mut().zip(branch.query.as_slice()).for_each(|(sum, part)| *sum += part);
    }
    assert_close(&format!("{what}: query"), &query, &whole.query, tolerance);
    let (keys, values) = (cut_keys(&whole.key, cuts), cut_keys(&whole.value, cuts));
    for (branch, (key, value)) in branches.iter().zip(keys.iter().zip(&values)) {
        assert_close(&format!("{what}: key"), &branch.key, key, tolerance);
        assert_close(&format!("{what}: value"), &branch.value, value, tolerance);
    }
}

#[test]
fn merging_is_associative_and_commutative() {
    let (outs, lses) = branches::<f64>(4, 9);
    let lses: Vec<Tensor<f64>> = lses.iter().map(Tensor::cast).collect();
    let merge = |outs: &[&Tensor<f64>], lses: &[&Tensor<f64>]| {
        let outs = outs.iter().map(|t| t.view()).collect();
        reference::merge(&Partials { outs, lses: lses.iter().map(|t| t.view()).collect::<Vec<_>>() })
    };
    let [a, b, c, d] = [0, 1, 2, 3].map(|i| (&outs[i], &lses[i]));
    let all = merge(&[a.0, b.0, c.0, d.0], &[a.1, b.1, c.1, d.1]);
    let left = merge(&[a.0, b.0], &[a.1, b.1]);
    let right = merge(&[d.0, c.0], &[d.1, c.1]);
    let nested = merge(&[&right.out, &left.out], &[&right.lse, &left.lse]);
    let chain = merge(&[&left.out, c.0], &[&left.lse, c.1]);
    let chain = merge(&[&chain.out, d.0], &[&chain.lse, d.1]);
    for (what, other) in [("pairs", &nested), ("one by one", &chain)] {
        assert_close(what, &other.out, &all.out, 1e-13);
        assert_close(what, &other.lse, &all.lse, 1e-13);
    }
}

/// `merge_backward` by central differences: each branch's output and log-sum-exp, one component after another.
#[test]
fn gradients_of_a_merge() {
    let mut rng = Rng::new(21);
    let mut normal = |shape: &[usize]| Tensor::from_fn(shape, |_| rng.normal()).expect("small");
    let outs: Vec<Tensor<f64>> = (0..3).map(|_| normal(&[1, 2, 2, 3])).collect();
    let lses: Vec<Tensor<f64>> = (0..3).map(|_| normal(&[1, 2, 2])).collect();
    let (d_out, d_lse) = (normal(&[1, 2, 2, 3]), normal(&[1, 2, 2]));
    for d_lse in [None, Some(&d_lse)] {
        let loss = |outs: &[Tensor<f64>], lses: &[Tensor<f64>]| {
            let merged = reference::merge(&both(outs, lses));
            let inner = |a: &Tensor<f64>, b: &Tensor<f64>| -> f64 {
                a.as_slice().iter().zip(b.as_slice()).map(|(a, b)| a * b).sum()
            };
            inner(&d_out, &merged.out) + d_lse.map_or(0.0, |d_lse| inner(d_lse, &merged.lse))
        };
        let view = d_lse.map(Tensor::view);
        let found = reference::merge_backward(&both(&outs, &lses), &d_out.view(), view.as_ref());
        for (branch, (d_out_b, d_lse_b)) in found.iter().enumerate() {
            for i in 0..12 {
                let numeric = extrapolated(|t| {
                    let mut outs = outs.clone();
                    outs[branch].as_mut_slice()[i] += t;
                    loss(&outs, &lses)
                });
                assert!((numeric - d_out_b.as_slice()[i]).abs() < 1e-10, "d_out_{branch}[{i}]");
            }
            for i in 0..4 {
                let numeric = extrapolated(|t| {
                    let mut lses = lses.clone();
                    lses[branch].as_mut_slice()[i] += t;
                    loss(&outs, &lses)
                });
                assert!((numeric - d_lse_b.as_slice()[i]).abs() < 1e-10, "d_lse_{branch}[{i}]");
            }
        }
    }
}

/// Fourth-order central difference at a step of 1e-3: it errs by 1e-12 of the fifth derivative, and by 1e-12 of
/// roundoff, both of functions of order one here.
fn extrapolated(f: impl Fn(f64) -> f64) -> f64 {
    let quotient = |h: f64| (f(h) - f(-h)) / (2.0 * h);
    (4.0 * quotient(5e-4) - quotient(1e-3)) / 3.0
}

/// No branch saw a key: nothing flows back, and nothing is NaN.
#[test]
fn gradients_of_an_empty_merge_vanish() {
    let out = Tensor::from_vec(&[1, 1, 1, 2], vec![f64::NAN, 1.0]).expect("one row");
    let lse = Tensor::from_vec(&[1, 1, 1], vec![f64::NEG_INFINITY]).expect("one number");
    let (outs, lses) = (vec![out.clone(), out.clone()], vec![lse.clone(), lse]);
    let partials = Partials { outs: views(&outs), lses: views(&lses) };
    let d_out = Tensor::from_vec(&[1, 1, 1, 2], vec![3.0, f64::INFINITY]).expect("one row");
    for (d_out, d_lse) in reference::merge_backward(&partials, &d_out.view(), None) {
        assert_eq!((d_out.into_vec(), d_lse.into_vec()), (vec![0.0, 0.0], vec![0.0]));
    }
}

#[test]
fn one_key_set_in_two_windows() {
    // Neighborhood and additional keys apart, then merged, are the same call with additional keys.
    let spec = Spec::na(&[4, 5], &[3, 3]).heads(2, 1).dims(8, 8).additional(6);
    let inputs = spec.draw(14).rounded::<f64>();
    let problem = spec.problem(ElementType::F64);
    let whole = reference::forward(&problem, &inputs.map(Tensor::view));
    let local = Spec { additional: 0, ..spec.clone() }.problem(ElementType::F64);
    let own = natten::Inputs::new(inputs.query.view(), inputs.key.view(), inputs.value.view());
    let windows = reference::forward(&local, &own);
    let [keys, values] = inputs.additional.as_ref().expect("six of them");
    let flat = |t: &Tensor<f64>| {
        let last = t.shape()[t.shape().len() - 1];
        Tensor::from_vec(&[1, 20, 2, last], t.as_slice().to_vec()).expect("tokens in a row")
    };
    let query = flat(&inputs.query);
    let extra = Spec::attention(20, 6, false).heads(2, 1).problem(ElementType::F64);
    let extra = reference::forward(&extra, &natten::Inputs::new(query.view(), keys.view(), values.view()));
    let shaped =
        |t: &Tensor<f64>, shape: &[usize]| Tensor::from_vec(shape, t.as_slice().to_vec()).expect("same");
    let outs = [windows.out.clone(), shaped(&extra.out, windows.out.shape())];
    let lses = [windows.lse.clone(), shaped(&extra.lse, windows.lse.shape())];
    let merged = reference::merge(&Partials { outs: views(&outs), lses: views(&lses) });
    assert_close("out", &merged.out, &whole.out, 1e-14);
    assert_close("lse", &merged.lse, &whole.lse, 1e-14);
}
