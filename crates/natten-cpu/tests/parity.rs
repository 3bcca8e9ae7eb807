//! Every instruction set against the f64 reference, on a broad set of problems.

mod support;

use natten_core::{bf16, f16};
use natten_cpu::{Cpu, Isa};
use support::{Case, check};

/// Each instruction set that this machine has, and the model of one that it may not have.
fn each_isa(run: impl Fn(&Cpu)) {
    for isa in Isa::every_available() {
        run(&Cpu::new().isa(isa).unwrap());
    }
}

fn check_all(cases: &[Case]) {
    each_isa(|cpu| {
        for case in cases {
            check::<f32>(cpu, case, true);
            check::<bf16>(cpu, case, true);
            check::<f16>(cpu, case, true);
        }
    });
}

#[test]
fn one_axis() {
    let mut cases = Vec::new();
    for tokens in [1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 64] {
        for window in [1, 2, 3, 5, 8, 13] {
            if window <= tokens {
                cases.push(Case::new(&[tokens], &[window]));
                cases.push(Case { is_causal: vec![true], ..Case::new(&[tokens], &[window]) });
                let stride = vec![window.min(3)];
                cases.push(Case { stride, ..Case::new(&[tokens], &[window]) });
            }
        }
    }
    check_all(&cases);
}

#[test]
fn two_and_three_axes() {
    let flags = |case: Case| Case {
        stride: case.kernel_size.iter().map(|&w| w.min(2)).collect(),
        is_causal: case.tokens.iter().enumerate().map(|(i, _)| i == 0).collect(),
        heads: [4, 2],
        additional: 5,
        ..case
    };
    let mut cases = Vec::new();
    for (tokens, window) in [
        (vec![1, 1], vec![1, 1]),
        (vec![7, 9], vec![3, 5]),
        (vec![9, 7], vec![7, 7]),
        (vec![16, 17], vec![5, 4]),
        (vec![1, 20], vec![1, 7]),
        (vec![20, 1], vec![7, 1]),
        (vec![3, 5, 6], vec![2, 3, 3]),
        (vec![4, 8, 9], vec![3, 7, 7]),
        (vec![1, 1, 9], vec![1, 1, 3]),
        (vec![5, 1, 1], vec![3, 1, 1]),
    ] {
        let case = Case::new(&tokens, &window);
        cases.push(flags(case.clone()));
        cases.push(case);
    }
    check_all(&cases);
}

#[test]
fn dilation_that_divides_and_not() {
    let mut cases = Vec::new();
    for (tokens, window, dilation) in [
        (vec![17], vec![3], vec![4]),
        (vec![16], vec![4], vec![4]),
        (vec![11, 13], vec![3, 2], vec![3, 5]),
        (vec![14, 14], vec![7, 7], vec![2, 2]),
        (vec![5, 9, 10], vec![2, 3, 3], vec![2, 3, 2]),
    ] {
        let case = Case { dilation, ..Case::new(&tokens, &window) };
        let causal = vec![true; tokens.len()];
        let stride = vec![2; tokens.len()];
        cases.push(Case { is_causal: causal, stride, additional: 3, ..case.clone() });
        cases.push(case);
    }
    check_all(&cases);
}

#[test]
fn head_dims() {
    let mut cases = Vec::new();
    for head_dim in [1, 5, 8, 40, 64, 72, 80, 96, 128, 200] {
        let case = Case::new(&[6, 11], &[3, 5]);
        cases.push(Case { head_dims: [head_dim, head_dim], ..case.clone() });
        cases.push(Case { head_dims: [head_dim, 33], heads: [2, 1], ..case.clone() });
        cases.push(Case { head_dims: [16, head_dim], heads: [6, 2], ..case });
    }
    check_all(&cases);
}

#[test]
fn additional_keys() {
    let base = Case { heads: [4, 2], batch: 2, ..Case::new(&[6, 9], &[3, 3]) };
    let cases = [0, 1, 5, 130].map(|additional| Case { additional, ..base.clone() });
    check_all(&cases);
    check_all(&[Case { additional: 700, ..Case::new(&[9], &[3]) }]);
}

#[test]
fn attention() {
    let mut cases = Vec::new();
    for (queries, keys) in [(1, 1), (5, 9), (9, 5), (40, 40), (17, 0), (3, 600), (300, 20)] {
        for causal in [false, true] {
            cases.push(Case { heads: [2, 1], ..Case::attention(queries, keys, causal) });
        }
    }
    cases.push(Case { additional: 4, ..Case::attention(6, 0, false) });
    check_all(&cases);
}

#[test]
fn packed_attention() {
    let mut cases = Vec::new();
    for causal in [false, true] {
        let lengths = [vec![3, 0, 17, 1, 8], vec![5, 4, 17, 0, 2]];
        let [queries, keys] = lengths.each_ref().map(|l| l.iter().sum());
        cases.push(Case { packed: Some(lengths), heads: [2, 2], ..Case::attention(queries, keys, causal) });
    }
    check_all(&cases);
}

#[test]
fn windows_larger_than_a_strip() {
    let cases = [
        Case::new(&[1100], &[1030]),
        Case { is_causal: vec![true], ..Case::new(&[1100], &[700]) },
        // Boxes of the stream that end inside what a group of lanes sees.
        Case::new(&[1200], &[67]),
        Case::new(&[40, 30], &[30, 25]),
        Case { heads: [8, 1], ..Case::new(&[30, 30], &[9, 9]) },
    ];
    each_isa(|cpu| {
        cases.iter().for_each(|case| check::<f32>(cpu, case, cpu.chosen_isa() != Ok(Isa::Scalar)))
    });
    each_isa(|cpu| check::<bf16>(cpu, &cases[2], false));
}

#[test]
fn scales() {
    let case = Case { heads: [2, 2], ..Case::new(&[7, 9], &[3, 5]) };
    check_all(&[0.0, -1.5, 1.0, 3.0].map(|scale| Case { scale: Some(scale), ..case.clone() }));
}

#[test]
fn empty_batch() {
    check_all(&[Case { batch: 0, ..Case::new(&[5], &[3]) }]);
}
