//! Results of the CPU do not depend on the number of threads, bit for bit; nor on where the pool comes from.

use natten::cpu::{Cpu, Isa};
use natten::{Element, ElementType, Inputs, Saved, Tensor, bf16, f16};
use natten_tests::compare::same_bits;
use natten_tests::subject::Attended;
use natten_tests::{Spec, Subject};

/// Work from which on a call is certainly spread over threads: smaller ones run on the caller's, and show nothing.
const SPREAD_FLOPS: f64 = 1e7;

fn specs() -> Vec<Spec> {
    let large = vec![
        Spec::na(&[1300], &[9]).heads(8, 4).dims(16, 16).batch(2),
        Spec::na(&[66, 50], &[9, 11]).dims(16, 16),
        Spec::na(&[40, 44], &[7, 9]).heads(4, 2).dims(40, 24).causal(&[true, false]),
        Spec::na(&[9, 18, 20], &[3, 3, 5]).dilation(&[1, 2, 2]).heads(6, 2).dims(8, 8).additional(3),
        Spec::na(&[50, 51], &[6, 6]).stride(&[2, 3]).heads(2, 1).dims(32, 32).additional(70),
        Spec::attention(300, 340, true).heads(4, 2).dims(32, 8),
        Spec::packed(&[90, 0, 200, 1], &[110, 4, 150, 40], false).heads(8, 2).dims(16, 16),
    ];
    for spec in &large {
        assert!(spec.problem(ElementType::F32).useful_flops() > SPREAD_FLOPS, "too small: {spec:?}");
    }
    let on_the_callers_thread = Spec::na(&[24], &[1]).dims(64, 64);
    [large, vec![on_the_callers_thread]].concat()
}

/// What a problem is run on: drawing numbers takes longer than running it.
struct Drawn<E> {
    spec: Spec,
    inputs: Inputs<Tensor<E>>,
    d_out: Tensor<E>,
    d_lse: Option<Tensor<f32>>,
}

fn drawn<E: Element>() -> Vec<Drawn<E>> {
    let draw = |(seed, spec): (usize, Spec)| {
        let case = spec.draw(seed as u64);
        let (inputs, d_out) = (case.rounded::<E>(), case.d_out.cast());
        Drawn { spec, inputs, d_out, d_lse: case.d_lse.as_ref().map(Tensor::cast) }
    };
    specs().into_iter().enumerate().map(draw).collect()
}

/// Gradients and output, and the log-sum-exp.
type Results<E> = (Vec<Tensor<E>>, Tensor<f32>);

fn run<E: Element>(cpu: &Cpu, drawn: &Drawn<E>) -> Results<E> {
    let Drawn { spec, inputs, d_out, d_lse } = drawn;
    let problem = spec.problem(E::TYPE);
    let Attended { out, lse, .. } = cpu.attend(&problem, inputs).expect("the CPU takes every problem");
    let saved = Saved { out: &out, lse: &lse, d_out, d_lse: d_lse.as_ref() };
    let gradients = cpu.differentiate(&problem, inputs, &saved).expect("the CPU takes every problem");
    let mut all = vec![gradients.query, gradients.key, gradients.value];
    all.extend(gradients.additional.into_iter().flatten());
    all.push(out);
    (all, lse)
}

/// Other backends give the same as one; each is told by what it is.
fn same_results<E: Element>(drawn: &[Drawn<E>], cpu: &Cpu, others: &[(&str, &Cpu)]) {
    for drawn in drawn {
        let expected = run(cpu, drawn);
        for (what, other) in others {
            let found = run(other, drawn);
            let same = expected.0.iter().zip(&found.0).all(|(a, b)| same_bits(a, b));
            assert!(same && same_bits(&expected.1, &found.1), "{what}, {}: {:?}", E::TYPE, drawn.spec);
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (single, half, brain) = (drawn::<f32>(), drawn::<f16>(), drawn::<bf16>());
    for isa in Isa::every_available() {
        let cpu = |threads| Cpu::new().isa(isa).and_then(|cpu| cpu.threads(threads)).expect("available");
        let others = [2, 5, 16].map(|threads| (format!("{isa} with {threads} threads"), cpu(threads)));
        let others = others.each_ref().map(|(what, cpu)| (what.as_str(), cpu));
        same_results(&single, &cpu(1), &others);
        same_results(&half, &cpu(1), &others);
        same_results(&brain, &cpu(1), &others);
    }
}

#[test]
fn the_callers_pool_gives_the_same_bits() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("three threads");
    let own = Cpu::new().threads(1).expect("one thread");
    let drawn = drawn::<f32>();
    pool.install(|| same_results(&drawn, &own, &[("inside a pool of three", &Cpu::new())]));
    same_results(&drawn, &own, &[("the global pool", &Cpu::new())]);
}

#[test]
fn calls_from_many_threads_do_not_disturb_each_other() {
    let cpu = Cpu::new().threads(2).expect("two threads");
    let drawn = drawn::<f32>();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                same_results(&drawn, &Cpu::new().threads(1).expect("one thread"), &[("shared", &cpu)])
            });
        }
    });
}
