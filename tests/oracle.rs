//! Every backend against the f64 reference: all problems of the list, all element types, tensors anywhere in
//! memory.

use natten::{Element, bf16, f16};
use natten_tests::suites::list;
use natten_tests::suites::oracle::{Arrangements, Expected};
use natten_tests::{Arrangement, Rng, Spec, Subject, for_each_subject};

for_each_subject!(windows, shapes, attention, drawn, element_types, arrangements, empty_batch, huge_scale);

fn check<E: Element, S: Subject>(subject: &S, specs: &[Spec], seed: u64) {
    for (i, spec) in specs.iter().enumerate() {
        let expected = Expected::<E>::of(&spec.draw(seed + i as u64));
        expected.check_forward(subject, Arrangements::all(Arrangement::Contiguous));
        expected.check_backward(subject, Arrangements::all(Arrangement::Contiguous));
    }
}

fn windows<S: Subject>(subject: &S) {
    check::<f32, S>(subject, &list::windows(), 1000);
}

fn shapes<S: Subject>(subject: &S) {
    check::<f32, S>(subject, &list::shapes(), 2000);
}

fn attention<S: Subject>(subject: &S) {
    check::<f32, S>(subject, &list::attention(), 3000);
}

fn drawn<S: Subject>(subject: &S) {
    check::<f32, S>(subject, &list::random(4, 60), 4000);
}

/// Half precision on every third problem, each type starting elsewhere, and f64 on fewer.
fn element_types<S: Subject>(subject: &S) {
    let all = [list::windows(), list::shapes(), list::attention(), list::random(5, 30)].concat();
    let every =
        |step: usize, first: usize| -> Vec<Spec> { all.iter().skip(first).step_by(step).cloned().collect() };
    check::<f16, S>(subject, &every(3, 0), 5000);
    check::<bf16, S>(subject, &every(3, 1), 6000);
    check::<f64, S>(subject, &every(7, 2), 7000);
}

/// Each arrangement for everything, then mixtures.
fn arrangements<S: Subject>(subject: &S) {
    let mut rng = Rng::new(8);
    let specs = [
        Spec::na(&[9], &[4]).heads(4, 2).dims(8, 5).batch(2).additional(3),
        Spec::na(&[4, 5], &[3, 2]).heads(2, 1).dims(40, 40).batch(2).causal(&[true, false]),
        Spec::na(&[3, 4, 5], &[2, 3, 3]).heads(2, 2).dims(16, 24).batch(2).additional(2),
        Spec::na(&[6, 7], &[3, 3]).heads(4, 1).dims(1, 1).dilation(&[2, 1]),
        Spec::attention(7, 10, true).heads(4, 2).dims(72, 9).batch(3),
        Spec::packed(&[3, 0, 6], &[5, 2, 4], false).heads(2, 1).dims(12, 12),
    ];
    for (i, spec) in specs.iter().enumerate() {
        let case = spec.draw(8000 + i as u64);
        let (single, half) = (Expected::<f32>::of(&case), Expected::<bf16>::of(&case));
        let check = |at: Arrangements| {
            single.check_forward(subject, at);
            single.check_backward(subject, at);
            half.check_forward(subject, at);
            half.check_backward(subject, at);
        };
        Arrangement::ALL.into_iter().for_each(|arrangement| check(Arrangements::all(arrangement)));
        for _ in 0..6 {
            let mut pick = || rng.pick(&Arrangement::ALL);
            let at =
                Arrangements { inputs: [pick(), pick(), pick(), pick()], out: pick(), gradients: pick() };
            check(at);
        }
    }
}

fn empty_batch<S: Subject>(subject: &S) {
    check::<f32, S>(subject, &list::empty(), 9000);
    check::<f16, S>(subject, &list::empty(), 9100);
}

/// Only forward: the log-sum-exp is stored in f32, and `exp(S - lse)` of a backward would magnify its rounding.
fn huge_scale<S: Subject>(subject: &S) {
    for (i, scale) in [1e4, -1e4, 1e20, -1e30].into_iter().enumerate() {
        for spec in [Spec::na(&[21], &[6]), Spec::na(&[5, 6], &[3, 4]).causal(&[true, false]).heads(2, 1)] {
            let case = spec.dims(16, 16).scale(scale).draw(9500 + i as u64);
            Expected::<f32>::of(&case).check_forward(subject, Arrangements::all(Arrangement::Contiguous));
        }
    }
}

/// The measured tolerances must leave no room for a mistake: a few roundings of the element type, no more.
#[test]
fn tolerances_are_tight() {
    fn check<E: Element>(specs: &[Spec], most: f64) {
        for (i, spec) in specs.iter().enumerate() {
            let [out, lse] = Expected::<E>::of(&spec.draw(i as u64)).relative_tolerances();
            assert!(out <= most && lse <= 5e-6, "{} {spec:?}: out {out:e}, lse {lse:e}", E::TYPE);
        }
    }
    let specs = [list::windows(), list::attention()].concat();
    check::<f32>(&specs, 1e-5);
    check::<f16>(&specs, 2e-3);
    check::<bf16>(&specs, 2e-2);
    check::<f64>(&specs, 1e-13);
}
