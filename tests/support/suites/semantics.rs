//! What a query must not see has no influence on it, not one bit, whatever it holds; what it sees has.
//!
//! Kernels on tensor cores may let a number that is not finite through from keys of the same tile: a weight of zero times NaN
//! is NaN. And the rows of a warp move the point that their exponentials are taken from together, so that a large score of one
//! row may round another's weights differently. There, and only there, keys are spoiled with large numbers instead, and a row
//! that does not see them may change by what its rounding may.

use natten::{Element, Inputs, Output, Problem, Saved, Tensor, reference};

use super::oracle::Expected;
use super::scope::Given;
use super::{Scope, Suite, list};
use crate::compare::{assert_same_classes, row_error, same_bits, same_row};
use crate::dense::visible;
use crate::in_type;
use crate::place::{Arrangement, Place, Placed};
use crate::spec::{Case, Mask, Spec};
use crate::subject::{Attended, Subject, Unsupported, Weights};

/// Keys and rows that a query does not see, heads and residues beside its own, and what it does see.
pub fn suite<S: Subject>(scope: &Scope) -> Suite<S> {
    let mut suite = Suite { name: "semantics", checks: Vec::new() };
    if scope.forward {
        suite.each(scope, "unseen keys", &local(scope), unseen_keys::<S>);
        suite.each(scope, "other queries", &local(scope), other_queries::<S>);
        suite.each(scope, "other queries of tiles", &tiles(scope), other_queries::<S>);
        suite.each(scope, "neighbouring head", &heads(), neighbouring_head::<S>);
        suite.each(scope, "other residues", &residues(), other_residues::<S>);
        suite.each(scope, "repeated batch", &[repeated()], repeated_batch::<S>);
        suite.each(scope, "nothing to see", &keyless(), nothing_to_see::<S>);
        // Elsewhere what is seen spreads over a tile.
        if !scope.is_kernel() || !scope.has_tiles() {
            suite.each(scope, "seen keys", &[Spec::na(&[12], &[5]).heads(2, 1).dims(16, 8)], seen_keys::<S>);
        }
    }
    if scope.backward {
        suite.each(scope, "unseen gradients", &local(scope), unseen_gradients::<S>);
        suite.each(scope, "gradients of nothing", &keyless(), gradients_of_nothing::<S>);
        suite.each(scope, "gradients beside a row", &local(scope), gradients_beside_a_row::<S>);
        suite.each(scope, "gradients beside a row of tiles", &tiles(scope), gradients_beside_a_row::<S>);
        suite.each(scope, "gradients beside a head", &heads(), gradients_beside_a_head::<S>);
        suite.each(scope, "gradients beside residues", &residues(), gradients_beside_residues::<S>);
    }
    suite.checks = scope.sampled(suite.checks);
    suite
}

/// Specs whose windows leave something out.
fn local(scope: &Scope) -> Vec<Spec> {
    let mut specs = vec![
        Spec::na(&[33], &[3]).heads(2, 1),
        Spec::na(&[17], &[4]).stride(&[4]).dims(40, 24),
        Spec::na(&[9, 10], &[3, 4]).heads(2, 2).dims(72, 72),
        Spec::na(&[8, 9], &[2, 3]).dilation(&[2, 3]).causal(&[true, false]),
        Spec::na(&[4, 6, 5], &[2, 3, 3]).heads(4, 2).dims(16, 8).additional(2),
        Spec::attention(6, 11, true).heads(2, 1),
        Spec::packed(&[5, 0, 6], &[7, 3, 4], false).dims(64, 64),
        Spec::packed(&[5, 4], &[6, 9], true),
        Spec::na(&[7, 6], &[3, 2]).heads(2, 1).dims(24, 384),
        Spec::na(&[13], &[4]).dims(512, 320).additional(2),
        Spec::na(&[9], &[3]).dims(1024, 300),
    ];
    if scope.has_tiles() {
        specs.extend([
            Spec::na(&[300], &[40]).dims(64, 64),
            Spec::na(&[21, 30], &[9, 16]).causal(&[true, false]).dims(32, 32).heads(2, 1),
            Spec::na(&[6, 9, 20], &[3, 4, 9]).dims(128, 64),
        ]);
    }
    specs.extend(list::random(31, 6));
    specs
}

/// Rows that meet several tiles of keys, and tiles of keys that meet several of queries.
fn tiles(scope: &Scope) -> Vec<Spec> {
    if scope.has_tiles() { vec![Spec::attention(70, 300, false).dims(16, 16)] } else { Vec::new() }
}

/// Rows of every width beside others.
fn heads() -> Vec<Spec> {
    let wide = [1, 5, 8, 40, 64, 72, 80, 96, 128, 300, 512, 1024]
        .map(|dim| Spec::na(&[5, 6], &[3, 3]).heads(6, 3).dims(dim, dim).batch(2));
    [wide.to_vec(), vec![Spec::na(&[150], &[70]).heads(6, 3).dims(40, 40)]].concat()
}

fn residues() -> Vec<Spec> {
    vec![
        Spec::na(&[151], &[30]).dilation(&[4]).heads(2, 1).dims(64, 64),
        Spec::na(&[11, 25], &[2, 2]).dilation(&[4, 9]).heads(2, 1).dims(64, 64).batch(2),
        Spec::na(&[26], &[4]).dilation(&[3]).heads(2, 1),
        Spec::na(&[3, 5, 8], &[1, 2, 2]).dilation(&[2, 2, 3]).heads(2, 1).dims(16, 16).batch(2),
    ]
}

fn repeated() -> Spec {
    Spec::na(&[6, 5], &[3, 2]).heads(4, 2).dims(24, 8).additional(2)
}

fn keyless() -> Vec<Spec> {
    vec![
        Spec::attention(5, 0, false).heads(2, 1),
        Spec::attention(5, 0, true),
        Spec::packed(&[3, 2, 0], &[0, 0, 0], false),
    ]
}

/// Key and value are spoiled with different ones, in turn.
const BAD: [f64; 3] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
const LARGE: [f64; 3] = [3e4, -2e4, 1e4];

fn bad(weights: Weights, n: usize) -> f64 {
    (if weights == Weights::Unrounded { BAD } else { LARGE })[n % 3]
}

/// Overwrites one row `[batch, token, head]` of a tensor.
fn spoil<E: Element>(tensor: &mut Tensor<E>, row: usize, bad: f64) {
    let width = *tensor.shape().last().expect("some axis");
    tensor.as_mut_slice()[row * width..][..width].fill(E::from_f64(bad));
}

/// Rows of a token, all heads.
fn rows_of(batch: usize, tokens: usize, token: usize, heads: usize) -> impl Iterator<Item = usize> {
    (0..batch).flat_map(move |b| (0..heads).map(move |h| (b * tokens + token) * heads + h))
}

/// Whether a row of output and log-sum-exp kept every bit.
fn kept<E: Element>(problem: &Problem, a: &Attended<E>, b: &Attended<E>, row: usize) -> bool {
    same_row(&a.out, &b.out, row, problem.head_dim_v()) && same_row(&a.lse, &b.lse, row, 1)
}

/// Spoils one key token, key and value, all heads; queries that do not see it keep every bit, others do not.
fn unseen_keys<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let spec = &given.spec;
        let problem = spec.problem(E::TYPE);
        let inputs = spec.draw(500 + given.index as u64).rounded::<E>();
        let clean = subject.attend(&problem, &inputs)?;
        let on_tensor_cores = clean.weights == Weights::InElementType;
        let case = spec.draw(500 + given.index as u64);
        let tolerances = on_tensor_cores.then(|| Expected::<E>::of(&case).tolerances(clean.weights));
        let (lists, keys) = (visible(&problem), problem.key_tokens());
        for (n, token) in (0..keys).step_by((keys / 4).max(1)).enumerate() {
            let mut spoiled = inputs.clone();
            for row in rows_of(problem.batch(), keys, token, problem.heads_kv()) {
                spoil(&mut spoiled.key, row, bad(clean.weights, n));
                spoil(&mut spoiled.value, row, bad(clean.weights, n + 1));
            }
            let found = subject.attend(&problem, &spoiled)?;
            for row in 0..problem.batch() * problem.query_tokens() * problem.heads() {
                let query = row / problem.heads() % problem.query_tokens();
                let is_same = kept(&problem, &clean, &found, row);
                let sees = lists[query].contains(&token);
                let what = format!("{} {spec:?}: query {query}, key {token}", subject.name());
                let is_close = |[out, lse]: [f64; 2]| {
                    row_error(&clean.out, &found.out, row, problem.head_dim_v()) <= 2.0 * out
                        && row_error(&clean.lse, &found.lse, row, 1) <= 2.0 * lse
                };
                let is_unmoved = is_same || tolerances.is_some_and(is_close);
                assert!(sees || is_unmoved, "{what} is not seen, and changed the result");
                // A large key of a small score has no weight.
                assert!(!sees || on_tensor_cores || !is_same, "{what} is seen, and changed nothing");
            }
        }
        Ok(())
    })
}

/// NaN in one row of the query is that row's alone: its neighbours in memory and in the tile keep every bit.
fn other_queries<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let spec = &given.spec;
        let problem = spec.problem(E::TYPE);
        let inputs = spec.draw(550 + given.index as u64).rounded::<E>();
        let clean = subject.attend(&problem, &inputs)?;
        let rows = problem.batch() * problem.query_tokens() * problem.heads();
        let lists = visible(&problem);
        for target in [0, rows / 2, rows - 1] {
            let mut spoiled = inputs.clone();
            spoil(&mut spoiled.query, target, f64::NAN);
            let found = subject.attend(&problem, &spoiled)?;
            for row in 0..rows {
                let what = format!("{} {spec:?}: row {row}, NaN in row {target}", subject.name());
                if row != target {
                    assert!(kept(&problem, &clean, &found, row), "{what}");
                } else if !lists[row / problem.heads() % problem.query_tokens()].is_empty() {
                    assert!(found.lse.as_slice()[row].is_nan(), "{what}");
                }
            }
        }
        Ok(())
    })
}

/// Spoils one head of query, key and value; those of the others keep every bit, at rows of any width.
fn neighbouring_head<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let spec = &given.spec;
        let problem = spec.problem(E::TYPE);
        let inputs = spec.draw(77).rounded::<E>();
        let clean = subject.attend(&problem, &inputs)?;
        let mut spoiled = inputs.clone();
        for row in (1..problem.batch() * problem.key_tokens() * 3).step_by(3) {
            spoil(&mut spoiled.key, row, f64::NAN);
            spoil(&mut spoiled.value, row, f64::INFINITY);
        }
        let rows = problem.batch() * problem.query_tokens() * 6;
        let of_spoiled = |row: usize| row % 6 / 2 == 1;
        (0..rows).filter(|&row| of_spoiled(row)).for_each(|row| spoil(&mut spoiled.query, row, f64::NAN));
        let found = subject.attend(&problem, &spoiled)?;
        for row in 0..rows {
            let is_same = kept(&problem, &clean, &found, row);
            assert_eq!(is_same, !of_spoiled(row), "{} {spec:?}: row {row}", subject.name());
        }
        Ok(())
    })
}

/// NaN in all tokens of other residues, and before and behind the tensors, leaves a residue as it is: on tensor cores too,
/// since tiles are of one residue.
fn other_residues<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let spec = &given.spec;
        let Mask::Neighborhood { token_shape, axes } = &spec.mask else { unreachable!("dilated") };
        let problem = spec.problem(E::TYPE);
        let inputs = spec.draw(88).rounded::<E>();
        let clean = subject.attend(&problem, &inputs)?;
        // Of whichever kernel: one on tensor cores may err most.
        let [allowed, _] = Expected::<E>::of(&spec.draw(88)).tolerances(Weights::InElementType);
        let tokens = problem.query_tokens();
        for pick in 0..3 {
            let is_of = |token: usize| {
                let mut rest = token;
                token_shape.iter().zip(axes).enumerate().rev().all(|(a, (extent, axis))| {
                    let at = rest % extent;
                    rest /= extent;
                    // The first residue, the first of the shorter ones, the last.
                    let d = axis.dilation;
                    at % d == [0, extent % d, d - 1][(pick + a) % 3]
                })
            };
            let mut spoiled = inputs.clone();
            for token in (0..tokens).filter(|&token| !is_of(token)) {
                for row in rows_of(problem.batch(), tokens, token, problem.heads()) {
                    spoil(&mut spoiled.query, row, f64::NAN);
                }
                for row in rows_of(problem.batch(), tokens, token, problem.heads_kv()) {
                    spoil(&mut spoiled.key, row, f64::NAN);
                    spoil(&mut spoiled.value, row, f64::NAN);
                }
            }
            let placed = spoiled.map(|tensor| Placed::of(tensor, given.place));
            let mut found = Placed::<E>::poisoned(&problem.out_shape(), given.place, true);
            let output = Output { out: found.view_mut(), lse: None };
            subject.forward(&problem, &placed.map(Placed::view), output)?;
            let found = found.elements();
            for row in (0..problem.batch() * tokens * problem.heads())
                .filter(|row| is_of(row / problem.heads() % tokens))
            {
                let is_same = same_row(&clean.out, &found, row, problem.head_dim_v());
                // Another arrangement may be another kernel's.
                let error = row_error(&clean.out, &found, row, problem.head_dim_v());
                let what = format!("{} {spec:?}: row {row} of residue {pick}", subject.name());
                assert!(is_same || error <= 2.0 * allowed, "{what}: error {error}");
            }
        }
        Ok(())
    })
}

/// A batch item repeated by a stride of 0 gives the same bits in every item, and those that copies of it give. An item alone may be
/// another kernel's, with bits of its own.
fn repeated_batch<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    const ITEMS: usize = 3;
    in_type!(given.element_type, E => {
        let problem = given.spec.clone().batch(ITEMS).problem(E::TYPE);
        let single = given.spec.draw(12).rounded::<E>();
        let gapped = Place { arrangement: Arrangement::Gapped, ..given.place };
        let attend = |placed: &Inputs<Placed<E>>| {
            let place = Place { arrangement: Arrangement::HeadsFirst, ..given.place };
            let mut out = Placed::<E>::poisoned(&problem.out_shape(), place, true);
            let output = Output { out: out.view_mut(), lse: None };
            subject.forward(&problem, &placed.map(Placed::view), output)?;
            Ok(out.written("out of a repeated batch"))
        };
        let copied = |tensor: &Tensor<E>| {
            let mut shape = tensor.shape().to_vec();
            shape[0] *= ITEMS;
            Tensor::from_vec(&shape, tensor.as_slice().repeat(ITEMS)).expect("items of one shape")
        };
        let found = attend(&single.map(|tensor| Placed::of(tensor, gapped).broadcast_batch(ITEMS)))?;
        let expected = attend(&single.map(|tensor| Placed::of(&copied(tensor), gapped)))?;
        assert!(same_bits(&found, &expected), "{}: not as of copies", subject.name());
        let (first, others) = found.as_slice().split_at(found.as_slice().len() / ITEMS);
        let is_first = |item: &[E]| item.iter().zip(first).all(|(a, b)| a.to_f64().to_bits() == b.to_f64().to_bits());
        assert!(others.chunks(first.len()).all(is_first), "{}: items differ", subject.name());
        Ok(())
    })
}

/// A non-finite number inside the window makes non-finite what the reference makes non-finite.
fn seen_keys<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let problem = given.spec.problem(E::TYPE);
        for (n, bad) in BAD.into_iter().enumerate() {
            for in_value in [false, true] {
                let mut inputs = given.spec.draw(900 + n as u64).rounded::<E>();
                let target = if in_value { &mut inputs.value } else { &mut inputs.key };
                let width = *target.shape().last().expect("some axis");
                target.as_mut_slice()[6 * width + 3 % width] = E::from_f64(bad);
                let found = subject.attend(&problem, &inputs)?;
                if found.weights == Weights::InElementType {
                    return Ok(());
                }
                let expected = reference::forward(&problem, &inputs.map(Tensor::view));
                let what = format!("{}: {bad} in {}", subject.name(), if in_value { "value" } else { "key" });
                assert_same_classes(&format!("{what}, out"), &found.out, &expected.out);
                assert_same_classes(&format!("{what}, lse"), &found.lse, &expected.lse);
            }
        }
        Ok(())
    })
}

/// No keys: output 0 and log-sum-exp minus infinity.
fn nothing_to_see<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let problem = given.spec.problem(E::TYPE);
        let found = subject.attend(&problem, &given.spec.draw(41).rounded::<E>())?;
        assert!(found.out.as_slice().iter().all(|x| x.to_f64() == 0.0), "{}", subject.name());
        assert!(found.lse.as_slice().iter().all(|&x| x == f32::NEG_INFINITY), "{}", subject.name());
        Ok(())
    })
}

/// Neither have queries without keys a gradient, whatever the incoming ones hold.
fn gradients_of_nothing<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let problem = given.spec.problem(E::TYPE);
        let case = given.spec.draw(41);
        let out = Tensor::<E>::zeros(&problem.out_shape()).expect("small");
        let lse = Tensor::from_fn(&problem.lse_shape(), |_| f32::NEG_INFINITY).expect("small");
        let (d_out, d_lse) = (case.d_out.cast(), case.d_lse.as_ref().map(Tensor::cast));
        let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: d_lse.as_ref() };
        let gradients = subject.differentiate(&problem, &case.rounded::<E>(), &saved)?;
        assert!(gradients.query.as_slice().iter().all(|x| x.to_f64() == 0.0), "{}", subject.name());
        Ok(())
    })
}

/// A spoiled key changes no gradient of a query that does not see it; a spoiled query and its incoming gradient
/// change no gradient of a key that it does not see.
fn unseen_gradients<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let spec = &given.spec;
        let problem = spec.problem(E::TYPE);
        let case = spec.draw(600 + given.index as u64);
        let inputs = case.rounded::<E>();
        let reference::Forward { out, lse } = reference::forward(&problem, &inputs.map(Tensor::view));
        let (out, lse): (Tensor<E>, Tensor<f32>) = (out.cast(), lse.cast());
        let d_out: Tensor<E> = case.d_out.cast();
        let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None };
        let clean = subject.differentiate(&problem, &inputs, &saved)?;
        let lists = visible(&problem);
        let (queries, keys) = (problem.query_tokens(), problem.key_tokens());

        let weights = subject.backward_weights(&problem, &inputs.map(Tensor::view));
        // A row that is seen changes what sees it, unless its large but finite scores have weights of 0 there.
        let must_differ = weights == Weights::Unrounded;
        let check = |is_same: bool, is_seen: bool, what: &str| {
            assert!(is_same || is_seen, "{what}: changed, unseen");
            assert!(!(is_same && is_seen && must_differ), "{what}: did not change, though seen");
        };
        let token = keys / 2;
        let mut spoiled = inputs.clone();
        for row in rows_of(problem.batch(), keys, token, problem.heads_kv()) {
            spoil(&mut spoiled.key, row, bad(weights, 0));
            spoil(&mut spoiled.value, row, bad(weights, 1));
        }
        let found = subject.differentiate(&problem, &spoiled, &saved)?;
        for (query, list) in lists.iter().enumerate() {
            for row in rows_of(problem.batch(), queries, query, problem.heads()) {
                let is_same = same_row(&clean.query, &found.query, row, problem.head_dim());
                let what = format!("{} {spec:?}: d_query {query} ({list:?}), key {token}", subject.name());
                check(is_same, list.contains(&token), &what);
            }
        }

        let token = queries / 2;
        let (mut spoiled, mut bad_d_out) = (inputs.clone(), d_out.clone());
        for row in rows_of(problem.batch(), queries, token, problem.heads()) {
            spoil(&mut spoiled.query, row, bad(weights, 0));
            spoil(&mut bad_d_out, row, bad(weights, 1));
        }
        let saved = Saved { out: &out, lse: &lse, d_out: &bad_d_out, d_lse: None };
        let found = subject.differentiate(&problem, &spoiled, &saved)?;
        for key in 0..keys {
            for row in rows_of(problem.batch(), keys, key, problem.heads_kv()) {
                let is_same = same_row(&clean.key, &found.key, row, problem.head_dim())
                    && same_row(&clean.value, &found.value, row, problem.head_dim_v());
                let what = format!("{} {spec:?}: d_key, d_value {key}, query {token}", subject.name());
                check(is_same, lists[token].contains(&key), &what);
            }
        }
        Ok(())
    })
}

/// The operands of a backward of which some rows can be spoiled.
struct Rows<E> {
    inputs: Inputs<Tensor<E>>,
    out: Tensor<E>,
    lse: Tensor<f32>,
    d_out: Tensor<E>,
    d_lse: Tensor<f32>,
}

impl<E: Element> Rows<E> {
    fn of(problem: &Problem, case: &Case) -> Self {
        let inputs = case.rounded::<E>();
        let reference::Forward { out, lse } = reference::forward(problem, &inputs.map(Tensor::view));
        let d_lse = case.d_lse.as_ref().expect("drawn").cast();
        Rows { inputs, out: out.cast(), lse: lse.cast(), d_out: case.d_out.cast(), d_lse }
    }

    /// With NaN in all that belongs to some rows of queries and of keys.
    fn spoiled(&self, query: &dyn Fn(usize) -> bool, key: &dyn Fn(usize) -> bool) -> Self {
        let (mut inputs, mut out, mut lse) = (self.inputs.clone(), self.out.clone(), self.lse.clone());
        let (mut d_out, mut d_lse) = (self.d_out.clone(), self.d_lse.clone());
        for row in (0..lse.as_slice().len()).filter(|&row| query(row)) {
            for tensor in [&mut inputs.query, &mut out, &mut d_out] {
                spoil(tensor, row, f64::NAN);
            }
            (lse.as_mut_slice()[row], d_lse.as_mut_slice()[row]) = (f32::NAN, f32::NAN);
        }
        let width = *inputs.key.shape().last().expect("rows");
        for row in (0..inputs.key.as_slice().len() / width).filter(|&row| key(row)) {
            spoil(&mut inputs.key, row, f64::NAN);
            spoil(&mut inputs.value, row, f64::NAN);
        }
        Rows { inputs, out, lse, d_out, d_lse }
    }

    fn differentiate<S: Subject>(
        &self,
        subject: &S,
        problem: &Problem,
    ) -> Result<Inputs<Tensor<E>>, Unsupported> {
        let Rows { inputs, out, lse, d_out, d_lse } = self;
        subject.differentiate(problem, inputs, &Saved { out, lse, d_out, d_lse: Some(d_lse) })
    }
}

/// Gradients of rows of queries, and of keys, for which `kept` holds are the same bits.
fn gradients_kept<E: Element>(
    what: &str,
    clean: &Inputs<Tensor<E>>,
    found: &Inputs<Tensor<E>>,
    query: Option<&dyn Fn(usize) -> bool>,
    key: Option<&dyn Fn(usize) -> bool>,
) {
    let parts = [
        ("query", &clean.query, &found.query, query),
        ("key", &clean.key, &found.key, key),
        ("value", &clean.value, &found.value, key),
    ];
    for (name, clean, found, kept) in parts {
        let width = *clean.shape().last().expect("rows");
        let rows = 0..clean.as_slice().len() / width;
        for row in rows.filter(|&row| kept.is_some_and(|kept| kept(row))) {
            assert!(same_row(clean, found, row, width), "{what}: row {row} of the gradient of {name}");
        }
    }
}

/// NaN in one row of the queries, with its output and gradients, is no other query's; one in a row of keys and values no other
/// key's. Rows of a tile are apart on tensor cores, too.
fn gradients_beside_a_row<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let problem = given.spec.problem(E::TYPE);
        let rows = Rows::<E>::of(&problem, &given.spec.draw(650 + given.index as u64));
        let clean = rows.differentiate(subject, &problem)?;
        let what = format!("{} {:?}", subject.name(), given.spec);
        let lists = visible(&problem);
        let of_queries = problem.batch() * problem.query_tokens() * problem.heads();
        let of_keys = problem.batch() * problem.key_tokens() * problem.heads_kv();
        // One in the middle, and the last.
        for part in 1..3 {
            let (query, key) = ((of_queries - 1) * part / 2, (of_keys - 1) * part / 2);
            let found = rows.spoiled(&|row| row == query, &|_| false).differentiate(subject, &problem)?;
            gradients_kept(&what, &clean, &found, Some(&|row| row != query), None);
            let sees = &lists[query / problem.heads() % problem.query_tokens()];
            let own = found.query.as_slice()[query * problem.head_dim()].to_f64();
            assert!(sees.is_empty() || own.is_nan(), "{what}: query {query} is NaN, its gradient {own}");
            let found = rows.spoiled(&|_| false, &|row| row == key).differentiate(subject, &problem)?;
            gradients_kept(&what, &clean, &found, None, Some(&|row| row != key));
        }
        Ok(())
    })
}

/// NaN in one head of the keys and those of the queries that share it is no other head's.
fn gradients_beside_a_head<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let problem = given.spec.problem(E::TYPE);
        let rows = Rows::<E>::of(&problem, &given.spec.draw(78));
        let clean = rows.differentiate(subject, &problem)?;
        let (query, key) = (|row: usize| row % 6 / 2 == 1, |row: usize| row % 3 == 1);
        let found = rows.spoiled(&query, &key).differentiate(subject, &problem)?;
        let what = format!("{} {:?}", subject.name(), given.spec);
        gradients_kept(&what, &clean, &found, Some(&|row| !query(row)), Some(&|row| !key(row)));
        Ok(())
    })
}

/// NaN in every token of other residues leaves the gradients of one as they are.
fn gradients_beside_residues<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    in_type!(given.element_type, E => {
        let Mask::Neighborhood { token_shape, axes } = &given.spec.mask else { unreachable!("dilated") };
        let problem = given.spec.problem(E::TYPE);
        let rows = Rows::<E>::of(&problem, &given.spec.draw(89));
        let clean = rows.differentiate(subject, &problem)?;
        let tokens = problem.query_tokens();
        // The last residue of each axis, which may be a shorter one.
        let is_of = |token: usize| {
            let mut rest = token;
            token_shape.iter().zip(axes).rev().all(|(extent, axis)| {
                let at = rest % extent;
                rest /= extent;
                at % axis.dilation == axis.dilation - 1
            })
        };
        let query = |row: usize| is_of(row / problem.heads() % tokens);
        let key = |row: usize| is_of(row / problem.heads_kv() % tokens);
        let found = rows.spoiled(&|row| !query(row), &|row| !key(row)).differentiate(subject, &problem)?;
        let what = format!("{} {:?}", subject.name(), given.spec);
        gradients_kept(&what, &clean, &found, Some(&query), Some(&key));
        Ok(())
    })
}
