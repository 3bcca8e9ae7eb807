//! Merging partial results over disjoint keys: branches of any number and weight, silent ones, and attention cut into parts.

use natten::{Element, Output, Partials, Saved, Tensor, TensorView, reference};

use super::oracle::{self, gradient_tolerance, naive_gradients};
use super::scope::Given;
use super::{Check, Scope, Suite};
use crate::compare::{assert_close, largest, same_bits};
use crate::dense;
use crate::in_type;
use crate::place::{Arrangement, Place, Placed};
use crate::rng::Rng;
use crate::spec::Spec;
use crate::subject::{Subject, Unsupported};
use crate::tolerance::tolerance;

/// How log-sum-exps of the branches differ.
const SPREADS: [f64; 4] = [0.0, 3.0, 40.0, 3000.0];
/// Every number of branches that a kernel is unrolled for.
const BRANCHES: [usize; 11] = [2, 3, 5, 12, 7, 4, 9, 6, 11, 8, 10];
/// Batch, tokens, heads and components of rows: axes of one and of more, rows shorter and longer than a warp.
const SHAPES: [[usize; 6]; 3] = [[2, 3, 4, 1, 2, 40], [3, 1, 5, 2, 1, 8], [1, 4, 1, 3, 3, 33]];
/// Elements of a row where they are not those of the shape: hardly ever many, since branches are.
const LENGTHS: [Option<usize>; 7] = [None, None, Some(300), None, None, None, Some(1024)];

/// What is merged, and where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Merging {
    /// Branches.
    pub count: usize,
    /// How log-sum-exps of the branches differ.
    pub spread: f64,
    /// Of an output.
    pub shape: [usize; 6],
    /// Where the first tensor lies.
    pub place: Place,
}

/// Merges by themselves, and with the attention whose parts they put together.
pub fn suite<S: Subject>(scope: &Scope) -> Suite<S> {
    let mut checks = Vec::new();
    if scope.merge {
        for (i, arrangement) in (0..16).zip(Arrangement::ALL.into_iter().cycle()) {
            for element_type in scope.types() {
                let (count, spread) = (BRANCHES[i % BRANCHES.len()], SPREADS[(i / 4 + i) % 4]);
                let place = scope.place(arrangement, i / 5);
                let mut shape = SHAPES[i % SHAPES.len()];
                shape[5] = LENGTHS[i % 7].unwrap_or(shape[5]);
                let what = Merging { count, spread, shape, place };
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
    Suite { name: "merging", checks: scope.sampled(checks) }
}

/// Where the `nth` tensor of a call lies: no two neighbours have the same strides.
fn nth_place(place: Place, nth: usize) -> Place {
    let first = Arrangement::ALL.iter().position(|&one| one == place.arrangement).unwrap_or(0);
    Place { arrangement: Arrangement::ALL[(first + nth) % Arrangement::ALL.len()], ..place }
}

/// Branches of random outputs in one of the shapes, and log-sum-exps; every thirteenth row of each saw no key, row 3 of none
/// did, and row 12 of all: there are at most twelve branches.
fn branches<E: Element>(merging: Merging, seed: u64) -> (Vec<Tensor<E>>, Vec<Tensor<f32>>) {
    let Merging { count, spread, shape, .. } = merging;
    let mut rng = Rng::new(seed);
    let mut normal =
        |shape: &[usize], factor: f64| Tensor::from_fn(shape, |_| factor * rng.normal()).expect("small");
    let (lse_shape, row_length) = (&shape[..5], shape[5]);
    let rows = lse_shape.iter().product();
    let branch = |branch: usize| {
        let (mut out, mut lse): (Tensor<E>, Tensor<f32>) =
            (normal(&shape, 1.0).cast(), normal(lse_shape, spread).cast());
        for row in (branch..rows).step_by(13).chain([3]) {
            lse.as_mut_slice()[row] = f32::NEG_INFINITY;
            out.as_mut_slice()[row * row_length..][..row_length].fill(E::from_f64(0.0));
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
    merging: Merging,
    seed: u64,
) -> Result<(), Unsupported> {
    let Merging { count, place, .. } = merging;
    let (outs, mut lses) = branches::<E>(merging, seed);
    // A row of which one branch does not know what it weighs.
    lses[1].as_mut_slice()[5] = f32::NAN;
    let expected = reference::merge(&Partials { outs: views(&outs), lses: views(&lses) });
    let (exact, naive) = merged(&outs, &lses);
    let at = |nth: usize| nth_place(place, nth);
    let outs: Vec<_> = outs.iter().enumerate().map(|(nth, t)| Placed::of(t, at(nth))).collect();
    let lses: Vec<_> = lses.iter().enumerate().map(|(nth, t)| Placed::of_scalars(t, at(nth + 2))).collect();
    let mut out = Placed::<E>::poisoned(expected.out.shape(), at(count), true);
    let mut lse = Placed::<f32>::poisoned(expected.lse.shape(), at(count + 1), false);
    let partials = Partials {
        outs: outs.iter().map(Placed::view).collect(),
        lses: lses.iter().map(Placed::view).collect(),
    };
    subject.merge(&partials, Output { out: out.view_mut(), lse: Some(lse.view_mut()) })?;
    let what = format!("{} {} {merging:?}", subject.name(), E::TYPE);
    // Nobody has to ask for the log-sum-exp.
    let mut alone = Placed::<E>::poisoned(expected.out.shape(), at(count), true);
    subject.merge(&partials, Output { out: alone.view_mut(), lse: None })?;
    assert!(same_bits(&alone.written(&what), &out.written(&what)), "{what}: without the log-sum-exp");
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
    merging: Merging,
    seed: u64,
) -> Result<(), Unsupported> {
    let Merging { count, place, .. } = merging;
    let (mut outs, mut lses) = branches::<E>(merging, seed);
    // A row of which one branch does not know what it weighs.
    lses[1].as_mut_slice()[12] = f32::NAN;
    // Whatever the output of a branch without keys holds.
    for (out, lse) in outs.iter_mut().zip(&lses) {
        let silent = lse.as_slice().iter().enumerate().filter(|(_, lse)| **lse == f32::NEG_INFINITY);
        let length = out.shape()[5];
        silent.for_each(|(row, _)| out.as_mut_slice()[row * length..][..length].fill(E::from_f64(f64::NAN)));
    }
    let (d_outs, d_lses) = branches::<E>(Merging { count: 1, spread: 1.0, ..merging }, seed + 99);
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
        let at = |nth: usize| nth_place(place, nth);
        let (outs, lses) = (outs.iter().enumerate(), lses.iter().enumerate());
        let placed_outs: Vec<_> = outs.clone().map(|(nth, t)| Placed::of(t, at(nth))).collect();
        let placed_lses: Vec<_> = lses.clone().map(|(nth, t)| Placed::of_scalars(t, at(nth + 2))).collect();
        let d_out = Placed::of(incoming.0, at(count));
        let d_lse = d_lse.map(|t| Placed::of_scalars(t, at(count + 1)));
        let mut d_outs: Vec<_> =
            outs.map(|(nth, t)| Placed::<E>::poisoned(t.shape(), at(nth + 3), true)).collect();
        let mut d_lses: Vec<_> =
            lses.map(|(nth, t)| Placed::<f32>::poisoned(t.shape(), at(nth + 4), false)).collect();
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
            let what =
                |of: &str| format!("{} {} {of} of branch {branch}, {merging:?}", subject.name(), E::TYPE);
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
