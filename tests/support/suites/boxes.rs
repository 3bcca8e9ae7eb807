//! Tiles cut into boxes of many kinds, not only those that a planner would choose for a problem: masks, the walk over tiles, and
//! which tiles every query sees whole all depend on them.

use super::oracle::{Arrangements, Expected};
use super::{Check, Scope};
use crate::in_type;
use crate::spec::Spec;
use crate::subject::Subject;

/// Cuts that each kernel gets.
const CUTS: u64 = 6;

/// For a kernel that works on tiles: windows with everything that shapes them, and windows that tiles fit into.
pub fn checks<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope) {
    if !scope.is_kernel() || !scope.has_tiles() || !scope.forward {
        return;
    }
    let narrow = Spec::na(&[4, 5, 13], &[2, 4, 5])
        .stride(&[1, 2, 3])
        .dilation(&[1, 1, 2])
        .causal(&[false, false, true])
        .additional(5);
    let wide = Spec::na(&[5, 6, 11], &[4, 5, 10]);
    for nth in 0..CUTS {
        let spec = if nth % 2 == 0 { &narrow } else { &wide };
        for given in scope.alone(spec, nth as usize) {
            let (at, spec, element_type) = (Arrangements::all(given.place), given.spec, given.element_type);
            let name = format!("oracle boxes {nth} {element_type}");
            checks.push(Check::new(name, spec.clone(), move |subject: &S| {
                let subject = subject.in_boxes(nth).expect("a kernel on tiles can be asked for boxes");
                let case = spec.draw(5100 + nth);
                in_type!(element_type, E => Expected::<E>::of(&case).once(true).check_forward(&subject, at))
            }));
        }
    }
}
