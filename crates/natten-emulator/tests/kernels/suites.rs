//! The suites that every backend must pass, on the emulated device: lists of problems, arrangements in memory, and
//! the arrays that NATTEN and a dense f64 autograd made.

use natten::{Element, Saved, Tensor, bf16, f16};
use natten_tests::compare::largest;
use natten_tests::golden::{files, read};
use natten_tests::suites::list;
use natten_tests::suites::oracle::{Arrangements, Expected};
use natten_tests::{Arrangement, Rng, Spec, Subject, assert_close};

use crate::subject::OnEmulator;

fn check<E: Element>(specs: &[Spec], seed: u64) {
    let subject = OnEmulator::new();
    for (i, spec) in specs.iter().enumerate() {
        let expected = Expected::<E>::of(&spec.draw(seed + i as u64));
        expected.check_forward(&subject, Arrangements::all(Arrangement::Contiguous));
        expected.check_backward(&subject, Arrangements::all(Arrangement::Contiguous));
    }
}

#[test]
fn windows() {
    check::<f32>(&list::windows(), 1000);
}

#[test]
fn shapes() {
    check::<f32>(&list::shapes(), 2000);
}

#[test]
fn attention() {
    check::<f32>(&list::attention(), 3000);
}

#[test]
fn half_precision() {
    let all = [list::windows(), list::shapes(), list::attention(), list::random(5, 30)].concat();
    let every = |first: usize| -> Vec<Spec> { all.iter().skip(first).step_by(3).cloned().collect() };
    check::<f16>(&every(0), 5000);
    check::<bf16>(&every(1), 6000);
}

#[test]
fn empty_batch() {
    check::<f32>(&list::empty(), 9000);
}

/// Only forward: a backward would magnify the rounding of the stored log-sum-exp.
#[test]
fn huge_scale() {
    let subject = OnEmulator::new();
    for (i, scale) in [1e4, -1e4, 1e20, -1e30].into_iter().enumerate() {
        for spec in [Spec::na(&[21], &[6]), Spec::na(&[5, 6], &[3, 4]).causal(&[true, false]).heads(2, 1)] {
            let case = spec.dims(16, 16).scale(scale).draw(9500 + i as u64);
            Expected::<f32>::of(&case).check_forward(&subject, Arrangements::all(Arrangement::Contiguous));
        }
    }
}

/// Views at any strides and offsets, each arrangement for everything and then mixed.
#[test]
fn arrangements() {
    let subject = OnEmulator::new();
    let mut rng = Rng::new(8);
    let specs = [
        Spec::na(&[9], &[4]).heads(4, 2).dims(8, 5).batch(2).additional(3),
        Spec::na(&[4, 5], &[3, 2]).heads(2, 1).dims(40, 40).batch(2).causal(&[true, false]),
        Spec::na(&[3, 4, 5], &[2, 3, 3]).heads(2, 2).dims(16, 24).batch(2).additional(2),
        Spec::packed(&[3, 0, 6], &[5, 2, 4], false).heads(2, 1).dims(12, 12),
    ];
    for (i, spec) in specs.iter().enumerate() {
        let case = spec.draw(8000 + i as u64);
        let (single, half) = (Expected::<f32>::of(&case), Expected::<bf16>::of(&case));
        let mixed = |rng: &mut Rng| {
            let mut pick = || rng.pick(&Arrangement::ALL);
            Arrangements { inputs: [pick(), pick(), pick(), pick()], out: pick(), gradients: pick() }
        };
        let each = Arrangement::ALL.into_iter().map(Arrangements::all);
        for at in each.chain((0..3).map(|_| mixed(&mut rng))).collect::<Vec<_>>() {
            single.check_forward(&subject, at);
            single.check_backward(&subject, at);
            half.check_forward(&subject, at);
            half.check_backward(&subject, at);
        }
    }
}

#[test]
fn golden() {
    let subject = OnEmulator::new();
    let files = files();
    assert_eq!(files.len(), 50, "golden files");
    for path in &files {
        let golden = read(path);
        let what = |tensor: &str| format!("{} {tensor}", golden.file);
        let problem = golden.case.spec.problem(natten::ElementType::F32);
        let inputs = golden.case.rounded::<f32>();
        let (out, lse) = subject.attend(&problem, &inputs);
        assert_close(&what("out"), &out, &golden.out, 2e-5);
        assert_close(&what("lse"), &lse, &golden.lse, 2e-5);

        let d_out: Tensor<f32> = golden.case.d_out.cast();
        let d_lse: Option<Tensor<f32>> = golden.case.d_lse.as_ref().map(Tensor::cast);
        let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: d_lse.as_ref() };
        let found = subject.differentiate(&problem, &inputs, &saved);
        let [d_q, d_k, d_v] = &golden.gradients;
        let mut pairs = vec![(&found.query, d_q), (&found.key, d_k), (&found.value, d_v)];
        if let (Some(found), Some(expected)) = (&found.additional, &golden.additional_gradients) {
            pairs.extend(found.iter().zip(expected));
        }
        for (found, expected) in pairs {
            assert_close(&what("a gradient"), found, expected, 1e-4 * largest(expected).max(1.0));
        }
    }
}
