//! Products of rows that do not see each other, so large that they leave f32: what multiplies whole tiles has them, and must not let
//! them through to gradients that their weights of 0 would make NaN of.
//!
//! Each query has a component of its own, shared with few others. The gradient of its output is large in that one alone, and so is
//! the value of every key there that none of them sees.

use natten::{ElementType, Problem};

use super::oracle::{Arrangements, Expected};
use super::{Check, Scope};
use crate::dense::visible;
use crate::in_type;
use crate::spec::{Case, Spec};
use crate::subject::Subject;

/// The size of gradients and of values, whose product f32 does not hold.
const LARGE: [f64; 2] = [1e18, 1e21];

/// Windows on a line that is longer than any tile, and on boxes.
pub fn checks<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope) {
    if !scope.is_kernel() || !scope.backward {
        return;
    }
    let all = [Spec::na(&[140], &[9]), Spec::na(&[3, 6, 8], &[2, 3, 3]).dilation(&[1, 2, 1])];
    for (nth, spec) in all.iter().enumerate() {
        // Products of f16 are no larger than f32 holds.
        for given in scope.alone(spec, nth).into_iter().filter(|given| given.element_type != ElementType::F16)
        {
            let (at, spec, element_type) = (Arrangements::all(given.place), given.spec, given.element_type);
            let name = format!("oracle hidden overflows {nth} {element_type}");
            checks.push(Check::new(name, spec.clone(), move |subject: &S| {
                in_type!(element_type, E => {
                    let case = overflowing(&spec, &spec.problem(element_type));
                    Expected::<E>::of(&case).once(true).check_backward(subject, at)
                })
            }));
        }
    }
}

fn overflowing(spec: &Spec, problem: &Problem) -> Case {
    let mut case = spec.draw(9960);
    let (width, seen) = (spec.head_dim_v, visible(problem));
    let [of_gradient, of_value] = LARGE;
    for (i, x) in case.d_out.as_mut_slice().iter_mut().enumerate() {
        let (query, component) = (i / width, i % width);
        *x = if query % width == component { of_gradient } else { 0.0 };
    }
    for (i, x) in case.inputs.value.as_mut_slice().iter_mut().enumerate() {
        let (key, component) = (i / width, i % width);
        let mut own = (component..seen.len()).step_by(width);
        if own.all(|query| !seen[query].contains(&key)) {
            *x = of_value;
        }
    }
    case
}
