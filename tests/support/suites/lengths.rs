//! Rows that end in every part of what lanes can hold: not one element more may be read of them, nor one less.
//!
//! Beside every row lie numbers that are none, so that one of them shows in whatever it is multiplied by; and rows end where memory
//! does, so that a device which tells reads of what is not there from others tells even of those that nothing comes of.

use natten::{Element, Saved, Tensor};

use super::oracle::{Arrangements, Expected};
use super::scope::Given;
use super::{Check, Scope};
use crate::in_type;
use crate::place::Arrangement;
use crate::spec::Spec;
use crate::subject::{Subject, Unsupported};

/// So many pairs of lengths a check: a problem takes little time.
const TOGETHER: usize = 4;

/// For every element type that is tried.
pub fn checks<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope) {
    if !scope.forward && !scope.backward {
        return;
    }
    if scope.is_kernel() && scope.has_tiles() && scope.backward {
        in_parts(checks, scope);
    }
    let passes = [scope.forward, scope.backward];
    for element_type in scope.types() {
        for (index, lengths) in scope.lengths().chunks(TOGETHER).enumerate() {
            let lengths = lengths.to_vec();
            let place = scope.place(Arrangement::Gapped, index);
            let name = format!("oracle lengths {index} {element_type}");
            checks.push(Check::new(name, lengths.clone(), move |subject| {
                let each = lengths.iter().map(|&[dim, dim_v]| {
                    // Additional keys have partial sums, which are written in another way.
                    let spec = Spec::na(&[4], &[3]).dims(dim, dim_v).additional(2);
                    let given = Given { index, element_type, spec, place };
                    in_type!(element_type, E => of_lengths::<E, S>(subject, &given, passes))
                });
                let outcomes: Vec<_> = each.collect();
                // A kernel may refuse some.
                if outcomes.iter().any(Result::is_ok) { Ok(()) } else { outcomes.into_iter().collect() }
            }));
        }
    }
}

/// Few keys that meet many queries: partial sums are written pair by pair, and end at any multiple of eight elements. Kernels share
/// these ends among them.
fn in_parts<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope) {
    let longest = scope.longest_row();
    let ends: Vec<usize> = (8..longest).step_by(8).collect();
    let every = if scope.shares() { ends.len().div_ceil(TOGETHER).max(1) } else { 1 };
    for element_type in scope.types() {
        for (index, ends) in ends.chunks(TOGETHER).enumerate().skip(scope.nth() % every).step_by(every) {
            let ends = ends.to_vec();
            let place = scope.place(Arrangement::Contiguous, index);
            let name = format!("oracle lengths of parts {index} {element_type}");
            checks.push(Check::new(name, ends.clone(), move |subject| {
                let each =
                    ends.iter().flat_map(|&end| [(end, longest), (longest, end)]).map(|(dim, dim_v)| {
                        let spec = Spec::attention(300, 5, false).dims(dim, dim_v);
                        in_type!(element_type, E => {
                            let expected = Expected::<E>::of(&spec.draw(95)).once(index.is_multiple_of(2));
                            expected.check_backward(subject, Arrangements::all(place))
                        })
                    });
                let outcomes: Vec<_> = each.collect();
                if outcomes.iter().any(Result::is_ok) { Ok(()) } else { outcomes.into_iter().collect() }
            }));
        }
    }
}

fn of_lengths<E: Element, S: Subject>(
    subject: &S,
    given: &Given,
    [is_forward, is_backward]: [bool; 2],
) -> Result<(), Unsupported> {
    let case = given.spec.draw(90 + given.index as u64);
    let expected = Expected::<E>::of(&case).once(given.index.is_multiple_of(2));
    let at = Arrangements::all(given.place);
    let (problem, inputs) = (given.spec.problem(E::TYPE), case.rounded::<E>());
    let is_number = |tensor: &Tensor<E>| tensor.as_slice().iter().all(|x| x.to_f64().is_finite());
    if is_forward {
        expected.check_forward(subject, at)?;
        let found = subject.attend(&problem, &inputs)?;
        assert!(is_number(&found.out), "{} {:?}: out", subject.name(), given.spec);
    }
    if is_backward {
        expected.check_backward(subject, at)?;
        let forward = expected.forward();
        let (out, lse, d_out) = (forward.out.cast::<E>(), forward.lse.cast::<f32>(), case.d_out.cast::<E>());
        let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None };
        let found = subject.differentiate(&problem, &inputs, &saved)?;
        for (role, gradient) in found.roles() {
            assert!(is_number(gradient), "{} {:?}: gradient of {role}", subject.name(), given.spec);
        }
    }
    Ok(())
}
