//! A backend against the f64 reference, forward and backward, with operands and results anywhere in memory.

use std::sync::OnceLock;

use natten::{Element, ElementType, Gradients, Inputs, Output, Problem, Saved, Tensor, reference};

use super::scope::Given;
use super::{
    Check, Scope, Suite, boxes, extremes, far, gradients_of_nan, hidden, lengths, list, not_a_number, rising,
    silent,
};
use crate::compare::{assert_close, largest};
use crate::dense::{self, Summed, Weights};
use crate::in_type;
use crate::place::{Arrangement, Place, Placed};
use crate::rng::Rng;
use crate::spec::{Case, Spec};
use crate::subject::{Subject, Unsupported};
use crate::tolerance::{rounding, tolerance};

/// All problems of the lists, and tensors anywhere in memory.
pub fn suite<S: Subject>(scope: &Scope) -> Suite<S> {
    let mut checks = Vec::new();
    let lists = [
        ("windows", list::windows()),
        ("shapes", list::shapes()),
        ("attention", list::attention()),
        ("from the end", list::from_end()),
        ("drawn", list::random(4, 60)),
        ("empty", list::empty()),
    ];
    let passes = [scope.forward, scope.backward];
    for (name, specs) in &lists {
        for given in scope.problems(specs) {
            let given = (&given, Arrangements::all(given.place));
            in_type!(given.0.element_type, E => each_pass::<E, S>(&mut checks, passes, name, given, plain));
        }
    }
    for given in scope.every(&list::paths(scope.has_tiles())) {
        let given = (&given, Arrangements::all(given.place));
        in_type!(given.0.element_type, E => each_pass::<E, S>(&mut checks, passes, "paths", given, once));
    }
    for given in parts(scope) {
        let given = (&given, Arrangements::all(given.place));
        in_type!(given.0.element_type, E => each_pass::<E, S>(&mut checks, passes, "parts", given, once));
    }
    for given in scope.every(&list::negative()) {
        let given = (&given, Arrangements::all(given.place));
        in_type!(given.0.element_type, E => each_pass::<E, S>(&mut checks, passes, "negative", given, negative));
    }
    for given in scope.every(&list::leaders()) {
        let given = (&given, Arrangements::all(given.place));
        in_type!(given.0.element_type, E => each_pass::<E, S>(&mut checks, passes, "leaders", given, once));
    }
    for given in scope.every(&list::lines(scope.longest_row())) {
        let given = (&given, Arrangements::all(given.place));
        in_type!(given.0.element_type, E => each_pass::<E, S>(&mut checks, passes, "lines", given, once));
    }
    for given in scope.long_rows(&list::long_rows()) {
        let given = (&given, Arrangements::all(given.place));
        in_type!(given.0.element_type, E => each_pass::<E, S>(&mut checks, passes, "long rows", given, plain));
    }
    for given in scope.tiles(&list::tiles()) {
        let passes = [scope.forward, scope.has_tiles_backward()];
        let given = (&given, Arrangements::all(given.place));
        in_type!(given.0.element_type, E => each_pass::<E, S>(&mut checks, passes, "tiles", given, plain));
    }
    arranged(&mut checks, scope);
    lengths::checks(&mut checks, scope);
    if scope.is_kernel() {
        everything(&mut checks, scope);
        odd_heads(&mut checks, scope);
        checks.extend(not_a_number::checks(scope));
    }
    extremes::checks(&mut checks, scope);
    rising::checks(&mut checks, scope);
    hidden::checks(&mut checks, scope);
    silent::checks(&mut checks, scope);
    boxes::checks(&mut checks, scope);
    far::checks(&mut checks, scope);
    gradients_of_nan::checks(&mut checks, scope);
    Suite { name: "oracle", checks: scope.sampled(checks) }
}

/// What backward passes on tiles do in parts: for those, and for what adds them up.
fn parts(scope: &Scope) -> Vec<Given> {
    match scope.is_kernel() && scope.backward {
        true if scope.has_tiles() => scope.every(&list::parts()),
        true if scope.takes_any_rows() => {
            let alone = |(nth, spec): (usize, &Spec)| scope.alone(&spec.clone().dims(32, 64), nth);
            list::parts().iter().enumerate().flat_map(alone).collect()
        }
        _ => Vec::new(),
    }
}

/// Tensors as they are drawn.
fn plain<E: Element>(_: usize, case: &Case) -> Expected<E> {
    Expected::of(case)
}

/// The same, checked once.
pub(super) fn once<E: Element>(nth: usize, case: &Case) -> Expected<E> {
    Expected::of(case).once((nth / 2).is_multiple_of(2))
}

/// Scores far below 0.
fn negative<E: Element>(nth: usize, case: &Case) -> Expected<E> {
    once(nth, &case.clone().negative())
}

/// A check of the forward and one of the backward of one problem, if asked for; `make` takes the problem's number.
pub(super) fn each_pass<E: Element, S: Subject>(
    checks: &mut Vec<Check<S>>,
    [is_forward, is_backward]: [bool; 2],
    name: &str,
    (given, at): (&Given, Arrangements),
    make: fn(usize, &Case) -> Expected<E>,
) {
    let Given { index, spec, .. } = given;
    let name = |pass: &str| format!("oracle {name} {index} {} {pass}", E::TYPE);
    let index = *index;
    let seed = 1000 + index as u64;
    if is_forward {
        let own = spec.clone();
        checks.push(Check::new(name("forward"), spec, move |subject| {
            make(index, &own.draw(seed)).check_forward(subject, at)
        }));
    }
    if is_backward {
        let own = spec.clone();
        checks.push(Check::new(name("backward"), spec, move |subject| {
            make(index, &own.draw(seed)).check_backward(subject, at)
        }));
    }
}

/// Each arrangement for everything, then mixtures.
fn arranged<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope) {
    let mut rng = Rng::new(8);
    let specs = [
        Spec::na(&[9], &[4]).heads(4, 2).dims(8, 5).batch(2).additional(3),
        Spec::na(&[4, 5], &[3, 2]).heads(2, 1).dims(40, 40).batch(2).causal(&[true, false]),
        Spec::na(&[3, 4, 5], &[2, 3, 3]).heads(2, 2).dims(16, 24).batch(2).additional(2),
        Spec::na(&[6, 7], &[3, 3]).heads(4, 1).dims(1, 1).dilation(&[2, 1]),
        Spec::attention(7, 10, true).heads(4, 2).dims(72, 9).batch(3),
        Spec::packed(&[3, 0, 6], &[5, 2, 4], false).heads(2, 1).dims(12, 12),
        Spec::na(&[14, 11], &[7, 5]).heads(4, 2).dims(64, 64).batch(2),
    ];
    let mut uses = Vec::new();
    for spec in &specs {
        let each = Arrangement::ALL.map(|arrangement| [arrangement; 6]);
        let mixed = [(); 6].map(|()| [(); 6].map(|()| rng.pick(&Arrangement::ALL)));
        uses.extend(each.into_iter().chain(mixed).map(|arrangements| (spec.clone(), arrangements)));
    }
    let plain: Vec<Spec> = uses.iter().map(|(spec, _)| spec.clone()).collect();
    for given in scope.problems(&plain) {
        let place = |n: usize| scope.place(uses[given.index].1[n], given.index);
        let at = Arrangements { inputs: [0, 1, 2, 3].map(place), out: place(4), gradients: place(5) };
        let (is_forward, is_backward) = (scope.forward, scope.backward);
        let name = format!("oracle arranged {} {}", given.index, given.element_type);
        let (seed, ty, spec) = (8000 + given.index as u64, given.element_type, given.spec.clone());
        checks.push(Check::new(name, (&given.spec, at), move |subject| {
            in_type!(ty, E => {
                let expected = Expected::<E>::of(&spec.draw(seed));
                if is_forward {
                    expected.check_forward(subject, at)?;
                }
                if is_backward { expected.check_backward(subject, at) } else { Ok(()) }
            })
        }));
    }
}

/// All at once, and every tensor with strides of its own: whoever takes one number for another is seen.
fn everything<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope) {
    use Arrangement::{Gapped, HeadsFirst, Reversed, Shuffled};
    let element_type = scope.types().next().expect("a kernel has one");
    for (index, spec) in list::everything().into_iter().enumerate() {
        let spec = scope.fit(&spec, index);
        let place = |n: usize| scope.place([Gapped, Shuffled, HeadsFirst, Reversed][(n + index) % 4], index);
        let at = Arrangements { inputs: [0, 1, 2, 3].map(place), out: place(4), gradients: place(6) };
        let given = Given { index, element_type, spec, place: at.out };
        let passes = [scope.forward, scope.backward];
        in_type!(element_type, E => each_pass::<E, S>(checks, passes, "everything", (&given, at), plain));
    }
}

/// Rows so short that a cta takes several heads, and fewer heads than all ctas could take.
fn odd_heads<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope) {
    let element_type = scope.types().next().expect("a kernel has one");
    let spec = scope.short_keys(&Spec::na(&[7], &[3]).heads(3, 3).additional(2));
    let given = Given { index: 0, element_type, spec, place: scope.place(Arrangement::Contiguous, 0) };
    let (at, passes) = (Arrangements::all(given.place), [scope.forward, scope.backward]);
    in_type!(element_type, E => each_pass::<E, S>(checks, passes, "odd heads", (&given, at), once));
}

/// Where everything of one call lies.
#[derive(Clone, Copy, Debug)]
pub struct Arrangements {
    /// Of query, key, value, additional ones.
    pub inputs: [Place; 4],
    /// Of what the forward writes and the backward reads.
    pub out: Place,
    /// Of gradients.
    pub gradients: Place,
}

impl Arrangements {
    /// Everything in one way.
    pub fn all(place: Place) -> Self {
        Arrangements { inputs: [place; 4], out: place, gradients: place }
    }

    /// Queries, keys and values each in another way: no stride of one is that of another.
    pub fn apart(place: Place) -> Self {
        let first = Arrangement::ALL.iter().position(|&one| one == place.arrangement).unwrap_or(0);
        let nth = |n: usize| Arrangement::ALL[(first + n) % Arrangement::ALL.len()];
        let inputs = [0, 1, 2, 0].map(|n| Place { arrangement: nth(n), ..place });
        Arrangements { inputs, ..Self::all(place) }
    }
}

/// What the naive implementations give for the operands of one case rounded to `E`: computed once, for all
/// subjects and arrangements.
pub struct Expected<E: Element> {
    problem: Problem,
    inputs: Inputs<Tensor<E>>,
    forward: reference::Forward,
    d_out: Tensor<E>,
    d_lse: Option<Tensor<f32>>,
    exact: OnceLock<dense::Forward>,
    once: Option<bool>,
}

impl<E: Element> Expected<E> {
    /// The reference's forward of a case.
    pub fn of(case: &Case) -> Self {
        let problem = case.spec.problem(E::TYPE);
        let inputs = case.rounded::<E>();
        let forward = reference::forward(&problem, &inputs.map(Tensor::view));
        let d_lse = case.d_lse.as_ref().map(Tensor::cast);
        let (d_out, exact) = (case.d_out.cast(), OnceLock::new());
        Expected { problem, inputs, forward, d_out, d_lse, exact, once: None }
    }

    /// The naive forward in f64, a second opinion on the reference.
    fn exact(&self) -> &dense::Forward {
        self.exact.get_or_init(|| {
            let exact = dense::forward::<f64, E>(&self.problem, &self.inputs, Weights::Unrounded);
            second_opinion("out", &self.forward.out, &exact.out);
            second_opinion("lse", &self.forward.lse, &exact.lse);
            exact
        })
    }

    /// Allowed errors of an output made of such weights and of a log-sum-exp.
    pub fn tolerances(&self, weights: Weights) -> [f64; 2] {
        let exact = self.exact();
        let of = |naive: &dense::Forward| {
            [tolerance::<E>(&exact.out, &naive.out), tolerance::<f32>(&exact.lse, &naive.lse)]
        };
        let [out, lse] = match E::TYPE {
            ElementType::F64 => of(exact),
            _ => of(&dense::forward::<f32, E>(&self.problem, &self.inputs, weights)),
        };
        match weights {
            Weights::Unrounded => [out, lse],
            Weights::InElementType => [out + self.rounded_weights(), lse],
        }
    }

    /// What an output loses at most when each weight is rounded once: the naive implementation may be lucky with its own,
    /// where few keys have most of the weight.
    fn rounded_weights(&self) -> f64 {
        let magnitude = |tensor: &Tensor<E>| {
            let values = tensor.as_slice();
            Tensor::from_fn(tensor.shape(), |i| E::from_f64(values[i].to_f64().abs())).expect("its shape")
        };
        let additional = self.inputs.additional.as_ref();
        let inputs = Inputs {
            value: magnitude(&self.inputs.value),
            additional: additional.map(|[keys, values]| [keys.clone(), magnitude(values)]),
            ..self.inputs.clone()
        };
        let sums = dense::forward::<f64, E>(&self.problem, &inputs, Weights::Unrounded).out.value;
        rounding::<E>() * sums.as_slice().iter().filter(|x| x.is_finite()).fold(0.0, |m: f64, &x| m.max(x))
    }

    /// Allowed errors where weights are not rounded, each relative to the largest entry (or 1, if that is less).
    pub fn relative_tolerances(&self) -> [f64; 2] {
        let finite = |t: &Tensor<f64>| {
            t.as_slice().iter().filter(|x| x.is_finite()).fold(1.0, |m: f64, x| m.max(x.abs()))
        };
        let [out, lse] = self.tolerances(Weights::Unrounded);
        [out / finite(&self.forward.out), lse / finite(&self.forward.lse)]
    }

    /// What the reference gives.
    pub fn forward(&self) -> &reference::Forward {
        &self.forward
    }

    /// Checked once: the forward with its log-sum-exp alone, the backward with a gradient of it, or without.
    pub fn once(self, with_d_lse: bool) -> Self {
        Expected { once: Some(with_d_lse), ..self }
    }

    /// The forward of a subject, with and without the log-sum-exp.
    ///
    /// # Errors
    /// When the subject does not take the problem.
    pub fn check_forward<S: Subject>(&self, subject: &S, at: Arrangements) -> Result<(), Unsupported> {
        let problem = &self.problem;
        let name = |what: &str| format!("{} {} {what} {at:?} of {problem:?}", subject.name(), E::TYPE);
        let inputs = place_inputs(&self.inputs, at.inputs);
        let views = inputs.map(Placed::view);
        let mut out = Placed::<E>::poisoned(&problem.out_shape(), at.out, true);
        let mut lse = Placed::<f32>::poisoned(&problem.lse_shape(), at.out, false);
        let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
        let weights = subject.forward(problem, &views, output)?;
        let tolerances = self.tolerances(weights);
        assert_close(&name("out"), &out.written(&name("out")), &self.forward.out, tolerances[0]);
        assert_close(&name("lse"), &lse.written(&name("lse")), &self.forward.lse, tolerances[1]);
        if self.once.is_some() {
            return Ok(());
        }
        let mut alone = Placed::<E>::poisoned(&problem.out_shape(), at.out, true);
        let output = Output { out: alone.view_mut(), lse: None };
        let own = subject.forward(problem, &views, output)?;
        let tolerance = if own == weights { tolerances[0] } else { self.tolerances(own)[0] };
        let what = name("out without lse");
        assert_close(&what, &alone.written(&what), &self.forward.out, tolerance);
        Ok(())
    }

    /// The backward of a subject, from the reference's forward, with and without a gradient of the log-sum-exp.
    ///
    /// # Errors
    /// When the subject does not take the problem.
    pub fn check_backward<S: Subject>(&self, subject: &S, at: Arrangements) -> Result<(), Unsupported> {
        let (out, lse): (Tensor<E>, Tensor<f32>) = (self.forward.out.cast(), self.forward.lse.cast());
        let with_d_lse = [false, true].into_iter().filter(|&with| self.once.is_none_or(|only| only == with));
        for d_lse in with_d_lse.map(|with| self.d_lse.as_ref().filter(|_| with)) {
            let saved = Saved { out: &out, lse: &lse, d_out: &self.d_out, d_lse };
            self.check_gradients(subject, &saved, at)?;
        }
        Ok(())
    }

    fn check_gradients<S: Subject>(
        &self,
        subject: &S,
        saved: &Saved<&Tensor<E>, &Tensor<f32>>,
        at: Arrangements,
    ) -> Result<(), Unsupported> {
        let problem = &self.problem;
        let what = format!("{} gradient {at:?} of {problem:?}", subject.name());
        let found =
            placed_gradients(subject, problem, &self.inputs, saved, at)?.map(|grad| grad.written(&what));
        let weights = subject.backward_weights(problem, &self.inputs.map(Tensor::view));
        let (exact, naive) = naive_gradients(problem, &self.inputs, saved, weights);
        let wanted = reference_gradients(problem, &self.inputs, saved);
        let all = found.roles().zip(wanted.roles()).zip(exact.roles().zip(naive.roles()));
        for (((role, found), (_, wanted)), ((_, exact), (_, naive))) in all {
            second_opinion(&format!("gradient of {role}"), wanted, exact);
            let what = format!("{} {} gradient of {role}, {at:?} of {problem:?}", subject.name(), E::TYPE);
            assert_close(&what, found, wanted, gradient_tolerance::<E>(exact, naive, weights));
        }
        Ok(())
    }
}

/// The gradients in f64, and in the arithmetic of `E` by an implementation that keeps its weights so, naively.
pub fn naive_gradients<E: Element>(
    problem: &Problem,
    inputs: &Inputs<Tensor<E>>,
    saved: &Saved<&Tensor<E>, &Tensor<f32>>,
    weights: Weights,
) -> (Inputs<Summed>, Inputs<Summed>) {
    let exact = dense::backward::<f64, E>(problem, inputs, saved, Weights::Unrounded);
    let naive = match E::TYPE {
        ElementType::F64 => exact.clone(),
        _ => dense::backward::<f32, E>(problem, inputs, saved, weights),
    };
    (exact, naive)
}

/// Allowed error of a gradient. Where weights are rounded, each of the numbers that were may lose half a unit of its last
/// place: the naive implementation may be lucky with its own, where few keys have most of the weight.
pub fn gradient_tolerance<E: Element>(exact: &Summed, naive: &Summed, weights: Weights) -> f64 {
    let rounded = match weights {
        Weights::Unrounded => 0.0,
        Weights::InElementType => rounding::<E>() * largest(&naive.terms),
    };
    tolerance::<E>(exact, naive) + rounded
}

/// The reference and the naive implementation in f64 must agree to what f64 sums can.
fn second_opinion(what: &str, reference: &Tensor<f64>, naive: &Summed) {
    let terms: Vec<f64> = naive.terms.as_slice().iter().copied().filter(|x| x.is_finite()).collect();
    let terms = Tensor::from_vec(&[terms.len().max(1)], if terms.is_empty() { vec![0.0] } else { terms });
    let length = 1024.0; // No sum here has more terms.
    let tolerance = length * f64::EPSILON * largest(&terms.expect("one axis"));
    assert_close(&format!("reference, {what}"), reference, &naive.value, tolerance);
}

/// Operands where they are asked to lie.
pub fn place_inputs<E: Element>(inputs: &Inputs<Tensor<E>>, at: [Place; 4]) -> Inputs<Placed<E>> {
    let pair = inputs.additional.as_ref().map(|pair| pair.each_ref().map(|t| Placed::of(t, at[3])));
    Inputs {
        query: Placed::of(&inputs.query, at[0]),
        key: Placed::of(&inputs.key, at[1]),
        value: Placed::of(&inputs.value, at[2]),
        additional: pair,
    }
}

/// The gradients of the reference.
pub fn reference_gradients<E: Element>(
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

/// The gradients of a subject in poisoned memory, whether all of it was written or not.
///
/// # Errors
/// When the subject does not take the problem.
pub fn placed_gradients<S: Subject, E: Element>(
    subject: &S,
    problem: &Problem,
    inputs: &Inputs<Tensor<E>>,
    saved: &Saved<&Tensor<E>, &Tensor<f32>>,
    at: Arrangements,
) -> Result<Inputs<Placed<E>>, Unsupported> {
    let placed = place_inputs(inputs, at.inputs);
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
    subject.backward(problem, &placed.map(Placed::view), &saved, views)?;
    Ok(grads)
}
