//! Arrays that others computed: NATTEN's own in f32, and a dense autograd's in f64 for what NATTEN refuses.

use natten::{Element, ElementType, Saved, Tensor};

use super::oracle::{Expected, gradient_tolerance, naive_gradients};
use super::{Check, Scope, Suite};
use crate::compare::assert_close;
use crate::golden::{files, read};
use crate::in_type;
use crate::subject::{Subject, Unsupported};

/// Each file in single precision.
pub fn suite<S: Subject>(scope: &Scope) -> Suite<S> {
    let mut checks = Vec::new();
    if scope.is_kernel() {
        return Suite { name: "golden", checks };
    }
    let files = files(&scope.golden);
    assert_eq!(files.len(), 51, "golden files");
    for path in files {
        let name = path.file_stem().expect("a file").to_string_lossy().into_owned();
        checks.push(Check::new(
            format!("golden {name}"),
            "",
            move |subject| in_type!(ElementType::F32, E => check::<E, S>(subject, &path)),
        ));
    }
    Suite { name: "golden", checks }
}

/// Both sides err, each by as much as any backend may.
fn check<E: Element, S: Subject>(subject: &S, path: &std::path::Path) -> Result<(), Unsupported> {
    let golden = read(path);
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
    let [d_q, d_k, d_v] = &golden.gradients;
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
