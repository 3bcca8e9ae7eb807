//! A backend against the f64 reference, forward and backward, with operands and results anywhere in memory.

use natten::{Element, ElementType, Gradients, Inputs, Output, Problem, Saved, Tensor, reference};

use crate::compare::{assert_close, largest};
use crate::dense::{self, Summed, Weights};
use crate::place::{Arrangement, Placed};
use crate::spec::Case;
use crate::subject::Subject;

/// Allowed error of a result: twice that of the naive implementation in the same element type, plus a floor. The naive
/// implementation that a kernel is measured by keeps its weights as the kernel does ([`Subject::weights`]): in f32, or
/// rounded to the element type before they meet the values.
///
/// The floor is what the exact result loses when it is stored in `E`, plus one unit of roundoff of the arithmetic
/// on the terms that are added up, both measured on the f64 result: a naive result may be exact by luck, as
/// where a window holds one key.
pub fn tolerance<E: Element>(exact: &Summed, naive: &Summed) -> f64 {
    let stored: Tensor<E> = naive.value.cast();
    let error = |a: f64, b: f64| if a.is_finite() && b.is_finite() { (a - b).abs() } else { 0.0 };
    let numbers = exact.value.as_slice().iter().zip(stored.as_slice());
    let naive_error = numbers.fold(0.0, |worst: f64, (&x, y)| worst.max(error(y.to_f64(), x)));
    let stored = exact.value.as_slice().iter().map(|&x| error(E::from_f64(x).to_f64(), x));
    let storing = stored.fold(0.0, f64::max);
    let roundoff = if E::TYPE == ElementType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) } / 2.0;
    let terms =
        exact.terms.as_slice().iter().filter(|x| x.is_finite()).fold(0.0, |worst: f64, &x| worst.max(x));
    2.0 * naive_error + storing + roundoff * terms
}

/// Where everything of one call lies.
#[derive(Clone, Copy, Debug)]
pub struct Arrangements {
    /// Of query, key, value, additional ones.
    pub inputs: [Arrangement; 4],
    /// Of what the forward writes and the backward reads.
    pub out: Arrangement,
    /// Of gradients.
    pub gradients: Arrangement,
}

impl Arrangements {
    /// Everything in one way.
    pub fn all(arrangement: Arrangement) -> Self {
        Arrangements { inputs: [arrangement; 4], out: arrangement, gradients: arrangement }
    }
}

/// What the naive implementations give for the operands of one case rounded to `E`: computed once, for all
/// subjects and arrangements.
pub struct Expected<E: Element> {
    problem: Problem,
    inputs: Inputs<Tensor<E>>,
    forward: reference::Forward,
    /// Of output and log-sum-exp.
    tolerances: [f64; 2],
    /// Of the output, where weights are rounded.
    rounded_tolerance: f64,
    d_out: Tensor<E>,
    d_lse: Option<Tensor<f32>>,
}

impl<E: Element> Expected<E> {
    /// The reference's forward of a case, after a second opinion on it.
    pub fn of(case: &Case) -> Self {
        let problem = case.spec.problem(E::TYPE);
        let inputs = case.rounded::<E>();
        let forward = reference::forward(&problem, &inputs.map(Tensor::view));
        let exact = dense::forward::<f64, E>(&problem, &inputs, Weights::Unrounded);
        let naive = |weights| match E::TYPE {
            ElementType::F64 => exact.clone(),
            _ => dense::forward::<f32, E>(&problem, &inputs, weights),
        };
        second_opinion("out", &forward.out, &exact.out);
        second_opinion("lse", &forward.lse, &exact.lse);
        let unrounded = naive(Weights::Unrounded);
        let tolerances =
            [tolerance::<E>(&exact.out, &unrounded.out), tolerance::<f32>(&exact.lse, &unrounded.lse)];
        let rounded_tolerance = tolerance::<E>(&exact.out, &naive(Weights::InElementType).out);
        let d_lse = case.d_lse.as_ref().map(Tensor::cast);
        Expected { problem, inputs, forward, tolerances, rounded_tolerance, d_out: case.d_out.cast(), d_lse }
    }

    /// Allowed errors of output and log-sum-exp, each relative to the largest entry (or 1, if that is less).
    pub fn relative_tolerances(&self) -> [f64; 2] {
        let finite = |t: &Tensor<f64>| {
            t.as_slice().iter().filter(|x| x.is_finite()).fold(1.0, |m: f64, x| m.max(x.abs()))
        };
        let scales = [finite(&self.forward.out), finite(&self.forward.lse)];
        [self.tolerances[0] / scales[0], self.tolerances[1] / scales[1]]
    }

    /// Allowed error of an output made of such weights.
    pub fn tolerance(&self, weights: Weights) -> f64 {
        match weights {
            Weights::Unrounded => self.tolerances[0],
            Weights::InElementType => self.rounded_tolerance,
        }
    }

    /// What the reference gives.
    pub fn forward(&self) -> &reference::Forward {
        &self.forward
    }

    /// The forward of a subject.
    pub fn check_forward<S: Subject>(&self, subject: &S, at: Arrangements) {
        let name = |what: &str| format!("{} {} {what} {at:?} of {:?}", subject.name(), E::TYPE, self.problem);
        let inputs = place(&self.inputs, at.inputs);
        let mut out = Placed::<E>::poisoned(&self.problem.out_shape(), at.out, true);
        let mut lse = Placed::<f32>::poisoned(&self.problem.lse_shape(), at.out, false);
        let views = inputs.map(Placed::view);
        subject.forward(&self.problem, &views, Output { out: out.view_mut(), lse: Some(lse.view_mut()) });
        let mut rows = vec![*views.query.layout(), *views.key.layout(), *views.value.layout(), out.layout()];
        rows.extend(views.additional.iter().flatten().map(|view| *view.layout()));
        let tolerance = self.tolerance(subject.weights::<E>(&self.problem, &rows));
        let found = out.written(&name("out"));
        assert_close(&name("out"), &found, &self.forward.out, tolerance);
        assert_close(&name("lse"), &lse.written(&name("lse")), &self.forward.lse, self.tolerances[1]);
        let mut alone = Placed::<E>::poisoned(&self.problem.out_shape(), at.out, true);
        subject.forward(&self.problem, &views, Output { out: alone.view_mut(), lse: None });
        let alone = alone.written(&name("out without lse"));
        assert_close(&name("out without lse"), &alone, &self.forward.out, tolerance);
    }

    /// The backward of a subject, from the reference's forward, with and without a gradient of the log-sum-exp.
    pub fn check_backward<S: Subject>(&self, subject: &S, at: Arrangements) {
        let (out, lse): (Tensor<E>, Tensor<f32>) = (self.forward.out.cast(), self.forward.lse.cast());
        for d_lse in [None, self.d_lse.as_ref()] {
            let saved = Saved { out: &out, lse: &lse, d_out: &self.d_out, d_lse };
            self.check_gradients(subject, &saved, at);
        }
    }

    fn check_gradients<S: Subject>(
        &self,
        subject: &S,
        saved: &Saved<&Tensor<E>, &Tensor<f32>>,
        at: Arrangements,
    ) {
        let problem = &self.problem;
        let exact = dense::backward::<f64, E>(problem, &self.inputs, saved);
        let naive = if E::TYPE == ElementType::F64 {
            exact.clone()
        } else {
            dense::backward::<f32, E>(problem, &self.inputs, saved)
        };
        let wanted = reference_gradients(problem, &self.inputs, saved);
        let found = placed_gradients(subject, problem, &self.inputs, saved, at);
        let all = found.roles().zip(wanted.roles()).zip(exact.roles().zip(naive.roles()));
        for (((role, found), (_, wanted)), ((_, exact), (_, naive))) in all {
            second_opinion(&format!("gradient of {role}"), wanted, exact);
            let tolerance = tolerance::<E>(exact, naive);
            let what = format!("{} {} gradient of {role}, {at:?} of {problem:?}", subject.name(), E::TYPE);
            assert_close(&what, found, wanted, tolerance);
        }
    }
}

/// The reference and the naive implementation in f64 must agree to what f64 sums can.
fn second_opinion(what: &str, reference: &Tensor<f64>, naive: &Summed) {
    let terms: Vec<f64> = naive.terms.as_slice().iter().copied().filter(|x| x.is_finite()).collect();
    let terms = Tensor::from_vec(&[terms.len().max(1)], if terms.is_empty() { vec![0.0] } else { terms });
    let length = 1024.0; // No sum here has more terms.
    let tolerance = length * f64::EPSILON * largest(&terms.expect("one axis"));
    assert_close(&format!("reference, {what}"), reference, &naive.value, tolerance);
}

fn place<E: Element>(inputs: &Inputs<Tensor<E>>, at: [Arrangement; 4]) -> Inputs<Placed<E>> {
    let pair = inputs.additional.as_ref().map(|pair| pair.each_ref().map(|t| Placed::of(t, at[3])));
    Inputs {
        query: Placed::of(&inputs.query, at[0]),
        key: Placed::of(&inputs.key, at[1]),
        value: Placed::of(&inputs.value, at[2]),
        additional: pair,
    }
}

fn reference_gradients<E: Element>(
    problem: &Problem,
    inputs: &Inputs<Tensor<E>>,
    saved: &Saved<&Tensor<E>, &Tensor<f32>>,
) -> Inputs<Tensor<f64>> {
    let saved = Saved {
        out: saved.out.view(),
        lse: saved.lse.view(),
        d_out: saved.d_out.view(),
        d_lse: saved.d_lse.map(|d_lse| d_lse.view()),
    };
    let Gradients { query, key, value, additional } =
        reference::backward(problem, &inputs.map(Tensor::view), &saved);
    Inputs { query, key, value, additional }
}

fn placed_gradients<S: Subject, E: Element>(
    subject: &S,
    problem: &Problem,
    inputs: &Inputs<Tensor<E>>,
    saved: &Saved<&Tensor<E>, &Tensor<f32>>,
    at: Arrangements,
) -> Inputs<Tensor<E>> {
    let placed = place(inputs, at.inputs);
    let (out, d_out) = (Placed::of(saved.out, at.out), Placed::of(saved.d_out, at.inputs[1]));
    let lse = Placed::of_scalars(saved.lse, at.out);
    let d_lse = saved.d_lse.map(|d_lse| Placed::of_scalars(d_lse, at.inputs[2]));
    let saved = Saved {
        out: out.view(),
        lse: lse.view(),
        d_out: d_out.view(),
        d_lse: d_lse.as_ref().map(Placed::view),
    };
    let mut grads = inputs.map(|tensor| Placed::<E>::poisoned(tensor.shape(), at.gradients, true));
    let views = Gradients {
        query: grads.query.view_mut(),
        key: grads.key.view_mut(),
        value: grads.value.view_mut(),
        additional: grads.additional.as_mut().map(|pair| pair.each_mut().map(Placed::view_mut)),
    };
    subject.backward(problem, &placed.map(Placed::view), &saved, views);
    grads.map(|grad| grad.written(&format!("{} gradient {at:?} of {problem:?}", subject.name())))
}
