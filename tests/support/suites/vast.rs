//! Addresses beyond 32 bits and places far along an axis: tensors whose rows lie further apart than any memory is long, and
//! problems so long that only their ends can be computed, which are those of a short one.
//!
//! For a backend with memory that exists where it is written ([`Subject::spread`]); others take none of this.

use natten::{Element, Inputs, Output, Saved, Tensor};

use super::merging::Merging;
use super::oracle::{Arrangements, Expected, gradient_tolerance, naive_gradients, placed_gradients};
use super::scope::Given;
use super::{Check, Scope, Suite, merging};
use crate::compare::row_error;
use crate::in_type;
use crate::place::{Arrangement, Place, Placed, is_poison};
use crate::spec::Spec;
use crate::subject::{Subject, Unsupported};
use crate::vast::{Along, Spread, end};

/// Each axis of every tensor far apart, and much longer.
pub fn suite<S: Subject>(scope: &Scope) -> Suite<S> {
    let mut suite = Suite { name: "vast", checks: Vec::new() };
    if scope.forward || scope.backward {
        let all = apart(scope).into_iter().chain(longer(scope)).enumerate();
        for (n, (spec, spread)) in all.filter(|(n, _)| scope.has(*n)) {
            for given in scope.alone(&spec, n) {
                suite.checks.push(of_problem(scope, given, spread, None));
            }
        }
        suite.checks = scope.sampled(suite.checks);
        // Tiles of many rows along every axis, where a planner would choose long ones.
        let mut in_boxes = Vec::new();
        if scope.is_kernel() && scope.has_tiles() {
            // Where kernels share checks, one of each kind.
            let every = if scope.shares() { 4 } else { 1 };
            let all = apart(scope).into_iter().cycle().take(BOXES).enumerate().step_by(every);
            for (n, (spec, spread)) in all {
                let boxes = Boxes { number: 100 + n as u64, is_far: scope.forward && n >= BOXES - FAR };
                for given in scope.alone(&spec, n) {
                    in_boxes.push(of_problem(scope, given, spread, Some(boxes)));
                }
            }
        }
        suite.checks.extend(scope.sampled(in_boxes));
    }
    let mut merges = Vec::new();
    if scope.merge {
        for (n, &spread) in MERGED.iter().enumerate() {
            for element_type in scope.types() {
                let place = scope.place(Arrangement::ALL[n % 5], n);
                let name = format!("vast merge {spread:?} {element_type}");
                merges.push(Check::new(name, (spread, place), move |subject: &S| {
                    let what = Merging {
                        count: [12, 12, 12, 2, 3][n],
                        spread: 3.0,
                        shape: [2, 2, 3, 2, 2, 8],
                        place,
                    };
                    let subject = spread_out(subject, spread)?;
                    in_type!(element_type, E => {
                        merging::against_the_reference::<E, S>(&subject, what, n as u64)?;
                        merging::gradients_against_the_reference::<E, S>(&subject, what, n as u64)
                    })
                }));
            }
        }
    }
    suite.checks.extend(scope.sampled(merges));
    suite
}

/// Cuts of tiles into boxes, and those of them that meet scores which are far from 0.
const BOXES: usize = 9;
const FAR: usize = 3;

/// A cut of tiles, and what it meets.
#[derive(Clone, Copy)]
struct Boxes {
    number: u64,
    is_far: bool,
}

/// For tensors `[2, 2, 3, 2, 2, 8]`.
const MERGED: [Spread; 5] = [
    Spread::Apart([Along::Heads, Along::Z]),
    Spread::Apart([Along::Y, Along::Batch]),
    Spread::Apart([Along::X, Along::Z]),
    Spread::Longer(Along::Y, 1 << 24),
    Spread::Longer(Along::X, 1 << 24),
];

/// Steps along each axis beyond 32 bits: from token to token, tile to tile, line to line of tiles.
fn apart(scope: &Scope) -> Vec<(Spec, Spread)> {
    let (volume, plane) = if scope.has_tiles() {
        (Spec::na(&[2, 3, 40], &[2, 2, 33]), Spec::na(&[3, 40], &[2, 33]))
    } else {
        let plane = Spec::na(&[4, 6], &[2, 3]).dilation(&[2, 2]);
        (Spec::na(&[2, 4, 6], &[2, 2, 3]).dilation(&[1, 2, 2]), plane)
    };
    let specs = [
        (volume.clone().heads(2, 2), [Along::Heads, Along::Z]),
        (volume, [Along::X, Along::Y]),
        (plane.heads(2, 1).batch(2), [Along::Batch, Along::Z]),
    ];
    // Where a planner takes tiles of several rows along every axis.
    let cube = (Spec::na(&[4, 6, 8], &[3, 4, 5]).heads(2, 1), [Along::X, Along::Y]);
    let specs = specs.into_iter().chain((scope.has_tiles() && !scope.shares()).then_some(cube));
    specs.map(|(spec, pair)| (spec.additional(3), Spread::Apart(pair))).collect()
}

/// Each axis so much longer that places along it take more than 16 bits and mostly all that they may, and offsets more than
/// 32. Of each pair a kernel gets one, the next kernel the other.
fn longer(scope: &Scope) -> Vec<(Spec, Spread)> {
    // Planning a backward on tiles looks at every one.
    let most = if scope.has_tiles() && scope.backward { 1 << 18 } else { 1 << 28 };
    // The shorter the rows, the more of them a cta takes, and the more heads.
    let (rows, heads) = match scope.longest_row() {
        0..32 => (512, 16),
        32 => (256, 8),
        // Blackwell's forward takes 256 whatever their length.
        _ if scope.has_tiles() && scope.forward => (256, 8),
        _ if scope.has_tiles() => (192, 8),
        257.. => (64, 8),
        _ => (128, 8),
    };
    // Long rows take long; parts of queries are of whole lines, however short.
    let line_of_parts = if scope.longest_row() > 256 { 4 } else { 16 };
    let tokens = 2 * end(rows, if scope.has_tiles() { 256 } else { 64 });
    let line = Spec::na(&[tokens], &[5]);
    let pairs = [
        [
            (line.clone().heads(2, 1).causal(&[true]), Spread::Longer(Along::Z, 2 * most)),
            (line.stride(&[2]).dilation(&[2]), Spread::Longer(Along::Z, most)),
        ],
        [
            (Spec::na(&[tokens, 2], &[5, 2]), Spread::Longer(Along::Y, most)),
            (
                Spec::na(&[tokens, 1, 2], &[4, 1, 1]).causal(&[true, false, false]),
                Spread::Longer(Along::X, most),
            ),
        ],
        [
            (Spec::na(&[20], &[5]).heads(4, 2).batch(4).additional(2), Spread::Longer(Along::Batch, 1 << 23)),
            // Additional keys have partial sums of several parts of the queries.
            (
                Spec::na(&[20, line_of_parts], &[1, 3]).heads(heads, heads).additional(40),
                Spread::Longer(Along::Heads, 1 << 21),
            ),
        ],
    ];
    // Lines of statistics that are longer than 32 bits of bytes.
    let lines = [
        (Spec::na(&[2, tokens], &[2, 5]), Spread::Longer(Along::Z, most)),
        (Spec::na(&[2, tokens, 1], &[2, 4, 1]), Spread::Longer(Along::Y, most)),
    ];
    let alone = if scope.shares() { Vec::new() } else { lines.to_vec() };
    let chosen = pairs.into_iter().enumerate().flat_map(|(n, pair)| scope.of_pair(pair, n)).chain(alone);
    chosen.map(|(spec, spread)| (spec.scale(0.25), spread)).collect()
}

fn spread_out<S: Subject>(subject: &S, spread: Spread) -> Result<S, Unsupported> {
    subject.spread(spread).ok_or_else(|| Unsupported("memory exists whether it is written or not".to_owned()))
}

fn of_problem<S: Subject>(scope: &Scope, given: Given, spread: Spread, boxes: Option<Boxes>) -> Check<S> {
    let kind = if boxes.is_some() { "vast boxes" } else { "vast" };
    let name = format!("{kind} {} {spread:?} {}", given.index, given.element_type);
    let (is_forward, is_backward) = (scope.forward, scope.backward);
    Check::new(name, given.spec.clone(), move |subject: &S| {
        let mut subject = spread_out(subject, spread)?;
        if let Some(Boxes { number, .. }) = boxes {
            // Hopper's backward passes have no boxes that can be asked for.
            let Some(in_boxes) = subject.in_boxes(number) else { return Ok(()) };
            subject = in_boxes;
        }
        in_type!(given.element_type, E => match spread {
            Spread::Apart(_) => {
                let case = given.spec.draw(70 + given.index as u64);
                let is_far = boxes.is_some_and(|boxes| boxes.is_far);
                let case = if is_far { case.with_large_scale() } else { case };
                let expected = Expected::<E>::of(&case).once((given.index / 2).is_multiple_of(2));
                let at = Arrangements::all(given.place);
                if is_forward {
                    expected.check_forward(&subject, at)?;
                }
                if is_backward { expected.check_backward(&subject, at) } else { Ok(()) }
            }
            Spread::Longer(along, _) => {
                let ends = Ends::<E>::of(&given, along);
                if is_forward {
                    ends.check_forward(&subject)?;
                }
                if is_backward { ends.check_backward(&subject) } else { Ok(()) }
            }
        })
    })
}

/// A short problem, whose halves are the ends of a long one but for what sees across its middle.
struct Ends<E: Element> {
    spec: Spec,
    along: Along,
    place: Place,
    inputs: Inputs<Tensor<E>>,
    d_out: Tensor<E>,
    d_lse: Option<Tensor<f32>>,
    expected: Expected<E>,
}

impl<E: Element> Ends<E> {
    fn of(given: &Given, along: Along) -> Self {
        let case = given.spec.draw(80 + given.index as u64);
        Ends {
            spec: given.spec.clone(),
            along,
            place: given.place,
            inputs: case.rounded(),
            d_out: case.d_out.cast(),
            d_lse: case.d_lse.as_ref().map(Tensor::cast),
            expected: Expected::of(&case),
        }
    }

    fn check_forward<S: Subject>(&self, subject: &S) -> Result<(), Unsupported> {
        let problem = self.spec.problem(E::TYPE);
        let inputs = self.inputs.map(|tensor| Placed::of(tensor, self.place));
        let mut out = Placed::<E>::poisoned(&problem.out_shape(), self.place, true);
        let mut lse = Placed::<f32>::poisoned(&problem.lse_shape(), self.place, false);
        let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
        let weights = subject.forward(&problem, &inputs.map(Placed::view), output)?;
        let [of_out, of_lse] = self.expected.tolerances(weights);
        let wanted = self.expected.forward();
        self.compare(&format!("{} out", subject.name()), &out.elements(), &wanted.out, of_out, true);
        self.compare(&format!("{} lse", subject.name()), &lse.elements(), &wanted.lse, of_lse, false);
        Ok(())
    }

    fn check_backward<S: Subject>(&self, subject: &S) -> Result<(), Unsupported> {
        let problem = self.spec.problem(E::TYPE);
        let forward = self.expected.forward();
        let (out, lse): (Tensor<E>, Tensor<f32>) = (forward.out.cast(), forward.lse.cast());
        let saved = Saved { out: &out, lse: &lse, d_out: &self.d_out, d_lse: self.d_lse.as_ref() };
        let at = Arrangements::all(self.place);
        let found = placed_gradients(subject, &problem, &self.inputs, &saved, at)?;
        let weights = subject.backward_weights(&problem, &self.inputs.map(Tensor::view));
        let (exact, naive) = naive_gradients(&problem, &self.inputs, &saved, weights);
        for (((role, found), (_, exact)), (_, naive)) in found.roles().zip(exact.roles()).zip(naive.roles()) {
            let what = format!("{} gradient of {role}", subject.name());
            let allowed = gradient_tolerance::<E>(exact, naive, weights);
            self.compare(&what, &found.elements(), &exact.value, allowed, true);
        }
        Ok(())
    }

    /// Rows at both ends are right; those of which nothing was written were not computed, or nobody could know what they are.
    fn compare<F: Element>(
        &self,
        what: &str,
        found: &Tensor<F>,
        wanted: &Tensor<f64>,
        allowed: f64,
        has_dim: bool,
    ) {
        let axes = found.shape().len() - usize::from(has_dim);
        let width = if has_dim { found.shape()[axes] } else { 1 };
        let axis = self.along.of(axes).expect("an axis of the problem");
        let (extent, is_token) = (found.shape()[axis], !matches!(self.along, Along::Batch | Along::Heads));
        let below: usize = found.shape()[axis + 1..axes].iter().product();
        let mut written = [0; 2];
        for (row, values) in found.as_slice().chunks(width).enumerate() {
            let at = row / below % extent;
            let missing = values.iter().filter(|value| is_poison(*value)).count();
            if missing == width || is_token && at.abs_diff(extent / 2) < MIDDLE {
                continue;
            }
            let error = row_error(found, wanted, row, width);
            let what = || format!("{what}, row {row} ({at} of {extent}) of {:?}", self.spec);
            assert!(missing == 0, "{}: {missing} elements were not written", what());
            assert!(error <= allowed, "{}: error {error:e}, allowed {allowed:e}", what());
            written[usize::from(at >= extent / 2)] += 1;
        }
        assert!(
            written.iter().all(|&rows| rows > 0),
            "{what} of {:?}: {written:?} rows at its ends",
            self.spec
        );
    }
}

/// Tokens on either side of the middle whose windows may reach across it.
const MIDDLE: usize = 32;
