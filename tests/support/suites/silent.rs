//! Queries whose every visible score is minus infinity: rows without keys. Their output is 0, their log-sum-exp minus infinity, their
//! own gradient 0, and they add nothing to that of any key or value.

use natten::{Element, Inputs, Saved, Tensor, reference};

use super::oracle::reference_gradients;
use super::scope::Given;
use super::{Check, Scope};
use crate::compare::{each_within, row_error};
use crate::dense::Weights;
use crate::in_type;
use crate::spec::Spec;
use crate::subject::{Subject, Unsupported};
use crate::tolerance::rounding;

/// Tokens of the line, and the first whose key is infinite. Windows of three: queries from the next on see no other.
const TOKENS: usize = 12;
const FIRST: usize = 6;

/// One in each element type.
pub fn checks<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope) {
    if !scope.forward && !scope.backward {
        return;
    }
    let passes = [scope.forward, scope.backward];
    for given in scope.alone(&Spec::na(&[TOKENS], &[3]).heads(2, 1).dims(9, 9), 0) {
        let Given { element_type, spec, .. } = given;
        checks.push(Check::new(
            format!("oracle silent rows {element_type}"),
            spec.clone(),
            move |subject| in_type!(element_type, E => silent_rows::<E, S>(subject, &spec, passes)),
        ));
    }
}

fn silent_rows<E: Element, S: Subject>(
    subject: &S,
    spec: &Spec,
    [is_forward, is_backward]: [bool; 2],
) -> Result<(), Unsupported> {
    let case = spec.draw(23);
    let (problem, inputs) = (spec.problem(E::TYPE), with_infinite_keys(&case.rounded::<E>(), spec));
    let expected = reference::forward(&problem, &inputs.map(Tensor::view));
    let what = |what: &str| format!("{} {} {what} beside infinite keys", subject.name(), E::TYPE);
    let allowed = |exact: f64| 16.0 * rounding::<E>().max(f64::from(f32::EPSILON)) * exact.abs().max(1.0);
    if is_forward {
        let found = subject.attend(&problem, &inputs)?;
        each_within(&what("out"), &found.out, &expected.out, allowed).expect("silent rows");
        each_within(&what("lse"), &found.lse, &expected.lse, allowed).expect("silent rows");
        let silent = (FIRST + 1) * spec.heads;
        assert!(
            found.lse.as_slice()[silent..].iter().all(|&lse| lse == f32::NEG_INFINITY),
            "{}",
            what("lse")
        );
        let out = &found.out.as_slice()[silent * spec.head_dim_v..];
        assert!(out.iter().all(|x| x.to_f64() == 0.0), "{}", what("out"));
    }
    if is_backward {
        // Units that multiply whole tiles multiply infinite keys by the weights of queries that do not see them, which are 0.
        let keeps_to_windows =
            subject.backward_weights(&problem, &inputs.map(Tensor::view)) == Weights::Unrounded;
        let (out, lse): (Tensor<E>, Tensor<f32>) = (expected.out.cast(), expected.lse.cast());
        let d_out = case.d_out.cast::<E>();
        let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None };
        let found = subject.differentiate(&problem, &inputs, &saved)?;
        let wanted = reference_gradients(&problem, &inputs, &saved);
        // Queries that see both kinds of keys multiply an infinite one by 0, which may be skipped.
        let before = if keeps_to_windows { FIRST - 1 } else { 0 };
        let rows = (0..before)
            .chain(FIRST + 1..TOKENS)
            .flat_map(|token| (0..spec.heads).map(move |head| (token, head)));
        for (token, head) in rows {
            let row = token * spec.heads + head;
            let error = row_error(&found.query, &wanted.query, row, spec.head_dim);
            assert!(error <= allowed(8.0), "{}, token {token}: {error:e}", what("gradient of query"));
        }
        each_within(&what("gradient of key"), &found.key, &wanted.key, |_| allowed(8.0))
            .expect("silent rows");
        each_within(&what("gradient of value"), &found.value, &wanted.value, |_| allowed(8.0))
            .expect("silent rows");
        let silent = (FIRST + 1) * spec.heads * spec.head_dim;
        assert!(
            found.query.as_slice()[silent..].iter().all(|x| x.to_f64() == 0.0),
            "{}",
            what("gradient of query")
        );
    }
    Ok(())
}

/// The last component of each query is 1, that of each key from [`FIRST`] on minus infinity.
fn with_infinite_keys<E: Element>(inputs: &Inputs<Tensor<E>>, spec: &Spec) -> Inputs<Tensor<E>> {
    let dim = spec.head_dim;
    let last = |i: usize| i % dim == dim - 1;
    let replaced = |tensor: &Tensor<E>, at: &dyn Fn(usize) -> Option<f64>| {
        let own = tensor.as_slice();
        Tensor::from_fn(tensor.shape(), |i| at(i).map_or(own[i], E::from_f64)).expect("its shape")
    };
    let is_infinite = |i: usize| last(i) && i / dim / spec.heads_kv >= FIRST;
    Inputs {
        query: replaced(&inputs.query, &|i| last(i).then_some(1.0)),
        key: replaced(&inputs.key, &|i| is_infinite(i).then_some(f64::NEG_INFINITY)),
        ..inputs.clone()
    }
}
