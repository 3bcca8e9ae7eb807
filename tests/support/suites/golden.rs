//! Arrays that others computed: NATTEN's own in f32, and a dense autograd's in f64 for what NATTEN refuses; and forwards of
//! scales that are beyond what users should ask for, as users did.

use natten::{Element, Saved, Tensor};

use super::oracle::{Expected, gradient_tolerance, naive_gradients};
use super::{Check, Scope, Suite};
use crate::compare::{assert_close, each_within};
use crate::golden::{Golden, files, read};
use crate::in_type;
use crate::subject::{Subject, Unsupported};
use crate::tolerance::rounding;

/// Each file in its own type.
pub fn suite<S: Subject>(scope: &Scope) -> Suite<S> {
    let mut checks = Vec::new();
    if scope.is_kernel() {
        return Suite { name: "golden", checks };
    }
    let files = files(&scope.golden);
    assert_eq!(files.len(), 54, "golden files");
    for path in files {
        let name = path.file_stem().expect("a file").to_string_lossy().into_owned();
        checks.push(Check::new(format!("golden {name}"), "", move |subject| {
            let golden = read(&path);
            in_type!(golden.element_type, E => match &golden.gradients {
                Some(gradients) => check::<E, S>(subject, &golden, gradients),
                None => of_vast_scale::<E, S>(subject, &golden),
            })
        }));
    }
    Suite { name: "golden", checks: scope.sampled(checks) }
}

/// Both sides err, each by as much as any backend may.
fn check<E: Element, S: Subject>(
    subject: &S,
    golden: &Golden,
    gradients: &[Tensor<f64>; 3],
) -> Result<(), Unsupported> {
    let what = |tensor: &str| format!("{} {} {tensor}", subject.name(), golden.file);
    let problem = golden.case.spec.problem(E::TYPE);
    let inputs = golden.case.rounded::<E>();
    let expected = Expected::<E>::of(&golden.case);
    let found = subject.attend(&problem, &inputs)?;
    let [out_error, lse_error] = expected.tolerances(found.weights);
    assert_close(&what("out"), &found.out, &golden.out, 2.0 * out_error);
    assert_close(&what("lse"), &found.lse, &golden.lse, 2.0 * lse_error);

    let (out, lse) = (expected.forward().out.cast(), expected.forward().lse.cast());
    let (d_out, d_lse) = (golden.case.d_out.cast(), golden.case.d_lse.as_ref().map(Tensor::cast));
    let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: d_lse.as_ref() };
    let found = subject.differentiate(&problem, &inputs, &saved)?;
    let weights = subject.backward_weights(&problem, &inputs.map(Tensor::view));
    let (exact, naive) = naive_gradients(&problem, &inputs, &saved, weights);
    let [d_q, d_k, d_v] = gradients;
    let own = [d_q, d_k, d_v].into_iter().chain(golden.additional_gradients.iter().flatten());
    let compared = found.roles().zip(own).zip(exact.roles().zip(naive.roles()));
    for (((role, found), wanted), ((_, exact), (_, naive))) in compared {
        assert_close(
            &what(&format!("gradient of {role}")),
            found,
            wanted,
            2.0 * gradient_tolerance::<E>(exact, naive, weights),
        );
    }
    Ok(())
}

/// Where a scale leaves one key all weight, or scores are 0 whatever it is, results are exact but for how they are stored: no
/// tolerance that grows with the scores says so.
fn of_vast_scale<E: Element, S: Subject>(subject: &S, golden: &Golden) -> Result<(), Unsupported> {
    let what = |tensor: &str| format!("{} {} {tensor}", subject.name(), golden.file);
    let found = subject.attend(&golden.case.spec.problem(E::TYPE), &golden.case.rounded::<E>())?;
    let near = |allowed: f64| move |exact: f64| 8.0 * allowed * exact.abs().max(1.0);
    let sums = f64::from(f32::EPSILON);
    each_within(&what("out"), &found.out, &golden.out, near(rounding::<E>())).expect("a vast scale");
    each_within(&what("lse"), &found.lse, &golden.lse, near(sums)).expect("a vast scale");
    Ok(())
}
