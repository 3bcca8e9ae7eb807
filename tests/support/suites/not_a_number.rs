//! NaN in what a query sees reaches its results, and nothing else: what skips weights of zero must not skip NaN.

use natten::{Element, Inputs, Saved, Tensor, reference};

use super::oracle::{Expected, gradient_tolerance, naive_gradients, reference_gradients};
use super::{Check, Scope};
use crate::compare::{assert_close, assert_same_classes, same_row};
use crate::dense::{Weights, visible};
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
    let apart = Check::new(name, spec.clone(), move |subject| {
        in_type!(element_type, E => {
            if is_forward { forward::<E, S>(subject, &spec) } else { backward::<E, S>(subject, &spec) }
        })
    });
    // Rows that fill the lanes and shorter ones have loops of their own. With strides neighbours' windows differ by several tokens.
    let lines = [Spec::na(&[19], &[4]).heads(2, 1), Spec::na(&[20], &[5]).stride(&[3]).heads(2, 1)];
    let of_rows = |line: &Spec| [("full", scope.full_rows(line)), ("shorter", scope.fit(line, 1))];
    let in_turn = lines.iter().flat_map(of_rows).enumerate().map(|(nth, (rows, line))| {
        let name = format!("oracle not a number in turn {}, {rows} rows {element_type}", nth / 2);
        Check::new(name, line.clone(), move |subject| {
            in_type!(element_type, E => {
                if is_forward { in_turn_forward::<E, S>(subject, &line) } else { in_turn_backward::<E, S>(subject, &line) }
            })
        })
    });
    [apart].into_iter().chain(in_turn).collect()
}

/// Neighbours on a line whose rows are NaN in turn: of each lane group's items some see the token and some do not, and it is each
/// of the tokens that a lane group takes at once.
const IN_TURN: std::ops::Range<usize> = 7..13;

/// Rows of a token in a tensor of one batch item.
fn spoil_token<E: Element>(tensor: &mut Tensor<E>, token: usize, heads: usize) {
    (0..heads).for_each(|head| spoil(tensor, token * heads + head));
}

/// Rows that see a token with NaN are NaN in every component, others as they were.
fn in_turn_forward<E: Element, S: Subject>(subject: &S, spec: &Spec) -> Result<(), Unsupported> {
    let (problem, inputs) = (spec.problem(E::TYPE), spec.draw(19).rounded::<E>());
    let clean = subject.attend(&problem, &inputs)?;
    let (lists, width) = (visible(&problem), problem.head_dim_v());
    for token in IN_TURN {
        let mut spoilt = inputs.clone();
        spoil_token(&mut spoilt.value, token, spec.heads_kv);
        let of_value = subject.attend(&problem, &spoilt)?;
        spoil_token(&mut spoilt.key, token, spec.heads_kv);
        let of_both = subject.attend(&problem, &spoilt)?;
        for row in 0..problem.query_tokens() * spec.heads {
            let what = format!("{} {} row {row}, NaN in key {token}", subject.name(), E::TYPE);
            for found in [&of_value, &of_both] {
                if lists[row / spec.heads].contains(&token) {
                    let own = &found.out.as_slice()[row * width..][..width];
                    assert!(own.iter().all(|x| x.to_f64().is_nan()), "{what}, which it sees: {own:?}");
                } else {
                    assert!(same_row(&found.out, &clean.out, row, width), "{what}, which it does not see");
                }
            }
        }
    }
    Ok(())
}

/// NaN in a key, in a query, in the gradient of an output, beside an output and a log-sum-exp that know nothing of it: of a row of
/// gradients each component is NaN by one pair alone.
fn in_turn_backward<E: Element, S: Subject>(subject: &S, spec: &Spec) -> Result<(), Unsupported> {
    let case = spec.draw(20);
    let (problem, inputs) = (spec.problem(E::TYPE), case.rounded::<E>());
    let forward = reference::forward(&problem, &inputs.map(Tensor::view));
    let (out, lse, d_out) = (forward.out.cast::<E>(), forward.lse.cast::<f32>(), case.d_out.cast::<E>());
    for token in IN_TURN {
        for spoilt in ["key", "query", "gradient of the output"] {
            let (mut inputs, mut d_out) = (inputs.clone(), d_out.clone());
            match spoilt {
                "key" => spoil_token(&mut inputs.key, token, spec.heads_kv),
                "query" => spoil_token(&mut inputs.query, token, spec.heads),
                _ => spoil_token(&mut d_out, token, spec.heads),
            }
            let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None };
            let expected = reference_gradients(&problem, &inputs, &saved);
            let found = subject.differentiate(&problem, &inputs, &saved)?;
            for ((role, found), (_, expected)) in found.roles().zip(expected.roles()) {
                let what = format!("{} {} NaN in {spoilt} {token}", subject.name(), E::TYPE);
                assert_same_classes(&format!("{what}, gradient of {role}"), found, expected);
            }
        }
    }
    Ok(())
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
