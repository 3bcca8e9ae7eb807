//! Merging partial results over disjoint keys: branches of any number and weight, silent ones, and attention cut into parts.

use natten::{Element, Output, Partials, Saved, Tensor, TensorView, reference};

use super::oracle::{self, gradient_tolerance, naive_gradients};
use super::scope::Given;
use super::{Check, Scope, Suite};
use crate::compare::{assert_close, largest};
use crate::dense;
use crate::in_type;
use crate::place::{Arrangement, Placed};
use crate::rng::Rng;
use crate::spec::Spec;
use crate::subject::{Subject, Unsupported};
use crate::tolerance::tolerance;

/// How log-sum-exps of the branches differ.
const SPREADS: [f64; 4] = [0.0, 3.0, 40.0, 3000.0];
const BRANCHES: [usize; 4] = [2, 3, 5, 12];

/// Merges by themselves, and with the attention whose parts they put together.
pub fn suite<S: Subject>(scope: &Scope) -> Suite<S> {
    let mut checks = Vec::new();
    if scope.merge {
        for (i, arrangement) in (0..16).zip(Arrangement::ALL.into_iter().cycle()) {
            for element_type in scope.types() {
                let (count, spread) = (BRANCHES[i % 4], SPREADS[(i / 4 + i) % 4]);
                let place = scope.place(arrangement, i / 5);
                let what = (count, spread, place);
                let name = format!("merging {count} branches {i} {element_type}");
                checks.push(Check::new(name, what, move |subject| {
                    in_type!(element_type, E => against_the_reference::<E, S>(subject, what, i as u64))
                }));
                let name = format!("gradients of merging {count} branches {i} {element_type}");
                checks.push(Check::new(name, what, move |subject| {
                    in_type!(element_type, E => gradients_against_the_reference::<E, S>(subject, what, i as u64))
                }));
            }
        }
        for element_type in scope.types() {
            let name = format!("merging silent branches {element_type}");
            checks.push(Check::new(
                name,
                "",
                move |subject| in_type!(element_type, E => silent_branches::<E, S>(subject)),
            ));
        }
    }
    if scope.forward && scope.backward && scope.merge {
        let specs = [
            Spec::attention(6, 11, false).heads(4, 2).dims(8, 5).batch(2),
            Spec::attention(40, 130, false).heads(2, 1).dims(64, 32),
        ];
        for given in scope.problems(&specs) {
            let name = format!("merging parts of the keys {} {}", given.index, given.element_type);
            checks.push(Check::new(
                name,
                given.spec.clone(),
                move |subject| in_type!(given.element_type, E => parts_of_the_keys::<E, S>(subject, &given)),
            ));
        }
    }
    Suite { name: "merging", checks }
}

/// Branches of random outputs `[2, 2, 3, 2, 2, 8]` and log-sum-exps; every seventh row of each saw no key, and row 3 of none
/// did.
fn branches<E: Element>(count: usize, spread: f64, seed: u64) -> (Vec<Tensor<E>>, Vec<Tensor<f32>>) {
    let mut rng = Rng::new(seed);
    let mut normal =
        |shape: &[usize], factor: f64| Tensor::from_fn(shape, |_| factor * rng.normal()).expect("small");
    let (shape, lse_shape) = ([2, 2, 3, 2, 2, 8], [2, 2, 3, 2, 2]);
    let branch = |branch: usize| {
        let (mut out, mut lse): (Tensor<E>, Tensor<f32>) =
            (normal(&shape, 1.0).cast(), normal(&lse_shape, spread).cast());
        for row in (branch..48).step_by(7).chain([3]) {
            lse.as_mut_slice()[row] = f32::NEG_INFINITY;
            out.as_mut_slice()[row * 8..][..8].fill(E::from_f64(0.0));
        }
        (out, lse)
    };
    (0..count).map(branch).unzip()
}

fn views<E: Element>(tensors: &[Tensor<E>]) -> Vec<TensorView<'_, E>> {
    tensors.iter().map(Tensor::view).collect()
}

/// What merging gives exactly, and in naive arithmetic of `E`.
fn merged<E: Element>(outs: &[Tensor<E>], lses: &[Tensor<f32>]) -> (dense::Forward, dense::Forward) {
    let exact = dense::merge::<f64, E>(outs, lses);
    let naive =
        if E::TYPE == natten::ElementType::F64 { exact.clone() } else { dense::merge::<f32, E>(outs, lses) };
    (exact, naive)
}

/// One merge, `count` branches whose log-sum-exps are so far apart.
///
/// # Errors
/// When the subject does not take it.
pub fn against_the_reference<E: Element, S: Subject>(
    subject: &S,
    (count, spread, place): (usize, f64, crate::Place),
    seed: u64,
) -> Result<(), Unsupported> {
    let (outs, lses) = branches::<E>(count, spread, seed);
    let expected = reference::merge(&Partials { outs: views(&outs), lses: views(&lses) });
    let (exact, naive) = merged(&outs, &lses);
    let outs: Vec<_> = outs.iter().map(|t| Placed::of(t, place)).collect();
    let lses: Vec<_> = lses.iter().map(|t| Placed::of_scalars(t, place)).collect();
    let mut out = Placed::<E>::poisoned(&[2, 2, 3, 2, 2, 8], place, true);
    let mut lse = Placed::<f32>::poisoned(&[2, 2, 3, 2, 2], place, false);
    let partials = Partials {
        outs: outs.iter().map(Placed::view).collect(),
        lses: lses.iter().map(Placed::view).collect(),
    };
    subject.merge(&partials, Output { out: out.view_mut(), lse: Some(lse.view_mut()) })?;
    let what = format!("{} {} merge of {count}, spread {spread}, {place:?}", subject.name(), E::TYPE);
    let close =
        |found: Tensor<f64>, expected: &Tensor<f64>, allowed| assert_close(&what, &found, expected, allowed);
    close(out.written(&what).cast(), &expected.out, tolerance::<E>(&exact.out, &naive.out));
    close(lse.written(&what).cast(), &expected.lse, tolerance::<f32>(&exact.lse, &naive.lse));
    Ok(())
}

/// The gradients of each branch, from a gradient of the merged output alone, and of its log-sum-exp, too.
///
/// # Errors
/// When the subject does not take it.
pub fn gradients_against_the_reference<E: Element, S: Subject>(
    subject: &S,
    (count, spread, place): (usize, f64, crate::Place),
    seed: u64,
) -> Result<(), Unsupported> {
    let (mut outs, lses) = branches::<E>(count, spread, seed);
    // Whatever the output of a branch without keys holds.
    for (out, lse) in outs.iter_mut().zip(&lses) {
        let silent = lse.as_slice().iter().enumerate().filter(|(_, lse)| **lse == f32::NEG_INFINITY);
        silent.for_each(|(row, _)| out.as_mut_slice()[row * 8..][..8].fill(E::from_f64(f64::NAN)));
    }
    let (d_outs, d_lses) = branches::<E>(1, 1.0, seed + 100);
    let d_lse = Tensor::from_fn(d_lses[0].shape(), |i| (i % 5) as f32 - 1.5).expect("small");
    let partials = Partials { outs: views(&outs), lses: views(&lses) };
    for d_lse in [None, Some(&d_lse)] {
        let incoming = (&d_outs[0], d_lse);
        let expected =
            reference::merge_backward(&partials, &incoming.0.view(), d_lse.map(Tensor::view).as_ref());
        let exact = dense::merge_backward::<f64, E>(&outs, &lses, incoming);
        let naive = match E::TYPE {
            natten::ElementType::F64 => exact.clone(),
            _ => dense::merge_backward::<f32, E>(&outs, &lses, incoming),
        };
        let placed = |t: &Tensor<E>| Placed::of(t, place);
        let placed_outs: Vec<_> = outs.iter().map(placed).collect();
        let placed_lses: Vec<_> = lses.iter().map(|t| Placed::of_scalars(t, place)).collect();
        let (d_out, d_lse) = (placed(incoming.0), d_lse.map(|t| Placed::of_scalars(t, place)));
        let mut d_outs: Vec<_> = outs.iter().map(|t| Placed::<E>::poisoned(t.shape(), place, true)).collect();
        let mut d_lses: Vec<_> =
            lses.iter().map(|t| Placed::<f32>::poisoned(t.shape(), place, false)).collect();
        let partials = Partials {
            outs: placed_outs.iter().map(Placed::view).collect(),
            lses: placed_lses.iter().map(Placed::view).collect(),
        };
        let merged = Output { out: d_out.view(), lse: d_lse.as_ref().map(Placed::view) };
        let gradients = Partials {
            outs: d_outs.iter_mut().map(Placed::view_mut).collect(),
            lses: d_lses.iter_mut().map(Placed::view_mut).collect(),
        };
        subject.merge_backward(&partials, merged, gradients)?;
        let found = d_outs.iter().zip(&d_lses).zip(&expected).zip(exact.iter().zip(&naive));
        for (branch, (((d_out, d_lse), wanted), (exact, naive))) in found.enumerate() {
            let what = |of: &str| {
                let name = subject.name();
                format!("{name} {} {of} {branch} of {count}, spread {spread}, {place:?}", E::TYPE)
            };
            let (of_out, of_lse) = (what("gradient of out"), what("gradient of lse"));
            let allowed = tolerance::<E>(&exact.0, &naive.0);
            assert_close(&of_out, &d_out.written(&of_out), &wanted.0, allowed);
            let allowed = tolerance::<f32>(&exact.1, &naive.1);
            assert_close(&of_lse, &d_lse.written(&of_lse), &wanted.1, allowed);
        }
    }
    Ok(())
}

/// A branch without keys weighs nothing, whatever its output holds; without any keys the result is 0 and -inf.
fn silent_branches<E: Element, S: Subject>(subject: &S) -> Result<(), Unsupported> {
    let row = |value: f64| {
        let numbers = vec![E::from_f64(value), E::from_f64(value + 1.0)];
        Tensor::from_vec(&[1, 1, 1, 2], numbers).expect("one row")
    };
    let lse = |value: f32| Tensor::from_vec(&[1, 1, 1], vec![value]).expect("one number");
    let none = f32::NEG_INFINITY;
    for (outs, lses, expected) in [
        ([f64::NAN, 3.0], [none, 1.5], ([3.0, 4.0], 1.5)),
        ([3.0, f64::INFINITY], [-2.0, none], ([3.0, 4.0], -2.0)),
        ([f64::NAN, 5.0], [none, none], ([0.0, 0.0], none)),
        ([2.0, 7.0], [-1000.0, 1000.0], ([7.0, 8.0], 1000.0)),
    ] {
        let (outs, lses) = (outs.map(row), lses.map(lse));
        let (mut out, mut total) = (row(7.0), lse(7.0));
        let partials = Partials { outs: views(&outs), lses: views(&lses) };
        subject.merge(&partials, Output { out: out.view_mut(), lse: Some(total.view_mut()) })?;
        let found: Vec<f64> = out.as_slice().iter().map(|x| x.to_f64()).collect();
        assert_eq!((found, total.into_vec()), (expected.0.to_vec(), vec![expected.1]), "{}", subject.name());
    }
    Ok(())
}

/// Keys or values `[batch, tokens, heads, length]` cut along their tokens.
fn cut<E: Element>(tensor: &Tensor<E>, cuts: &[usize]) -> Vec<Tensor<E>> {
    let shape = tensor.shape();
    let row = shape[2] * shape[3];
    let part = |range: &[usize]| {
        let items = tensor.as_slice().chunks(shape[1] * row);
        let data = items.flat_map(|item| item[range[0] * row..range[1] * row].to_vec()).collect();
        Tensor::from_vec(&[shape[0], range[1] - range[0], shape[2], shape[3]], data).expect("a slice of it")
    };
    cuts.windows(2).map(part).collect()
}

/// Attention over parts of the keys, merged, is attention over all; each part's backward from the merged result gives its
/// keys' and values' gradients, and the queries' in sum.
fn parts_of_the_keys<E: Element, S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    let case = given.spec.draw(3);
    let inputs = case.rounded::<E>();
    let whole = oracle::Expected::<E>::of(&case);
    let problem = given.spec.problem(E::TYPE);
    let keys = problem.key_tokens();
    let cuts = [0, keys / 3, keys / 3, keys - 1, keys];
    let parts: Vec<_> = cut(&inputs.key, &cuts).into_iter().zip(cut(&inputs.value, &cuts)).collect();
    let (mut outs, mut lses, mut errors) = (Vec::new(), Vec::new(), [0.0f64; 2]);
    for ((key, value), range) in parts.iter().zip(cuts.windows(2)) {
        let spec = part_of(&given.spec, range[1] - range[0]);
        let part = natten::Inputs::new(inputs.query.clone(), key.clone(), value.clone());
        let found = subject.attend(&spec.problem(E::TYPE), &part)?;
        let own = natten::Inputs::new(&part.query, &part.key, &part.value).map(|t| t.cast::<f64>());
        let own = crate::Case { spec, inputs: own, d_out: case.d_out.clone(), d_lse: None };
        let own = oracle::Expected::<E>::of(&own).tolerances(found.weights);
        errors = [0, 1].map(|i| errors[i].max(own[i]));
        outs.push(found.out);
        lses.push(found.lse);
    }
    let mut out = Tensor::<E>::zeros(&problem.out_shape()).expect("small");
    let mut lse = Tensor::<f32>::zeros(&problem.lse_shape()).expect("small");
    let partials = Partials { outs: views(&outs), lses: views(&lses) };
    subject.merge(&partials, Output { out: out.view_mut(), lse: Some(lse.view_mut()) })?;
    // A weighted mean errs as its parts do and as merging does; and a part's log-sum-exp, stored in f32, weighs it wrongly.
    let (exact, naive) = merged(&outs, &lses);
    let size = outs.iter().map(largest).fold(0.0, f64::max);
    let allowed = errors[0] + 2.0 * errors[1] * size + tolerance::<E>(&exact.out, &naive.out);
    let what = |what: &str| format!("{} {} {what} of {:?} in parts", subject.name(), E::TYPE, given.spec);
    assert_close(&what("out"), &out, &whole.forward().out, allowed);

    let (d_out, d_lse) = (case.d_out.cast(), case.d_lse.as_ref().map(Tensor::cast));
    let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: d_lse.as_ref() };
    let weights = subject.backward_weights(&problem, &inputs.map(Tensor::view));
    let (exact, naive) = naive_gradients(&problem, &inputs, &saved, weights);
    let mut query = Tensor::<f64>::zeros(inputs.query.shape()).expect("its shape");
    let wanted = [cut(&exact.key.value, &cuts), cut(&exact.value.value, &cuts)];
    let [key_error, value_error] = [(&exact.key, &naive.key), (&exact.value, &naive.value)]
        .map(|(a, b)| gradient_tolerance::<E>(a, b, weights));
    for (i, (key, value)) in parts.iter().enumerate() {
        let spec = part_of(&given.spec, cuts[i + 1] - cuts[i]);
        let part = natten::Inputs::new(inputs.query.clone(), key.clone(), value.clone());
        let found = subject.differentiate(&spec.problem(E::TYPE), &part, &saved)?;
        assert_close(&what("d_key"), &found.key, &wanted[0][i], key_error);
        assert_close(&what("d_value"), &found.value, &wanted[1][i], value_error);
        let sums = query.as_mut_slice().iter_mut().zip(found.query.as_slice());
        sums.for_each(|(sum, part)| *sum += part.to_f64());
    }
    let query_error = parts.len() as f64 * gradient_tolerance::<E>(&exact.query, &naive.query, weights);
    assert_close(&what("d_query"), &query, &exact.query.value, query_error);
    Ok(())
}

/// The same attention over fewer keys.
fn part_of(spec: &Spec, keys: usize) -> Spec {
    let queries = spec.query_tokens()[0];
    let part = Spec::attention(queries, keys, false).heads(spec.heads, spec.heads_kv).batch(spec.batch);
    part.dims(spec.head_dim, spec.head_dim_v)
}
