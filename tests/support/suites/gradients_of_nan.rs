//! NaN in one operand of a backward alone, the others as they were: every gradient that the reference makes NaN of it is NaN.
//!
//! What is saved of the forward need not be what operands make by now, and a kernel must not take one for the other. Units that
//! multiply whole tiles may let NaN through to more rows; that rows which do not meet it keep their bits is another suite's.

use natten::{Element, Inputs, Saved, Tensor, reference};

use super::oracle::reference_gradients;
use super::scope::Given;
use super::{Check, Scope};
use crate::in_type;
use crate::spec::Spec;
use crate::subject::{Subject, Unsupported};

/// For every kernel, on tiles with masks and tiles without.
pub fn checks<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope) {
    if !scope.backward {
        return;
    }
    let mut specs = vec![Spec::na(&[5, 6], &[3, 4]).causal(&[true, false]).heads(2, 1).additional(2)];
    if scope.has_tiles() {
        specs.push(Spec::attention(70, 130, false));
    }
    if scope.is_kernel() && scope.has_tiles() {
        for Given { element_type, spec, .. } in scope.alone(&Spec::attention(96, 160, false).dims(16, 16), 0)
        {
            let name = format!("oracle gradients of single scores {element_type}");
            checks.push(Check::new(
                name,
                spec.clone(),
                move |subject| in_type!(element_type, E => single_scores::<E, S>(subject, &spec)),
            ));
        }
    }
    for (nth, spec) in specs.iter().enumerate() {
        for Given { element_type, spec, .. } in scope.alone(&spec.clone().dims(16, 16), nth + 2) {
            let name = format!("oracle gradients of NaN {nth} {element_type}");
            checks.push(Check::new(
                name,
                spec.clone(),
                move |subject| in_type!(element_type, E => each_operand::<E, S>(subject, &spec)),
            ));
        }
    }
}

/// How often other keys are taken.
const ROUNDS: usize = 6;

/// A score that is no number, of a query and one of the keys that it sees, whose other scores are -infinity: no other weight hides
/// it. Queries have two infinite components, and for one key these have opposite signs.
fn single_scores<E: Element, S: Subject>(subject: &S, spec: &Spec) -> Result<(), Unsupported> {
    let problem = spec.problem(E::TYPE);
    let case = spec.draw(9960);
    let (dim, keys, pairs) = (spec.head_dim, problem.key_tokens(), spec.head_dim / 2);
    for round in 0..ROUNDS {
        let own = |pair: usize| (pair * 11 + round * 27) % keys;
        let query = |i: usize| if i % dim / 2 == i / dim % pairs { f64::INFINITY } else { 0.0 };
        let key = |i: usize| if i % 2 == 1 && own(i % dim / 2) == i / dim { 1.0 } else { -1.0 };
        let mut inputs = case.rounded::<E>();
        inputs.query = Tensor::from_fn(inputs.query.shape(), |i| E::from_f64(query(i))).expect("its shape");
        inputs.key = Tensor::from_fn(inputs.key.shape(), |i| E::from_f64(key(i))).expect("its shape");
        let out = Tensor::<E>::zeros(&problem.out_shape()).expect("small");
        let lse = Tensor::<f32>::zeros(&problem.lse_shape()).expect("small");
        let d_out = case.d_out.cast::<E>();
        let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None };
        let found = subject.differentiate(&problem, &inputs, &saved)?;
        let what = format!("{} {} round {round}", subject.name(), E::TYPE);
        assert!(found.query.as_slice().iter().all(|x| x.to_f64().is_nan()), "{what}: gradient of query");
        let rows = found.value.as_slice().chunks(spec.head_dim_v);
        let owned: Vec<usize> = (0..pairs.min(problem.query_tokens())).map(own).collect();
        for (key, row) in rows.enumerate() {
            let is_nan = row.iter().any(|x| x.to_f64().is_nan());
            assert_eq!(is_nan, owned.contains(&key), "{what}: gradient of value {key}");
        }
    }
    Ok(())
}

/// All that a backward reads.
#[derive(Clone)]
struct Operands<E> {
    inputs: Inputs<Tensor<E>>,
    out: Tensor<E>,
    lse: Tensor<f32>,
    d_out: Tensor<E>,
    d_lse: Tensor<f32>,
}

impl<E: Element> Operands<E> {
    fn saved(&self) -> Saved<&Tensor<E>, &Tensor<f32>> {
        Saved { out: &self.out, lse: &self.lse, d_out: &self.d_out, d_lse: Some(&self.d_lse) }
    }
}

/// Puts NaN somewhere.
type Spoil<E> = fn(&mut Operands<E>);

/// Fills a row in the middle.
fn spoil<E: Element>(tensor: &mut Tensor<E>) {
    let width = *tensor.shape().last().expect("rows");
    let row = tensor.as_slice().len() / width / 2;
    tensor.as_mut_slice()[row * width..][..width].fill(E::from_f64(f64::NAN));
}

/// The same of what has one number a row.
fn spoil_one(tensor: &mut Tensor<f32>) {
    let middle = tensor.as_slice().len() / 2;
    tensor.as_mut_slice()[middle] = f32::NAN;
}

fn each_operand<E: Element, S: Subject>(subject: &S, spec: &Spec) -> Result<(), Unsupported> {
    let problem = spec.problem(E::TYPE);
    let case = spec.draw(9950);
    let inputs = case.rounded::<E>();
    let forward = reference::forward(&problem, &inputs.map(Tensor::view));
    let (out, lse) = (forward.out.cast(), forward.lse.cast());
    let d_lse = case.d_lse.as_ref().expect("drawn").cast();
    let whole = Operands::<E> { inputs, out, lse, d_out: case.d_out.cast(), d_lse };
    let spoilers: [(&str, Spoil<E>); 6] = [
        ("query", |operands| spoil(&mut operands.inputs.query)),
        ("key", |operands| spoil(&mut operands.inputs.key)),
        ("value", |operands| spoil(&mut operands.inputs.value)),
        ("gradient of out", |operands| spoil(&mut operands.d_out)),
        ("log-sum-exp", |operands| spoil_one(&mut operands.lse)),
        ("gradient of the log-sum-exp", |operands| spoil_one(&mut operands.d_lse)),
    ];
    for (operand, spoil) in spoilers {
        let mut spoiled = whole.clone();
        spoil(&mut spoiled);
        let found = subject.differentiate(&problem, &spoiled.inputs, &spoiled.saved())?;
        let wanted = reference_gradients(&problem, &spoiled.inputs, &spoiled.saved());
        for ((role, found), (_, wanted)) in found.roles().zip(wanted.roles()) {
            let what = format!("{} {} gradient of {role}, NaN in {operand}", subject.name(), E::TYPE);
            for (at, (found, wanted)) in found.as_slice().iter().zip(wanted.as_slice()).enumerate() {
                assert!(!wanted.is_nan() || found.to_f64().is_nan(), "{what}: {found:?} at {at}");
            }
        }
    }
    Ok(())
}
