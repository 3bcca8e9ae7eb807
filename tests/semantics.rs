//! What a query must not see has no influence on it, not one bit, whatever it holds; what it sees has.

use natten::{Element, ElementType, Inputs, Output, Saved, Tensor, bf16, f16, reference};
use natten_tests::compare::same_bits;
use natten_tests::dense::visible;
use natten_tests::suites::list;
use natten_tests::{Spec, Subject, for_each_subject};

for_each_subject!(unseen_keys, neighbouring_head, seen_keys, no_keys_at_all, unseen_gradients);

// Key and value are spoiled with different ones, in turn.
const BAD: [f64; 3] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];

/// Specs whose windows leave something out.
fn local() -> Vec<Spec> {
    let mut specs = vec![
        Spec::na(&[33], &[3]).heads(2, 1),
        Spec::na(&[17], &[4]).stride(&[4]).dims(40, 24),
        Spec::na(&[9, 10], &[3, 4]).heads(2, 2).dims(72, 72),
        Spec::na(&[8, 9], &[2, 3]).dilation(&[2, 3]).causal(&[true, false]),
        Spec::na(&[4, 6, 5], &[2, 3, 3]).heads(4, 2).dims(16, 8).additional(2),
        Spec::attention(6, 11, true).heads(2, 1),
        Spec::packed(&[5, 0, 6], &[7, 3, 4], false).dims(64, 64),
        Spec::packed(&[5, 4], &[6, 9], true),
    ];
    specs.extend(list::random(31, 6));
    specs
}

/// Overwrites one row `[batch, token, head]` of a tensor.
fn spoil<E: Element>(tensor: &mut Tensor<E>, row: usize, bad: f64) {
    let width = *tensor.shape().last().expect("some axis");
    tensor.as_mut_slice()[row * width..][..width].fill(E::from_f64(bad));
}

fn rows_equal<E: Element>(a: &Tensor<E>, b: &Tensor<E>, row: usize, width: usize) -> bool {
    let bytes = |t: &Tensor<E>| bytemuck_bytes(&t.as_slice()[row * width..][..width]);
    bytes(a) == bytes(b)
}

fn bytemuck_bytes<E: Element>(values: &[E]) -> Vec<u64> {
    values.iter().map(|value| value.to_f64().to_bits()).collect()
}

fn unseen_keys<S: Subject>(subject: &S) {
    for (i, spec) in local().iter().enumerate() {
        unseen_keys_of::<f32, S>(subject, spec, i);
        if i % 2 == 0 {
            unseen_keys_of::<f16, S>(subject, spec, i);
        } else {
            unseen_keys_of::<bf16, S>(subject, spec, i);
        }
    }
}

/// Spoils one key token, key and value, all heads; queries that do not see it keep every bit.
fn unseen_keys_of<E: Element, S: Subject>(subject: &S, spec: &Spec, seed: usize) {
    let problem = spec.problem(E::TYPE);
    let inputs = spec.draw(500 + seed as u64).rounded::<E>();
    let (out, lse) = subject.attend(&problem, &inputs);
    let lists = visible(&problem);
    let keys = problem.key_tokens();
    let step = (keys / 5).max(1);
    for (n, token) in (0..keys).step_by(step).enumerate() {
        let mut spoiled = inputs.clone();
        for batch in 0..problem.batch() {
            for head in 0..problem.heads_kv() {
                let row = (batch * keys + token) * problem.heads_kv() + head;
                spoil(&mut spoiled.key, row, BAD[n % 3]);
                spoil(&mut spoiled.value, row, BAD[(n + 1) % 3]);
            }
        }
        let (bad_out, bad_lse) = subject.attend(&problem, &spoiled);
        for row in 0..problem.batch() * problem.query_tokens() * problem.heads() {
            let query = row / problem.heads() % problem.query_tokens();
            let same =
                rows_equal(&out, &bad_out, row, problem.head_dim_v()) && rows_equal(&lse, &bad_lse, row, 1);
            let sees = lists[query].contains(&token);
            let what = format!("{} {} {spec:?}: query {query}, key {token}", subject.name(), E::TYPE);
            assert!(sees || same, "{what} is not seen, and changed the result");
            assert!(!sees || !same, "{what} is seen, and changed nothing");
        }
    }
}

/// Spoils one head of key and value; the queries of other heads keep every bit, at components of any width.
fn neighbouring_head<S: Subject>(subject: &S) {
    for dim in [1, 5, 8, 40, 64, 72, 80, 96, 128] {
        let spec = Spec::na(&[5, 6], &[3, 3]).heads(6, 3).dims(dim, dim).batch(2);
        neighbouring_head_of::<f32, S>(subject, &spec);
        neighbouring_head_of::<f16, S>(subject, &spec);
        neighbouring_head_of::<bf16, S>(subject, &spec);
    }
}

fn neighbouring_head_of<E: Element, S: Subject>(subject: &S, spec: &Spec) {
    let problem = spec.problem(E::TYPE);
    let inputs = spec.draw(77).rounded::<E>();
    let (out, lse) = subject.attend(&problem, &inputs);
    let mut spoiled = inputs.clone();
    for row in (1..problem.batch() * problem.key_tokens() * 3).step_by(3) {
        spoil(&mut spoiled.key, row, f64::NAN);
        spoil(&mut spoiled.value, row, f64::INFINITY);
    }
    let (bad_out, bad_lse) = subject.attend(&problem, &spoiled);
    for row in 0..problem.batch() * problem.query_tokens() * 6 {
        let of_spoiled = row % 6 / 2 == 1;
        let same =
            rows_equal(&out, &bad_out, row, problem.head_dim_v()) && rows_equal(&lse, &bad_lse, row, 1);
        assert_eq!(same, !of_spoiled, "{} {} {spec:?}: row {row}", subject.name(), E::TYPE);
    }
}

/// A non-finite number inside the window makes non-finite what the reference makes non-finite.
fn seen_keys<S: Subject>(subject: &S) {
    let spec = Spec::na(&[12], &[5]).heads(2, 1).dims(16, 8);
    let problem = spec.problem(ElementType::F32);
    for (n, bad) in BAD.into_iter().enumerate() {
        for in_value in [false, true] {
            let mut inputs = spec.draw(900 + n as u64).rounded::<f32>();
            let target = if in_value { &mut inputs.value } else { &mut inputs.key };
            let width = *target.shape().last().expect("some axis");
            target.as_mut_slice()[6 * width + 3] = bad as f32;
            let (out, lse) = subject.attend(&problem, &inputs);
            let expected = reference::forward(&problem, &inputs.map(Tensor::view));
            let what = format!("{}: {bad} in {}", subject.name(), if in_value { "value" } else { "key" });
            same_classes(&format!("{what}, out"), &out, &expected.out);
            same_classes(&format!("{what}, lse"), &lse, &expected.lse);
        }
    }
}

fn same_classes(what: &str, found: &Tensor<f32>, expected: &Tensor<f64>) {
    for (i, (found, expected)) in found.as_slice().iter().zip(expected.as_slice()).enumerate() {
        let class = |x: f64| (x.is_nan(), x.is_infinite().then_some(x > 0.0));
        assert_eq!(class(f64::from(*found)), class(*expected), "{what}[{i}]: {found}, expected {expected}");
    }
}

/// No keys: output 0, log-sum-exp minus infinity, gradients 0, whatever the incoming gradients hold.
fn no_keys_at_all<S: Subject>(subject: &S) {
    for spec in [
        Spec::attention(5, 0, false).heads(2, 1),
        Spec::attention(5, 0, true),
        Spec::packed(&[3, 2, 0], &[0, 0, 0], false),
    ] {
        let problem = spec.problem(ElementType::F32);
        let case = spec.draw(41);
        let inputs = case.rounded::<f32>();
        let (out, lse) = subject.attend(&problem, &inputs);
        assert!(out.as_slice().iter().all(|&x| x == 0.0), "{} {spec:?}: {out:?}", subject.name());
        assert!(lse.as_slice().iter().all(|&x| x == f32::NEG_INFINITY), "{} {spec:?}", subject.name());
        let (d_out, d_lse) = (case.d_out.cast(), case.d_lse.as_ref().map(Tensor::cast));
        let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: d_lse.as_ref() };
        let gradients = subject.differentiate(&problem, &inputs, &saved);
        assert!(gradients.query.as_slice().iter().all(|&x| x == 0.0), "{} {spec:?}", subject.name());
    }
}

/// A spoiled key changes no gradient of a query that does not see it; a spoiled query and its incoming gradient
/// change no gradient of a key that it does not see.
fn unseen_gradients<S: Subject>(subject: &S) {
    for (i, spec) in local().iter().enumerate() {
        let problem = spec.problem(ElementType::F32);
        let case = spec.draw(600 + i as u64);
        let inputs = case.rounded::<f32>();
        let (out, lse) = subject.attend(&problem, &inputs);
        let d_out: Tensor<f32> = case.d_out.cast();
        let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None };
        let clean = subject.differentiate(&problem, &inputs, &saved);
        let lists = visible(&problem);
        let (queries, keys) = (problem.query_tokens(), problem.key_tokens());

        let token = keys / 2;
        let mut spoiled = inputs.clone();
        for row in rows_of(problem.batch(), keys, token, problem.heads_kv()) {
            spoil(&mut spoiled.key, row, f64::NAN);
            spoil(&mut spoiled.value, row, f64::INFINITY);
        }
        let bad = subject.differentiate(&problem, &spoiled, &saved);
        for (query, list) in lists.iter().enumerate().filter(|(_, list)| !list.contains(&token)) {
            for row in rows_of(problem.batch(), queries, query, problem.heads()) {
                let same = rows_equal(&clean.query, &bad.query, row, problem.head_dim());
                assert!(same, "{} {spec:?}: d_query {query} ({list:?}), key {token}", subject.name());
            }
        }

        let token = queries / 2;
        let (mut spoiled, mut bad_d_out) = (inputs.clone(), d_out.clone());
        for row in rows_of(problem.batch(), queries, token, problem.heads()) {
            spoil(&mut spoiled.query, row, f64::NAN);
            spoil(&mut bad_d_out, row, f64::INFINITY);
        }
        let saved = Saved { out: &out, lse: &lse, d_out: &bad_d_out, d_lse: None };
        let bad = subject.differentiate(&problem, &spoiled, &saved);
        for key in (0..keys).filter(|key| !lists[token].contains(key)) {
            for row in rows_of(problem.batch(), keys, key, problem.heads_kv()) {
                let same = rows_equal(&clean.key, &bad.key, row, problem.head_dim())
                    && rows_equal(&clean.value, &bad.value, row, problem.head_dim_v());
                assert!(same, "{} {spec:?}: d_key, d_value {key}, query {token}", subject.name());
            }
        }
    }
}

fn rows_of(batch: usize, tokens: usize, token: usize, heads: usize) -> impl Iterator<Item = usize> {
    (0..batch).flat_map(move |b| (0..heads).map(move |h| (b * tokens + token) * heads + h))
}

/// A batch item repeated by a stride of 0 gives, in every item, the bits of the item alone.
mod broadcast {
    use super::*;
    use natten_tests::{Arrangement, Placed};

    for_each_subject!(repeated_batch);

    fn repeated_batch<S: Subject>(subject: &S) {
        let spec = Spec::na(&[6, 5], &[3, 2]).heads(4, 2).dims(24, 8).additional(2);
        let single = spec.draw(12).rounded::<f32>();
        let (out, _) = subject.attend(&spec.problem(ElementType::F32), &single);
        let batch = 3;
        let problem = spec.clone().batch(batch).problem(ElementType::F32);
        let repeat = |t: &Tensor<f32>| Placed::of(t, Arrangement::Gapped).broadcast_batch(batch);
        let placed: Inputs<Placed<f32>> = single.map(repeat);
        let mut found = Placed::<f32>::poisoned(&problem.out_shape(), Arrangement::HeadsFirst, true);
        subject.forward(&problem, &placed.map(Placed::view), Output { out: found.view_mut(), lse: None });
        let found = found.written("out of a repeated batch");
        for item in found.as_slice().chunks(out.as_slice().len()) {
            let item = Tensor::from_vec(out.shape(), item.to_vec()).expect("one item");
            assert!(same_bits(&item, &out), "{}", subject.name());
        }
    }
}
