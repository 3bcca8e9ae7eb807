//! What must hold to the bit: foreign NaN have no influence, threads change nothing, views of any strides agree.

mod support;

use natten_core::{
    Backend, Element, MergeCall, Output, Partials, Saved, Tensor, TensorView, bf16, f16, reference,
};
use natten_cpu::{Cpu, CpuError, Isa, MAX_THREADS};
use support::{Case, assert_close_as, backward, forward, random};

fn each_isa(run: impl Fn(&Cpu)) {
    for isa in Isa::every_available() {
        run(&Cpu::new().isa(isa).unwrap());
    }
}

fn bits<E: Element>(tensor: &Tensor<E>) -> Vec<u64> {
    tensor.as_slice().iter().map(|x| x.to_f64().to_bits()).collect()
}

/// A key and value of one token are poisoned. Queries that do not see it are as before, to the bit where the same
/// path is taken and closely otherwise; those that see it are as in the reference.
fn poison<E: Element>(cpu: &Cpu, poison: f32) {
    let case = Case { heads: [2, 2], ..Case::new(&[9, 12], &[3, 5]) };
    let clean = case.operands::<E>(3);
    let (problem, inputs) = (clean.problem(), clean.inputs());
    let (before, _) = forward(cpu, problem, &inputs);
    let mut operands = case.operands::<E>(3);
    let at = ((4 * 12 + 6) * 2 + 1) * 8;
    operands.key.as_mut_slice()[at..at + 8].fill(E::from_f32(poison));
    operands.value.as_mut_slice()[at..at + 8].fill(E::from_f32(poison));
    let inputs = operands.inputs();
    let (after, _) = forward(cpu, problem, &inputs);
    let expected = reference::forward(problem, &inputs);
    let rows = before.as_slice().chunks(8).zip(after.as_slice().chunks(8));
    for (i, (before, after)) in rows.enumerate() {
        let (token, head) = (i / 2, i % 2);
        let (x, y) = (token / 12, token % 12);
        let sees = head == 1 && x.abs_diff(4) <= 1 && y.abs_diff(6) <= 2;
        for c in 0..8 {
            let wanted = expected.out.as_slice()[i * 8 + c];
            assert_eq!(after[c].to_f64().is_nan(), wanted.is_nan(), "query {x} {y} head {head}");
            if !sees {
                let close = (before[c].to_f64() - after[c].to_f64()).abs() < 0.02;
                assert!(close, "query {x} {y} head {head} changed");
                let multiplies_pairs = matches!(
                    cpu.chosen_isa(),
                    Ok(Isa::Avx512Bf16 | Isa::Avx512Bf16Short | Isa::Avx512Bf16Long)
                );
                if E::TYPE.size_bytes() == 4 || !multiplies_pairs {
                    assert_eq!(before[c], after[c], "query {x} {y} head {head} changed");
                }
            }
        }
    }
}

#[test]
fn what_is_not_seen_has_no_influence() {
    each_isa(|cpu| {
        for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            poison::<f32>(cpu, number);
            poison::<bf16>(cpu, number);
            poison::<f16>(cpu, number);
        }
    });
}

#[test]
fn gradients_of_what_is_not_seen_stay_clean() {
    each_isa(|cpu| {
        let case = Case::new(&[9, 12], &[3, 5]);
        let mut operands = case.operands::<f32>(3);
        let (out, lse) = forward(cpu, operands.problem(), &operands.inputs());
        let at = (4 * 12 + 6) * 8;
        operands.d_out.as_mut_slice()[at..at + 8].fill(f32::NAN);
        let saved = Saved { out: out.view(), lse: lse.view(), d_out: operands.d_out.view(), d_lse: None };
        let grads = backward(cpu, operands.problem(), &operands.inputs(), &saved);
        let expected = reference::backward(operands.problem(), &operands.inputs(), &saved);
        for (found, expected) in [(&grads.query, &expected.query), (&grads.key, &expected.key)] {
            for (found, expected) in found.as_slice().iter().zip(expected.as_slice()) {
                assert_eq!(found.is_nan(), expected.is_nan());
            }
        }
    });
}

#[test]
fn padding_of_head_dims_does_not_leak() {
    // The neighbouring head is NaN throughout; odd widths read nothing of it.
    each_isa(|cpu| {
        for head_dim in [5, 40, 72, 80, 96] {
            let case = Case { heads: [2, 2], head_dims: [head_dim; 2], ..Case::new(&[4, 9], &[3, 3]) };
            let mut operands = case.operands::<f32>(5);
            for tensor in [&mut operands.query, &mut operands.key, &mut operands.value] {
                for row in tensor.as_mut_slice().chunks_mut(2 * head_dim) {
                    row[head_dim..].fill(f32::NAN);
                }
            }
            let (out, _) = forward(cpu, operands.problem(), &operands.inputs());
            for row in out.as_slice().chunks(2 * head_dim) {
                assert!(row[..head_dim].iter().all(|x| x.is_finite()));
                assert!(row[head_dim..].iter().all(|x| x.is_nan()));
            }
        }
    });
}

#[test]
fn threads_do_not_change_a_bit() {
    let case = Case { heads: [4, 2], additional: 3, head_dims: [24, 20], ..Case::new(&[40, 44], &[7, 9]) };
    let operands = case.operands::<f32>(1);
    let (problem, inputs) = (operands.problem(), operands.inputs());
    let results = [1, 2, 5].map(|threads| {
        let cpu = Cpu::new().threads(threads).unwrap();
        let (out, lse) = forward(&cpu, problem, &inputs);
        let saved = Saved { out: out.view(), lse: lse.view(), d_out: operands.d_out.view(), d_lse: None };
        let grads = backward(&cpu, problem, &inputs, &saved);
        let mut all = bits(&out);
        all.extend(bits(&lse));
        for grad in [&grads.query, &grads.key, &grads.value] {
            all.extend(bits(grad));
        }
        all
    });
    assert!(results[0] == results[1] && results[0] == results[2]);
}

/// Asking for as many threads as a number can hold must return.
#[test]
fn threads_are_limited() {
    for threads in [MAX_THREADS + 1, 70_000, usize::MAX] {
        let error = Cpu::new().threads(threads).unwrap_err();
        assert_eq!(error, CpuError::TooManyThreads { threads, max: 1024 });
        assert_eq!(error.to_string(), format!("{threads} threads, at most 1024 are started"));
    }
}

/// Heads before tokens in memory, and tokens backwards: the same numbers as from contiguous tensors.
#[test]
fn strided_views_agree_to_the_bit() {
    each_isa(|cpu| {
        let case = Case { heads: [3, 3], head_dims: [10, 10], batch: 2, ..Case::new(&[6, 11], &[3, 5]) };
        let operands = case.operands::<f32>(9);
        let (problem, inputs) = (operands.problem(), operands.inputs());
        let (expected, lse) = forward(cpu, problem, &inputs);
        let heads_first = |tensor: &Tensor<f32>| {
            let moved =
                tensor.view().swap_axes(1, 3).and_then(|view| view.swap_axes(2, 3)).unwrap().to_tensor();
            assert_eq!(moved.shape(), [2, 3, 6, 11, 10]);
            moved
        };
        let [q, k] = [heads_first(&operands.query), heads_first(&operands.key)];
        fn back(tensor: &Tensor<f32>) -> TensorView<'_, f32> {
            let strides = [1980, 110, 10, 660, 1];
            TensorView::strided(tensor.as_slice(), 0, &[2, 6, 11, 3, 10], &strides).unwrap()
        }
        // The values lie backwards along the second axis.
        let mut reversed = vec![0f32; operands.value.as_slice().len()];
        for (i, chunk) in operands.value.as_slice().chunks(330).enumerate() {
            for (z, row) in chunk.chunks(30).enumerate() {
                reversed[i * 330 + (10 - z) * 30..][..30].copy_from_slice(row);
            }
        }
        let value =
            TensorView::strided(&reversed, 300, &[2, 6, 11, 3, 10], &[1980, 330, -30, 10, 1]).unwrap();
        let strided = natten_core::Inputs::new(back(&q), back(&k), value);
        let (found, found_lse) = forward(cpu, problem, &strided);
        assert_eq!((bits(&expected), bits(&lse)), (bits(&found), bits(&found_lse)));
    });
}

#[test]
fn merging_matches_the_reference() {
    let shape = [2, 5, 3, 7];
    for infinite in [false, true] {
        let outs = [1, 2, 3].map(|seed| random::<f32>(&shape, seed));
        let mut lses = [4, 5, 6].map(|seed| random::<f32>(&shape[..3], seed));
        if infinite {
            lses[0].as_mut_slice().fill(f32::NEG_INFINITY);
            lses.iter_mut().for_each(|lse| lse.as_mut_slice()[4] = f32::NEG_INFINITY);
        }
        let partials = Partials {
            outs: outs.iter().map(Tensor::view).collect(),
            lses: lses.iter().map(Tensor::view).collect(),
        };
        let mut out = Tensor::<f32>::zeros(&shape).unwrap();
        let mut lse = Tensor::<f32>::zeros(&shape[..3]).unwrap();
        let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
        Cpu::new().merge(MergeCall::new(partials.clone(), output).unwrap()).unwrap();
        let expected = reference::merge(&partials);
        assert_close_as(&out, &expected.out, 3e-7, "merged out");
        assert_close_as(&lse, &expected.lse, 3e-7, "merged lse");
    }
}

#[test]
fn huge_scales_give_no_nan_of_their_own() {
    each_isa(|cpu| {
        let case = Case { scale: Some(1e30), ..Case::new(&[12], &[5]) };
        let operands = case.operands::<f32>(2);
        let (out, _) = forward(cpu, operands.problem(), &operands.inputs());
        assert!(out.as_slice().iter().all(|x| x.is_finite()));
    });
}

/// Components below the normal numbers count as 0 where tiles multiply, as the unit has it, and nowhere else.
#[test]
fn tiles_take_numbers_below_the_normal_ones_for_zero() {
    let keys_apart_by = |small: f32, isa| {
        let case = Case { head_dims: [2, 2], scale: Some(256.0), ..Case::attention(1, 2, false) };
        let mut operands = case.operands::<bf16>(1);
        // The second key's score is 256 if its component counts.
        operands.query.as_mut_slice().copy_from_slice(&[1.0 / small, 0.0].map(bf16::from_f32));
        operands.key.as_mut_slice().copy_from_slice(&[0.0, 0.0, small, 0.0].map(bf16::from_f32));
        operands.value.as_mut_slice().copy_from_slice(&[1.0, 0.0, 3.0, 0.0].map(bf16::from_f32));
        let cpu = Cpu::new().isa(isa).unwrap();
        forward(&cpu, operands.problem(), &operands.inputs()).0.as_slice()[0].to_f32()
    };
    let normal = f32::MIN_POSITIVE;
    let tiles = [Isa::Amx, Isa::AmxModel].into_iter().filter(|isa| isa.is_available());
    for isa in tiles {
        assert_eq!(keys_apart_by(normal * 1024.0, isa), 3.0, "{isa}");
        assert_eq!(keys_apart_by(normal / 4.0 * 3.0, isa), 2.0, "{isa}");
    }
    assert_eq!(keys_apart_by(normal / 4.0 * 3.0, Isa::Scalar), 3.0);
}
