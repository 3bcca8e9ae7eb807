//! Arrays made by NATTEN itself and by a dense f64 autograd: outputs, log-sum-exps and gradients.

use natten::{Saved, Tensor};
use natten_tests::compare::largest;
use natten_tests::golden::{files, read};
use natten_tests::{Subject, assert_close, for_each_subject};

for_each_subject!(golden);

/// The files are f32 and NATTEN computed in f32.
const FORWARD_TOLERANCE: f64 = 2e-5;
/// Relative to the gradient's largest entry, or 1 where that is smaller.
const GRADIENT_TOLERANCE: f64 = 1e-4;

fn golden<S: Subject>(subject: &S) {
    let (mut with_additional, mut with_d_lse) = (0, 0);
    let files = files();
    assert_eq!(files.len(), 50, "golden files");
    for path in &files {
        let golden = read(path);
        let what = |tensor: &str| format!("{} {} {tensor}", subject.name(), golden.file);
        let problem = golden.case.spec.problem(natten::ElementType::F32);
        let inputs = golden.case.rounded::<f32>();
        let (out, lse) = subject.attend(&problem, &inputs);
        assert_close(&what("out"), &out, &golden.out, FORWARD_TOLERANCE);
        assert_close(&what("lse"), &lse, &golden.lse, FORWARD_TOLERANCE);

        let d_out: Tensor<f32> = golden.case.d_out.cast();
        let d_lse: Option<Tensor<f32>> = golden.case.d_lse.as_ref().map(Tensor::cast);
        let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: d_lse.as_ref() };
        let found = subject.differentiate(&problem, &inputs, &saved);
        let check = |name: &str, found: &Tensor<f32>, expected: &Tensor<f64>| {
            let tolerance = GRADIENT_TOLERANCE * largest(expected).max(1.0);
            assert_close(&what(name), found, expected, tolerance);
        };
        let [d_q, d_k, d_v] = &golden.gradients;
        check("d_q", &found.query, d_q);
        check("d_k", &found.key, d_k);
        check("d_v", &found.value, d_v);
        if let Some(expected) = &golden.additional_gradients {
            let found = found.additional.as_ref().expect("the case has additional keys");
            check("d_add_k", &found[0], &expected[0]);
            check("d_add_v", &found[1], &expected[1]);
        }
        with_additional += usize::from(inputs.additional.is_some());
        with_d_lse += usize::from(d_lse.is_some());
    }
    assert_eq!((with_additional, with_d_lse), (17, 6), "files with additional keys, with d_lse");
}
