//! Parts of a whole: each against the reference like any problem, and all of them together against the whole.
//!
//! A part has some of the whole's queries, and the keys that these need, or more. Its output, its log-sum-exp and its gradient of
//! the queries are the whole's there; its gradients of keys and values are shares, which add up to the whole's.

use std::ops::Range;

use natten::region::keys_needed;
use natten::{Element, Inputs, Saved, Tensor};

use super::oracle::{Arrangements, Expected, each_pass, gradient_tolerance, naive_gradients, once};
use super::scope::Given;
use super::{Scope, Suite, list};
use crate::compare::{assert_close, same_bits};
use crate::in_type;
use crate::rng::Rng;
use crate::spec::{Case, Mask, Spec};
use crate::subject::{Attended, Subject, Unsupported, Weights};

/// Drawn parts, and drawn partitions of problems by hand and drawn ones.
pub fn suite<S: Subject>(scope: &Scope) -> Suite<S> {
    let mut suite = Suite { name: "regions", checks: Vec::new() };
    let passes = [scope.forward, scope.backward];
    for given in scope.problems(&parts()) {
        let given = (&given, Arrangements::apart(given.place));
        in_type!(given.0.element_type, E => each_pass::<E, S>(&mut suite.checks, passes, "regions", given, once));
    }
    for given in scope.every(&paths()) {
        let given = (&given, Arrangements::apart(given.place));
        in_type!(given.0.element_type, E => each_pass::<E, S>(&mut suite.checks, passes, "paths", given, once));
    }
    if scope.forward && scope.backward {
        suite.each(scope, "any parts make up the whole", &wholes(), any_parts::<S>);
        suite.each(scope, "parts between tiles have the whole's bits", &tiled(), parts_between_tiles::<S>);
    }
    suite.checks = scope.sampled(suite.checks);
    suite
}

/// Wholes: of each flag alone and of all at once, and drawn ones.
fn wholes() -> Vec<Spec> {
    let list = [
        Spec::na(&[23], &[5]),
        Spec::na(&[23], &[6]).stride(&[4]),
        Spec::na(&[31], &[4]).dilation(&[5]),
        Spec::na(&[31], &[4]).dilation(&[5]).stride(&[3]).causal(&[true]),
        Spec::na(&[19], &[7]).stride(&[5]).causal(&[true]),
        Spec::na(&[12, 15], &[5, 4]).stride(&[2, 3]).heads(4, 2).dims(16, 24).batch(2),
        Spec::na(&[13, 14], &[3, 4]).dilation(&[3, 2]).causal(&[false, true]).additional(5),
        Spec::na(&[6, 9, 8], &[3, 4, 3]).causal(&[true, false, false]).heads(3, 1),
        Spec::na(&[7, 8, 9], &[2, 3, 4]).stride(&[2, 2, 3]).dilation(&[3, 2, 2]).heads(2, 1).additional(2),
        // Windows that reach over all of a residue, and one of a single token.
        Spec::na(&[10, 9], &[10, 3]).dilation(&[1, 3]),
        Spec::na(&[1, 17], &[1, 1]).dilation(&[1, 17]),
    ];
    list.into_iter().chain(list::random(71, 30)).collect()
}

/// Wholes of several tiles along some axis, whatever the instructions; some with windows of more keys than are scored at once, so
/// that a query's result depends on its neighbours.
pub fn tiled() -> Vec<Spec> {
    vec![
        Spec::na(&[1700], &[650]).stride(&[3]),
        Spec::na(&[1500], &[600]).causal(&[true]).heads(2, 1).additional(600),
        Spec::na(&[96, 40], &[25, 23]).dims(16, 16),
        Spec::na(&[60, 18, 20], &[9, 9, 8]).dilation(&[2, 2, 1]),
        Spec::na(&[2100], &[9]).dims(16, 16),
        Spec::na(&[2200], &[7]).dilation(&[3]).causal(&[true]).heads(4, 2),
        Spec::na(&[130, 44], &[7, 9]).dims(8, 12),
        Spec::na(&[90, 64], &[6, 6]).stride(&[2, 3]).heads(2, 1).additional(9),
        Spec::na(&[40, 24, 20], &[3, 5, 3]),
        Spec::na(&[60, 18, 20], &[5, 3, 4]).dilation(&[2, 1, 2]).causal(&[true, false, false]),
    ]
}

/// Parts of several tiles, which every kernel gets: what is at the border of the whole and what is not, residues that begin and end
/// apart, and some that have keys and no query.
fn paths() -> Vec<Spec> {
    let mut rng = Rng::new(74);
    let mut part = |whole: Spec, queries: &[[usize; 2]]| {
        let queries: Vec<_> = queries.iter().map(|&[start, end]| start..end).collect();
        part(&whole, &queries, &mut rng).0
    };
    vec![
        part(Spec::na(&[400], &[9]).dilation(&[2]), &[[37, 331]]),
        part(Spec::na(&[400], &[40]).stride(&[3]).causal(&[true]).heads(4, 2), &[[190, 391]]),
        part(Spec::na(&[40, 50], &[5, 8]).stride(&[2, 3]).heads(2, 1).additional(3), &[[11, 37], [20, 50]]),
        part(Spec::na(&[9, 20, 22], &[3, 5, 4]).dilation(&[2, 1, 3]), &[[3, 9], [0, 13], [7, 16]]),
        part(Spec::na(&[70, 4], &[6, 3]).dilation(&[7, 1]).batch(2), &[[15, 19], [1, 2]]),
        // Keys beyond those needed, on either side and in tiles of their own; no query at all.
        Spec::na(&[900], &[7]).dilation(&[2]).region(0, 431..437, 0..900),
        Spec::na(&[300], &[5]).heads(2, 1).region(0, 150..150, 100..290),
    ]
}

/// Parts of the wholes: small ones, long ones, at borders, of one token and of none, with the keys they need and with more.
fn parts() -> Vec<Spec> {
    let mut rng = Rng::new(72);
    let mut list = Vec::new();
    for whole in wholes() {
        for _ in 0..2 {
            let ranges: Vec<_> = shape(&whole)
                .iter()
                .map(|&extent| {
                    let [a, b] = [(); 2].map(|()| rng.range(0, extent));
                    if rng.chance(0.3) { 0..extent } else { a.min(b)..a.max(b) }
                })
                .collect();
            list.push(part(&whole, &ranges, &mut rng).0);
        }
    }
    list
}

/// Tokens of the whole.
fn shape(whole: &Spec) -> &[usize] {
    let Mask::Neighborhood { token_shape, .. } = &whole.mask else { panic!("no neighborhood: {whole:?}") };
    token_shape
}

/// The part with these queries, and which keys it holds: those it needs, and as often as not more.
fn part(whole: &Spec, queries: &[Range<usize>], rng: &mut Rng) -> (Spec, Vec<Range<usize>>) {
    let params = whole.dyn_params().expect("a neighborhood");
    let mut keys = Vec::new();
    for (axis, (&extent, queries)) in shape(whole).iter().zip(queries).enumerate() {
        let needed = keys_needed(&params.axis(axis, extent).expect("a valid whole"), queries.clone());
        keys.push(match rng.chance(0.5) {
            true => needed,
            false => rng.range(0, needed.start)..rng.range(needed.end, extent),
        });
    }
    let each = queries.iter().zip(&keys).enumerate();
    let part = each.fold(whole.clone(), |part, (axis, (queries, keys))| {
        part.region(axis, queries.clone(), keys.clone())
    });
    (part, keys)
}

/// A box of a tensor `[batch, tokens.., ..]`.
fn narrow<E: Element>(tensor: &Tensor<E>, ranges: &[Range<usize>]) -> Tensor<E> {
    let view = ranges.iter().enumerate().fold(tensor.view(), |view, (axis, range)| {
        view.narrow(axis + 1, range.clone()).expect("a box of the whole")
    });
    view.to_tensor()
}

/// Adds a box to a tensor.
fn add<E: Element>(to: &mut Tensor<f64>, ranges: &[Range<usize>], from: &Tensor<E>) {
    let strides = to.view().layout().strides().to_vec();
    for (i, value) in from.as_slice().iter().enumerate() {
        let (mut rest, mut at) = (i, 0);
        for axis in (0..strides.len()).rev() {
            let start = axis.checked_sub(1).and_then(|axis| ranges.get(axis)).map_or(0, |range| range.start);
            at += (rest % from.shape()[axis] + start) * strides[axis] as usize;
            rest /= from.shape()[axis];
        }
        to.as_mut_slice()[at] += value.to_f64();
    }
}

/// The boxes between cuts of each axis, which rise; two that are the same leave a box without queries between them.
fn boxes(shape: &[usize], cuts: &[Vec<usize>]) -> Vec<Vec<Range<usize>>> {
    let mut boxes = vec![Vec::new()];
    for (&extent, cuts) in shape.iter().zip(cuts) {
        let ends: Vec<usize> = [0].into_iter().chain(cuts.iter().copied()).chain([extent]).collect();
        let ranges: Vec<_> = ends.windows(2).map(|ends| ends[0]..ends[1]).collect();
        let with = |part: &Vec<Range<usize>>| {
            let part = part.clone();
            ranges.clone().into_iter().map(move |range| [&part[..], &[range]].concat()).collect::<Vec<_>>()
        };
        boxes = boxes.iter().flat_map(with).collect();
    }
    boxes
}

/// Up to two cuts of an axis, anywhere.
fn any_parts<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    let mut rng = Rng::new(7300 + given.index as u64);
    let cuts: Vec<Vec<usize>> = shape(&given.spec)
        .iter()
        .map(|&extent| {
            let mut cuts: Vec<usize> = (0..rng.range(0, 2)).map(|_| rng.range(0, extent)).collect();
            cuts.sort_unstable();
            cuts
        })
        .collect();
    in_type!(given.element_type, E => expect_whole::<E, S>(subject, &given.spec, &cuts, 7400))
}

/// Cuts at multiples of what the subject says, along every axis that has one.
fn parts_between_tiles<S: Subject>(subject: &S, given: &Given) -> Result<(), Unsupported> {
    let problem = given.spec.problem(given.element_type);
    let Some(grain) = subject.grain(&problem) else { return Ok(()) };
    let mut rng = Rng::new(7500 + given.index as u64);
    let cuts: Vec<Vec<usize>> = shape(&given.spec)
        .iter()
        .zip(&grain)
        .map(|(&extent, &grain)| match (extent - 1) / grain {
            0 => Vec::new(),
            most => vec![grain * rng.range(1, most)],
        })
        .collect();
    in_type!(given.element_type, E => {
        let mut whole = Whole::<E, S>::of(subject, &given.spec, 7600)?;
        for queries in boxes(shape(&given.spec), &cuts) {
            whole.part(queries)?.expect_bits(&whole);
        }
        Ok(())
    })
}

/// A whole and what a subject makes of it, forward and backward.
struct Whole<'a, E: Element, S> {
    subject: &'a S,
    case: Case,
    attended: Attended<E>,
    gradients: Inputs<Tensor<E>>,
    /// Which keys beyond those needed a part holds.
    rng: Rng,
}

/// A part of it, with the whole's output and log-sum-exp there.
struct Part<E: Element> {
    queries: Vec<Range<usize>>,
    keys: Vec<Range<usize>>,
    case: Case,
    out: Tensor<E>,
    lse: Tensor<f32>,
    attended: Attended<E>,
    gradients: Inputs<Tensor<E>>,
    /// For messages.
    what: String,
}

impl<'a, E: Element, S: Subject> Whole<'a, E, S> {
    fn of(subject: &'a S, spec: &Spec, seed: u64) -> Result<Self, Unsupported> {
        let case = spec.draw(seed);
        let attended = subject.attend(&spec.problem(E::TYPE), &case.rounded::<E>())?;
        let gradients = gradients(subject, &case, (&attended.out, &attended.lse))?;
        Ok(Whole { subject, case, attended, gradients, rng: Rng::new(seed) })
    }

    /// What the subject makes of the part with these queries.
    fn part(&mut self, queries: Vec<Range<usize>>) -> Result<Part<E>, Unsupported> {
        let Case { spec, inputs, d_out, d_lse } = &self.case;
        let (part, keys) = part(spec, &queries, &mut self.rng);
        let name = self.subject.name();
        let what = format!("{name} {}: queries {queries:?}, keys {keys:?} of {spec:?}", E::TYPE);
        let inputs = Inputs {
            query: narrow(&inputs.query, &queries),
            key: narrow(&inputs.key, &keys),
            value: narrow(&inputs.value, &keys),
            additional: inputs.additional.clone(),
        };
        let d_lse = d_lse.as_ref().map(|d_lse| narrow(d_lse, &queries));
        let case = Case { spec: part, inputs, d_out: narrow(d_out, &queries), d_lse };
        let (out, lse) = (narrow(&self.attended.out, &queries), narrow(&self.attended.lse, &queries));
        let attended = self.subject.attend(&case.spec.problem(E::TYPE), &case.rounded::<E>())?;
        let gradients = gradients(self.subject, &case, (&out, &lse))?;
        Ok(Part { queries, keys, case, out, lse, attended, gradients, what })
    }
}

/// The gradients of a case with this output and log-sum-exp.
fn gradients<E: Element, S: Subject>(
    subject: &S,
    case: &Case,
    (out, lse): (&Tensor<E>, &Tensor<f32>),
) -> Result<Inputs<Tensor<E>>, Unsupported> {
    let (d_out, d_lse): (Tensor<E>, _) = (case.d_out.cast(), case.d_lse.as_ref().map(Tensor::cast));
    let saved = Saved { out, lse, d_out: &d_out, d_lse: d_lse.as_ref() };
    subject.differentiate(&case.spec.problem(E::TYPE), &case.rounded::<E>(), &saved)
}

/// Allowed errors of output and log-sum-exp, and of each gradient.
fn allowed<E: Element>(
    case: &Case,
    weights: Weights,
    (out, lse): (&Tensor<E>, &Tensor<f32>),
) -> ([f64; 2], Vec<f64>) {
    let (d_out, d_lse): (Tensor<E>, _) = (case.d_out.cast(), case.d_lse.as_ref().map(Tensor::cast));
    let saved = Saved { out, lse, d_out: &d_out, d_lse: d_lse.as_ref() };
    let problem = case.spec.problem(E::TYPE);
    let (exact, naive) = naive_gradients(&problem, &case.rounded::<E>(), &saved, Weights::Unrounded);
    let each = exact.roles().zip(naive.roles());
    let of_gradient = |((_, exact), (_, naive))| gradient_tolerance::<E>(exact, naive, Weights::Unrounded);
    (Expected::<E>::of(case).tolerances(weights), each.map(of_gradient).collect())
}

/// Holds the parts between cuts of each axis to the whole: to the bit where the subject promises it for any cut, else by what both
/// may err.
///
/// # Errors
/// When the subject does not take a part.
pub fn expect_whole<E: Element, S: Subject>(
    subject: &S,
    spec: &Spec,
    cuts: &[Vec<usize>],
    seed: u64,
) -> Result<(), Unsupported> {
    let mut whole = Whole::<E, S>::of(subject, spec, seed)?;
    let is_exact =
        subject.grain(&spec.problem(E::TYPE)).is_some_and(|grain| grain.iter().all(|&grain| grain == 1));
    let saved = (&whole.attended.out, &whole.attended.lse);
    let (tolerances, of_gradients) = allowed(&whole.case, whole.attended.weights, saved);
    let mut sums = whole.case.inputs.map(|tensor| Tensor::<f64>::zeros(tensor.shape()).expect("small"));
    let mut of_sums = of_gradients.clone();
    for queries in boxes(shape(spec), cuts) {
        let part = whole.part(queries)?;
        if is_exact {
            part.expect_bits(&whole);
        }
        let Part { queries, keys, what, .. } = &part;
        let (own, of_own_gradients) = allowed(&part.case, part.attended.weights, (&part.out, &part.lse));
        let [of_out, of_lse] = std::array::from_fn(|i| tolerances[i] + own[i]);
        assert_close(&format!("out, {what}"), &part.attended.out, &part.out, of_out);
        assert_close(&format!("lse, {what}"), &part.attended.lse, &part.lse, of_lse);
        let of_query = of_gradients[0] + of_own_gradients[0];
        let d_query = narrow(&whole.gradients.query, queries);
        assert_close(&format!("d_query, {what}"), &part.gradients.query, &d_query, of_query);
        of_sums.iter_mut().zip(of_own_gradients).for_each(|(allowed, more)| *allowed += more);
        add(&mut sums.query, queries, &part.gradients.query);
        add(&mut sums.key, keys, &part.gradients.key);
        add(&mut sums.value, keys, &part.gradients.value);
        let additional = sums.additional.iter_mut().flatten().zip(part.gradients.additional.iter().flatten());
        additional.for_each(|(sum, share)| add(sum, &[], share));
    }
    for (((role, sum), (_, expected)), allowed) in sums.roles().zip(whole.gradients.roles()).zip(of_sums) {
        let what = format!("sum over parts cut at {cuts:?}, {} {} of {spec:?}", subject.name(), E::TYPE);
        assert_close(&format!("gradient of {role}, {what}"), sum, expected, allowed);
    }
    Ok(())
}

impl<E: Element> Part<E> {
    /// Output, log-sum-exp and gradient of the queries are the whole's to the bit.
    fn expect_bits<S>(&self, whole: &Whole<'_, E, S>) {
        let what = &self.what;
        assert!(same_bits(&self.attended.out, &self.out), "other bits of out, {what}");
        assert!(same_bits(&self.attended.lse, &self.lse), "other bits of lse, {what}");
        let d_query = narrow(&whole.gradients.query, &self.queries);
        assert!(same_bits(&self.gradients.query, &d_query), "other bits of d_query, {what}");
    }
}
