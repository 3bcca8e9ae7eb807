//! Tiles cut into boxes of many kinds, not only those that a planner would choose for a problem: masks, the walk over tiles, and
//! which tiles every query sees whole all depend on them.

use super::oracle::{Arrangements, Expected};
use super::{Check, Scope};
use crate::in_type;
use crate::spec::Spec;
use crate::subject::Subject;

/// Cuts that each kernel gets, and those of them that meet scores which are far from 0.
const CUTS: u64 = 21;
const FAR: u64 = 7;

/// For a kernel that works on tiles whose boxes can be asked for: windows with everything that shapes them, windows that tiles fit
/// into, whole axes beside others, and tiles that some rows of a box see whole.
pub fn checks<S: Subject>(checks: &mut Vec<Check<S>>, scope: &Scope) {
    if !scope.is_kernel() || !scope.has_tiles() || !scope.forward && !scope.backward {
        return;
    }
    let all = [
        Spec::na(&[4, 5, 13], &[2, 4, 5])
            .stride(&[1, 2, 4])
            .dilation(&[1, 1, 2])
            .causal(&[false, false, true])
            .additional(5),
        // Of residues one is a token longer than the other, along every axis: now and then that token is a box of its own.
        Spec::na(&[5, 7, 9], &[2, 2, 3]).dilation(&[2, 3, 2]),
        Spec::na(&[5, 6, 11], &[4, 5, 10]),
        // Tiles of more keys along each axis than are seen of it.
        Spec::na(&[4, 5, 6], &[1, 2, 1]).stride(&[1, 2, 1]),
        Spec::na(&[5, 3, 12], &[5, 3, 8]),
        Spec::na(&[12, 3, 4], &[8, 3, 4]),
        Spec::na(&[4, 5, 12], &[4, 5, 12]).causal(&[true, true, false]),
    ];
    for nth in 0..CUTS {
        let spec = &all[nth as usize % all.len()];
        for given in scope.alone(spec, nth as usize) {
            let (at, spec, element_type) = (Arrangements::apart(given.place), given.spec, given.element_type);
            let name = format!("oracle boxes {nth} {element_type}");
            let is_forward = scope.forward;
            checks.push(Check::new(name, spec.clone(), move |subject: &S| {
                // Hopper's backward passes have no boxes that can be asked for.
                let Some(subject) = subject.in_boxes(nth) else { return Ok(()) };
                let case = spec.draw(5100 + nth);
                let case = if is_forward && nth >= CUTS - FAR { case.with_large_scale() } else { case };
                in_type!(element_type, E => {
                    let expected = Expected::<E>::of(&case).once(true);
                    if is_forward { expected.check_forward(&subject, at) } else { expected.check_backward(&subject, at) }
                })
            }));
        }
    }
}
