//! The reference's gradients against f64 central differences: each operand, through the output and through the
//! log-sum-exp, along random directions.
//!
//! With `f(t) = loss(x + t u)`, `D(h) = (f(h) - f(-h)) / 2h = f'(0) + a h^2 + O(h^4)`. So `(4 D(h/2) - D(h)) / 3`
//! errs by `O(h^4)`, and `|D(h/2) - D(h)|` bounds the `h^2` part that it removes: half a percent of it is far more
//! than what is left at this `h`. Beside it stands the roundoff of f64, magnified by `1 / h`.

use natten::{ElementType, Inputs, Saved, Tensor, reference};
use natten_tests::suites::list;
use natten_tests::{Case, Mask, Rng, Spec};

const STEP: f64 = 1e-3;

/// `<d_out, out> + <d_lse, lse>`, of finite entries: a query without keys contributes its zeros alone.
fn loss(case: &Case, d_lse: Option<&Tensor<f64>>, inputs: &Inputs<Tensor<f64>>) -> f64 {
    let problem = case.spec.problem(ElementType::F64);
    let reference::Forward { out, lse } = reference::forward(&problem, &inputs.map(Tensor::view));
    let lse_part = d_lse.map_or(0.0, |d_lse| inner(d_lse, &lse));
    inner(&case.d_out, &out) + lse_part
}

fn inner(a: &Tensor<f64>, b: &Tensor<f64>) -> f64 {
    let pairs = a.as_slice().iter().zip(b.as_slice());
    pairs.filter(|(_, b)| b.is_finite()).map(|(a, b)| a * b).sum()
}

fn moved(x: &Tensor<f64>, direction: &Tensor<f64>, t: f64) -> Tensor<f64> {
    let (a, b) = (x.as_slice(), direction.as_slice());
    Tensor::from_fn(x.shape(), |i| a[i] + t * b[i]).expect("the shape of a tensor")
}

/// Compares `<gradient, direction>` with the difference quotient of `loss` along it.
fn check(what: &str, analytic: f64, magnitude: f64, loss: impl Fn(f64) -> f64) {
    let quotient = |h: f64| (loss(h) - loss(-h)) / (2.0 * h);
    let (coarse, fine) = (quotient(STEP), quotient(STEP / 2.0));
    let numeric = (4.0 * fine - coarse) / 3.0;
    // Sums of up to a few thousand terms round at some tens of epsilons of their magnitude.
    let roundoff = 100.0 * f64::EPSILON * magnitude / STEP;
    let allowed = 0.005 * (fine - coarse).abs() + roundoff;
    let error = (numeric - analytic).abs();
    assert!(error <= allowed, "{what}: {analytic} but differences give {numeric} (allowed {allowed:e})");
}

type Part = (&'static str, fn(&Inputs<Tensor<f64>>) -> Option<&Tensor<f64>>, Replace);
type Replace = fn(&mut Inputs<Tensor<f64>>, Tensor<f64>);

/// The operands one by one: how to read and how to replace each.
const PARTS: [Part; 5] = [
    ("query", |x| Some(&x.query), |x, t| x.query = t),
    ("key", |x| Some(&x.key), |x, t| x.key = t),
    ("value", |x| Some(&x.value), |x, t| x.value = t),
    (
        "additional keys",
        |x| x.additional.as_ref().map(|pair| &pair[0]),
        |x, t| {
            if let Some(pair) = &mut x.additional {
                pair[0] = t;
            }
        },
    ),
    (
        "additional values",
        |x| x.additional.as_ref().map(|pair| &pair[1]),
        |x, t| {
            if let Some(pair) = &mut x.additional {
                pair[1] = t;
            }
        },
    ),
];

fn gradients(case: &Case, d_lse: Option<&Tensor<f64>>) -> Inputs<Tensor<f64>> {
    let problem = case.spec.problem(ElementType::F64);
    let inputs = case.inputs.map(Tensor::view);
    let reference::Forward { out, lse } = reference::forward(&problem, &inputs);
    let saved = Saved {
        out: out.view(),
        lse: lse.view(),
        d_out: case.d_out.view(),
        d_lse: d_lse.map(|d_lse| d_lse.view()),
    };
    let found = reference::backward(&problem, &inputs, &saved);
    Inputs { query: found.query, key: found.key, value: found.value, additional: found.additional }
}

/// Sum of the magnitudes of what the loss adds up.
fn magnitude(case: &Case) -> f64 {
    let sum = |t: &Tensor<f64>| t.as_slice().iter().map(|x| x.abs()).sum::<f64>();
    10.0 * (sum(&case.d_out) + case.d_lse.as_ref().map_or(0.0, sum) + 1.0)
}

/// Checks every operand of a case along `directions` random directions, and returns how many were checked.
fn check_case(spec: &Spec, seed: u64, directions: usize) -> usize {
    let case = spec.draw(seed);
    let mut rng = Rng::new(seed ^ 0xD1F);
    let mut checked = 0;
    for d_lse in [None, case.d_lse.as_ref()] {
        let found = gradients(&case, d_lse);
        for (name, read, replace) in PARTS {
            let (Some(x), Some(gradient)) = (read(&case.inputs), read(&found)) else { continue };
            if x.as_slice().is_empty() {
                continue;
            }
            for _ in 0..directions {
                let direction = Tensor::from_fn(x.shape(), |_| rng.normal()).expect("the shape of a tensor");
                let along = |t: f64| {
                    let mut inputs = case.inputs.clone();
                    replace(&mut inputs, moved(x, &direction, t));
                    loss(&case, d_lse, &inputs)
                };
                let what = format!("{spec:?}: gradient of {name}, d_lse {}", d_lse.is_some());
                check(&what, inner(&direction, gradient), magnitude(&case), along);
                checked += 1;
            }
        }
    }
    checked
}

#[test]
fn flags_one_by_one_and_together() {
    let specs = [
        Spec::na(&[9], &[4]),
        Spec::na(&[9], &[4]).causal(&[true]),
        Spec::na(&[9], &[4]).stride(&[3]),
        Spec::na(&[9], &[2]).dilation(&[4]),
        Spec::na(&[6], &[3]).heads(4, 2).batch(2),
        Spec::na(&[6], &[3]).heads(3, 1).dims(5, 7),
        Spec::na(&[6], &[3]).additional(4).heads(2, 1),
        Spec::na(&[6], &[3]).scale(0.0).additional(2),
        Spec::na(&[6], &[3]).scale(-1.3),
        Spec::na(&[4, 5], &[3, 2]).causal(&[false, true]).stride(&[2, 1]).additional(1),
        Spec::na(&[3, 4, 5], &[2, 3, 2]).dilation(&[1, 1, 2]).causal(&[true, false, false]).heads(2, 1),
    ];
    let checked: usize = specs.iter().enumerate().map(|(i, spec)| check_case(spec, i as u64, 3)).sum();
    assert_eq!(checked, specs.len() * 3 * 3 * 2 + 3 * 2 * 2 * 3, "three directions of every operand, twice");
}

#[test]
fn plain_and_packed_attention() {
    for (i, spec) in list::attention().iter().enumerate() {
        check_case(spec, 100 + i as u64, 1);
    }
}

#[test]
fn drawn_problems() {
    let specs = list::random(77, 40);
    assert!(specs.iter().any(|spec| spec.additional > 0));
    assert!(specs.iter().all(|spec| matches!(spec.mask, Mask::Neighborhood { .. })));
    for (i, spec) in specs.iter().enumerate() {
        assert!(check_case(spec, 200 + i as u64, 1) >= 6, "{spec:?}");
    }
}

/// Each component of a small problem by itself, where a direction might hide one in the sum.
#[test]
fn every_component() {
    let spec = Spec::na(&[3, 4], &[2, 3]).heads(2, 1).dims(2, 3).additional(2).causal(&[true, false]);
    let case = spec.draw(5);
    let d_lse = case.d_lse.as_ref();
    let found = gradients(&case, d_lse);
    let mut checked = 0;
    for (name, read, replace) in PARTS {
        let x = read(&case.inputs).expect("all five");
        for i in 0..x.as_slice().len() {
            let direction = Tensor::from_fn(x.shape(), |n| f64::from(u8::from(n == i))).expect("its shape");
            let along = |t: f64| {
                let mut inputs = case.inputs.clone();
                replace(&mut inputs, moved(x, &direction, t));
                loss(&case, d_lse, &inputs)
            };
            let analytic = read(&found).expect("all five").as_slice()[i];
            check(&format!("{name}[{i}]"), analytic, magnitude(&case), along);
            checked += 1;
        }
    }
    assert_eq!(checked, 48 + 24 + 36 + 4 + 6);
}
