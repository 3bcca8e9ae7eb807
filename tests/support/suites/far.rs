//! Scores far from 0, on every kind of window: kernels take other references for them, and with these another way over the keys.
//!
//! Large scales on small queries and keys make ordinary weights. So do scores that all come to lie far from 0 together: they are
//! exact, for a component of their own adds the same to each and the others are quarters.

use natten::{Element, ElementType, Inputs, Output, Saved, Tensor};

use super::oracle::{Arrangements, Expected, place_inputs, placed_gradients};
use super::scope::Given;
use super::{Check, Scope};
use crate::compare::{assert_close, each_within, largest};
use crate::dense::Weights;
use crate::in_type;
use crate::place::{Place, Placed};
use crate::spec::{Case, Spec};
use crate::subject::{Subject, Unsupported};
use crate::tolerance::rounding;

/// All of them.
pub fn checks<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope) {
    let specs = windows(scope.has_tiles());
    let given = if scope.is_kernel() { scope.every(&specs) } else { scope.problems(&specs) };
    for Given { index, element_type, spec, place } in given {
        let at = Arrangements::apart(place);
        let (is_forward, is_backward) = (scope.forward, scope.backward && !scope.has_tiles());
        let own = spec.clone();
        let large = format!("oracle large scale {index} {element_type}");
        checks.push(Check::new(large, spec.clone(), move |subject| {
            in_type!(element_type, E => {
                let expected = Expected::<E>::of(&own.draw(9700 + index as u64).with_large_scale()).once(index % 2 == 0);
                if is_forward {
                    expected.check_forward(subject, at)?;
                }
                if is_backward { expected.check_backward(subject, at) } else { Ok(()) }
            })
        }));
        if is_forward {
            let own = spec.clone();
            checks.push(Check::new(
                format!("oracle far references {index} {element_type}"),
                spec,
                move |subject| in_type!(element_type, E => far_references::<E, S>(subject, &own, index, at)),
            ));
        }
    }
    if scope.is_kernel() && scope.forward && scope.has_tiles() {
        spikes(checks, scope);
    }
    if scope.backward {
        for given in scope.alone(&Spec::attention(128, 60, false).dims(16, 16).scale(COARSE), 1) {
            let Given { element_type, spec, place, .. } = given;
            let name = format!("oracle coarse log-sum-exps {element_type}");
            checks.push(Check::new(
                name,
                spec.clone(),
                move |subject| in_type!(element_type, E => coarse_statistics::<E, S>(subject, &spec, place)),
            ));
        }
        // In f64 a log-sum-exp of f32 is not coarse but wrong.
        let is_exact = scope.types().next() == Some(ElementType::F64);
        for given in scope.alone(&Spec::attention(20, 7, false).dims(16, 16).scale(1.0), 2) {
            let Given { element_type, spec, place, .. } = given;
            if is_exact || element_type == ElementType::F64 {
                continue;
            }
            checks.push(Check::new(
                format!("oracle just coarse log-sum-exps {element_type}"),
                spec.clone(),
                move |subject| in_type!(element_type, E => edge_of_coarse::<E, S>(subject, &spec, place)),
            ));
        }
    }
}

/// Every kind of window: all at once; from the end; residues of two lengths and a last tile that is moved back by one; whole axes;
/// sequences.
fn windows(has_tiles: bool) -> Vec<Spec> {
    if !has_tiles {
        return vec![
            Spec::na(&[3, 6, 7], &[2, 3, 3])
                .stride(&[1, 2, 3])
                .dilation(&[1, 2, 2])
                .causal(&[true, false, true]),
            Spec::attention(9, 12, true).from_end().heads(2, 1).additional(3).scale(-0.5),
        ];
    }
    vec![
        Spec::na(&[5, 7, 23], &[2, 3, 5])
            .stride(&[1, 2, 3])
            .dilation(&[2, 2, 2])
            .causal(&[true, true, true])
            .heads(2, 1)
            .additional(70),
        Spec::attention(70, 97, true).from_end().heads(2, 1).additional(5).scale(-0.5),
        Spec::na(&[520], &[64]).stride(&[3]).dilation(&[2]),
        Spec::na(&[12, 36], &[9, 36]).causal(&[true, false]).heads(2, 2).batch(2),
        Spec::packed(&[70, 0, 3], &[40, 5, 130], true).heads(2, 1),
        Spec::na(&[5, 7, 9], &[5, 4, 3]).causal(&[true, true, false]).stride(&[2, 3, 1]).additional(2),
    ]
}

impl Case {
    /// The same scores, from queries and keys that are small and a scale that is large.
    pub(super) fn with_large_scale(mut self) -> Self {
        let scale = self.spec.scale.unwrap_or(1.0 / (self.spec.head_dim as f32).sqrt());
        self.spec.scale = Some(scale * 2f32.powi(22));
        let less =
            |tensor: &mut Tensor<f64>| tensor.as_mut_slice().iter_mut().for_each(|x| *x *= 2f64.powi(-11));
        less(&mut self.inputs.query);
        less(&mut self.inputs.key);
        if let Some([keys, _]) = &mut self.inputs.additional {
            less(keys);
        }
        self
    }

    /// Rows have one of eight components, of which each is large for one key in 64, larger from one to the next by a step. In turn:
    /// of one eight of 32 rows at a time, after a first tile in which none is.
    fn with_spikes(mut self, step: f64, in_turn: bool) -> Self {
        let dim = self.spec.head_dim;
        let component = |row: usize| if in_turn { row / 8 % 4 * 2 + row % 2 } else { row % 8 };
        let query = |i: usize| f64::from(u8::from(i % dim == component(i / dim)));
        let key = |i: usize| {
            let (token, component) = (i / dim, i % dim);
            let (tile, at) = (token / 64, (component * 9 + token / 64 * 21 + 3) % 64);
            let has_turn = !in_turn || tile > 0 && (tile - 1) % 4 == component / 2;
            if component < 8 && has_turn && token % 64 == at { step * (1 + tile) as f64 } else { 0.0 }
        };
        let Inputs { query: q, key: k, .. } = &self.inputs;
        let (q, k) = (Tensor::from_fn(q.shape(), query), Tensor::from_fn(k.shape(), key));
        (self.inputs.query, self.inputs.key) = (q.expect("its shape"), k.expect("its shape"));
        self
    }

    /// Scores of quarters and, with the first component, [`FAR`] more, all of them numbers of f32.
    fn with_far_scores(mut self) -> Self {
        let sign = self.spec.scale.unwrap_or(1.0).signum();
        self.spec.scale = Some(sign);
        let width = self.spec.head_dim;
        // The more components, the less each: weights stay apart whatever their number.
        let size = 4.0 * (4.0 / width as f64).sqrt().max(0.25);
        let round = |tensor: &mut Tensor<f64>, first: f64| {
            let each = tensor.as_mut_slice().iter_mut().enumerate();
            each.for_each(|(i, x)| *x = if i % width == 0 { first } else { (size * *x).round() / 4.0 });
        };
        round(&mut self.inputs.query, FAR.sqrt());
        round(&mut self.inputs.key, FAR.sqrt());
        if let Some([keys, _]) = &mut self.inputs.additional {
            round(keys, FAR.sqrt());
        }
        self
    }
}

/// In each tile of keys one has all of a row's weight, each row's another one and far above those before: what a lane overlooks, no
/// other lane of its row has seen.
fn spikes<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope) {
    // A little less than a power of two.
    let ln_2 = 0.99999 * std::f32::consts::LN_2;
    // Far above; so far that references are far from 0; and by so many powers of two as f16 just has not.
    let all = [(1.0, 100.0, false), (131_072.0, 100.0, false), (ln_2, 16.0, false), (1.0, 100.0, true)];
    for (nth, (scale, step, in_turn)) in all.into_iter().enumerate() {
        for Given { element_type, spec, place, .. } in
            scope.alone(&Spec::attention(70, 364, false).scale(scale), nth)
        {
            let name = format!("oracle spikes {nth} {element_type}");
            checks.push(Check::new(name, spec.clone(), move |subject| {
                in_type!(element_type, E => {
                    let expected = Expected::<E>::of(&spec.draw(9850).with_spikes(step, in_turn)).once(true);
                    expected.check_forward(subject, Arrangements::all(place))
                })
            }));
        }
    }
}

/// A power of two, so that a log-sum-exp is a number of f32, in natural units: in powers of two it is coarse.
const COARSE: f32 = 134_217_728.0;
/// A power of 4 beyond what kernels keep near.
const FAR: f64 = 65536.0;

/// Out and log-sum-exp where every score is far from 0. Who multiplies rows by the scale before the products has scores that are as
/// exact as they are far.
fn far_references<E: Element, S: Subject>(
    subject: &S,
    spec: &Spec,
    index: usize,
    at: Arrangements,
) -> Result<(), Unsupported> {
    let case = spec.draw(9800 + index as u64).with_far_scores();
    let (problem, inputs) = (case.spec.problem(E::TYPE), case.rounded::<E>());
    let expected = Expected::<E>::of(&case);
    let placed = place_inputs(&inputs, at.inputs);
    let mut out = Placed::<E>::poisoned(&problem.out_shape(), at.out, true);
    let mut lse = Placed::<f32>::poisoned(&problem.lse_shape(), at.out, false);
    let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
    let weights = subject.forward(&problem, &placed.map(Placed::view), output)?;
    let name = |what: &str| format!("{} {} {what} of far scores of {problem:?}", subject.name(), E::TYPE);
    let [of_out, of_lse] = expected.tolerances(weights);
    // A score is rounded a few times, and with it a weight.
    let of_weights = match weights {
        Weights::InElementType => 0.0,
        Weights::Unrounded => 4.0 * f64::from(f32::EPSILON) * FAR * std::f64::consts::LOG2_E,
    };
    let of_scores = 4.0 * f64::from(f32::EPSILON) * FAR;
    let allowed = of_out + of_weights * largest(&inputs.value);
    assert_close(&name("out"), &out.written("out"), &expected.forward().out, allowed);
    assert_close(&name("lse"), &lse.written("lse"), &expected.forward().lse, of_lse + of_scores);
    Ok(())
}

/// Rows by what their components are.
fn components(shape: &[usize], value: impl Fn(usize, usize) -> f64) -> Tensor<f64> {
    let width = *shape.last().expect("rows");
    Tensor::from_fn(shape, |i| value(i / width, i % width)).expect("its shape")
}

/// Log-sum-exps so far from 0 that they are known to some powers of two alone. One key has all of a query's weight, more than which
/// none can have: the gradient of the log-sum-exp goes through it to the query.
fn coarse_statistics<E: Element, S: Subject>(
    subject: &S,
    spec: &Spec,
    place: Place,
) -> Result<(), Unsupported> {
    let problem = spec.problem(E::TYPE);
    let (scale, keys, dim_v) = (problem.scale(), problem.key_tokens(), spec.head_dim_v);
    let (size, step) = (2f64.powi(10), 2f64.powi(-14));
    let sign = |row: usize| if (row / 8 + row / 32).is_multiple_of(2) { 1.0 } else { -1.0 };
    // Of each component another key's is the largest, and the smallest.
    let number = |key: usize, component: usize| (100 + (key * 7 + component * 23 + 11) % keys) as f64;
    let own = |row: usize| row % spec.head_dim;
    let best = |row: usize| {
        let score = |&key: &usize| sign(row) * number(key, own(row));
        (0..keys).max_by(|a, b| score(a).total_cmp(&score(b))).expect("some key")
    };
    let d_lse = |row: usize| 2f64.powi(-6) * (1 + row % 3) as f64;
    let value = |key: usize, component: usize| ((key + component) % 5) as f64 - 2.0;
    let drawn = spec.draw(9900).rounded::<E>();
    let (queries, values) = (drawn.query.shape(), drawn.value.shape());
    let inputs = Inputs::new(
        components(queries, |row, at| if at == own(row) { sign(row) * size } else { 0.0 }).cast::<E>(),
        components(drawn.key.shape(), |key, at| step * number(key, at)).cast::<E>(),
        Tensor::from_fn(values, |i| E::from_f64(value(i / dim_v, i % dim_v))).expect("its shape"),
    );
    let out = |i: usize| E::from_f64(value(best(i / dim_v), i % dim_v));
    let out = Tensor::from_fn(&problem.out_shape(), out).expect("small");
    let lse = |row: usize| (scale * sign(row) * size * step * number(best(row), own(row))) as f32;
    let lse = Tensor::from_fn(&problem.lse_shape(), lse).expect("small");
    let d_out = Tensor::from_fn(&problem.out_shape(), |i| E::from_f64((i % 3) as f64 - 1.0)).expect("small");
    let d_lses = Tensor::from_fn(&problem.lse_shape(), |row| d_lse(row) as f32).expect("small");
    let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: Some(&d_lses) };
    let found = placed_gradients(subject, &problem, &inputs, &saved, Arrangements::all(place))?;
    let d_query = components(queries, |row, at| scale * d_lse(row) * step * number(best(row), at));
    let d_key = components(inputs.key.shape(), |key, at| {
        let rows = (0..problem.query_tokens()).filter(|&row| best(row) == key && own(row) == at);
        rows.map(|row| scale * d_lse(row) * sign(row) * size).sum()
    });
    let near = |exact: f64| 8.0 * rounding::<E>() * exact.abs();
    for (found, wanted, of) in [(&found.query, d_query, "query"), (&found.key, d_key, "key")] {
        let what = format!("{} {} gradient of {of} of {problem:?}", subject.name(), E::TYPE);
        each_within(&what, &found.written(&what), &wanted, near).expect("coarse log-sum-exps");
    }
    Ok(())
}

/// Components of a query and of a key whose product is a little less than [`EDGE`], in every element type.
const EDGE_OF_QUERY: [f64; 3] = [4096.0, 64.0, 1.0];
const EDGE_OF_KEY: [f64; 3] = [11264.0, 5920.0, 94.5];
/// What f32 makes of the product as a log-sum-exp. In powers of two it makes 2^26 of it, from where on they are coarse, and of the product
/// itself the next smaller number.
const EDGE: f64 = 46_516_320.0;

/// Log-sum-exps that are just coarse, of either sign: the first key has all of each query's weight.
fn edge_of_coarse<E: Element, S: Subject>(subject: &S, spec: &Spec, place: Place) -> Result<(), Unsupported> {
    let problem = spec.problem(E::TYPE);
    let is_positive = |row: usize| row.is_multiple_of(2);
    // Queries of either sign have components of their own: one finds the other keys at 0, the other as far again.
    let query = |row: usize, at: usize| match (is_positive(row), at) {
        (true, 0..3) => EDGE_OF_QUERY[at],
        (false, 3..6) => -EDGE_OF_QUERY[at - 3],
        _ => 0.0,
    };
    let key = |key: usize, at: usize| match (key, at) {
        (0, 0..6) => EDGE_OF_KEY[at % 3],
        (_, 3..6) => 2.0 * EDGE_OF_KEY[at - 3],
        _ => 0.0,
    };
    let d_lse = |row: usize| 2f64.powi(-6) * (1 + row % 3) as f64;
    let value = |key: usize, component: usize| ((key + component) % 5) as f64 - 2.0;
    let drawn = spec.draw(9950).rounded::<E>();
    let inputs = Inputs::new(
        components(drawn.query.shape(), query).cast::<E>(),
        components(drawn.key.shape(), key).cast::<E>(),
        components(drawn.value.shape(), value).cast::<E>(),
    );
    let out = components(&problem.out_shape(), |_, at| value(0, at)).cast::<E>();
    let signed = |row: usize| if is_positive(row) { EDGE } else { -EDGE };
    let lse = Tensor::from_fn(&problem.lse_shape(), |row| signed(row) as f32).expect("small");
    let d_out = Tensor::from_fn(&problem.out_shape(), |i| E::from_f64((i % 3) as f64 - 1.0)).expect("small");
    let d_lses = Tensor::from_fn(&problem.lse_shape(), |row| d_lse(row) as f32).expect("small");
    let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: Some(&d_lses) };
    let found = placed_gradients(subject, &problem, &inputs, &saved, Arrangements::all(place))?;
    let d_query = components(drawn.query.shape(), |row, at| d_lse(row) * key(0, at));
    let d_key = components(drawn.key.shape(), |of, at| {
        let terms = (0..problem.query_tokens()).map(|row| d_lse(row) * query(row, at));
        if of == 0 { terms.sum() } else { 0.0 }
    });
    let near = |exact: f64| 8.0 * rounding::<E>() * exact.abs();
    for (found, wanted, of) in [(&found.query, d_query, "query"), (&found.key, d_key, "key")] {
        let what = format!("{} {} gradient of {of} of {problem:?}", subject.name(), E::TYPE);
        each_within(&what, &found.written(&what), &wanted, near).expect("log-sum-exps that are just coarse");
    }
    Ok(())
}
