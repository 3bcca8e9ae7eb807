//! NaN in what a query sees reaches its results, and nothing else: what skips weights of zero must not skip NaN.

use natten::{Element, Inputs, Saved, Tensor, reference};

use super::oracle::{Expected, gradient_tolerance, naive_gradients, reference_gradients};
use super::{Check, Scope};
use crate::compare::{assert_close, assert_same_classes};
use crate::dense::Weights;
use crate::in_type;
use crate::spec::Spec;
use crate::subject::{Subject, Unsupported};

/// For a kernel on CUDA cores: on tensor cores NaN may spoil queries of its tile that do not see it.
pub fn checks<S: Subject>(scope: &Scope) -> Vec<Check<S>> {
    let spec = Spec::na(&[3, 5, 4], &[2, 2, 3]).causal(&[false, true, false]).heads(2, 1).dims(24, 16);
    let spec = scope.fit(&spec.additional(2), 0);
    let element_type = scope.types().next().expect("a kernel has one");
    let (is_forward, is_backward) = (scope.forward, scope.backward);
    if scope.has_tiles() || !is_forward && !is_backward {
        return Vec::new();
    }
    let name = format!("oracle not a number {element_type}");
    vec![Check::new(name, spec.clone(), move |subject| {
        in_type!(element_type, E => {
            if is_forward { forward::<E, S>(subject, &spec) } else { backward::<E, S>(subject, &spec) }
        })
    })]
}

/// Fills one row of a tensor.
fn spoil<E: Element>(tensor: &mut Tensor<E>, row: usize) {
    let width = tensor.shape()[tensor.shape().len() - 1];
    tensor.as_mut_slice()[row * width..][..width].fill(E::from_f64(f64::NAN));
}

fn forward<E: Element, S: Subject>(subject: &S, spec: &Spec) -> Result<(), Unsupported> {
    let case = spec.draw(17);
    let (problem, mut inputs) = (spec.problem(E::TYPE), case.rounded::<E>());
    let [out, lse] = Expected::<E>::of(&case).tolerances(Weights::Unrounded);
    spoil(&mut inputs.key, 17);
    spoil(&mut inputs.value, 41);
    spoil(&mut inputs.query, 9);
    let expected = reference::forward(&problem, &inputs.map(Tensor::view));
    let found = subject.attend(&problem, &inputs)?;
    let what = |what: &str| format!("{} {} {what} beside NaN", subject.name(), E::TYPE);
    assert_close(&what("out"), &found.out, &expected.out, out);
    assert_close(&what("lse"), &found.lse, &expected.lse, lse);
    Ok(())
}

/// NaN in the gradient of one query's output; and in a key, which queries tell who saw it.
fn backward<E: Element, S: Subject>(subject: &S, spec: &Spec) -> Result<(), Unsupported> {
    let case = spec.draw(18);
    let (problem, mut inputs) = (spec.problem(E::TYPE), case.rounded::<E>());
    let saved = |inputs: &Inputs<Tensor<E>>| -> (Tensor<E>, Tensor<f32>) {
        let forward = reference::forward(&problem, &inputs.map(Tensor::view));
        (forward.out.cast(), forward.lse.cast())
    };
    let what = |role: &str| format!("{} {} gradient of {role} beside NaN", subject.name(), E::TYPE);
    let ((out, lse), mut d_out) = (saved(&inputs), case.d_out.cast::<E>());
    let whole = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None };
    let (exact, naive) = naive_gradients(&problem, &inputs, &whole, Weights::Unrounded);
    let clean = d_out.clone();
    spoil(&mut d_out, 61);
    let spoilt = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None };
    let expected = reference_gradients(&problem, &inputs, &spoilt);
    let found = subject.differentiate(&problem, &inputs, &spoilt)?;
    let pairs = found.roles().zip(expected.roles()).zip(exact.roles().zip(naive.roles()));
    for (((role, found), (_, expected)), ((_, exact), (_, naive))) in pairs {
        let allowed = gradient_tolerance::<E>(exact, naive, Weights::Unrounded);
        assert_close(&what(&role.to_string()), found, expected, allowed);
    }
    spoil(&mut inputs.key, 17);
    let (out, lse) = saved(&inputs);
    let saw = Saved { out: &out, lse: &lse, d_out: &clean, d_lse: None };
    let expected = reference_gradients(&problem, &inputs, &saw);
    let found = subject.differentiate(&problem, &inputs, &saw)?;
    for ((role, found), (_, expected)) in found.roles().zip(expected.roles()) {
        assert_same_classes(&what(&role.to_string()), found, expected);
    }
    Ok(())
}
