//! Gradients against central differences of the f64 reference's forward: each operand, through the output and through the
//! log-sum-exp, along random directions.
//!
//! With `f(t) = loss(x + t u)`, `D(h) = (f(h) - f(-h)) / 2h = f'(0) + a h^2 + O(h^4)`. So `(4 D(h/2) - D(h)) / 3`
//! errs by `O(h^4)`, and `|D(h/2) - D(h)|` bounds the `h^2` part that it removes: half a percent of it is far more
//! than what is left at this `h`. Beside it stands the roundoff of f64, magnified by `1 / h`; and what a subject may err,
//! and loses because output and log-sum-exp are kept in its element type.

use natten::{Element, ElementType, Inputs, Saved, Tensor, reference};

use super::oracle::{gradient_tolerance, naive_gradients, reference_gradients};
use super::scope::Given;
use super::{Check, Scope, Suite, list};
use crate::in_type;
use crate::rng::Rng;
use crate::spec::{Case, Spec};
use crate::subject::{Subject, Unsupported};

const STEP: f64 = 1e-3;

/// Flags one by one and together, plain and packed attention, drawn problems; and every component of a small one.
pub fn suite<S: Subject>(scope: &Scope) -> Suite<S> {
    let mut checks = Vec::new();
    let lists =
        [("flags", flags(), 3), ("attention", list::attention(), 1), ("drawn", list::random(77, 40), 1)];
    let given = |(list, specs, directions): (&'static str, Vec<Spec>, usize)| {
        scope.problems(&specs).into_iter().map(move |given| (list, given, directions))
    };
    let long_rows = scope.long_rows(&list::long_rows()).into_iter().map(|given| ("long rows", given, 1));
    for (list, given, directions) in
        lists.into_iter().flat_map(given).chain(long_rows).filter(|_| scope.backward)
    {
        let name = format!("gradients {list} {} {}", given.index, given.element_type);
        checks.push(Check::new(name, given.spec.clone(), move |subject| {
            in_type!(given.element_type, E => along_directions::<E, S>(subject, &given, directions))
        }));
    }
    let small = Spec::na(&[3, 4], &[2, 3]).heads(2, 1).dims(2, 3).additional(2).causal(&[true, false]);
    for given in scope.problems(&[small]).into_iter().filter(|_| scope.backward && !scope.is_kernel()) {
        let name = format!("gradients every component {}", given.element_type);
        checks.push(Check::new(
            name,
            given.spec.clone(),
            move |subject| in_type!(given.element_type, E => every_component::<E, S>(subject, &given)),
        ));
    }
    Suite { name: "gradients", checks: scope.sampled(checks) }
}

fn flags() -> Vec<Spec> {
    vec![
        Spec::na(&[9], &[4]),
        Spec::na(&[9], &[4]).causal(&[true]),
        Spec::na(&[9], &[4]).stride(&[3]),
        Spec::na(&[9], &[2]).dilation(&[4]),
        Spec::na(&[6], &[3]).heads(4, 2).batch(2),
        Spec::na(&[6], &[3]).heads(3, 1).dims(5, 7),
        Spec::na(&[6], &[3]).additional(4).heads(2, 1),
        Spec::na(&[6], &[3]).scale(0.0).additional(2),
        Spec::na(&[6], &[3]).scale(-1.3),
        Spec::na(&[4, 5], &[3, 2]).causal(&[false, true]).stride(&[2, 1]).additional(1),
        Spec::na(&[3, 4, 5], &[2, 3, 2]).dilation(&[1, 1, 2]).causal(&[true, false, false]).heads(2, 1),
    ]
}

/// One problem with a subject's gradients, and what is needed to judge them.
struct Differentiated {
    /// Operands as the subject had them.
    case: Case,
    with_lse: bool,
    /// The subject's gradients, what each component may err, and what keeping out and lse in its type changes.
    found: Inputs<Tensor<f64>>,
    allowed: Inputs<f64>,
    kept: Inputs<Tensor<f64>>,
}

impl Differentiated {
    fn of<E: Element, S: Subject>(subject: &S, given: &Given, with_lse: bool) -> Result<Self, Unsupported> {
        let drawn = given.spec.draw(100 + given.index as u64);
        let inputs = drawn.rounded::<E>();
        let (d_out, d_lse): (Tensor<E>, _) =
            (drawn.d_out.cast(), drawn.d_lse.as_ref().map(Tensor::cast::<f32>));
        let d_lse = d_lse.filter(|_| with_lse);
        let case = Case {
            spec: given.spec.clone(),
            inputs: inputs.map(Tensor::cast),
            d_out: d_out.cast(),
            d_lse: d_lse.as_ref().map(Tensor::cast),
        };
        let problem = given.spec.problem(E::TYPE);
        let exact_forward = reference::forward(&problem, &inputs.map(Tensor::view));
        let (out, lse) = (exact_forward.out.cast::<E>(), exact_forward.lse.cast::<f32>());
        let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: d_lse.as_ref() };
        let found = subject.differentiate(&problem, &inputs, &saved)?;
        let weights = subject.backward_weights(&problem, &inputs.map(Tensor::view));
        let (exact, naive) = naive_gradients(&problem, &inputs, &saved, weights);
        let kept = reference_gradients(&problem, &inputs, &saved);
        let unrounded = unrounded_gradients(&case, &exact_forward);
        let pairs = Inputs {
            query: (&exact.query, &naive.query),
            key: (&exact.key, &naive.key),
            value: (&exact.value, &naive.value),
            additional: exact
                .additional
                .as_ref()
                .zip(naive.additional.as_ref())
                .map(|(a, b)| [(&a[0], &b[0]), (&a[1], &b[1])]),
        };
        let allowed = pairs.map(|(exact, naive)| gradient_tolerance::<E>(exact, naive, weights));
        let minus = |a: &Tensor<f64>, b: &Tensor<f64>| {
            Tensor::from_fn(a.shape(), |i| a.as_slice()[i] - b.as_slice()[i]).expect("its shape")
        };
        let kept = Inputs {
            query: minus(&kept.query, &unrounded.query),
            key: minus(&kept.key, &unrounded.key),
            value: minus(&kept.value, &unrounded.value),
            additional: kept
                .additional
                .as_ref()
                .zip(unrounded.additional.as_ref())
                .map(|(a, b)| [0, 1].map(|i| minus(&a[i], &b[i]))),
        };
        Ok(Differentiated { case, with_lse, found: found.map(Tensor::cast), allowed, kept })
    }

    /// Compares `<gradient, direction>` of one operand with the difference quotient of the loss along it.
    fn check(&self, what: &str, part: &Part, direction: &Tensor<f64>) {
        let Part { read, replace, .. } = part;
        let (x, gradient) = (read(&self.case.inputs).expect("there"), read(&self.found).expect("there"));
        let loss = |t: f64| {
            let mut inputs = self.case.inputs.clone();
            replace(&mut inputs, moved(x, direction, t));
            loss(&self.case, &inputs)
        };
        let quotient = |h: f64| (loss(h) - loss(-h)) / (2.0 * h);
        let (coarse, fine) = (quotient(STEP), quotient(STEP / 2.0));
        let (numeric, analytic) = ((4.0 * fine - coarse) / 3.0, inner(direction, gradient));
        let own = direction.as_slice().iter().map(|u| u.abs()).sum::<f64>() * (part.allowed)(&self.allowed);
        let kept = inner(direction, read(&self.kept).expect("there")).abs();
        // Sums of up to a few thousand terms round at some tens of epsilons of their magnitude.
        let roundoff = 100.0 * f64::EPSILON * magnitude(&self.case) / STEP;
        let allowed = 0.005 * (fine - coarse).abs() + roundoff + own + kept;
        let error = (numeric - analytic).abs();
        let lse = if self.with_lse { "with d_lse" } else { "without d_lse" };
        assert!(
            error <= allowed,
            "{what} {lse}: {analytic} but differences give {numeric} (allowed {allowed:e})"
        );
    }
}

fn unrounded_gradients(case: &Case, forward: &reference::Forward) -> Inputs<Tensor<f64>> {
    let problem = case.spec.problem(ElementType::F64);
    let saved = Saved {
        out: forward.out.view(),
        lse: forward.lse.view(),
        d_out: case.d_out.view(),
        d_lse: case.d_lse.as_ref().map(Tensor::view),
    };
    let found = reference::backward(&problem, &case.inputs.map(Tensor::view), &saved);
    Inputs { query: found.query, key: found.key, value: found.value, additional: found.additional }
}

fn along_directions<E: Element, S: Subject>(
    subject: &S,
    given: &Given,
    directions: usize,
) -> Result<(), Unsupported> {
    let mut rng = Rng::new(given.index as u64 ^ 0xD1F);
    for with_lse in [false, true] {
        let differentiated = Differentiated::of::<E, S>(subject, given, with_lse)?;
        for part in &PARTS {
            let Some(x) = (part.read)(&differentiated.case.inputs).filter(|x| !x.as_slice().is_empty())
            else {
                continue;
            };
            for _ in 0..directions {
                let direction = Tensor::from_fn(x.shape(), |_| rng.normal()).expect("the shape of a tensor");
                differentiated.check(&format!("{} {}", subject.name(), part.name), part, &direction);
            }
        }
    }
    Ok(())
}

/// Each component by itself, where a direction might hide one in the sum.
fn every_component<E: Element, S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    let differentiated = Differentiated::of::<E, S>(subject, given, true)?;
    for part in &PARTS {
        let x = (part.read)(&differentiated.case.inputs).expect("all five");
        for i in 0..x.as_slice().len() {
            let direction = Tensor::from_fn(x.shape(), |n| f64::from(u8::from(n == i))).expect("its shape");
            differentiated.check(&format!("{} {}[{i}]", subject.name(), part.name), part, &direction);
        }
    }
    Ok(())
}

/// `<d_out, out> + <d_lse, lse>`, of finite entries: a query without keys contributes its zeros alone.
fn loss(case: &Case, inputs: &Inputs<Tensor<f64>>) -> f64 {
    let problem = case.spec.problem(ElementType::F64);
    let reference::Forward { out, lse } = reference::forward(&problem, &inputs.map(Tensor::view));
    inner(&case.d_out, &out) + case.d_lse.as_ref().map_or(0.0, |d_lse| inner(d_lse, &lse))
}

fn inner(a: &Tensor<f64>, b: &Tensor<f64>) -> f64 {
    let pairs = a.as_slice().iter().zip(b.as_slice());
    pairs.filter(|(_, b)| b.is_finite()).map(|(a, b)| a * b).sum()
}

fn moved(x: &Tensor<f64>, direction: &Tensor<f64>, t: f64) -> Tensor<f64> {
    let (a, b) = (x.as_slice(), direction.as_slice());
    Tensor::from_fn(x.shape(), |i| a[i] + t * b[i]).expect("the shape of a tensor")
}

/// Sum of the magnitudes of what the loss adds up.
fn magnitude(case: &Case) -> f64 {
    let sum = |t: &Tensor<f64>| t.as_slice().iter().map(|x| x.abs()).sum::<f64>();
    10.0 * (sum(&case.d_out) + case.d_lse.as_ref().map_or(0.0, sum) + 1.0)
}

/// An operand: how to read and how to replace it.
struct Part {
    name: &'static str,
    read: fn(&Inputs<Tensor<f64>>) -> Option<&Tensor<f64>>,
    replace: fn(&mut Inputs<Tensor<f64>>, Tensor<f64>),
    allowed: fn(&Inputs<f64>) -> f64,
}

const PARTS: [Part; 5] = [
    Part { name: "query", read: |x| Some(&x.query), replace: |x, t| x.query = t, allowed: |x| x.query },
    Part { name: "key", read: |x| Some(&x.key), replace: |x, t| x.key = t, allowed: |x| x.key },
    Part { name: "value", read: |x| Some(&x.value), replace: |x, t| x.value = t, allowed: |x| x.value },
    Part {
        name: "additional keys",
        read: |x| x.additional.as_ref().map(|pair| &pair[0]),
        replace: |x, t| replace_additional(x, 0, t),
        allowed: |x| x.additional.map_or(0.0, |pair| pair[0]),
    },
    Part {
        name: "additional values",
        read: |x| x.additional.as_ref().map(|pair| &pair[1]),
        replace: |x, t| replace_additional(x, 1, t),
        allowed: |x| x.additional.map_or(0.0, |pair| pair[1]),
    },
];

fn replace_additional(inputs: &mut Inputs<Tensor<f64>>, which: usize, tensor: Tensor<f64>) {
    if let Some(pair) = &mut inputs.additional {
        pair[which] = tensor;
    }
}
