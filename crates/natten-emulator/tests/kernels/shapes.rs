//! Shapes, flags and layouts: all that the operator allows, on every kernel.

use natten_core::{Params, bf16, f16, reference};
use natten_cuda::registry::{Facts, Operation, kernels};

use crate::case::{Case, Numbers, OnDevice, Operands, emulated, forward, verify};

fn check(case: Case) {
    let cuda = emulated();
    if let Err(error) = verify::<f32>(&cuda, &case) {
        panic!("{error}\n{case:?}");
    }
}

/// Every element type and row length: each kernel of the registry runs here at least once.
#[test]
fn every_kernel() {
    let cuda = emulated();
    let params = Params::new([1, 3, 3]).dilation([1, 1, 2]).is_causal([false, true, false]);
    let aligned = [(8, 8), (16, 32), (64, 64), (40, 64), (128, 72), (256, 8)];
    let unaligned = [(5, 3), (63, 64), (1, 1), (255, 129), (33, 200)];
    for (head_dim, head_dim_v) in aligned.into_iter().chain(unaligned) {
        let mut case = Case::new([1, 4, 7], params).dims(head_dim, head_dim_v).heads(2, 1);
        case.additional = 1;
        for (name, result) in [
            ("f32", verify::<f32>(&cuda, &case)),
            ("f16", verify::<f16>(&cuda, &case)),
            ("bf16", verify::<bf16>(&cuda, &case)),
        ] {
            assert!(result.is_ok(), "{name} {case:?}: {}", result.unwrap_err());
        }
    }
    let run: Vec<_> = cuda.device().take_counters().into_keys().collect();
    // Kernels on tiles and merges have tests of their own.
    let merges = [Operation::Merge, Operation::MergeBackward];
    let walking = kernels().filter(|kernel| kernel.tile().is_none() && !merges.contains(&kernel.operation));
    let missed: Vec<_> = walking.map(|kernel| kernel.entry).filter(|entry| !run.contains(entry)).collect();
    assert!(missed.is_empty(), "never ran: {missed:?}");
}

/// Windows at both borders, strides, dilations that do not divide, causality, on one to three axes.
#[test]
fn flags_one_by_one() {
    let base = |tokens, params| Case::new(tokens, params).dims(8, 8);
    check(base([1, 1, 1], Params::new([1, 1, 1])));
    check(base([1, 1, 70], Params::new([1, 1, 7])));
    check(base([1, 1, 64], Params::new([1, 1, 64])));
    check(base([1, 1, 65], Params::new([1, 1, 8]).stride([1, 1, 3])));
    check(base([1, 1, 63], Params::new([1, 1, 9]).is_causal([false, false, true])));
    check(base([1, 1, 37], Params::new([1, 1, 6]).stride([1, 1, 6]).is_causal([false, false, true])));
    check(base([1, 1, 41], Params::new([1, 1, 5]).dilation([1, 1, 3])));
    check(base([1, 9, 11], Params::new([1, 4, 5]).stride([1, 2, 1]).dilation([1, 1, 2])));
    check(base([1, 9, 1], Params::new([1, 9, 1]).is_causal([false, true, false])));
    check(base([5, 6, 7], Params::new([3, 3, 3])));
    check(base([4, 7, 9], Params::new([2, 3, 4]).dilation([2, 2, 2]).stride([1, 2, 3])));
    check(base([7, 1, 9], Params::new([3, 1, 3]).is_causal([true, false, false])));
}

/// Everything at once.
#[test]
fn flags_together() {
    let params = Params::new([3, 2, 3]).stride([2, 2, 1]).dilation([2, 3, 1]).is_causal([true, false, true]);
    for (heads, heads_kv, additional, heads_first) in [(2, 1, 5, false), (8, 1, 0, true), (6, 3, 130, false)]
    {
        let mut case = Case::new([7, 8, 5], params.scale(-0.3)).dims(16, 24).heads(heads, heads_kv);
        (case.batch, case.additional, case.heads_first, case.seed) = (2, additional, heads_first, 2);
        check(case);
    }
}

/// Scales that move the lazy maximum: none, negative, huge.
#[test]
fn scales() {
    for scale in [0.0, -1.0, 1.0, 300.0, 1e-4] {
        let case = Case::new([1, 5, 9], Params::new([1, 3, 5]).scale(scale)).dims(32, 32);
        let cuda = emulated();
        let operands = Operands::<f32>::draw(&case);
        let problem = operands.problem(&case.params);
        let (out, lse) = forward(&cuda, &problem, &OnDevice::upload(&cuda, &operands)).unwrap();
        let expected = reference::forward(&problem, &operands.inputs());
        // A score of size 1000 carries an f32 error of 1e-4, which weights then amplify: so does any f32 softmax.
        let tolerance = 4e-6 * f64::from(scale).abs().max(1.0) * 2.0;
        for (found, expected) in [(&out, &expected.out), (&lse, &expected.lse)] {
            for (found, expected) in found.as_slice().iter().zip(expected.as_slice()) {
                let error = (f64::from(*found) - expected).abs();
                assert!(
                    error <= tolerance * expected.abs().max(1.0),
                    "scale {scale}: {found}, not {expected}"
                );
            }
        }
    }
}

/// Small problems drawn at random, in heads-first and heads-last layouts.
#[test]
fn random_problems() {
    let cuda = emulated();
    let mut numbers = Numbers::new(7);
    let mut pick = |n: usize| (((numbers.draw() + 2.0) / 4.0 * n as f64) as usize).min(n - 1);
    for round in 0..60 {
        let limit = [30, 9, 5][pick(3)];
        let mut tokens = [1; 3];
        for extent in tokens.iter_mut().skip(if limit == 30 { 2 } else { usize::from(limit == 9) }) {
            *extent = 1 + pick(limit);
        }
        let dilation = tokens.map(|extent| 1 + pick(extent.min(3)));
        let kernel_size: [usize; 3] = std::array::from_fn(|a| 1 + pick(tokens[a] / dilation[a]));
        let stride = kernel_size.map(|size| 1 + pick(size));
        let is_causal = [pick(3) == 0, pick(3) == 0, pick(3) == 0];
        let params = Params::new(kernel_size).stride(stride).dilation(dilation).is_causal(is_causal);
        let heads_kv = 1 + pick(2);
        let mut case = Case::new(tokens, params).heads(heads_kv * (1 + pick(3)), heads_kv);
        case = case.dims([1, 7, 8, 16, 33, 64][pick(6)], [3, 8, 24, 64][pick(4)]);
        (case.additional, case.batch) = ([0, 0, 3][pick(3)], 1 + pick(2));
        (case.heads_first, case.seed) = (pick(2) == 0, round);
        let result = match pick(3) {
            0 => verify::<f16>(&cuda, &case),
            1 => verify::<bf16>(&cuda, &case),
            _ => verify::<f32>(&cuda, &case),
        };
        assert!(result.is_ok(), "round {round}: {}\n{case:?}", result.unwrap_err());
    }
}
