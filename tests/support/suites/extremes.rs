//! Where no tolerance measured by rounding says what must come out: scales that leave one key all weight, and results halfway
//! between two numbers.

use natten::{Element, Inputs, Output, Problem, Role, Saved, Tensor, reference};

use super::oracle::{Arrangements, place_inputs, placed_gradients, reference_gradients};
use super::scope::Given;
use super::{Check, Scope};
use crate::compare::each_within;
use crate::in_type;
use crate::place::{Place, Placed};
use crate::spec::Spec;
use crate::subject::{Subject, Unsupported, Weights};
use crate::tolerance::rounding;

/// Beyond such scales gradients of scores leave f32.
const MOST_BACKWARD: f32 = 1e20;

/// Both.
pub fn checks<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope) {
    hard_attention(checks, scope);
    if scope.is_kernel() && (scope.forward || scope.backward) {
        ties(checks, scope);
    }
}

/// Hard attention, by scales that leave one key of a window all weight, or those that tie. Queries and keys are small integers, so
/// products are exact, and so is what comes out: in any order, on any unit.
fn hard_attention<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope) {
    let mut specs = Vec::new();
    for scale in [1e4, 1e6, 1e8, 1e9, -1e9, 1e20, 3e38, -3e38] {
        specs.push(Spec::na(&[70], &[67]).dims(16, 16).scale(scale));
        specs.push(Spec::na(&[5, 6], &[3, 4]).causal(&[true, false]).heads(2, 1).dims(16, 16).scale(scale));
    }
    specs.push(Spec::na(&[70], &[70]).dims(16, 16).additional(3).scale(1e9));
    for given in scope.problems(&specs) {
        push_hard(checks, scope, "hard attention", given);
    }
    // Each kernel has its own way with references that are far from 0, with log-sum-exps known to some powers of two alone, and
    // with scales at the end of f32; on tiles one for tiles that all queries see whole, and one for others.
    let spec = if scope.has_tiles() {
        Spec::attention(70, 300, false).dims(16, 16)
    } else {
        Spec::na(&[5, 6], &[3, 4]).causal(&[true, false]).heads(2, 1).dims(16, 16).additional(2)
    };
    let largest = if scope.backward { MOST_BACKWARD } else { 3e38 };
    for (nth, scale) in [1e6, -1e9, largest].into_iter().enumerate().filter(|_| scope.is_kernel()) {
        for given in scope.alone(&spec.clone().scale(scale), nth) {
            push_hard(checks, scope, "far scores", given);
        }
    }
}

fn push_hard<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope, list: &str, given: Given) {
    let passes = [scope.forward, scope.backward];
    if !scope.forward && given.spec.scale.is_some_and(|scale| scale.abs() > MOST_BACKWARD) {
        return;
    }
    let Given { index, element_type, spec, place } = given;
    let (name, what) = (format!("oracle {list} {index} {element_type}"), spec.clone());
    checks.push(Check::new(
        name,
        what,
        move |subject| in_type!(element_type, E => hard::<E, S>(subject, &spec, passes, place)),
    ));
}

/// Queries are 0, 1 or -1 times a unit vector, keys have components from -2 to 2.
fn hard<E: Element, S: Subject>(
    subject: &S,
    spec: &Spec,
    [is_forward, is_backward]: [bool; 2],
    place: Place,
) -> Result<(), Unsupported> {
    let drawn = spec.draw(9500);
    let dim = spec.head_dim;
    let of_units = |tensor: &Tensor<f64>| {
        let component = |i: usize| {
            let row = i / dim;
            if i % dim == row % dim { (row % 3) as f64 - 1.0 } else { 0.0 }
        };
        Tensor::<E>::from_fn(tensor.shape(), |i| E::from_f64(component(i))).expect("its shape")
    };
    // Twice the largest scale is no number of f32.
    let most = if spec.scale.is_some_and(|scale| scale.abs() > 1e38) { 1.0 } else { 2.0 };
    let small = |tensor: &Tensor<f64>| {
        let numbers = tensor.as_slice();
        let component = |i: usize| E::from_f64((2.0 * numbers[i]).round().clamp(-most, most));
        Tensor::<E>::from_fn(tensor.shape(), component).expect("its shape")
    };
    let inputs = Inputs {
        query: of_units(&drawn.inputs.query),
        key: small(&drawn.inputs.key),
        value: small(&drawn.inputs.value),
        additional: drawn.inputs.additional.as_ref().map(|pair| pair.each_ref().map(small)),
    };
    let problem = spec.problem(E::TYPE);
    let exact = reference::forward(&problem, &inputs.map(Tensor::view));
    let at = Arrangements::all(place);
    let name = |what: &str| format!("{} {} {what} of {problem:?}", subject.name(), E::TYPE);
    // Weights of ties are rounded to the element type where tensor cores multiply; what is stored is rounded once more.
    let (of_out, of_sums) = (8.0 * rounding::<E>(), 8.0 * f64::from(f32::EPSILON));
    if is_forward {
        let placed = place_inputs(&inputs, at.inputs);
        let mut out = Placed::<E>::poisoned(&problem.out_shape(), at.out, true);
        let mut lse = Placed::<f32>::poisoned(&problem.lse_shape(), at.out, false);
        let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
        subject.forward(&problem, &placed.map(Placed::view), output)?;
        let near = |allowed: f64| move |exact: f64| allowed * exact.abs().max(1.0);
        each_within(&name("out"), &out.written("out"), &exact.out, near(of_out)).expect("hard attention");
        each_within(&name("lse"), &lse.written("lse"), &exact.lse, near(of_sums)).expect("hard attention");
    }
    if is_backward && problem.scale().abs() <= f64::from(MOST_BACKWARD) {
        hard_gradients(subject, (&problem, &inputs), &exact, at)?;
    }
    Ok(())
}

/// The gradient of the values is what weights are, by the log-sum-exp as it is stored, so that keys that tie count whole. Those of
/// queries and keys are rounding errors times the scale: that they are numbers is what can be asked of them.
fn hard_gradients<E: Element, S: Subject>(
    subject: &S,
    (problem, inputs): (&Problem, &Inputs<Tensor<E>>),
    exact: &reference::Forward,
    at: Arrangements,
) -> Result<(), Unsupported> {
    let d_out =
        Tensor::<E>::from_fn(&problem.out_shape(), |i| E::from_f64((i % 5) as f64 - 2.0)).expect("small");
    let (out, lse): (Tensor<E>, Tensor<f32>) = (exact.out.cast(), exact.lse.cast());
    let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None };
    let found = placed_gradients(subject, problem, inputs, &saved, at)?.map(|grad| grad.written("gradients"));
    let wanted = reference_gradients(problem, inputs, &saved);
    for ((role, found), (_, wanted)) in found.roles().zip(wanted.roles()) {
        let what = format!("{} {} gradient of {role} of {problem:?}", subject.name(), E::TYPE);
        let is_finite = found.as_slice().iter().all(|x| !x.to_f64().is_nan());
        assert!(is_finite, "{what} is NaN somewhere");
        let is_of_values = matches!(role, Role::Value | Role::AdditionalValues);
        if is_of_values && problem.scale().abs() >= 1e8 {
            // A key sums what up to 70 queries give it, each at most 2, in f32.
            let of_sums = 70.0 * 2.0 * f64::from(f32::EPSILON) / 2.0;
            each_within(&what, found, wanted, |exact| 8.0 * rounding::<E>() * exact.abs().max(1.0) + of_sums)
                .expect("hard attention");
        }
    }
    Ok(())
}

/// Results that lie halfway between two numbers of the element type, exactly: each goes to the even one, once down and once up, in
/// each component and for every item of a lane group. Infinity stays what it is.
fn ties<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope) {
    let keys = if scope.forward { 2 } else { 5 };
    let additional = if scope.forward { 0 } else { 2 };
    let spec = Spec::attention(5, keys, false).additional(additional).dims(16, 16).scale(1.0);
    for Given { index, element_type, spec, .. } in (0..2).flat_map(|nth| scope.alone(&spec, nth)) {
        let is_forward = scope.forward;
        checks.push(Check::new(
            format!("oracle ties {index} {element_type}"),
            spec.clone(),
            move |subject| {
                in_type!(element_type, E => if is_forward {
                    ties_of_outputs::<E, S>(subject, &spec)
                } else {
                    ties_of_gradients::<E, S>(subject, &spec)?;
                    infinite_gradients::<E, S>(subject, &spec)
                })
            },
        ));
    }
}

/// A tensor of the shape of another whose rows, or whose elements where there are no rows, are given by their number, and within
/// them by that of the component.
fn of_rows<E: Element>(shape: &[usize], width: usize, at: impl Fn(usize, usize) -> f64) -> Tensor<E> {
    Tensor::from_fn(shape, |i| E::from_f64(at(i / width, i % width))).expect("small")
}

fn assert_bits<E: Element>(
    what: &str,
    found: &Tensor<E>,
    width: usize,
    expected: impl Fn(usize, usize) -> f64,
) {
    for (i, found) in found.as_slice().iter().enumerate() {
        let expected = E::from_f64(expected(i / width, i % width));
        assert!(found.to_f64() == expected.to_f64(), "{what}[{i}] is {found:?}, expected {expected:?}");
    }
}

/// Means of two values with equal weights; one of them may be infinite.
fn ties_of_outputs<E: Element, S: Subject>(subject: &S, spec: &Spec) -> Result<(), Unsupported> {
    let drawn = spec.draw(31).rounded::<E>();
    // One unit in the last place of 1.
    let unit = 2.0 * rounding::<E>();
    let columns =
        [[1.0, 1.0 + unit], [1.0 + unit, 1.0 + 2.0 * unit], [-1.0 - unit, -1.0], [f64::INFINITY, 1.0]];
    let (dim, width) = (spec.head_dim, spec.head_dim_v);
    for turn in 0..columns.len() {
        let column = |component: usize| columns[(component + turn) % columns.len()];
        let query = of_rows(drawn.query.shape(), dim, |_, _| 0.0);
        let value = of_rows(drawn.value.shape(), width, |key, component| column(component)[key]);
        let inputs = Inputs::new(query, drawn.key.clone(), value);
        let found = subject.attend(&spec.problem(E::TYPE), &inputs)?;
        let what = format!("{} {} mean", subject.name(), E::TYPE);
        assert_bits(&what, &found.out, width, |_, component| column(component).iter().sum::<f64>() / 2.0);
    }
    Ok(())
}

/// Operands of a backward whose scores are all 0, and whose log-sum-exp says so: each weight is 1.
struct Even<E: Element> {
    problem: Problem,
    inputs: Inputs<Tensor<E>>,
    out: Tensor<E>,
    lse: Tensor<f32>,
    d_out: Tensor<E>,
    d_lse: Tensor<f32>,
}

impl<E: Element> Even<E> {
    /// Zeros.
    fn of(spec: &Spec) -> Self {
        let problem = spec.problem(E::TYPE);
        let zeros = |shape: &[usize]| Tensor::<E>::zeros(shape).expect("small");
        let scalars = || Tensor::<f32>::zeros(&problem.lse_shape()).expect("small");
        let inputs = spec.shapes().map(|shape| zeros(shape));
        let rows = || zeros(&problem.out_shape());
        Even { inputs, out: rows(), lse: scalars(), d_out: rows(), d_lse: scalars(), problem }
    }

    /// Gives all additional keys the same components.
    fn set_additional_keys(&mut self, of_component: impl Fn(usize) -> f64) {
        if let Some([keys, _]) = &mut self.inputs.additional {
            let dim = keys.shape()[keys.shape().len() - 1];
            *keys = of_rows(keys.shape(), dim, |_, component| of_component(component));
        }
    }

    fn gradients<S: Subject>(&self, subject: &S) -> Result<Inputs<Tensor<E>>, Unsupported> {
        let Even { problem, inputs, out, lse, d_out, d_lse } = self;
        subject.differentiate(problem, inputs, &Saved { out, lse, d_out, d_lse: Some(d_lse) })
    }
}

/// The gradient of a value is the sum of those of outputs; that of a score is the incoming one of its query's log-sum-exp, with
/// which the queries' and the keys' gradients are made of keys and of queries that are 1 in one row alone.
fn ties_of_gradients<E: Element, S: Subject>(subject: &S, spec: &Spec) -> Result<(), Unsupported> {
    let (dim, width, half) = (spec.head_dim, spec.head_dim_v, rounding::<E>());
    let what = |role: &str| format!("{} {} gradient of {role}", subject.name(), E::TYPE);
    let summands = [[1.0, half], [1.0 + 2.0 * half, half]];
    let ties = [1.0 + half, 1.0 + 3.0 * half];
    for turn in 0..2 {
        let tie = |n: usize| ties[(n + turn) % 2];
        let mut even = Even::<E>::of(spec);
        even.inputs.key = of_rows(even.inputs.key.shape(), dim, |row, _| f64::from(u8::from(row == 0)));
        even.d_lse = of_rows(even.lse.shape(), 1, |row, _| tie(row));
        even.d_out = of_rows(even.out.shape(), width, |row, component| {
            if row < 2 { summands[(component + turn) % 2][row] } else { 0.0 }
        });
        let found = even.gradients(subject)?;
        let of_f32 = |n: usize| f64::from(tie(n) as f32);
        assert_bits(&what("query"), &found.query, dim, |row, _| of_f32(row));
        assert_bits(&what("value"), &found.value, width, |_, component| tie(component));
        if let Some([_, values]) = &found.additional {
            assert_bits(&what("additional values"), values, width, |_, component| tie(component));
        }

        let mut even = Even::<E>::of(spec);
        even.inputs.query = of_rows(even.inputs.query.shape(), dim, |row, component| {
            f64::from(u8::from(row < 2 && (component + turn) % 2 == row))
        });
        even.d_lse = of_rows(even.lse.shape(), 1, |row, _| if row < 2 { ties[row] } else { 0.0 });
        let found = even.gradients(subject)?;
        assert_bits(&what("key"), &found.key, dim, |_, component| of_f32(component));
    }
    Ok(())
}

/// Infinite gradients stay what they are in every component: of outputs those of values, of log-sum-exps those of queries and keys.
fn infinite_gradients<E: Element, S: Subject>(subject: &S, spec: &Spec) -> Result<(), Unsupported> {
    let (dim, width) = (spec.head_dim, spec.head_dim_v);
    let what = |role: &str| format!("{} {} gradient of {role}", subject.name(), E::TYPE);
    let infinite = |component: usize| [f64::INFINITY, f64::NEG_INFINITY][component % 2];
    let sign = |component: usize| infinite(component).signum();
    let mut even = Even::<E>::of(spec);
    let of_first = |row: usize, component: usize| if row == 0 { infinite(component) } else { 0.0 };
    even.d_out = of_rows(even.out.shape(), width, of_first);
    let found = even.gradients(subject)?;
    assert_bits(&what("value"), &found.value, width, |_, component| infinite(component));
    if let Some([_, values]) = &found.additional {
        assert_bits(&what("additional values"), values, width, |_, component| infinite(component));
    }
    // Beside pairs that a tile does not have infinite gradients of scores are none.
    if subject.backward_weights(&even.problem, &even.inputs.map(Tensor::view)) == Weights::InElementType {
        return Ok(());
    }
    let mut even = Even::<E>::of(spec);
    even.d_lse = of_rows(even.lse.shape(), 1, |_, _| f64::INFINITY);
    even.inputs.key = of_rows(even.inputs.key.shape(), dim, |_, component| sign(component));
    even.set_additional_keys(sign);
    assert_bits(&what("query"), &even.gradients(subject)?.query, dim, |_, component| infinite(component));
    even.inputs.query = of_rows(even.inputs.query.shape(), dim, |_, component| sign(component));
    even.inputs.key = of_rows(even.inputs.key.shape(), dim, |_, _| 0.0);
    assert_bits(&what("key"), &even.gradients(subject)?.key, dim, |_, component| infinite(component));
    Ok(())
}
