//! Scores that rise from tile to tile, so that what weights are relative to must move again and again: to a little above what it
//! was, or far away, of every row of a tile or of some.
//!
//! A score is a step that all keys of a part of the axis share, plus a small number of the key's own, largest for one key of the
//! part, so that of the lanes that share a row one alone has seen it. Both are exact whatever the unit, and so is their sum.

use natten::{Inputs, Tensor};

use super::oracle::{Arrangements, Expected};
use super::{Check, Scope};
use crate::in_type;
use crate::spec::{Case, Spec};
use crate::subject::Subject;

/// How scores rise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rise {
    /// By 16 from part to part.
    Near,
    /// By 2^31.
    Far,
    /// By 2^31 for some rows, down by as much for the others.
    Parted,
}

/// Rows that rise, by head: all, and either half of sixteen neighbours, which a warp holds apart.
const ROWS: [fn(usize) -> bool; 3] = [|_| true, |row| row % 16 < 8, |row| row % 16 >= 8];

/// Keys that every query sees, and windows; on tiles the first are whole tiles, the others begin and end inside of some. The
/// scale is the largest power of two with which all kernels begin near 0.
pub fn checks<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope) {
    if !scope.is_kernel() || !scope.forward {
        return;
    }
    // The largest tiles of keys are two parts.
    let part = if scope.has_tiles() { 64 } else { 4 };
    let whole = Spec::attention(3 * part / 2, 7 * part + 12, false);
    let windows = Spec::na(&[9 * part / 2], &[5 * part / 2]);
    // Of a warp's rows some see nothing of a tile in which others go far.
    let narrow = Spec::na(&[9 * part / 2], &[(27 * part / 64).max(2)]);
    // Behind two parts, where all scores are near, or from the first on.
    let all = [
        (&whole, Rise::Near, 2),
        (&windows, Rise::Near, 2),
        (&whole, Rise::Far, 2),
        (&windows, Rise::Far, 2),
        (&narrow, Rise::Far, 0),
        (&narrow, Rise::Parted, 0),
    ];
    for (nth, (spec, rise, behind)) in all.into_iter().enumerate() {
        let scale = if rise == Rise::Near { 1.0 } else { 32768.0 };
        let spec = spec.clone().heads(ROWS.len(), 1).scale(scale);
        for given in scope.alone(&spec, nth) {
            let (at, spec, element_type) = (Arrangements::all(given.place), given.spec, given.element_type);
            let name = format!("oracle rising {rise:?} {nth} {element_type}");
            checks.push(Check::new(name, spec.clone(), move |subject: &S| {
                in_type!(element_type, E => {
                    let case = rising(&spec, rise, Parts { tokens: part, behind });
                    Expected::<E>::of(&case).once(true).check_forward(subject, at)
                })
            }));
        }
    }
}

/// How keys are parted.
#[derive(Clone, Copy)]
struct Parts {
    /// Keys of a part.
    tokens: usize,
    /// Parts before the first step.
    behind: usize,
}

impl Parts {
    /// Steps up to a key.
    fn steps(self, token: usize) -> usize {
        (token / self.tokens + 1).saturating_sub(self.behind)
    }
}

/// Queries have one component for the step and one for the key's own number; where rows are too short for both, the step's alone.
fn rising(spec: &Spec, rise: Rise, parts: Parts) -> Case {
    // What a query has of a step, and a key of each.
    let (step, unit) = match rise {
        Rise::Near => (1.0, 16.0),
        Rise::Far | Rise::Parted => (256.0, 256.0),
    };
    let drawn = spec.draw(6200);
    let dim = spec.head_dim;
    let heads = ROWS.len();
    let query = |i: usize| {
        let (row, component) = (i / dim, i % dim);
        let rises = ROWS[row % heads](row / heads);
        match component {
            0 if rises => step,
            0 if rise == Rise::Parted => -step,
            // Rows that do not go far stay at 0.
            1 if rises || rise != Rise::Far => 1.0,
            _ => 0.0,
        }
    };
    let key = |i: usize| {
        let (token, component) = (i / dim, i % dim);
        match component {
            0 => unit * parts.steps(token) as f64,
            // Before the first step far scores are 0.
            1 if rise != Rise::Near && parts.steps(token) == 0 => 0.0,
            1 if token % parts.tokens == parts.tokens / 3 => 9.0,
            1 => (token * 7 % 5) as f64 - 2.0,
            _ => 0.0,
        }
    };
    let Inputs { query: q, key: k, .. } = &drawn.inputs;
    let inputs = Inputs {
        query: Tensor::from_fn(q.shape(), query).expect("its shape"),
        key: Tensor::from_fn(k.shape(), key).expect("its shape"),
        ..drawn.inputs.clone()
    };
    Case { inputs, ..drawn }
}
